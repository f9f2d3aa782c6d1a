"""``oodflow detector build``: what it measures, registers and refuses; one number everywhere."""

import base64
import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest
from conftest import waited_for
from PIL import Image

from oodflow.data.sketch import generate
from oodflow.detection.calibration import halves
from oodflow.detection.conformal import conformal_p_values, flagged_interval
from oodflow.detection.detector import Detector
from oodflow.errors import ResourceError, UserError
from oodflow.tracking import runs
from oodflow.workflow import detectors
from oodflow.workflow.choose import diff_outlier_general
from oodflow.workflow.detectors import load_detector

NAME = "oodflow-detector-sketch-shapes"
CHAMPION = f"models:/{NAME}@champion"
OODS = ("sketch-digits", "sketch-letters", "sketch-scenes")


def detector_run(workspace):
    return runs.find(workspace.store(), {"kind": "detector"})[0]


def version(workspace, number):
    return workspace.store().client.get_model_version(NAME, str(number))


def contrasted(workspace, run, general, dataset):
    """The difference of two runs' score tables of a dataset, in nats, a value an image."""
    columns = []
    for each in (run, general):
        path = f"scores/{dataset}-test.parquet"
        with runs.artifact(workspace.store(), each.run_id, path) as file:
            columns.append(pd.read_parquet(file)["log_prob"].to_numpy())
    return columns[0] - columns[1]


def by_the_tables(workspace, dataset):
    """The score diff_outlier of the detector's models by the tables of their runs."""
    run = runs.get(workspace.store(), detector_run(workspace).tags["detects"])
    return contrasted(workspace, run, diff_outlier_general(workspace.store(), run), dataset)


def model_folder(workspace, number=1):
    """The folder of a registered version's files."""
    place = workspace.store().client.get_model_version_download_uri(NAME, str(number))
    return type(workspace.folder)(place)


