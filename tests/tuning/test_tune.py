"""``oodflow tune`` for real: SQLite studies, MLflow runs, processes that die."""

import csv
import itertools
import json
import re
import shlex
import signal
import threading
import urllib.request
import wsgiref.simple_server

import optuna
import optuna_dashboard
import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import TrialState

from oodflow.options import TuneOptions
from oodflow.tracking import runs
from oodflow.workflow.session import Session
from tuning.objective import Pair
from tuning.study import feasible
from tuning.trial import new_job

SHORT = "--depth 1 --hidden 8 --limit 64 --batch-size 16 --steps 4 --report-every 2 --images 16"


def tune(workspace, words="", **variables):
    return workspace.oodflow("tune", *SHORT.split(), *words.split(), **variables)


def study_of(workspace, prefix="glow-sketch-shapes-binary"):
    """The one study whose name begins so."""
    storage = f"sqlite:///{workspace.folder}/optuna.db"
    [name] = [each for each in optuna.get_all_study_names(storage) if each.startswith(prefix)]
    return optuna.load_study(study_name=name, storage=storage)


@pytest.fixture(scope="module")
def first_study(quickstart, tmp_path_factory):
    """A workspace after a study of four trials, not to be changed; how that ended."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("tuned") / "workspace")
    outcome = tune(workspace, "--trials 4")
    assert outcome.code == 0, outcome.err
    return workspace, outcome


@pytest.fixture
def tuned(first_study, tmp_path):
    """A copy of it, one for each test."""
    workspace, outcome = first_study
    return workspace.clone(tmp_path / "tuned"), outcome


def test_the_optuna_dashboard_shows_the_study_its_trials_and_its_images(tuned, monkeypatch):
    """Its own server, asked over HTTP as a browser does."""
    workspace, outcome = tuned
    [line] = [each for each in outcome.out.splitlines() if each.startswith("see the study: ")]
    _, address, *option = shlex.split(line.removeprefix("see the study: "))
    assert option == ["--artifact-dir", "optuna-artifacts"]
    monkeypatch.chdir(workspace.folder)
    app = optuna_dashboard.wsgi(address, artifact_store=FileSystemArtifactStore(option[1]))
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app, handler_class=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def asked(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
            assert answer.status == 200
            return answer.read()

    try:
        [listed] = json.loads(asked("/api/studies"))["study_summaries"]
        known = study_of(workspace)
        assert listed["study_name"] == known.study_name
        found = json.loads(asked(f"/api/studies/{listed['study_id']}"))
        store = workspace.store()
        assert len(found["trials"]) == 4
        for trial in found["trials"]:
            facts = {each["key"]: each["value"] for each in trial["user_attrs"]}
            own = known.trials[trial["number"]].user_attrs
            run = runs.get(store, own["mlflow_run"])
            assert own["mlflow_run"] in facts["mlflow_run"]
            assert f"#/experiments/{run.experiment_id}/runs/{run.run_id}" in facts["mlflow_page"]
            assert facts["feasible"].lower() == str(feasible(known.trials[trial["number"]])).lower()
        images = {each["filename"]: each["artifact_id"] for each in found["artifacts"]}
        assert {"history.png", "slice.png"} <= set(images)
        picture = asked(f"/artifacts/{listed['study_id']}/{images['history.png']}")
        assert picture.startswith(b"\x89PNG")
    finally:
        server.shutdown()
        server.server_close()


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    """Answers without a line about each on stderr."""

    def log_message(self, *_):
        pass


def test_a_study_is_a_run_with_a_nested_run_a_trial(tuned):
    workspace, outcome = tuned
    store, study = workspace.store(), study_of(workspace)
    [parent] = runs.find(store, {"kind": "tune"})
    assert parent.registered and parent.tags["study"] == study.study_name
    trials = {run.tags["trial"]: run for run in runs.find(store, {"kind": "trial"})}
    assert len(trials) == len(study.trials) == 4
    first = study.trials[0]
    assert first.params == {"temperature": 1000.0, "outlier_weight": 6000.0}
    for trial in study.trials:
        run = trials[str(trial.number)]
        assert run.parent == parent.run_id == study.user_attrs["mlflow_run"]
        assert float(run.params["loss.temperature"]) == trial.params["temperature"]
        assert float(run.params["loss.outlier_weight"]) == trial.params["outlier_weight"]
        if trial.state == TrialState.COMPLETE:
            assert run.status == "FINISHED" and run.metrics["tune/auroc"] == trial.value
            assert {"tune/bpd", "tune/dropped", "train/bpd"} <= set(run.metrics)
    best = max((t for t in study.trials if t.value is not None), key=lambda t: t.value)
    assert parent.metrics["tune/best_auroc"] == best.value >= first.value
    assert parent.tags["best_trial"] == str(best.number)
    figures = runs.list_artifacts(store, parent.run_id, "figures")
    assert {"figures/history.png", "figures/slice.png"} <= set(figures)
    with runs.artifact(store, parent.run_id, "trials/trials.csv") as file:
        rows = list(csv.DictReader(file.open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    # The command of the summary can be pasted: it names the best values.
    line = next(line for line in outcome.out.splitlines() if line.startswith("oodflow finetune"))
    words = shlex.split(line)
    given = float(words[words.index("--temperature") + 1])
    assert given == best.params["temperature"]
    assert words[words.index("--hidden") + 1] == "8"


def test_the_same_seed_gives_the_same_study(tuned):
    workspace, _ = tuned
    assert tune(workspace, "--trials 4 --study again").code == 0
    first, again = study_of(workspace), study_of(workspace, "again")
    assert [t.params for t in first.trials] == [t.params for t in again.trials]
    assert [t.values for t in first.trials] == [t.values for t in again.trials]


def test_finetuning_takes_the_tuned_values_and_says_from_where(tuned, tiny):
    workspace, _ = tuned
    words = ["finetune", *tiny, "--outlier-loss", "binary"]
    words += ["--temperature", "tuned", "--outlier-weight", "tuned"]
    outcome = workspace.oodflow(*words)
    assert outcome.code == 0, outcome.err
    run = runs.find(workspace.store(), {"kind": "finetune"})[0]
    [parent] = runs.find(workspace.store(), {"kind": "tune"})
    best = study_of(workspace).trials[int(parent.tags["best_trial"])]
    assert float(run.params["loss.temperature"]) == best.params["temperature"]
    assert float(run.params["loss.outlier_weight"]) == best.params["outlier_weight"]
    traced = {name: run.tags[f"tuned_{name}"] for name in ("study", "trial", "run")}
    assert traced == {
        "study": parent.tags["study"],
        "trial": str(best.number),
        "run": parent.run_id,
    }


def test_other_settings_are_another_study(tuned):
    workspace, _ = tuned
    name = study_of(workspace).study_name
    outcome = tune(workspace, "--trials 1 --outlier-weight-high 1e9")
    assert outcome.code == 0, outcome.err
    names = optuna.get_all_study_names(f"sqlite:///{workspace.folder}/optuna.db")
    assert len(names) == 2 and name in names
    outcome = tune(workspace, f"--trials 5 --outlier-weight-high 1e9 --study {name}")
    assert outcome.code == 2 and "was made with other settings" in outcome.err
    assert (
        len(
            optuna.load_study(
                study_name=name, storage=f"sqlite:///{workspace.folder}/optuna.db"
            ).trials
        )
        == 4
    )


def test_without_a_study_the_command_that_makes_one_is_named(trained, tiny):
    outcome = trained.oodflow(
        "finetune", *tiny, "--outlier-loss", "binary", "--temperature", "tuned"
    )
    assert outcome.code == 2
    assert "oodflow tune --dataset sketch-shapes --model glow --outlier-loss binary" in outcome.err


def test_no_test_fold_is_opened(trained, monkeypatch):
    from oodflow.data.prepared import Prepared

    asked = []
    real = Prepared.arrays
    monkeypatch.setattr(
        Prepared, "arrays", lambda self, fold: asked.append(fold) or real(self, fold)
    )
    assert tune(trained, "--trials 2").code == 0
    assert asked and set(asked) == {"train"}


def test_the_judged_outliers_are_not_trained_on(trained):
    options = TuneOptions(
        dataset="sketch-shapes", depth=1, hidden=8, limit=64, batch_size=16, images=16
    )
    session = Session(trained.store(), trained.data, torch.device("cpu"), "")
    point = {"temperature": 1000.0, "outlier_weight": 6000.0}
    job = new_job(session, options, Pair("sketch-shapes", 1.0), 1, point)
    outliers = session.images("sketch-general", "train", 64).pixels
    own = session.images("sketch-shapes", "train", 64).pixels
    assert torch.equal(job.judged[0].pixels, own[:16])
    assert torch.equal(job.judged[1].pixels, outliers[48:])
    batches = [job.outliers.at(step) for step in range(job.outliers.steps_per_pass)]
    passed = torch.cat([batch.images for batch in batches])
    seen = {original(image, outliers) for image in passed}
    assert len(passed) == 48 and seen == set(range(48))


def original(image, images) -> int:
    """Position of the image that is the same but for a shift of up to 3 pixels and a mirror."""
    middle = images[:, :, 3:-3, 3:-3]
    corners = itertools.product(range(7), repeat=2)
    views = [flipped[:, y : y + 26, x : x + 26] for y, x in corners
             for flipped in (image, image.flip(2))]  # fmt: skip
    equal = (middle[:, None] == torch.stack(views)[None]).flatten(2).all(2).any(1)
    [found] = equal.nonzero().flatten().tolist()
    return found


def test_an_absurd_weight_is_never_the_best(trained):
    words = "--trials 5 --outlier-weight-low 1e8 --outlier-weight-high 1e9 --lr 1"
    outcome = tune(trained, words)
    assert outcome.code == 0, outcome.err
    trials = study_of(trained).trials
    bad = [t for t in trials if "reason" in t.user_attrs]
    assert bad and all(t.user_attrs["reason"] for t in bad)
    parents = runs.find(trained.store(), {"kind": "tune"})
    assert parents[0].tags.get("best_trial") not in {str(t.number) for t in bad}
    if len(bad) == len(trials):
        assert "is within the bounds" in outcome.out and not parents[0].registered


def test_margin_and_bpd_as_a_second_objective(trained):
    outcome = tune(trained, "--trials 3 --outlier-loss margin --objective auroc,bpd")
    assert outcome.code == 0, outcome.err
    study = study_of(trained, "glow-sketch-shapes-margin")
    assert study.trials[0].params == {"margin": 3072.0, "outlier_weight": 1.0}
    assert all(len(trial.values) == 2 for trial in study.trials)
    [parent] = runs.find(trained.store(), {"kind": "tune"})
    figures = runs.list_artifacts(trained.store(), parent.run_id, "figures")
    assert figures == ["figures/pareto-front.png"]


@pytest.mark.long
def test_an_interrupted_study_goes_on_with_the_same_run(trained, fork):
    words = ["tune", *SHORT.split(), "--trials", "4", "--steps", "200", "--report-every", "50"]
    command = fork(trained, words)
    database = trained.folder / "optuna.db"
    command.when(lambda: database.exists() and runs.find(trained.store(), {"kind": "trial"}))
    command.send(signal.SIGINT)
    assert command.ended() == 130, command.err
    [parent] = runs.find(trained.store(), {"kind": "tune"})
    assert parent.status == "KILLED"
    assert trained.oodflow(*words[:-6], "--trials", "3", *words[-4:]).code == 0
    [again] = runs.find(trained.store(), {"kind": "tune"})
    assert again.run_id == parent.run_id and again.status == "FINISHED"
    trials = study_of(trained).trials
    assert [t.state for t in trials].count(TrialState.COMPLETE) == 3
    assert re.search("interrupted", str([t.user_attrs for t in trials]))


@pytest.mark.long
def test_two_processes_share_a_study_and_one_of_them_may_die(trained, fork):
    words = ["tune", *SHORT.split(), "--trials", "6", "--steps", "60", "--report-every", "20"]
    first, second = (fork(trained, words) for _ in range(2))
    first.when(lambda: len(runs.find(trained.store(), {"kind": "trial"})) >= 2)
    first.send(signal.SIGKILL)
    assert second.ended() == 0, second.err
    trials = study_of(trained).trials
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 6
    assert len({tuple(t.params.values()) for t in ended}) == 6
    [parent] = runs.find(trained.store(), {"kind": "tune"})
    assert {run.parent for run in runs.find(trained.store(), {"kind": "trial"})} == {parent.run_id}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--trials 0", "trials"),
        ("--temperature-low 5 --temperature-high 2", "temperature is searched from 5 to 2"),
        ("--storage nonsense", "no Optuna storage at nonsense"),
        ("--objective accuracy", "'accuracy'"),
        ("--dataset nope", "'nope'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(trained, words, named):
    outcome = tune(trained, words)
    assert outcome.code == 2 and named in outcome.err and outcome.err.count("\n") == 1
