"""What the documentation says to type, typed: on tiny settings, page by page, in order.

A page about the quickstart's results starts after a quickstart, the others in a fresh folder. Other
programs' commands are known by name here; an unknown one is an error.
"""

import base64
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Workspace
from PIL import Image

import oodflow
from oodflow.commands import COMMANDS
from oodflow.entry_points import ENTRY_POINTS
from oodflow.options import options_of

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# They begin in a folder without runs, as the reader does.
FRESH = ("own-images.md", "alpha.md", *(book.name for book in NOTEBOOKS))
# What a machine of tests lacks, and what stands in for it.
STAND_INS = {
    "cifar10": "sketch-shapes", "cifar100": "sketch-letters", "svhn": "sketch-digits",
    "tiny300k": "sketch-general", "imagenet32": "sketch-general", "pictures-grey": "sketch-general",
    "my-flow": "glow", "FILE": str(ROOT / "tests/foreign/parity/authors_format_glow_K2_h16.th"),
}  # fmt: skip
# With the few calibration images of a tiny training.
SMALLEST_ALPHA = "0.05"
# Values that only cost time: a seed, and few resamples, show as much.
CHEAP = {"--seeds": "1", "--preset": "quick", "--bootstrap": "20", "--alpha": SMALLEST_ALPHA}
# Options that would take long, or need what only a cluster has, after what the page says.
FURTHER = {
    "train": "--resume",
    "finetune": "--resume",
    "bench": "--steps 1 --batch-size 2 --depth 1 --hidden 8",
    "reproduce": "--dry-run --only general",
    "tune": "--trials 1",
}
# Options about files and servers that stand-ins do not need, with the number of their values.
UNNEEDED = {"--download": 0, "--from": 1, "--storage": 1}
# Exit codes that are right as well: an anomaly was found; no run is kept here to be delivered.
RIGHT_ENDS = {"--fail-on-anomaly": 1, "sync": 2}
# Commands that are not ours and not run.
ELSEWHERE = {
    "apt-get", "createdb", "curl", "export", ".", "pip", "mlflow server", "mlflow ui",
    "optuna-dashboard",
}  # fmt: skip

BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```$", re.M | re.S)
TINY_OPTIONS = dict(zip((word.removeprefix("--") for word in TINY[::2]), TINY[1::2], strict=True))
TINY_TRAINING = ", ".join(f"{k.replace('-', '_')}={v}" for k, v in TINY_OPTIONS.items())


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of what a page or notebook has to be run, in order."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return [("python", "".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    return [
        (language, re.sub(rf"^{indent}", "", text, flags=re.M))
        for indent, language, text in BLOCK.findall(page.read_text())
    ]


def lines(text: str) -> list[str]:
    """The commands of a block: without comments, with continued lines in one."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found, begun = [], ""
    for line in joined.splitlines():
        line = f"{begun}{line}"
        # A request goes on to its closing quote.
        begun = f"{line}\n" if line.startswith("curl") and not line.endswith('"') else ""
        if not begun and line.strip() and not line.lstrip().startswith("#"):
            found.append(line)
    return found


@dataclass
class Reader:
    """Who follows a page: types its commands, puts ids in, and looks at what comes out."""

    workspace: Workspace
    names: dict = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)

    def filled(self, text: str) -> str:
        """With a run's id, a detector's name, the datasets at hand."""
        if re.search(r"\b(RUN_ID|OTHER_RUN_ID)\b", text):
            glow = {"oodflow.model": "glow", "oodflow.registered": "true"}
            inliers, general = (
                next(
                    run.info.run_id
                    for run in self.workspace.all_runs()
                    if glow.items() <= run.data.tags.items()
                    and run.data.tags.get("oodflow.role") == role
                    and run.data.tags["oodflow.kind"] in ("train", "finetune")
                )
                for role in ("in_distribution", "general")
            )
            text = re.sub(r"\bOTHER_RUN_ID\b", general, text)
            text = re.sub(r"\bRUN_ID\b", inliers[:8], text)
        if "DETECTOR" in text:
            models = self.workspace.store().client.search_registered_models()
            [name] = [each.name for each in models if "detector" in each.name]
            text = text.replace("DETECTOR", name)
        return text

    def types(self, line: str) -> None:
        """One line of a shell: ours is run, another program's is known."""
        words = [w for w in shlex.split(self.filled(line), comments=True) if w != "&&"]
        if words[0] == "torchrun":
            words = ["oodflow", *words[words.index("oodflow") + 1 :]]
        if words[:2] == ["mlflow", "run"]:
            given = [w for i, w in enumerate(words) if words[i - 1] == "-P"]
            words = ["oodflow", words[words.index("-e") + 1]]
            words += [w for each in given for w in (f"--{each.split('=')[0]}", each.split("=")[1])]
        if words[0] == "make":
            assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text(), line
        elif words[:3] == ["mlflow", "models", "serve"]:
            self.serves(words[words.index("-m") + 1])
        elif words[0] == "oodflow":
            self.ours(words[1:])
        else:
            assert words[0] in ELSEWHERE or " ".join(words[:2]) in ELSEWHERE, line

    def ours(self, words: list[str]) -> None:
        """Run a command of ours on tiny settings and expect success."""
        command = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), "")
        if not command:
            assert words[-1].startswith("-"), words
            return
        known = {option.flag for option in options_of(ENTRY_POINTS[command].options)}
        words = [
            CHEAP.get(option) or self.stood_in(word)
            for option, word in zip(["", *words], words, strict=False)
        ]
        for option, values in UNNEEDED.items():
            if option in words:
                assert option[2:] in known, option
                place = words.index(option)
                del words[place : place + 1 + values]
        if command != "bench":
            tiny = {k: v for k, v in TINY_OPTIONS.items() if k.replace("-", "_") in known}
            words += [word for option, value in tiny.items() for word in (f"--{option}", value)]
        words += FURTHER.get(command, "").split()
        outcome = self.workspace.oodflow(*words)
        allowed = {0, *(code for word, code in RIGHT_ENDS.items() if word in words)}
        assert outcome.code in allowed, f"{' '.join(words)}\n{outcome.err}\n{outcome.out[-500:]}"

    def stood_in(self, word: str) -> str:
        return ",".join(STAND_INS.get(each, each) for each in word.split(","))

    def serves(self, uri: str) -> None:
        """A served model answers the request that the page shows, but not over the network."""
        import mlflow
        import pandas as pd

        image = base64.b64encode((self.workspace.folder / "new/sketch-digits-0.png").read_bytes())
        mlflow.set_tracking_uri(self.workspace.uri)
        answer = mlflow.pyfunc.load_model(uri).predict(
            pd.DataFrame({"image": [image.decode()]}), params={"alpha": 0.05}
        )
        assert {"p_value", "anomalous"} <= set(answer)

    def runs(self, code: str) -> None:
        """A block of Python, with its trainings made tiny, after those before it on the page."""
        # Notebooks say that their models are small; the pages' are by default.
        tiny = "steps=6" if "small" in code else TINY_TRAINING
        code = re.sub(r"\bsteps=\d+", tiny, self.filled(code))
        code = re.sub(r"\balpha=0\.\d+", f"alpha={SMALLEST_ALPHA}", code)
        with inside(self.workspace), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "page", "exec"), self.names)


@contextlib.contextmanager
def inside(workspace: Workspace) -> Iterator[None]:
    """The workspace's folder and environment, for Python of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        for name, value in workspace.environment().items():
            patch.setenv(name, value)
        yield


TYPED = [page for page in (*PAGES, *NOTEBOOKS) if blocks(page)]


@pytest.fixture(scope="module")
def after_quickstart(quickstart, tmp_path_factory) -> Reader:
    """Who has typed `make quickstart`, which is `oodflow main`, and reads page after page.

    Has the images that the pages speak of, in folders and as arrays.
    """
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("read") / "workspace")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32), np.uint8)
    np.savez(workspace.folder / "scans.npz", images=pixels)
    np.save(workspace.folder / "other.npy", np.stack([pixels] * 3, axis=-1))
    for folder in ("photos", "other-photos"):
        (workspace.folder / folder).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(workspace.folder / folder / f"{number}.png")
    return Reader(workspace)


@pytest.mark.long
@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_what_a_page_says_to_type_works_in_order(page: Path, request):
    if page.name in FRESH:
        reader = Reader(request.getfixturevalue("blank"))
    else:
        reader = request.getfixturevalue("after_quickstart")
    reader.names = {}
    for language, text in blocks(page):
        if language == "python":
            reader.runs(text)
            continue
        for line in lines(text):
            # What stands on two pages is typed once.
            if line not in reader.typed:
                reader.types(line)
                reader.typed.append(line)


TEXTS = [*PAGES, *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_links_to_files_lead_somewhere(file: Path):
    # Lines that begin with % are comments.
    text = re.sub(r"^% .*$", "", file.read_text(), flags=re.M)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (file.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_ends_with_a_next_step(page: Path):
    text = page.read_text()
    last = text.split("```{toctree}")[0].rstrip().split("\n\n")[-1]
    assert last.startswith("**Next:**") and "](" in last


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda book: book.stem)
def test_a_notebook_is_small_and_was_run_from_top_to_bottom(book: Path):
    cells = json.loads(book.read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert book.stat().st_size < 50_000
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert outputs and not [each for each in outputs if each["output_type"] == "error"]


def test_every_public_name_is_on_the_page_of_names():
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", (ROOT / "docs/names.md").read_text(), re.M)
    assert sorted(listed) == sorted(oodflow.__all__)


@pytest.mark.parametrize("part", RESULTS, ids=lambda part: part.stem)
def test_tables_of_results_name_the_command_that_made_them(part: Path):
    first, *rest = part.read_text().splitlines()
    assert re.match(r"Made by `(make|oodflow) ", first)
    assert f"results/{part.name}" in (ROOT / "docs/results.md").read_text()
    assert any(line.startswith("| --- |") for line in rest)


def test_the_readme_has_the_numbers_of_the_results():
    def rows(file: Path) -> list[str]:
        return [line for line in file.read_text().splitlines() if re.match(r"\|.* \(\d", line)]

    readme = ROOT / "README.md"
    assert rows(readme) == rows(ROOT / "docs/results/sketch.md")
    assert len(readme.read_text().splitlines()) <= 130
