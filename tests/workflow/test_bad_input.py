"""Bad input: exit code 2 and one line that says what, where and how to mend; never a traceback."""

import re
import socket
import subprocess

import pytest
import torch

from oodflow.cli import cli
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation, spec_hash
from oodflow.models.build import build_model
from oodflow.tracking import runs
from oodflow.training.checkpoint import save_model

TINY = "--depth 1 --hidden 8 --limit 64 --batch-size 16 --steps 6"


@pytest.fixture(scope="module")
def workspace(quickstart, tmp_path_factory):
    """Commands that are refused change nothing, so all share a copy of the quickstart's store."""
    return quickstart[0].clone(tmp_path_factory.mktemp("bad") / "workspace")


@pytest.fixture(scope="module")
def store(workspace):
    return workspace.store()


@pytest.fixture(scope="module")
def general(store):
    *_, oldest = runs.find(store, {"kind": "train", "dataset": "sketch-general"})
    return oldest.run_id


@pytest.fixture(scope="module")
def detector(store):
    *_, oldest = runs.find(store, {"dataset": "sketch-shapes", "outlier_loss": "none"})
    return oldest.run_id


@pytest.fixture(scope="module")
def grey(store, tmp_path_factory):
    """A registered model of images with one channel, made with the library."""
    experiment = Experiment(
        model=Model(channels=1, name="glow", depth=1, hidden=8),
        data=Data("mnist", 0),
        loss=Loss("none", "", 0.0, 0.0),
        optimisation=Optimisation(1, 16, 1e-3, 0.0, 0, 1, "fp32"),
        init="scratch",
        general="",
        seed=1,
    )
    folder = tmp_path_factory.mktemp("grey")
    save_model(folder / "model.safetensors", build_model(experiment.model), experiment)
    tags = {"kind": "train", "dataset": "mnist", "model": "glow", "init": "scratch", "seed": "1"}
    tags |= {"role": "in_distribution", "outlier_loss": "none", "setting": "unsupervised"}
    run_id = runs.start(store, "grey", tags | {"spec": spec_hash(experiment)})
    runs.log_artifacts(store, run_id, folder, "checkpoints")
    runs.register(store, run_id, "oodflow-glow-mnist")
    runs.end(store, run_id, "FINISHED")
    return run_id


