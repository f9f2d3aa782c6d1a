"""The journal and its delivery: nothing lost, nothing twice, in order, and nobody waits."""

import contextlib
import dataclasses
import json
import resource
import sqlite3
import threading
import time

import pytest

from oodflow.errors import ResourceError, UserError
from oodflow.tracking import runs
from oodflow.tracking.delivery import Delivery, delivering, log_reports
from oodflow.tracking.journal import (
    Report,
    append_report,
    make_anew,
    new_record,
    read_record,
    read_reports,
    tell,
    write_record,
)

TAGS = {"kind": "train", "dataset": "sketch-shapes", "spec": "0123456789abcdef"}


@pytest.fixture
def store(blank):
    return blank.store()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def report(step: int) -> Report:
    return Report(step, 1_700_000_000_000 + step, {"train/bpd": 8 - step / 10, "valid/bpd": 9.0})


def history(store, run_id: str, name: str) -> list[tuple[int, float, int]]:
    points = store.client.get_metric_history(run_id, name)
    return [(each.step, each.value, each.timestamp) for each in points]


def expected(reports: list[Report], name: str) -> list[tuple[int, float, int]]:
    return [(each.step, each.metrics[name], each.time) for each in reports]


# The file


def test_reports_come_back_as_they_were_with_the_time_of_their_making(path):
    assert read_reports(path) == []
    before = time.time() * 1000
    metrics = {"train/bpd": 0.1 + 0.2, "valid/bpd": float("inf"), "train/dropped_images": 0.0}
    made = [append_report(path, step, metrics) for step in (5, 10)]
    assert read_reports(path) == made
    assert [each.step for each in made] == [5, 10]
    assert all(each.metrics == metrics for each in made)
    assert all(before - 1 <= each.time <= time.time() * 1000 + 1 for each in made)
    assert made[0].time < made[1].time


def test_times_rise_even_where_the_clock_was_set_back(path):
    ahead = int(time.time() * 1000) + 3_600_000
    path.write_text(json.dumps(dataclasses.asdict(Report(5, ahead, {"a": 1.0}))) + "\n")
    assert [append_report(path, step, {"a": 1.0}).time for step in (10, 15)] == [
        ahead + 1,
        ahead + 2,
    ]


@pytest.mark.parametrize(
    "torn", ['{"step": 15, "ti', "{", '{"step": 15, "time": 1, "metrics": {}}']
)
def test_a_last_line_without_its_end_is_none_and_leaves_no_trace(path, torn):
    made = [append_report(path, step, {"a": 1.0}) for step in (5, 10)]
    with path.open("a") as file:
        file.write(torn)
    assert read_reports(path) == made
    made.append(append_report(path, 15, {"a": 2.0}))
    assert read_reports(path) == made
    assert path.read_text().count("\n") == 3 and path.read_text().endswith("\n")


@pytest.mark.parametrize("line", ["", "{", "[]", '{"step": 1}'])
def test_a_damaged_line_in_between_is_named(path, line):
    append_report(path, 5, {"a": 1.0})
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=f"line 2 of {path}"):
        read_reports(path)


