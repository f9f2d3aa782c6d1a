"""Runs in a real store: made, continued, filled, ended, registered, found again."""

import contextlib
import json
import re
import threading
import time

import mlflow.data
import pytest

from oodflow.errors import UserError
from oodflow.tracking import runs

TAGS = {"kind": "train", "dataset": "sketch-shapes", "spec": "0123456789abcdef"}


@pytest.fixture
def store(blank):
    return blank.store()


def started(store, name="a run", **tags) -> str:
    run_id = runs.start(store, name, TAGS | tags)
    # Two runs of the same millisecond have no order.
    time.sleep(0.005)
    return run_id


def history(store, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in store.client.get_metric_history(run_id, name)]


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def test_a_run_is_found_as_it_was_started(store):
    parent = started(store, "parent")
    run = runs.get(store, runs.start(store, "glow · seed 1", TAGS, parent))
    assert run.name == "glow · seed 1"
    assert run.tags == TAGS
    assert run.status == "RUNNING"
    assert run.parent == parent
    assert abs(run.started - time.time()) < 60


def test_tags_are_in_the_store_under_our_prefix(store):
    run_id = started(store)
    tags = store.client.get_run(run_id).data.tags
    assert {key: tags[f"oodflow.{key}"] for key in TAGS} == TAGS


def test_the_run_that_mlflow_run_made_keeps_its_id_and_its_parameters(store):
    made = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_param(made, "seeds", "1,2")
    assert runs.start(store, "ours", TAGS, project_run=made) == made
    run = runs.get(store, made)
    assert (run.name, run.tags, run.params) == ("ours", TAGS, {"seeds": "1,2"})


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (ValueError("broken"), "FAILED")],
)
def test_a_recording_ends_as_what_is_done_in_it_does(store, error, status):
    parent = started(store)
    seen = []
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, runs.recording(store, "ours", TAGS, parent) as run_id:
        seen.append(runs.get(store, run_id).status)
        if error:
            raise error
    run = runs.get(store, run_id)
    assert seen == ["RUNNING"]
    assert (run.name, run.tags, run.parent, run.status) == ("ours", TAGS, parent, status)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_an_ended_run_has_its_status_and_can_be_reopened(store, status):
    run_id = started(store)
    runs.end(store, run_id, status)
    assert runs.get(store, run_id).status == status
    runs.reopen(store, run_id)
    assert runs.get(store, run_id).status == "RUNNING"


def test_find_gives_runs_with_all_these_tags_the_newest_first(store):
    first, second = started(store), started(store)
    other = started(store, dataset="sketch-digits")
    assert [run.run_id for run in runs.find(store, TAGS)] == [second, first]
    assert [run.run_id for run in runs.find(store, {"kind": "train"})] == [other, second, first]
    assert runs.find(store, {"dataset": "sketch-digits", "kind": "finetune"}) == []


def test_find_by_status_leaves_out_the_others(store):
    finished = started(store)
    runs.end(store, finished, "FINISHED")
    started(store)
    assert [run.run_id for run in runs.find(store, TAGS, status="FINISHED")] == [finished]


@pytest.mark.parametrize(
    "value",
    ["it's", 'a "b"', """both' and ", 100% _""", "back\\slash'\"", "new\nline", "日本; -- '\"%"],
)
def test_find_takes_any_text_for_a_value(store, value):
    run_id = started(store, dataset=value)
    started(store, dataset=re.sub("['\"%]", "x", value) + "x")
    # What a pattern in place of the text would fit as well.
    started(store, dataset=value.replace("'", "_"))
    found = [run.run_id for run in runs.find(store, {"dataset": value})]
    assert found[-1] == run_id and len(found) == (1 if "'" in value else 2)


def test_the_beginning_of_an_id_and_a_name_lead_to_their_run(store):
    first, second = started(store, 'glow · it\'s "1"'), started(store, "twice")
    started(store, "twice")
    for digits in (8, 12, 31, 32):
        assert runs.resolve(store, first[:digits]).run_id == first
    assert runs.resolve(store, 'glow · it\'s "1"').run_id == first
    with pytest.raises(
        UserError, match="'twice' names 2 runs.*give more digits of the id"
    ) as error:
        runs.resolve(store, "twice")
    assert second in one_line(error)
    for absent in ("0123abcd", "abc%", ""):
        with pytest.raises(UserError, match="no run"):
            runs.resolve(store, absent)


def test_a_deleted_run_is_not_found_and_not_given(store):
    run_id = started(store)
    store.client.delete_run(run_id)
    assert runs.find(store, TAGS) == []
    with pytest.raises(UserError, match=f"restore --run-id {run_id}") as error:
        runs.get(store, run_id)
    one_line(error)
    store.client.restore_run(run_id)
    assert runs.get(store, run_id).run_id == run_id


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run", "a/b", "../x", "ünbekannt"])
def test_an_unknown_run_is_refused_by_name(store, run_id):
    with pytest.raises(UserError, match=run_id) as error:
        runs.resolve(store, run_id)
    assert "oodflow runs list" in one_line(error)


def test_more_metrics_than_fit_in_one_request_all_arrive(store):
    run_id = started(store)
    metrics = {f"auroc/ood{i}/raw": i / 2500 for i in range(2500)}
    runs.log_metrics(store, run_id, metrics, step=3)
    assert runs.get(store, run_id).metrics == metrics


def test_parameters_that_are_there_keep_their_value(store):
    run_id = started(store)
    runs.log_parameters(store, run_id, {"model.depth": "4"})
    runs.log_parameters(store, run_id, {"model.depth": "5", "model.hidden": "8"})
    assert runs.get(store, run_id).params == {"model.depth": "4", "model.hidden": "8"}


def test_artifacts_come_back_as_they_were(store, tmp_path):
    run_id = started(store)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.bin").write_bytes(b"\x00\xff")
    runs.log_artifacts(store, run_id, tmp_path / "files", "checkpoints")
    assert runs.list_artifacts(store, run_id, "checkpoints") == ["checkpoints/a.bin"]
    assert runs.list_artifacts(store, run_id, "scores") == []
    with runs.artifact(store, run_id, "checkpoints/a.bin") as path:
        assert path.read_bytes() == b"\x00\xff"
    assert not path.exists()


def test_a_missing_artifact_is_refused_with_its_run_and_path(store):
    run_id = started(store)
    with (
        pytest.raises(UserError, match=f"{run_id} has no artifact scores/x"),
        runs.artifact(store, run_id, "scores/x"),
    ):
        pass


def test_an_error_while_an_artifact_is_used_is_not_taken_for_a_missing_one(store, tmp_path):
    run_id = started(store)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_text("a")
    runs.log_artifacts(store, run_id, tmp_path / "files", "checkpoints")
    with pytest.raises(FileNotFoundError), runs.artifact(store, run_id, "checkpoints/a"):
        (tmp_path / "elsewhere").read_text()


def test_registering_twice_keeps_one_version(store):
    run_id = started(store)
    assert not runs.get(store, run_id).registered
    assert runs.register(store, run_id, "oodflow-glow") == "1"
    assert runs.register(store, run_id, "oodflow-glow") == "1"
    versions = store.client.search_model_versions("name = 'oodflow-glow'")
    assert [version.run_id for version in versions] == [run_id]
    assert runs.get(store, run_id).tags["registered"] == "true"


def test_only_a_finished_run_counts_as_registered(store):
    run_id = started(store)
    runs.register(store, run_id, "oodflow-glow")
    assert not runs.get(store, run_id).registered
    runs.end(store, run_id, "FINISHED")
    assert runs.get(store, run_id).registered


def test_another_run_under_the_same_name_is_the_next_version(store):
    first, second = started(store), started(store)
    assert [runs.register(store, each, "oodflow-glow") for each in (first, second)] == ["1", "2"]