def refused(workspace, *words, **variables) -> str:
    """The one line of a refused command."""
    outcome = workspace.oodflow(*words, **variables)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.endswith("\n") and outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err + outcome.out
    assert not [run for run in runs.find(workspace.store(), {}) if run.status == "RUNNING"]
    return outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", ["trian", "--help"]),
        ("train --colour red", ["--colour", "oodflow train --help"]),
        ("train more", ["more"]),
        ("train --dataset nope", ["'nope'", "sketch-shapes", "cifar10"]),
        ("main --dataset nope", ["'nope'", "sketch-shapes"]),
        ("finetune --dataset nope", ["'nope'", "sketch-shapes"]),
        ("finetune --outlier-loss binary --outlier-dataset nope " + TINY, ["'nope'"]),
        ("train --model glw", ["'glw'", "glow"]),
        ("train --preset huge", ["'huge'", "quick", "paper"]),
        ("finetune --outlier-loss hinge", ["'hinge'", "binary", "margin"]),
        ("train --precision fp8", ["'fp8'", "bf16"]),
        ("train --steps 0", ["steps", "0"]),
        ("train --steps -5", ["steps", "-5"]),
        ("train --steps many", ["--steps", "many"]),
        ("train --epochs 0", ["0"]),
        ("train --lr -1", ["lr", "-1"]),
        ("train --lr nan", ["lr", "nan"]),
        ("train --weight-decay -1 " + TINY, ["weight_decay", "-1"]),
        ("train --warmup -1 " + TINY, ["warmup", "-1"]),
        ("train --seeds x", ["seeds", "'x'"]),
        ("train --seeds 1,2,", ["seeds"]),
        (f"train --seeds {10**30} " + TINY, ["seeds"]),
        ("train --steps 3 --epochs 2", ["steps", "epochs", "one of the two"]),
        ("train --limit -1", ["limit", "-1"]),
        ("train --batch-size 0", ["batch_size", "0"]),
        ("train --depth 1 --hidden 8 --limit 8 --batch-size 16", ["batch_size", "16", "limit"]),
        ("train --depth 0", ["depth", "0"]),
        ("train --report-every 0", ["report_every", "0"]),
        ("train --device quantum", ["'quantum'", "cpu"]),
        ("train --data-dir /no/such/folder", ["/no/such/folder"]),
        ("train --resume perhaps", ["--resume", "perhaps"]),
        ("finetune --outlier-loss binary --temperature 0 " + TINY, ["temperature"]),
        ("finetune --outlier-loss binary --outlier-weight -1 " + TINY, ["outlier_weight"]),
        ("main --dataset cifar10", ["cifar10", "datasets prepare"]),
        ("evaluate --ood nope", ["'nope'", "sketch-digits"]),
        ("evaluate --limit -1", ["limit", "-1"]),
        ("evaluate --ood sketch-shapes --limit 64", ["sketch-shapes"]),
        ("evaluate --run 0123456789abcdef", ["'0123456789abcdef'", "oodflow runs list"]),
        ("finetune --init 0123456789abcdef", ["'0123456789abcdef'", "oodflow runs list"]),
        ("finetune --init models:/nothing/1", ["models:/nothing/1"]),
        ("finetune --init models:/nothing@best", ["models:/nothing@best"]),
        ("runs show 0123456789abcdef", ["'0123456789abcdef'", "oodflow runs list"]),
        ("finetune --depth 3", ["depth 3", "oodflow train"]),
    ],
)
def test_a_wrong_word_is_refused_and_named(workspace, words, said):
    line = refused(workspace, *words.split())
    assert [text for text in said if text not in line] == [], line


def test_a_run_that_was_deleted_is_refused_with_the_command_that_restores_it(trained):
    store = trained.store()
    [run] = runs.find(store, {"kind": "train", "model": "glow"})
    store.client.delete_run(run.run_id)
    for words in (("finetune", "--init"), ("evaluate", "--run"), ("runs", "show")):
        line = refused(trained, *words, run.run_id)
        assert f"mlflow runs restore --run-id {run.run_id}" in line


@pytest.mark.parametrize("option", ["depth", "hidden"])
def test_a_checkpoint_of_another_architecture_is_refused(workspace, general, option):
    line = refused(workspace, "finetune", "--init", general, f"--{option}", "2")
    assert general in line and option in line and "2" in line


def test_a_start_of_another_channel_count_is_refused(workspace, grey):
    line = refused(workspace, "finetune", "--init", grey, "--dataset", "sketch-shapes")
    assert grey in line and "sketch-shapes has 3 channels" in line


@pytest.mark.parametrize("loss", ["none", "binary"])
def test_a_general_model_of_another_image_shape_is_refused(workspace, general, grey, loss):
    words = ["--init", general, "--general", grey, "--outlier-loss", loss]
    line = refused(workspace, "finetune", *words, "--depth", "1", "--hidden", "8")
    assert grey in line and "channel" in line


@pytest.mark.parametrize("option", ["general", "general-outlier"])
def test_a_contrast_of_another_image_shape_is_refused(workspace, detector, grey, option):
    line = refused(workspace, "evaluate", "--run", detector, f"--{option}", grey)
    assert grey in line and "channel" in line


@pytest.mark.parametrize("words", [("evaluate", "--run"), ("finetune", "--init")])
def test_a_run_that_holds_no_model_is_refused(workspace, store, words):
    [report, *_] = runs.find(store, {"kind": "report"})
    assert report.run_id in refused(workspace, *words, report.run_id)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file):
    file.write_bytes(b"")


def flip_weight(file):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 0x10
    file.write_bytes(content)


def flip_name(file):
    content = file.read_bytes()
    assert b"flow.0" in content
    file.write_bytes(content.replace(b"flow.0", b"flow.9", 1))


