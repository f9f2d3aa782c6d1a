"""Names that packages add: found from metadata, imported when asked for, errors of one line each.

What is tried happens in processes of their own, with packages as an installer leaves them.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plugins import MODEL, SCORE, install

from oodflow.errors import UserError
from oodflow.registration import DATASETS, MODELS, SCORES, Register, origin_of

ROOT = Path(__file__).parents[1]


def python(code: str, *folders: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def names_and_torch(folder: Path) -> str:
    return python(
        "import sys; from oodflow.registration import MODELS; print(*MODELS.names());"
        "print('torch' in sys.modules, 'noisy' in sys.modules)",
        folder,
    ).stdout


def test_names_are_listed_without_importing_what_has_them(tmp_path):
    install(tmp_path, "noisy-pack", {"noisy": "raise SystemExit(9)"},
            {"oodflow.models": {"loud": "noisy"}})  # fmt: skip
    first, second = names_and_torch(tmp_path).splitlines()
    assert first.split() == [*MODELS.built_in, "loud"]
    assert second == "False False"


LOOK = """
import oodflow.evaluation.scores
from oodflow.registration import SCORES
print(*SCORES)
print(SCORES.origin("raw"), SCORES.origin("twice"))
"""


def test_a_score_of_a_package_is_found_with_its_origin_and_imported_when_asked_for(tmp_path):
    module = SCORE.replace("NAME", "'twice'")
    install(tmp_path, "two-pack", {"two": module}, {"oodflow.scores": {"twice": "two"}}, "2.5")
    done = python(LOOK, tmp_path)
    assert done.stdout.splitlines() == [f"{' '.join(SCORES.built_in)} twice", " two-pack 2.5"]
    assert not done.stderr


BROKEN = {
    "raises": ("1 / 0", "plug-in bad-pack 1.0 cannot be loaded: ZeroDivisionError"),
    "exits": ("raise SystemExit(3)", "plug-in bad-pack 1.0 cannot be loaded: SystemExit: 3"),
    "registers nothing": ("", "its module bad registers no score 'odd' when it is imported"),
    "takes a taken name": (
        SCORE.replace("NAME", "'raw'"),
        "cannot be loaded: there is a score 'raw' already, of oodflow; choose another name",
    ),
    "needs an unknown table": (
        SCORE.replace("NAME", "'odd'").replace("general", "gneral"),
        "unknown table that score 'odd' needs 'gneral'; available: test, general",
    ),
    "has a name that cannot be": (
        SCORE.replace("NAME", "'a/b'"),
        "'a/b' is not a name for a score",
    ),
}


@pytest.mark.parametrize(("module", "line"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_costs_one_line_and_nothing_else(tmp_path, module, line):
    install(tmp_path, "bad-pack", {"bad": module}, {"oodflow.scores": {"odd": "bad"}})
    good = SCORE.replace("NAME", "'twice'")
    install(tmp_path, "good-pack", {"good": good}, {"oodflow.scores": {"twice": "good"}})
    done = python(LOOK + "print(*SCORES, 'odd' in SCORES)", tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"{' '.join(SCORES.built_in)} twice"
    assert done.stdout.splitlines()[2].endswith(" False")
    [said] = done.stderr.splitlines()
    assert said.startswith("warning: plug-in bad-pack 1.0") and line in said


def test_what_a_package_prints_while_it_is_imported_is_no_result_of_ours(tmp_path):
    module = "print('hello\\nthere')\n" + SCORE.replace("NAME", "'twice'")
    install(tmp_path, "loud-pack", {"loud": module}, {"oodflow.scores": {"twice": "loud"}})
    done = python(LOOK, tmp_path)
    assert "hello" not in done.stdout and "twice" in done.stdout
    assert done.stderr.splitlines() == [
        "warning: plug-in loud-pack 1.0 printed while it was imported: hello there"
    ]


def test_of_two_packages_with_one_name_the_first_by_its_own_name_has_it(tmp_path):
    for each in ("b", "a"):
        install(tmp_path, f"{each}-pack", {each: SCORE.replace("NAME", "'twice'")},
                {"oodflow.scores": {"twice": each}})  # fmt: skip
    done = python(LOOK, tmp_path)
    assert done.stdout.splitlines()[1] == " a-pack 1.0"
    assert done.stderr.splitlines() == [
        "warning: plug-in b-pack 1.0: there is a score 'twice' already, of a-pack 1.0; "
        "its own is left out"
    ]


def test_help_shows_models_of_packages_and_comes_at_once(tmp_path):
    slow = "import time; time.sleep(60)"
    for i in range(5):
        added = {f"oodflow.{kind}s": {f"{kind}-{i}": f"slow{i}"} for kind in ("model", "score")}
        install(tmp_path, f"slow-{i}", {f"slow{i}": slow}, added)
    started = time.monotonic()
    done = python("from oodflow.cli import main; main(['train', '--help'])", tmp_path)
    assert time.monotonic() - started < 20, "no plug-in was imported"
    assert all(f"model-{i}" in done.stdout for i in range(5))


def test_the_model_of_a_package_that_is_away_is_named_with_its_package(tmp_path):
    build = (
        "from oodflow.models.build import build_model; from oodflow.experiment import Model;"
        "from oodflow.errors import UserError\n"
        "try: print(build_model(Model(1, 'mine', 1, 8, plugin='my-pack 1.0')).image_shape)\n"
        "except UserError as error: print(error)"
    )
    assert "'mine' is of my-pack 1.0, which is not here; install" in python(build).stdout
    install(tmp_path / "one", "my-pack", {"mine": MODEL.replace("NAME", "'mine'")},
            {"oodflow.models": {"mine": "mine"}})  # fmt: skip
    assert python(build, tmp_path / "one").stdout.strip() == "(1, 32, 32)"
    newer = (tmp_path / "one" / "my_pack-1.0.dist-info").rename(
        tmp_path / "one" / "my_pack-1.1.dist-info"
    )
    metadata = newer / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    done = python(build, tmp_path / "one")
    assert done.stderr.splitlines() == [
        "warning: the model 'mine' is of my-pack 1.1 now, of my-pack 1.0 when it was described"
    ]


def test_ones_own_code_can_register_again_and_what_changed_is_another_version():
    register: Register[int] = Register("thing", ("ours",))
    register.add("ours", 0)
    register.add("mine", 1, "notebook 1111")
    register.add("mine", 2, "notebook 2222")
    assert register["mine"] == 2 and register.origin("mine") == "notebook 2222"
    for name, origin in (("mine", "another 1.0"), ("ours", "another 1.0"), ("ours", "")):
        with pytest.raises(UserError, match=f"there is a thing '{name}' already"):
            register.add(name, 3, origin)
    assert dict(register) == {"ours": 0, "mine": 2}
    own = origin_of(test_ones_own_code_can_register_again_and_what_changed_is_another_version)
    assert own.split()[0] == __name__


def test_built_in_names_are_all_there_once_their_modules_are_imported():
    import oodflow.data.catalog
    import oodflow.evaluation.scores
    import oodflow.presets  # noqa: F401

    assert tuple(MODELS) == MODELS.built_in
    assert tuple(SCORES) == SCORES.built_in
    assert "cifar10" in DATASETS and not DATASETS.origin("cifar10")


def test_a_worker_without_the_package_of_a_task_says_so(tmp_path, monkeypatch):
    """As a Ray worker on a machine where it was not installed, or in another version."""
    from oodflow.options import FinetuneOptions, PlaceOptions
    from oodflow.plans.tasks import Task
    from oodflow.plans.worker import Place, work

    monkeypatch.chdir(tmp_path)
    options = FinetuneOptions()
    object.__setattr__(options, "model", "theirs")
    task = Task("one", "one", "finetune", options, 1, {}, {})
    place = Place(str(tmp_path), {}, PlaceOptions(), {"theirs": "their-pack 1.0", "x": "y 2.0"})
    done = work(place, task, {})
    assert done.state == "failed"
    expected = "'theirs' is of their-pack 1.0, but it is not installed there; install that"
    assert done.reason.startswith("on ") and done.reason.endswith(f": {expected}")