@contextlib.contextmanager
def mlflow_at(workspace):
    """mlflow's own functions ask the workspace's store."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(workspace.uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)


def request_of(contents):
    return pd.DataFrame({"image": [base64.b64encode(content).decode() for content in contents]})


def refused(workspace, *words):
    """What a command says that is refused with one line and exit code 2."""
    outcome = workspace.oodflow(*words)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("error: "), outcome.err
    return outcome.err


# What is built.


def test_auto_takes_diff_outlier_of_the_newest_model_with_an_outlier_loss(with_detector):
    run = detector_run(with_detector)
    of = runs.get(with_detector.store(), run.tags["detects"])
    assert (run.tags["kind"], run.tags["score"]) == ("detector", "diff_outlier")
    # Of the newest setting the lowest seed, whichever was trained last.
    assert (of.tags["outlier_loss"], of.tags["seed"]) == ("binary", "1")
    assert run.tags["model"] == of.tags["model"] == "glow"
    assert run.status == "FINISHED" and run.registered


def test_a_version_has_its_tags_and_the_alias(with_detector):
    client = with_detector.store().client
    made = version(with_detector, 1)
    assert made.run_id == detector_run(with_detector).run_id
    assert client.get_model_version_by_alias(NAME, "champion").version == made.version
    digest = detector_run(with_detector).tags["digest"]
    assert made.tags == {
        "oodflow.digest": digest,
        "oodflow.score": "diff_outlier",
        "oodflow.dataset": "sketch-shapes",
    }


def test_rates_are_measured_on_the_other_half_and_the_outlier_sets(with_detector, shapes):
    run = detector_run(with_detector)
    detector = load_detector(with_detector.store(), run.run_id)
    own = detector.scores(shapes)
    first, second = halves(1000)
    known = {"false_positive_rate": own[second]}
    for ood in OODS:
        images = generate(ood, "test", 1000)["pixels"]
        known[f"detection_rate/{ood}"] = detector.scores(images)
    for alpha in (0.01, 0.05, 0.1):
        for name, scores in known.items():
            expected = (conformal_p_values(own[first], scores) <= alpha).mean()
            # A score on the edge may fall on either side of it.
            assert abs(run.metrics[f"{name}/{alpha:g}"] - expected) <= 1 / len(scores)
        low, high = flagged_interval(alpha, 500, 500)
        assert run.metrics[f"false_positive_rate_low/{alpha:g}"] == low
        assert run.metrics[f"false_positive_rate_high/{alpha:g}"] == high
    assert low <= run.metrics["false_positive_rate/0.1"] <= high
    assert run.metrics["calibration_images"] == 500
    assert run.metrics["smallest_alpha"] == 1 / 501


def test_figures_and_the_calibration_images_are_on_the_run(with_detector):
    store, run = with_detector.store(), detector_run(with_detector)
    figures = ["figures/p-values.png", "figures/roc.png"]
    assert runs.list_artifacts(store, run.run_id, "figures") == figures
    for figure in figures:
        with runs.artifact(store, run.run_id, figure) as file, Image.open(file) as picture:
            assert min(picture.size) > 200
    [used] = store.client.get_run(run.run_id).inputs.dataset_inputs
    assert {tag.key: tag.value for tag in used.tags}["mlflow.data.context"] == "calibration"
    assert used.dataset.name.startswith("sketch-shapes")


def test_a_table_says_what_was_measured_and_how_to_go_on(with_detector):
    said = (with_detector.folder.parent / "said").read_text()
    for word in (*OODS, f"oodflow detect models:/{NAME}/1", "mlflow models serve", "0.002"):
        assert word in said


def test_each_build_is_a_new_version_and_the_alias_stays(detecting):
    store = detecting.store()
    plain = next(
        run
        for run in runs.find(store, {"kind": "finetune", "outlier_loss": "none"})
        if run.tags["seed"] == "1"
    )
    outcome = detecting.oodflow("detector", "build", plain.run_id, "--score", "diff")
    assert outcome.code == 0, outcome.err
    assert version(detecting, 2).tags["oodflow.score"] == "diff"
    assert version(detecting, 2).run_id == detector_run(detecting).run_id
    assert detector_run(detecting).tags["detects"] == plain.run_id
    assert str(store.client.get_model_version_by_alias(NAME, "champion").version) == "1"
    general = runs.get(store, plain.tags["general_run"])
    expected = contrasted(detecting, plain, general, "sketch-shapes")[:40]
    images = generate("sketch-shapes", "test", 40)["pixels"]
    found = load_detector(store, f"models:/{NAME}/2").scores(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # A run may be named by its version in the registry as well.
    outcome = detecting.oodflow("detector", "build", runs.model_uri(store, plain.run_id),
                                "--score", "last_scale", "--champion")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert str(store.client.get_model_version_by_alias(NAME, "champion").version) == "3"
    assert set(load_detector(store, CHAMPION).models) == {"in_distribution"}
    # It is counted by no report as a training.
    assert detecting.oodflow("report").code == 0


def test_auto_takes_what_the_contrasts_allow(detecting):
    client = detecting.store().client
    scores = []
    for tags in (
        {"role": "general", "kind": "finetune"},
        {"role": "general", "kind": "train"},
    ):
        for run in runs.find(detecting.store(), tags):
            client.delete_run(run.run_id)
        outcome = detecting.oodflow("detector", "build")
        assert outcome.code == 0, outcome.err
        scores.append(detector_run(detecting).tags["score"])
    assert scores == ["diff", "last_scale"]
    assert "was deleted" in refused(detecting, "detector", "build", "--score", "diff")


def test_no_outlier_image_has_a_part_in_it(detecting, monkeypatch):
    """Without any outlier dataset the same detector comes out."""
    monkeypatch.setattr(detectors, "outlier_datasets", lambda session, dataset, given: ())
    outcome = detecting.oodflow("detector", "build")
    assert outcome.code == 0, outcome.err
    first, second = (
        json.loads((model_folder(detecting, n) / "artifacts/detector/detector.json").read_text())
        for n in (1, 2)
    )
    for facts in (first, second):
        # The weights' files name their facts in any order; `models` has the digests of weights.
        facts["files"] = facts["files"]["calibration.parquet"]
    assert first == second
    run = detector_run(detecting)
    assert not [name for name in run.metrics if name.startswith("detection_rate")]
    figures = runs.list_artifacts(detecting.store(), run.run_id, "figures")
    assert figures == ["figures/p-values.png"]


def test_a_compressor_can_be_the_contrast(detecting):
    outcome = detecting.oodflow("detector", "build", "--score", "diff", "--general", "png")
    assert outcome.code == 0, outcome.err
    loaded = load_detector(detecting.store(), f"models:/{NAME}/2")
    assert loaded.models["general"].experiment.model.name == "png"


def test_a_class_conditional_model_can_be_one_and_a_classifier_cannot(trained, tiny):
    outcome = trained.oodflow("finetune", *tiny, "--supervised")
    assert outcome.code == 0, outcome.err
    supervised = runs.find(trained.store(), {"setting": "supervised"})[0]
    words = "--model wide-resnet --hidden 1 --limit 64 --batch-size 16 --steps 2 --report-every 1"
    outcome = trained.oodflow("train", *words.split())
    assert outcome.code == 0, outcome.err
    classifier = runs.find(trained.store(), {"model": "wide-resnet"})[0]
    said = refused(trained, "detector", "build", classifier.run_id)
    assert f"run {classifier.run_id} holds a classifier" in said
    outcome = trained.oodflow("detector", "build", supervised.run_id)
    assert outcome.code == 0, outcome.err
    detector = load_detector(trained.store(), f"models:/{NAME}/1")
    assert detector.models["in_distribution"].experiment.model.classes == 10
    # The classifier is the newest, and has an outlier loss, but no likelihood.
    outcome = trained.oodflow("detector", "build")
    assert outcome.code == 0, outcome.err
    assert detector_run(trained).tags["model"] == "glow"


# Calibration by other images.


def test_a_folder_of_ones_own_calibrates_with_all_its_images(detecting, shapes, draw):
    for i, pixels in enumerate(shapes[:60]):
        draw(detecting.folder / "held out" / f"{i}.png", pixels)
    outcome = detecting.oodflow("detector", "build", "--calibrate", "folder:held out")
    assert outcome.code == 0, outcome.err
    assert "30 calibration images" in outcome.out
    metrics = detector_run(detecting).metrics
    # 1 % cannot be had with 30 images.
    assert "false_positive_rate/0.05" in metrics and "false_positive_rate/0.01" not in metrics
    loaded = load_detector(detecting.store(), f"models:/{NAME}/2")
    assert loaded.calibration.facts["dataset"].startswith("folder:")
    assert loaded.dataset == "sketch-shapes"


def test_a_folder_with_folds_calibrates_with_its_test_fold(detecting, shapes, draw):
    for i, pixels in enumerate(shapes[:40]):
        draw(detecting.folder / "photos" / ("test" if i < 30 else "train") / f"{i}.png", pixels)
    outcome = detecting.oodflow("detector", "build", "--calibrate", "folder:photos")
    assert outcome.code == 0, outcome.err
    assert "15 calibration images" in outcome.out


def test_a_calibration_folder_is_prepared_as_the_detectors_images_are(tmp_path):
    from oodflow.workflow.detectors import _calibration_fold

    own = "folder:/photos?crop=32&resize=40"
    assert _calibration_fold(own, "test") == (own, "test")
    assert _calibration_fold(own, f"folder:{tmp_path}") == (
        f"folder:{tmp_path}?crop=32&resize=40&test=1",
        "test",
    )
    assert _calibration_fold(own, "folder:/more?resize=50&test=0.5") == (
        "folder:/more?crop=32&resize=50&test=0.5",
        "test",
    )
    assert _calibration_fold("mnist", "cifar10") == ("cifar10", "test")


# One number.


@pytest.fixture(scope="module")
def sent(shapes, tmp_path_factory, draw):
    """Twenty files of mixed formats and sizes, one of them broken; the first ten are exact."""
    folder = tmp_path_factory.mktemp("sent")
    files = [draw(folder / f"{i:02}.png", shapes[i]) for i in range(10)]
    for i in range(10, 19):
        size = (32 + 11 * i, 200 - 5 * i)
        ending = ("jpg", "webp", "png")[i % 3]
        files.append(draw(folder / f"{i:02}.{ending}", shapes[i], size))
    broken = folder / "19.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    return [*files, broken]


@pytest.fixture(scope="module")
def detected(with_detector, sent):
    """The rows of ``oodflow detect`` over these files."""
    out = sent[0].parent / "rows.parquet"
    outcome = with_detector.oodflow("detect", CHAMPION, *map(str, sent), "--out", str(out))
    assert outcome.code == 0, outcome.err
    return pd.read_parquet(out)


def same(rows, detected):
    """Assert that answers agree in all that is said of an image."""
    np.testing.assert_allclose(
        np.array(rows["score"], float), detected["score"], rtol=0, atol=1e-4, equal_nan=True
    )
    np.testing.assert_array_equal(np.array(rows["p_value"], float), detected["p_value"])
    for name in ("anomalous", "resized"):
        assert [None if pd.isna(each) else each for each in rows[name]] == [
            None if pd.isna(each) else each for each in detected[name]
        ]
    assert [bool(each) for each in rows["error"]] == [False] * 19 + [True]


def test_the_command_python_and_the_tables_say_one_number(
    with_detector, sent, detected, shapes, monkeypatch
):
    assert detected["score"].notna().sum() == 19 and detected["error"][19]
    expected = by_the_tables(with_detector, "sketch-shapes")[:10]
    np.testing.assert_allclose(detected["score"][:10], expected, rtol=0, atol=1e-4)
    first, _ = halves(1000)
    calibration = load_detector(with_detector.store(), CHAMPION).scores(shapes[first])
    p_values = conformal_p_values(calibration, expected)
    np.testing.assert_allclose(detected["p_value"][:10], p_values, rtol=0, atol=1.001 / 501)
    assert not detected["resized"][:10].any() and detected["resized"][10:19].all()
    monkeypatch.chdir(with_detector.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_detector.uri)
    folder, run_id = model_folder(with_detector), detector_run(with_detector).run_id
    for reference in (CHAMPION, f"models:/{NAME}/1", run_id, folder, folder / "artifacts/detector"):
        scores = Detector.load(reference).score_samples(sent[:19])
        np.testing.assert_allclose(scores, detected["score"][:19], rtol=0, atol=1e-4)


def test_mlflow_says_the_same_number(with_detector, sent, detected, tmp_path):
    request = request_of(file.read_bytes() for file in sent)
    with mlflow_at(with_detector) as mlflow:
        model = mlflow.pyfunc.load_model(CHAMPION)
        same(model.predict(request), detected)
        wide = model.predict(request, params={"alpha": 0.9})
        assert wide["anomalous"].sum() > detected["anomalous"].sum()
        assert wide["anomalous"][:19].tolist() == (detected["p_value"][:19] <= 0.9).tolist()
        mlflow.models.predict(
            CHAMPION, request, env_manager="local", output_path=str(tmp_path / "answer.json")
        )
    answer = json.loads((tmp_path / "answer.json").read_text())["predictions"]
    same(pd.DataFrame(answer), detected)


@pytest.mark.long
def test_a_served_detector_says_the_same_number(with_detector, sent, detected):
    with served(with_detector, CHAMPION) as ask:
        contents = [[base64.b64encode(file.read_bytes()).decode()] for file in sent]
        request = {"dataframe_split": {"columns": ["image"], "data": contents}}
        code, answer = ask(request)
        assert code == 200
        same(pd.DataFrame(answer["predictions"]), detected)
        code, answer = ask({**request, "params": {"alpha": 0.9}})
        decided = [row["anomalous"] for row in answer["predictions"]]
        assert code == 200 and decided[:19] == (detected["p_value"][:19] <= 0.9).tolist()
        assert decided[19] is None
        for alpha in (0.0001, 3.0):
            code, answer = ask({**request, "params": {"alpha": alpha}})
            assert 400 <= code < 500 and "alpha" in answer["message"], answer
            if alpha < 1:
                assert "1/501 = 0.002" in answer["message"]
        code, answer = ask({"dataframe_split": {"columns": ["photo"], "data": contents}})
        assert 400 <= code < 500, answer
        code, answer = ask(request)
        assert code == 200 and len(answer["predictions"]) == 20


@contextlib.contextmanager
def served(workspace, uri):
    """``mlflow models serve`` of a model; gives ``ask(request)``, its status and its answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["models", "serve", "-m", uri, "--env-manager", "local", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "--port", str(port)],
        cwd=workspace.folder,
        env=workspace.environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def ask(request):
        body = json.dumps(request).encode()
        head = {"Content-Type": "application/json"}
        sent = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, head)
        try:
            with urllib.request.urlopen(sent, timeout=60) as answer:
                return answer.status, json.loads(answer.read(), parse_constant=pytest.fail)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def answers():
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1):
                return True
        except OSError:
            return False

    try:
        assert waited_for(answers)
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# Every version of a run is a model.


def test_a_trained_run_is_a_model_that_mlflow_loads(with_detector, shapes):
    store = with_detector.store()
    run = runs.find(store, {"kind": "finetune", "outlier_loss": "none"})[0]
    contents = []
    for pixels in shapes[:12]:
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    with mlflow_at(with_detector) as mlflow:
        model = mlflow.pyfunc.load_model(runs.model_uri(store, run.run_id))
        answer = model.predict(request_of([*contents, b"no image"]))
    assert list(answer) == ["log_prob", "bpd", "resized", "error"]
    with runs.artifact(store, run.run_id, "scores/sketch-shapes-test.parquet") as file:
        expected = pd.read_parquet(file)["log_prob"][:12]
    np.testing.assert_allclose(answer["log_prob"][:12].astype(float), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        answer["bpd"][:12].astype(float), -expected / (3072 * np.log(2)), rtol=0, atol=1e-6
    )
    assert pd.isna(answer["log_prob"][12]) and answer["error"][12]
    assert answer["error"][:12].tolist() == [""] * 12


@pytest.mark.long
def test_a_trained_run_is_served(with_detector, sent):
    run = runs.find(with_detector.store(), {"kind": "train"})[0]
    with served(with_detector, runs.model_uri(with_detector.store(), run.run_id)) as ask:
        contents = [[base64.b64encode(file.read_bytes()).decode()] for file in sent]
        code, answer = ask({"dataframe_split": {"columns": ["image"], "data": contents}})
    assert code == 200
    assert [row["log_prob"] is None for row in answer["predictions"]] == [False] * 19 + [True]


@pytest.mark.long
def test_the_entry_point_builds_one(trained):
    project = trained.mlflow_run("detector")
    assert project.code == 0, project.text
    run = runs.get(trained.store(), project.run_id)
    assert run.tags["kind"] == "detector" and run.status == "FINISHED"
    assert version(trained, 1).run_id == project.run_id
    assert load_detector(trained.store(), project.run_id).score == "diff_outlier"


# What is refused.


@pytest.mark.parametrize(
    "words, said",
    [
        (("nosuch",), "no run 'nosuch'"),
        (("models:/nothing/1",), "no model version 'models:/nothing/1'"),
        (("--score", "best"), "'best' is not one of"),
        (("--score", "diff", "--general", "none"), "needs a general model"),
        (("--score", "diff_outlier", "--general-outlier", "none"), "needs a general outlier model"),
        (("--calibrate", "train"), "20000 training images of sketch-shapes"),
        (("--calibrate", "nothing"), "unknown dataset 'nothing'"),
        (("--calibrate", "folder:nothing"), "does not exist"),
        (("--calibrate", "mnist"), "mnist has 1 channel"),
    ],
)
def test_what_cannot_be_built_is_one_line(with_detector, words, said):
    assert said in refused(with_detector, "detector", "build", *words)
    # No half-made run or version is left.
    assert len(runs.find(with_detector.store(), {"kind": "detector"})) == 1
    assert len(with_detector.store().client.search_model_versions(f"name = '{NAME}'")) == 1


