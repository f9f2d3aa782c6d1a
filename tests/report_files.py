"""What a report wrote: its numbers, and its LaTeX, compiled where there is a pdflatex."""

import csv
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest


def csv_rows(folder: Path, name: str) -> list[dict[str, str]]:
    """A table of the report in a folder, a dictionary a cell."""
    text = (folder / "tables" / f"{name}.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def article(tables: Iterable[str]) -> str:
    """A document of these tables and nothing else."""
    body = "\n".join(tables)
    return (
        "\\documentclass{article}\n\\usepackage{booktabs}\n"
        f"\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )


def compile_latex(text: str, folder: Path) -> str:
    """Compile a document in a folder and return what was printed; skips without a pdflatex."""
    if not shutil.which("pdflatex"):
        pytest.skip("there is no pdflatex")
    (folder / "document.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout
