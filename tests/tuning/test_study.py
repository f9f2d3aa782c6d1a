"""The study by itself: who does which trial, retries, seeds, feasibility. No model is trained."""

import multiprocessing
import os
import signal
import time

import optuna
import pytest
from optuna.trial import TrialState

from oodflow.errors import UserError
from tuning.objective import Stability, StabilityBounds, parse_objective
from tuning.study import Range, best_trial, counted, open_study, propose, run_trials

SPACE = {"temperature": Range(10.0, 1e5), "outlier_weight": Range(100.0, 1e6)}
START = {"temperature": 1000.0, "outlier_weight": 6000.0}
FORK = multiprocessing.get_context("fork")


def opened(folder, storage="sqlite", name="s"):
    address = {"sqlite": f"sqlite:///{folder}/o.db", "journal": f"journal:{folder}/o.log"}[storage]
    return open_study(address, name, START, False, folder / "locks" / "lock")


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


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_killed_workers_trial_is_done_again_by_another(tmp_path, storage):
    study = opened(tmp_path, storage)
    victim = FORK.Process(target=_work, args=(tmp_path, storage, 6, 60.0))
    victim.start()
    until = time.monotonic() + 30
    while not study.get_trials(states=(TrialState.RUNNING,)) and time.monotonic() < until:
        time.sleep(0.02)
    while not study.get_trials()[0].params and time.monotonic() < until:
        time.sleep(0.02)
    assert study.get_trials()[0].params == START
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
        open_study("nonsense", "s", START, False, tmp_path / "lock")
    opened(tmp_path)
    with pytest.raises(UserError, match="has another objective"):
        open_study(f"sqlite:///{tmp_path}/o.db", "s", START, True, tmp_path / "lock")
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