def test_a_run_without_an_in_distribution_model_is_refused(with_detector):
    store = with_detector.store()
    for tags in ({"kind": "train"}, {"kind": "detector"}, {"kind": "report"}):
        run = runs.find(store, tags)[0]
        said = refused(with_detector, "detector", "build", run.run_id)
        assert run.run_id in said and "no in-distribution model" in said


def test_no_model_at_all_is_one_line(blank):
    assert "oodflow finetune" in refused(blank, "detector", "build")


def test_copies_of_training_images_cannot_calibrate(trained, shapes, draw):
    training = generate("sketch-shapes", "train", 20)["pixels"]
    folder = trained.folder / "mixed"
    for i, pixels in enumerate([*shapes[:30], *training[:5]]):
        draw(folder / f"{i}.png", pixels)
    said = refused(trained, "detector", "build", "--calibrate", "folder:mixed")
    assert "5 training images of sketch-shapes" in said


def test_a_folder_of_other_channels_cannot_calibrate(trained, shapes, draw):
    for i in range(4):
        draw(trained.folder / "grey" / f"{i}.png", shapes[i])
    said = refused(trained, "detector", "build", "--calibrate", "folder:grey?channels=1")
    assert "has 1 channel" in said and "has 3" in said


def test_one_image_cannot_calibrate_and_measure(trained, shapes, draw):
    draw(trained.folder / "one" / "0.png", shapes[0])
    said = refused(trained, "detector", "build", "--calibrate", "folder:one")
    assert "at least 2" in said