def flip_depth(file):
    content = file.read_bytes()
    written = rb"\"depth\": 1"
    assert written in content
    file.write_bytes(content.replace(written, rb"\"depth\": 2"))


def flip_seed(file):
    """Nothing but this number says that the file is not what was written."""
    content = file.read_bytes()
    changed, count = re.subn(rb'(\\"seed\\": )\d', rb"\g<1>9", content)
    assert count == 1 and len(changed) == len(content)
    file.write_bytes(changed)


DAMAGES = [cut, empty, flip_weight, flip_name, flip_depth, flip_seed, lambda file: file.unlink()]
IDS = ["cut", "empty", "weight", "name", "depth", "seed", "deleted"]


@pytest.mark.parametrize("damage", DAMAGES, ids=IDS)
def test_a_damaged_checkpoint_is_refused_with_its_run(workspace, detector, damage):
    [file] = workspace.folder.glob(f"mlruns/*/{detector}/artifacts/checkpoints/model.safetensors")
    whole = file.read_bytes()
    try:
        damage(file)
        line = refused(workspace, "evaluate", "--run", detector, "--limit", "64")
    finally:
        file.write_bytes(whole)
    assert detector in line


def test_a_damaged_score_table_is_refused_with_its_run_or_made_anew(trained):
    store = trained.store()
    kept = {"kind": "finetune", "dataset": "sketch-shapes", "outlier_loss": "none"}
    run = runs.get(store, runs.find(store, kept)[0].run_id)
    path = f"mlruns/*/{run.run_id}/artifacts/scores/sketch-digits-test.parquet"
    [file] = trained.folder.glob(path)
    file.write_bytes(file.read_bytes()[:-100])
    outcome = trained.oodflow("evaluate", "--run", run.run_id, "--limit", "64")
    if outcome.code == 0:
        assert runs.get(store, run.run_id).metrics == run.metrics
    else:
        assert outcome.code == 2
        assert run.run_id in outcome.err and outcome.err.count("\n") == 1


def test_an_absent_dataset_is_refused_with_its_place_and_how_to_get_it(workspace, tmp_path):
    words = ["train", "--dataset", "cifar10", "--data-dir", str(tmp_path)]
    line = refused(workspace, *words)
    assert str(tmp_path / "cifar-10-batches-py") in line
    named = re.search(r"`oodflow ([^`]+)`", line)
    assert named
    command, words = cli, named[1].split()
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


@pytest.mark.long
def test_an_unreachable_store_is_refused_before_any_work(blank):
    """In a process of its own, as users see it: not one line of a library on either stream."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    process = blank.process("train", "--limit", "64", MLFLOW_TRACKING_URI=uri)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("still trying after a minute")
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert uri in err


def test_a_wrong_word_is_refused_in_a_process_too(blank):
    process = blank.process("train", "--model", "glw")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_report_that_cannot_be_written_is_refused(workspace, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(workspace, "report", "--out", str(tmp_path / "file"))
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(
    ("command", "helps"), [("report", "oodflow main"), ("evaluate", "oodflow finetune")]
)
def test_nothing_to_work_on_is_said_with_the_command_that_makes_it(blank, command, helps):
    assert helps in refused(blank, command)


def test_weights_that_are_not_finite_are_refused(workspace, store, detector):
    """A detector whose likelihoods are all NaN would have AUROCs of 0.5, which say nothing."""
    from oodflow.training.checkpoint import load_model

    with runs.artifact(store, detector, "checkpoints/model.safetensors") as path:
        model, experiment, _ = load_model(path)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        save_model(path, model, experiment)
        tags = runs.get(store, detector).tags
        run_id = runs.start(store, "broken", {**tags, "registered": "false"})
        runs.log_artifacts(store, run_id, path.parent, "checkpoints")
        runs.end(store, run_id, "FINISHED")
    for command in ("evaluate --limit 64 --run", "detector build", "finetune --init"):
        line = refused(workspace, *command.split(), run_id)
        assert run_id in line and "not finite" in line
    assert not [name for name in runs.get(store, run_id).metrics if name.startswith("auroc/")]