def test_a_full_disk_keeps_the_reports_before_and_writing_goes_on_with_space(path):
    made = [append_report(path, step, {"a": 1.0}) for step in (5, 10)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for half of the next line: a real limit of the system, as a full disk is.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        with pytest.raises(ResourceError, match=f"cannot write {path}: "):
            append_report(path, 15, {"a": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_reports(path) == made
    made.append(append_report(path, 15, {"a": 1.0}))
    assert read_reports(path) == made


# The thread


class Recipient:
    """Takes reports, when it is there; a failure may come after some of them were taken."""

    def __init__(self, failures: list[int]) -> None:
        """``failures`` are the numbers of reports taken before each failed attempt fails."""
        self.failures = failures
        self.taken: list[int] = []
        self.unclear: list[bool] = []

    def __call__(self, reports, unclear: bool) -> None:
        self.unclear.append(unclear)
        new = [each.step for each in reports if not unclear or each.step not in self.taken]
        if self.failures:
            self.taken += new[: self.failures.pop(0)]
            raise ConnectionError("nobody\n   there")
        self.taken += new


def test_reports_are_delivered_once_and_in_order_through_failures(monkeypatch):
    monkeypatch.setattr("oodflow.tracking.delivery.PAUSE", 0.01)
    recipient = Recipient([0, 2, 1, 0])
    delivery = Delivery(recipient, [report(1), report(2)])
    for step in range(3, 8):
        delivery.add(report(step))
        time.sleep(0.005)
    assert delivery.wait(5) == 0
    delivery.close()
    assert recipient.taken == [1, 2, 3, 4, 5, 6, 7]
    # Only after a failure it is asked what has arrived.
    assert recipient.unclear[:5] == [False, True, True, True, True]
    assert delivery.failure == "nobody there"


def test_what_a_former_process_has_delivered_is_not_sent_again_whenever_it_comes():
    recipient = Recipient([])
    recipient.taken = [1, 3]
    delivery = Delivery(recipient, [report(1), report(2)], unclear=True)
    assert delivery.wait(5) == 0
    for step in (3, 4):
        delivery.add(report(step))
        assert delivery.wait(5) == 0
    delivery.close()
    assert recipient.taken == [1, 3, 2, 4]


def test_nobody_waits_for_a_recipient_that_hangs():
    hangs = threading.Event()
    delivery = Delivery(lambda reports, unclear: hangs.wait() and None)
    begin = time.monotonic()
    for step in range(100):
        delivery.add(report(step))
    assert time.monotonic() - begin < 0.5
    assert delivery.wait(0.1) == 100
    delivery.close()
    assert time.monotonic() - begin < 1
    hangs.set()


# The store


def test_after_a_resume_only_missing_steps_are_logged(store):
    run_id = runs.start(store, "a run", TAGS)
    reports = [report(step) for step in (3, 6, 9)]
    log_reports(store, run_id, reports[:2], unclear=False)
    log_reports(store, run_id, reports, unclear=True)
    log_reports(store, run_id, reports, unclear=True)
    for name in ("train/bpd", "valid/bpd"):
        assert history(store, run_id, name) == expected(reports, name)


def test_steps_that_a_store_has_are_not_sent_again_whenever_they_were_made(store):
    """A run whose state was lost makes its reports a second time, later."""
    run_id = runs.start(store, "a run", TAGS)
    first = [report(step) for step in (3, 6)]
    log_reports(store, run_id, first, unclear=False)
    second = [dataclasses.replace(each, time=each.time + 10_000) for each in [*first, report(9)]]
    log_reports(store, run_id, second, unclear=True)
    assert history(store, run_id, "valid/bpd") == expected([*first, second[2]], "valid/bpd")


def test_a_request_that_is_carried_out_a_second_time_does_no_harm(store):
    """So does a stopped server, when it goes on, with what lies in its queue."""
    run_id = runs.start(store, "a run", TAGS)
    reports = [report(step) for step in (3, 6)]
    for _ in range(2):
        log_reports(store, run_id, reports, unclear=False)
    assert history(store, run_id, "train/bpd") == expected(reports, "train/bpd")


def test_a_report_of_very_many_metrics_is_completed_after_a_failure_between_its_requests(store):
    run_id = runs.start(store, "a run", TAGS)
    many = Report(3, 1_700_000_000_000, {f"train/part{i}": i / 2000 for i in range(2000)})
    sent = dict(list(many.metrics.items())[:900])
    runs.log_metrics(store, run_id, sent, many.step, many.time)
    log_reports(store, run_id, [many], unclear=True)
    assert runs.get(store, run_id).metrics == many.metrics
    assert len(history(store, run_id, "train/part0")) == 1


def test_a_locked_database_holds_nobody_up_and_has_everything_afterwards(store):
    run_id = runs.start(store, "a run", TAGS)
    reports = [report(step) for step in range(1, 6)]
    file = store.uri.removeprefix("sqlite:///")
    with (
        delivering(store, run_id, [], unclear=False) as deliver,
        contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other,
    ):
        other.execute("begin exclusive")
        begin = time.monotonic()
        for each in reports:
            deliver(each)
        assert time.monotonic() - begin < 0.5
        other.execute("commit")
    assert history(store, run_id, "valid/bpd") == expected(reports, "valid/bpd")


# The record


def recorded(store, **facts):
    use = runs.DatasetUse("sketch-shapes", "train", 64, "0123abcd", "training", "sketch-shapes")
    record = new_record("glow · seed 1", TAGS, {"model.depth": "4"}, (use,), **facts)
    return dataclasses.replace(record, commit="c0ffee", started=1_700_000_000_000)


def test_a_record_comes_back_as_it_was(store, tmp_path):
    record = recorded(store, parent="p", general_run="g", general_spec="fedcba")
    write_record(tmp_path / "run.json", record)
    assert read_record(tmp_path / "run.json") == record
    (tmp_path / "run.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match="damaged .*run.json"):
        read_record(tmp_path / "run.json")


def test_a_run_made_anew_is_like_the_recorded_one(store):
    parent = runs.start(store, "parent", {"kind": "seeds"})
    record = recorded(store, parent=parent)
    run_id = make_anew(store, record)
    for _ in range(2):
        tell(store, run_id, record)
    run = runs.get(store, run_id)
    assert (run.name, run.tags, run.params) == (record.name, TAGS, {"model.depth": "4"})
    assert (run.commit, run.started, run.parent) == ("c0ffee", 1_700_000_000, parent)
    [read] = store.client.get_run(run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("sketch-shapes-train", "0123abcd")
    assert json.loads(read.dataset.source) == {"dataset": "sketch-shapes", "fold": "train"}


def test_a_parent_that_the_store_does_not_know_is_left_out(store):
    run_id = make_anew(store, recorded(store, parent="0" * 32))
    assert runs.get(store, run_id).parent == ""