def test_ids_versions_and_aliases_lead_to_their_runs(store):
    first, second = started(store), started(store)
    for run_id in (first, second):
        runs.register(store, run_id, "oodflow-glow")
    store.client.set_registered_model_alias("oodflow-glow", "best", "1")
    assert runs.resolve(store, second).run_id == second
    assert runs.resolve(store, "models:/oodflow-glow/1").run_id == first
    assert runs.resolve(store, "models:/oodflow-glow/2").run_id == second
    assert runs.resolve(store, "models:/oodflow-glow@best").run_id == first
    store.client.set_registered_model_alias("oodflow-glow", "best", "2")
    assert runs.resolve(store, "models:/oodflow-glow@best").run_id == second


@pytest.mark.parametrize(
    "reference",
    [
        "models:/nothing/1",
        "models:/nothing@best",
        "models:/oodflow-glow/9",
        "models:/oodflow-glow/newest",
        "models:/oodflow-glow@worst",
        "models:/oodflow-glow",
        "models:/",
    ],
)
def test_an_unknown_registry_name_version_or_alias_is_refused(store, reference):
    runs.register(store, started(store), "oodflow-glow")
    with pytest.raises(UserError, match=reference) as error:
        runs.resolve(store, reference)
    assert "models:/NAME/VERSION" in one_line(error)


def test_a_version_whose_run_was_deleted_is_refused(store):
    run_id = started(store)
    runs.register(store, run_id, "oodflow-glow")
    store.client.delete_run(run_id)
    with pytest.raises(UserError, match="deleted"):
        runs.resolve(store, "models:/oodflow-glow/1")


def test_the_description_is_what_mlflow_shows_as_the_note(store):
    run_id = started(store)
    runs.set_tags(store, run_id, {"evaluated": "x"}, description="**bold**")
    tags = store.client.get_run(run_id).data.tags
    assert tags["mlflow.note.content"] == "**bold**"
    assert runs.get(store, run_id).tags["evaluated"] == "x"


def test_runs_that_name_the_same_new_datasets_at_the_same_moment_all_have_them(store):
    made = [started(store) for _ in range(4)]
    start, failed = threading.Barrier(len(made)), []

    def log(run_id: str, name: str) -> None:
        start.wait()
        try:
            use = runs.DatasetUse(name, "train", 10, "digest", "training", name)
            runs.log_datasets(store, run_id, [use])
        except Exception as error:
            failed.append(error)

    names = {f"set-{number}" for number in range(20)}
    for name in sorted(names):
        threads = [threading.Thread(target=log, args=(run_id, name)) for run_id in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    for run_id in made:
        assert runs.get(store, run_id).images == {f"{name}-train": ("digest", 10) for name in names}
        inputs = store.client.get_run(run_id).inputs.dataset_inputs
        assert {each.dataset.name for each in inputs} == {f"{name}-train" for name in names}


def test_mlflow_reads_the_datasets_of_a_run_back(blank):
    store = blank.store()
    run_id = runs.start(store, "a run", {"kind": "train"})
    use = runs.DatasetUse("sketch-shapes", "test", 64, "d1", "evaluation", "sketch-shapes", 3)
    # As a journal of an older version has it.
    old = runs.DatasetUse("grey", "train", 10, "d2", "training", "folder:/a?x=1")
    runs.log_datasets(store, run_id, [use, old])
    datasets = [each.dataset for each in store.client.get_run(run_id).inputs.dataset_inputs]
    sources = {each.name: mlflow.data.get_source(each) for each in datasets}
    assert sources["sketch-shapes-test"].to_dict() == {"dataset": "sketch-shapes", "fold": "test"}
    assert sources["grey-train"].dataset == "folder:/a?x=1"
    schemas = {each.name: each.schema for each in datasets}
    features = json.loads(schemas["sketch-shapes-test"])["mlflow_tensorspec"]["features"]
    assert "[-1, 3, 32, 32]" in str(features) and not schemas["grey-train"]
