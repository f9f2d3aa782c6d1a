"""The public API: small, imported when it is used, documented, and the same as the commands."""

import ast
import doctest
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import oodflow
from oodflow import api, console
from oodflow.options import FinetuneOptions, TrainOptions, checked, options_of

ROOT = Path(__file__).parents[1]
TINY = {"depth": 1, "hidden": 8, "limit": 64, "batch_size": 16, "steps": 6, "report_every": 3}
FUNCTIONS = [name for name in oodflow.__all__ if inspect.isfunction(getattr(oodflow, name))]

UNITS = dict.fromkeys(
    ("score", "score_table", "scores", "load_model", "bits_per_dimension"), "nats"
)
UNITS |= dict.fromkeys(("auroc", "aupr", "fpr95", "evaluate", "tune"), "fraction")


def test_importing_it_imports_nothing_that_takes_time():
    code = (
        "import sys; before = set(sys.modules); import oodflow; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = done.stdout.split()
    others = [name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names]
    assert others == ["oodflow"], done.stderr
    assert len(loaded) < 60


def test_a_metric_needs_neither_torch_nor_mlflow():
    code = "import sys, oodflow; oodflow.auroc; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "mlflow"} & set(done.stdout.split())


def test_type_checkers_see_what_is_imported():
    tree = ast.parse((ROOT / "oodflow" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: f"{node.module}:{alias.name}" for node in block.body for alias in node.names
    }
    assert seen == oodflow._PLACES


def test_only_public_names_are_shown_and_given():
    assert {name for name in dir(oodflow) if not name.startswith("__")} == set(oodflow.__all__)
    for name in oodflow.__all__:
        assert getattr(oodflow, name).__module__.startswith("oodflow.")
    with pytest.raises(AttributeError, match="no public name 'torch'"):
        oodflow.torch  # noqa: B018


@pytest.mark.parametrize("name", oodflow.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(oodflow, name)
    text = inspect.getdoc(thing) or ""
    assert thing.__doc__ and ">>>" in text
    assert len(text.split(">>>")[0].strip()) > 40
    if name in FUNCTIONS:
        assert "Raises" in text
        types = str(inspect.signature(thing))
        if "NDArray" in types or "ArrayLike" in types or "Tensor" in types:
            assert any(sign in text for sign in ("×", "shape", "one value per image"))
    assert UNITS.get(name, "") in text


@pytest.fixture
def here(trained, monkeypatch):
    """Python in a copy of the quickstart's workspace, with its runs by their roles."""
    monkeypatch.chdir(trained.folder)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in trained.environment().items():
        monkeypatch.setenv(name, value)
    # Compressors are runs of this kind as well.
    [general] = [run for run in oodflow.find_runs(kind="train") if run.tags["model"] == "glow"]
    plain = [
        run
        for run in oodflow.find_runs(kind="finetune", dataset="sketch-shapes")
        if (run.tags["outlier_loss"], run.tags["seed"]) == ("none", "1")
    ]
    return {"plain": plain[0].run_id, "general": general.run_id}


@pytest.mark.long
def test_the_examples_of_the_docstrings_run(here, monkeypatch):
    for name in ("say", "show"):
        monkeypatch.setattr(console, name, lambda _: None)
    names = {"oodflow": oodflow, "np": np, "Path": Path, "tiny": TINY, **here}
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    of_api = [getattr(oodflow, name) for name in oodflow.__all__]
    of_api = [thing for thing in of_api if thing.__module__ == api.__name__]
    said: list[str] = []
    for thing in of_api:
        [test] = finder.find(thing, thing.__name__, globs=dict(names))
        runner.run(test, out=said.append)
    assert not said, "".join(said)
    assert runner.tries >= len(of_api)


def scores_of(run) -> dict[str, float]:
    """Everything that was measured on a run's model, but for how long it took."""
    return {name: value for name, value in run.metrics.items() if "/" in name}


@pytest.mark.long
def test_the_quickstart_in_python_has_the_numbers_of_the_command(
    quickstart, blank, monkeypatch, capsys
):
    def by_setting():
        trained = (*oodflow.find_runs(kind="finetune"), *oodflow.find_runs(kind="train"))
        return {
            tuple(run.tags.get(key, "") for key in KEYS): scores_of(run)
            for run in trained
            if run.tags["model"] == "glow"
        }

    monkeypatch.chdir(blank.folder)
    for name, value in blank.environment(OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(name, value)
    [general] = oodflow.train(dataset="sketch-general", **TINY)
    plain = oodflow.finetune(dataset="sketch-shapes", seeds=[1, 2], init=general.run_id, **TINY)
    loss = oodflow.finetune(
        dataset="sketch-shapes", seeds=[1, 2], init=general.run_id, outlier_loss="binary", **TINY
    )
    for run in plain:
        [dagger] = oodflow.finetune(
            dataset="sketch-general",
            outlier_loss="binary",
            outlier_dataset="sketch-shapes",
            init=general.run_id,
            general=run.run_id,
            seeds=[int(run.tags["seed"])],
            **TINY,
        )
    for run in (*plain, *loss):
        oodflow.evaluate(run=run.run_id, limit=TINY["limit"])
    oodflow.analyse(run=plain[0].run_id, what="fourier,extremes", subset=5000, limit=TINY["limit"])
    made = by_setting()
    written = oodflow.report(out="report")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", quickstart[0].uri)
    known = by_setting()
    assert len(made) == 7 and made == known
    table = quickstart[0].folder / "report" / "tables" / "detection-sketch.csv"
    theirs, ours = pd.read_csv(table), written.tables["detection-sketch"]
    numbers = [name for name in ours.columns if name not in ("run_ids",)]
    pd.testing.assert_frame_equal(ours[numbers], theirs[numbers], check_exact=True)


KEYS = ("kind", "dataset", "role", "outlier_loss", "outlier_dataset", "init", "seed")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modle": "glow"}, "unknown option of train 'modle'; available: model, preset, depth"),
        ({"steps": "many"}, "steps is 'many'; it takes a whole number, auto"),
        ({"steps": 2.5}, "steps is 2.5; it takes"),
        ({"resume": 1}, "resume is 1; it takes true or false"),
        ({"seeds": [-1]}, "a seed is at least 0"),
        ({"seeds": 1.5}, "write whole numbers"),
        ({"model": "gow"}, "unknown model 'gow'; available: glow, "),
        ({"dataset": np.zeros((4, 32, 32))}, "the given array holds float64 of shape 4×32×32"),
        ({"device": "nowhere"}, "device 'nowhere' is not available"),
    ],
)
def test_wrong_options_are_one_line_that_says_what_is_right(given, said, tmp_path, monkeypatch):
    monkeypatch.setenv("OODFLOW_DATA", str(tmp_path))
    with pytest.raises(oodflow.UserError, match=re.escape(said)) as problem:
        oodflow.train(**given)
    assert "\n" not in str(problem.value)
    assert not list(tmp_path.iterdir())


def test_options_are_given_by_name_and_those_needed_are_named():
    with pytest.raises(oodflow.UserError, match="give the options of train by name"):
        oodflow.train("glow")
    with pytest.raises(
        oodflow.UserError,
        match=r"sample needs run: run \(id or its beginning, or name\) or models:/ URI",
    ):
        oodflow.sample(count=2)
    with pytest.raises(oodflow.UserError, match="unknown option of sample 'out'"):
        oodflow.sample(run="r", out="x.png")


def test_a_notebook_completes_the_options_with_their_defaults():
    parameters = inspect.signature(oodflow.finetune).parameters
    assert parameters["outlier_loss"].default == "none"
    assert {each.kind for each in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert set(parameters) == {each.name for each in options_of(FinetuneOptions)}
    for name in parameters:
        assert f"    {name}: " in oodflow.finetune.__doc__


def test_values_of_numpy_and_pathlib_are_taken_for_those_of_python():
    known = {each.name: each for each in options_of(TrainOptions)}
    steps = checked(known["steps"], np.int64(7))
    assert steps == 7 and type(steps) is int
    assert type(checked(known["lr"], np.float32(0.5))) is float
    assert checked(known["data_dir"], Path("data")) == "data"
    assert checked(known["seeds"], range(3)) == checked(known["seeds"], np.arange(3)) == (0, 1, 2)
    assert checked(known["seeds"], 4) == (4,)


def test_bars_are_drawn_in_a_notebook_that_has_widgets(monkeypatch):
    import rich.console

    notebook = rich.console.Console(force_jupyter=True)
    for there in (None, object()):
        monkeypatch.setattr(console, "find_spec", lambda name, there=there: there)
        assert console._watched(notebook) == (there is not None)


@pytest.mark.long
def test_the_examples_print_what_they_say(blank, monkeypatch, capsys):
    """Each as it stands, in the order in which a reader meets them; they share a store."""
    monkeypatch.chdir(blank.folder)
    for name, value in blank.environment().items():
        monkeypatch.setenv(name, value)
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert len(examples) >= 6
    for example in examples:
        text = example.read_text()
        expected = [line[4:] for line in text.split("# Output:\n")[1].splitlines()]
        with monkeypatch.context() as quiet:
            for name in ("say", "show"):
                quiet.setattr(console, name, lambda _: None)
            runpy.run_path(str(example), run_name="__main__")
        printed = capsys.readouterr().out.splitlines()
        assert [NUMBER.sub("", line) for line in printed] == [
            NUMBER.sub("", line) for line in expected
        ], example.name
        for line, wanted in zip(printed, expected, strict=True):
            found = [float(number) for number in NUMBER.findall(line)]
            assert found == pytest.approx(
                [float(number) for number in NUMBER.findall(wanted)], abs=TOLERANCE
            ), f"{example.name}: {line}"


NUMBER = re.compile(r"\d+\.\d+")
TOLERANCE = 0.1
"""Of AUROCs and bits per dimension, between machines."""
