"""The MLflow model, logged into a real SQLite store, loaded and asked as a server would be."""

import ast
import base64
import io
import json
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oodflow.detection.detector import DECISION_COLUMNS, Detector
from oodflow.detection.package import LIBRARIES, input_example, packaged, requirements

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def logged(detector, shapes, tmp_path_factory):
    """The model's URI in a store of its own, and the folder of its files."""
    import mlflow

    from oodflow.detection.served import signature

    folder = tmp_path_factory.mktemp("served")
    detector.save(folder / "detector")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.create_experiment("served", str(folder / "artifacts"))
    package = packaged(folder / "detector", shapes[:2])
    with mlflow.start_run(experiment_id=experiment):
        info = mlflow.pyfunc.log_model(name="detector", signature=signature(), **vars(package))
    [description] = (folder / "artifacts").rglob("MLmodel")
    yield info.model_uri, description.parent
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(logged):
    import mlflow

    return mlflow.pyfunc.load_model(logged[0])


def test_nothing_is_pickled(logged):
    files = [path for path in logged[1].rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds <= {
        *("", ".py", ".yaml", ".html", ".css", ".json", ".safetensors", ".parquet"),
        *(".txt", ".typed"),
    }  # fmt: skip
    assert {path.name for path in files if not path.suffix} <= {"MLmodel", "registered_model_meta"}
    for path in files:
        content = path.read_bytes()
        assert not zipfile.is_zipfile(path), path
        assert not (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"), path
    assert any(path.name == "served.py" for path in files)
    assert (logged[1] / "artifacts" / "detector" / "detector.json").is_file()


def test_the_answers_are_those_of_the_detector(model, detector, shapes, digits):
    images = np.concatenate([shapes[250:290], digits[:10]])
    expected = detector.p_values(images)
    for request in (input_example(images), pd.DataFrame({"pixels": list(images)})):
        answer = model.predict(request)
        assert tuple(answer) == DECISION_COLUMNS
        np.testing.assert_allclose(answer["score"], detector.scores(images), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(answer["p_value"], expected)
        assert answer["anomalous"].tolist() == (expected <= 0.05).tolist()
    one = model.predict(input_example(images[:1]))
    assert abs(one["score"][0] - detector.scores(images)[0]) < 1e-4
    at = model.predict(input_example(images), params={"alpha": 0.3})
    assert at["anomalous"].tolist() == (expected <= 0.3).tolist()


def test_the_files_inside_are_a_detector(logged, detector, shapes):
    loaded = Detector.from_folder(logged[1] / "artifacts" / "detector")
    np.testing.assert_array_equal(loaded.scores(shapes[:20]), detector.scores(shapes[:20]))


def test_a_request_over_http_has_rows_for_what_cannot_be_read(logged, model, detector, shapes):
    """As the server parses it: mixed formats and sizes, a broken file, and no JSON that is not."""
    from mlflow.models import validate_serving_input
    from mlflow.pyfunc.scoring_server import invocations

    def sent(image, format, size=(32, 32)):
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).resize(size).save(buffer, format)
        return base64.b64encode(buffer.getvalue()).decode()

    codes = [sent(shapes[300], "PNG"), sent(shapes[301], "JPEG", (64, 48))]
    codes += ["AAAA", "?", sent(shapes[302], "WEBP"), None]
    request = {"dataframe_split": {"columns": ["image"], "data": [[code] for code in codes]}}
    text = json.dumps({**request, "params": {"alpha": 0.5}})
    answered = invocations(text, "application/json", model, model.metadata.get_input_schema())
    assert answered.status == 200
    rows = json.loads(answered.response, parse_constant=pytest.fail)["predictions"]
    assert [bool(row["error"]) for row in rows] == [False, False, True, True, False, True]
    assert [row["resized"] for row in rows] == [False, True, False, False, False, False]
    assert [row["anomalous"] is None for row in rows] == [False, False, True, True, False, True]
    assert rows[2]["score"] is rows[2]["p_value"] is None
    assert abs(rows[0]["score"] - detector.scores(shapes[300:301])[0]) < 1e-4
    assert len(validate_serving_input(logged[0], text)) == 6


def test_requests_that_make_no_sense_are_bad_requests(model, shapes):
    from mlflow.exceptions import MlflowException

    for params in ({"alpha": 0.0001}, {"alpha": 7.0}):
        with pytest.raises(MlflowException, match="alpha") as caught:
            model.predict(input_example(shapes[:1]), params=params)
        assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="neither a column 'image'"):
        model.predict(pd.DataFrame({"picture": ["x"]}))


def test_pixels_that_are_none_are_rows_with_an_error(model, shapes):
    good = shapes[0].tolist()
    for bad in ([[[1, 2], [3]]], [[[300] * 32] * 32] * 3, [[[-1] * 32] * 32] * 3):
        rows = model.predict(pd.DataFrame({"pixels": [good, bad]}))
        assert rows["error"][0] == "" and "whole numbers from 0 to 255" in rows["error"][1]


def test_the_signature_says_what_there_is(model):
    params = {each.name: each.default for each in model.metadata.get_params_schema().params}
    assert params == {"alpha": 0.05}
    assert model.metadata.get_input_schema().input_names() == ["image", "pixels"]
    assert tuple(model.metadata.get_output_schema().input_names()) == DECISION_COLUMNS


def test_the_requirements_are_all_that_serving_imports(logged):
    """Every library that the modules behind the served code import at their top is pinned."""
    waiting, seen, libraries = ["oodflow.detection.served"], set(), set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        file = ROOT / (module.replace(".", "/") + ".py")
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                ours = [n for n in inner if (ROOT / (n.replace(".", "/") + ".py")).is_file()]
                names = ours or [node.module]
            else:
                continue
            for name in names:
                if not name.startswith("oodflow"):
                    libraries.add(name.split(".")[0])
                elif (ROOT / (name.replace(".", "/") + ".py")).is_file() and name not in seen:
                    waiting.append(name)
    known = packages_distributions()
    needed = {known[each][0].lower() for each in libraries - set(sys.stdlib_module_names)}
    assert {name for name in needed if not name.startswith("mlflow")} == set(LIBRARIES) - {"mlflow"}
    written = (logged[1] / "requirements.txt").read_text().split()
    assert written == requirements()
    assert all("+" not in line for line in written)