# What came from elsewhere, or was changed.


class Runs:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def with_a_pickle(folder, marker):
    (folder / "model.pkl").write_bytes(pickle.dumps(Runs(marker)))
    return "'model.pkl' is not a file of a detector"


def with_a_pickle_for_weights(folder, marker):
    (folder / "in_distribution.safetensors").write_bytes(pickle.dumps(Runs(marker)))
    return "in_distribution.safetensors was changed"


def with_a_link(folder, marker):
    file = folder / "calibration.parquet"
    file.rename(folder.parent / "outside")
    file.symlink_to(folder.parent / "outside")
    return "calibration.parquet is a link"


def with_a_linked_folder(folder, marker):
    (folder / "general.safetensors").symlink_to("/", target_is_directory=True)
    return "general.safetensors is a link"


def with_a_name_that_leads_out(folder, marker):
    facts = json.loads((folder / "detector.json").read_text())
    facts["files"]["../../MLmodel"] = "0" * 64
    (folder / "detector.json").write_text(json.dumps(facts))
    return "'../../MLmodel', which is not a file of a detector"


HOSTILE = [
    with_a_pickle,
    with_a_pickle_for_weights,
    with_a_link,
    with_a_linked_folder,
    with_a_name_that_leads_out,
]


def add_code(folder, marker):
    """Code in all places from which mlflow would run it."""
    code = f"open({str(marker)!r}, 'w')\n"
    (folder / "served.py").write_text(code)
    for file in (folder / "code" / "oodflow").rglob("*.py"):
        file.write_text(code)
    loader = "loader_module: hostile\n"
    (folder / "hostile.py").write_text(code + "def _load_pyfunc(path): pass\n")
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("loader_module: mlflow.pyfunc.model\n", loader))
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Runs(marker)))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_folder_is_refused_and_not_run(with_detector, sent, tmp_path, hostile):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(model_folder(with_detector), folder)
    add_code(folder, marker)
    why = hostile(folder / "artifacts" / "detector", marker)
    for place in (folder, folder / "artifacts" / "detector"):
        assert why in refused(with_detector, "detect", str(place), str(sent[0]))
    assert not marker.exists()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_version_is_refused_and_not_run(detecting, sent, tmp_path, hostile):
    marker = tmp_path / "marker"
    add_code(model_folder(detecting), marker)
    why = hostile(model_folder(detecting) / "artifacts" / "detector", marker)
    for reference in (CHAMPION, detector_run(detecting).run_id):
        said = refused(detecting, "detect", reference, str(sent[0]))
        # Changed facts are noticed before they are read.
        assert why in said or "was changed after it was registered" in said
    assert not marker.exists()


