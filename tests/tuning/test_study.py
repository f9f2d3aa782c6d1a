"""The study by itself: who does which trial, retries, seeds, feasibility. No model is trained."""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from oodflow.errors import UserError
from oodflow.files import exclusively
from tuning.objective import Stability, StabilityBounds, parse_objective
from tuning.study import (
    Range,
    best_trial,
    counted,
    new_pruner,
    open_study,
    propose,
    run_trials,
    sampler_of,
)

SPACE = {"temperature": Range(10.0, 1e5), "outlier_weight": Range(100.0, 1e6)}
START = {"temperature": 1000.0, "outlier_weight": 6000.0}
FORK = multiprocessing.get_context("fork")


def opened(folder, storage="sqlite", name="s"):
    address = {"sqlite": f"sqlite:///{folder}/o.db", "journal": f"journal:{folder}/o.log"}[storage]
    return open_study(address, name, START, False)


def value_of(trial):
    values = propose(trial, SPACE)
    trial.set_constraint("bpd", -1.0)
    return -abs(values["temperature"] - 500.0) / 1e5


def run(study, folder, wanted, objective=value_of, seed=1):
    run_trials(study, seed, wanted, folder / "locks", objective, lambda: time.sleep(0.02))


def points(study):
    return [(tuple(sorted(t.params.items())), t.values) for t in study.get_trials()]


def test_the_papers_point_comes_first_and_the_rest_lies_in_the_ranges(tmp_path):
    study = opened(tmp_path)
    run(study, tmp_path, 8)
    first, *rest = study.get_trials()
    assert first.params == START
    assert len(rest) == 7 and len({tuple(t.params.values()) for t in rest}) == 7
    for trial in rest:
        assert 10 <= trial.params["temperature"] <= 1e5
        assert 100 <= trial.params["outlier_weight"] <= 1e6