def test_the_code_beside_a_detector_is_not_run(with_detector, sent, tmp_path):
    """Only mlflow itself runs a model's code: a command reads the sealed files alone."""
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(model_folder(with_detector), folder)
    add_code(folder, marker)
    outcome = with_detector.oodflow("detect", str(folder), str(sent[0]))
    assert outcome.code == 0, outcome.err
    assert not marker.exists()


def test_a_folder_that_leads_out_is_refused(with_detector, sent, tmp_path):
    shutil.copytree(model_folder(with_detector) / "artifacts", tmp_path / "artifacts")
    for name, target in (
        ("one", "artifacts"),
        ("two/artifacts", "artifacts/detector"),
    ):
        (tmp_path / name).mkdir(parents=True)
        link = tmp_path / name / target.rpartition("/")[2]
        link.symlink_to(tmp_path / target, target_is_directory=True)
        said = refused(
            with_detector, "detect", str(tmp_path / name.partition("/")[0]), str(sent[0])
        )
        assert "leads out of it" in said


def test_an_mlflow_model_that_is_no_detector_is_refused_and_not_run(with_detector, sent, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(model_folder(with_detector), folder)
    shutil.rmtree(folder / "artifacts")
    add_code(folder, marker)
    assert "no detector" in refused(with_detector, "detect", str(folder), str(sent[0]))
    assert not marker.exists()


def test_a_version_that_was_made_anew_in_its_place_is_noticed(detecting, sent):
    """All digests inside are right, but not those that were registered."""
    outcome = detecting.oodflow("detector", "build", "--score", "raw")
    assert outcome.code == 0, outcome.err
    other = model_folder(detecting, 2) / "artifacts" / "detector"
    own = model_folder(detecting, 1) / "artifacts" / "detector"
    shutil.rmtree(own)
    shutil.copytree(other, own)
    for reference in (CHAMPION, f"models:/{NAME}/1"):
        said = refused(detecting, "detect", reference, str(sent[0]))
        assert "was changed after it was registered" in said and f"models:/{NAME}" in said


@pytest.mark.long
def test_a_detector_behind_a_server_is_fetched(server, blank_workspace, tmp_path, with_detector):
    """Its own files alone: a server's answer that leads elsewhere is not followed."""
    from oodflow.tracking.servable import downloaded
    from oodflow.tracking.store import failing_fast, open_store

    server.start()
    try:
        store = open_store(server.uri)
        client = store.client
        run = client.create_run(store.experiment_id)
        folder = model_folder(with_detector)
        client.log_artifacts(run.info.run_id, str(folder), "model")
        client.create_registered_model("elsewhere")
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version("elsewhere", source, run.info.run_id)
        with downloaded(store, "models:/elsewhere/1", "artifacts/detector") as (local, tags):
            assert sorted(each.name for each in local.parent.parent.iterdir()) == ["artifacts"]
            assert tags == {}
        assert not local.exists()
        assert load_detector(store, "models:/elsewhere/1").score == "diff_outlier"
        with pytest.raises(UserError, match="no model version"):
            load_detector(store, "models:/elsewhere/2")
    finally:
        server.kill()
    with failing_fast(), pytest.raises(ResourceError, match="fails"):
        load_detector(store, "models:/elsewhere/1")