def test_the_same_seed_gives_the_same_trials_and_a_resumed_study_goes_on_as_it_would(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    whole = opened(folders[0])
    run(whole, folders[0], 14)
    run(opened(folders[1]), folders[1], 6)
    run(opened(folders[1]), folders[1], 14)
    assert points(opened(folders[1])) == points(whole)
    other = opened(folders[2])
    run(other, folders[2], 14, seed=2)
    assert points(other)[0] == points(whole)[0] and points(other)[1:] != points(whole)[1:]


def _work(folder, storage, wanted, seconds):
    def objective(trial):
        value = value_of(trial)
        time.sleep(seconds)
        return value

    run(opened(folder, storage), folder, wanted, objective)


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_two_workers_do_each_trial_once(tmp_path, storage):
    opened(tmp_path, storage)
    workers = [FORK.Process(target=_work, args=(tmp_path, storage, 12, 0.05)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    trials = opened(tmp_path, storage).get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 12
    assert len({tuple(t.params.values()) for t in trials}) == 12


def _work_elsewhere(folder, workspace, name, wanted):
    """A worker in a working folder of its own, which shares storage and MLflow store."""
    from oodflow.tracking.leases import leased_in_turn

    place = folder / name
    place.mkdir()
    os.chdir(place)
    store, began = workspace.store(), []
    os.chdir(place)

    def objective(trial):
        began.append(trial.number)
        value = value_of(trial)
        time.sleep(0.2)
        return value

    # Both begin at the same moment.
    (folder / f"{name}.ready").touch()
    while len(list(folder.glob("*.ready"))) < 2:
        time.sleep(0.01)
    run_trials(
        opened(folder), 1, wanted, place / "locks", objective, lambda: time.sleep(0.05),
        lambda: leased_in_turn(store, "study s", "study s"),
    )  # fmt: skip
    (folder / f"{name}.txt").write_text(" ".join(map(str, began)))


def test_workers_in_two_folders_do_each_trial_once(tmp_path, blank):
    opened(tmp_path)
    names, wanted = ("here", "there"), 10
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work_elsewhere, args=(tmp_path, blank, name, wanted))
        for name in names
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    trials = opened(tmp_path).get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * wanted
    assert len({tuple(t.params.values()) for t in trials}) == wanted
    done = [(tmp_path / f"{name}.txt").read_text().split() for name in names]
    assert sorted(map(int, sum(done, []))) == list(range(wanted))
    assert all(done)


def test_a_trial_that_another_folder_is_about_to_lock_is_not_taken_for_abandoned(tmp_path):
    """Between its start and its lock it looks like one; its worker is in its turn then."""
    study, held = opened(tmp_path), threading.Lock()
    begun, looked = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def in_turn():
        looked.set()
        with held:
            yield

    def other():
        mine = opened(tmp_path)
        with held:
            trial = mine.ask()
            begun.set()
            assert looked.wait(30)
            lock = tmp_path / "other-lock"
            stack.enter_context(exclusively(lock))
            trial.set_user_attr("lock", f"{socket.gethostname()}:{lock}")
        mine.tell(trial, value_of(trial))

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=other)
        thread.start()
        assert begun.wait(30)
        run_trials(study, 1, 3, tmp_path / "locks", value_of, lambda: time.sleep(0.02), in_turn)
        thread.join()
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_every_sampler_resumes_as_it_would_have_gone_on(tmp_path, sampler):
    wanted = {"gp": 13, "cmaes": 9}[sampler]
    for name, parts in (("whole", (wanted,)), ("parts", (wanted - 2, wanted))):
        (tmp_path / name).mkdir()
        for until in parts:
            run_trials(
                opened(tmp_path / name), 1, until, tmp_path / name, value_of, time.sleep,
                sampler=sampler,
            )  # fmt: skip
    found = {name: points(opened(tmp_path / name)) for name in ("whole", "parts")}
    assert found["whole"] == found["parts"]
    assert len({point for point, _ in found["whole"]}) == wanted


def test_what_a_name_of_a_sampler_and_of_a_pruner_stands_for(monkeypatch):
    assert [sampler_of("auto", *given) for given in ((False, 20), (True, 20), (False, 500))] == [
        "gp", "tpe", "tpe",
    ]  # fmt: skip
    with pytest.raises(UserError, match="cmaes takes one objective"):
        sampler_of("cmaes", True, 20)
    assert isinstance(new_pruner("none", 1, 9), optuna.pruners.NopPruner)
    hyperband = new_pruner("hyperband", 10, 270)
    assert (hyperband._min_resource, hyperband._max_resource) == (10, 270)
    monkeypatch.setattr("tuning.study.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cmaes"):
        sampler_of("cmaes", False, 20)


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_killed_workers_trial_is_done_again_by_another(tmp_path, storage):
    study = opened(tmp_path, storage)
    victim = FORK.Process(target=_work, args=(tmp_path, storage, 6, 60.0))
    victim.start()
    until = time.monotonic() + 30
    while not study.get_trials(states=(TrialState.RUNNING,)) and time.monotonic() < until:
        time.sleep(0.02)
    # The victim has drawn all of the point that it is killed over.
    while study.get_trials()[0].params != START:
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    _work(tmp_path, storage, 6, 0.0)
    trials = opened(tmp_path, storage).get_trials()
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [0]
    retried = [t for t in trials if t.user_attrs.get("retry") == "trial 0 was abandoned"]
    assert [t.state for t in retried] == [TrialState.COMPLETE]
    assert len(counted(study)) == 6


def test_a_trial_whose_worker_died_before_it_began_is_done_again(tmp_path):
    study = opened(tmp_path)
    study.ask()
    run(study, tmp_path, 3)
    states = [trial.state for trial in study.get_trials()]
    assert states.count(TrialState.FAIL) == 1 and states.count(TrialState.COMPLETE) == 3
    assert TrialState.RUNNING not in states
    assert START in [trial.params for trial in counted(study)]


@pytest.mark.parametrize("at", [1, 4, 11])
def test_a_trial_abandoned_without_a_point_repeats_no_other_one(tmp_path, at):
    study = opened(tmp_path)
    run(study, tmp_path, at)
    study.ask()
    run(study, tmp_path, at + 4)
    points = [tuple(trial.params.values()) for trial in counted(study)]
    assert len(points) == len(set(points)) == at + 4


def test_the_best_trial_is_feasible_however_good_another_one_is(tmp_path):
    study = opened(tmp_path)

    def objective(trial):
        propose(trial, SPACE)
        if trial.number == 3:
            raise optuna.TrialPruned("diverged")
        trial.set_constraint("bpd", 0.5 if trial.number in (1, 4) else -0.5)
        return {0: 0.6, 1: 0.99, 2: 0.7, 4: 1.0, 5: 0.7}[trial.number]

    run(study, tmp_path, 6, objective)
    assert best_trial(study).number == 2
    assert len(counted(study)) == 6


def test_a_failing_objective_is_no_result_and_its_error_is_passed_on(tmp_path):
    study = opened(tmp_path)

    def objective(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path, 2, objective)
    assert not counted(study) and best_trial(study) is None
    run(study, tmp_path, 2)
    assert len(counted(study)) == 2


def test_wrong_ranges_storages_and_objectives_are_the_users_errors(tmp_path):
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(UserError, match="temperature is searched from"):
            Range(low, high).checked("temperature")
    with pytest.raises(UserError, match="no Optuna storage at nonsense"):
        open_study("nonsense", "s", START, False)
    opened(tmp_path)
    with pytest.raises(UserError, match="has another objective"):
        open_study(f"sqlite:///{tmp_path}/o.db", "s", START, True)
    for text in ("", "accuracy", "cifar10=", "=1", "cifar10=-1", "cifar10=inf", "bpd"):
        with pytest.raises(UserError, match="objective has"):
            parse_objective(text, "cifar10")


def test_a_reason_names_each_bound_that_is_passed():
    bounds = StabilityBounds(dropped=0.1, skipped=0.2, bpd=0.5)
    assert Stability(0.1, 0.2, 0.5).reason(bounds) == ""
    assert Stability(0.3, 0.2, 7.0).reason(bounds) == (
        "images dropped 0.3 above 0.1, bpd paid 7 above 0.5"
    )
    assert max(Stability(0.3, 0.0, 0.0).violations(bounds).values()) == pytest.approx(0.2)
