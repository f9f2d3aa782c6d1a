"""One report, three forms: HTML, Markdown and LaTeX have the same words, numbers and intervals."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_files import compile_latex

from reports.about import GLOSSARY, PUBLICATION
from reports.document import (
    Claim,
    Document,
    Listing,
    Picture,
    RunLink,
    to_latex_document,
    to_markdown_document,
)
from reports.overview import save_both
from reports.page import to_html
from reports.render import cell_text, to_latex
from reports.tables import AUROC_PERCENT, Cell, Row, Table

CELLS = (
    Cell((0.9, 0.95, 0.925), ("r",), interval=(0.88, 0.97)),
    Cell((0.1, 0.3), ("r",)),
    Cell((0.5,), ("r",)),
    None,
)
COLUMNS = (
    ("No outlier loss", "Raw"),
    ("No outlier loss", "4×4"),
    ("Binary", "Diff†"),
    ("Binary", "λ_1"),
)
TABLE = Table("Detection (sketch)", "AUROC in %. Diff is below Raw on a against b.", ("In", "Out"),
              COLUMNS, (Row(("a_1", "100 %"), CELLS),), AUROC_PERCENT, "sketch")  # fmt: skip
DOCUMENT = Document(
    title="A report",
    notes=("3 registered training runs", "[in brackets] 50 % of a_b & c"),
    claims=(
        Claim("The loss improves Raw", "holds", "a against b +3.60 [+1.30, +5.90] (n = 3)", "Ours"),
        Claim("Diff† is at least Diff", "undecided", "+0.06 [−0.02, +0.14] (n = 3)", "Ours"),
        Claim("A is above B (arXiv:1)", "holds in one seed", "+1.00 (no interval)", "Others"),
    ),
    tables={"detection-sketch": TABLE},
    pictures=(Picture("one", "S1: mix", "ρ near 1; x → y. Seed 1.", b"", ("r",), "sketch"),),
    runs={"r": RunLink("a run", "http://127.0.0.1:5000/#/runs/r")},
    paper=PUBLICATION,
    ran=(Listing("Trainings", "In UTC.", ("What", "Settings"), (("glow · a_1", "λ 6000, T 1"),)),),
    glossary=GLOSSARY,
)  # fmt: skip


class Text(HTMLParser):
    """What a page says, without its style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.parts.append(data)


SIGNS = {r"$\times$": "×", r"$^\dagger$": "†", r"$-$": "−", r"$\lambda$": "λ", r"$\rho$": "ρ",
         r"$\to$": "→", r"$\cdot$": "·", "--": "–", r"\textbar{}": "|"}  # fmt: skip


def plain_latex(text: str) -> str:
    """LaTeX as a reader sees it, as far as this report goes."""
    text = re.sub(r"\$(\d+)\\times(\d+)\$", r"\1×\2", text)
    for sign, shown in SIGNS.items():
        text = text.replace(sign, shown)
    text = re.sub(r"\\([&%$#_{}])", r"\1", text)
    return re.sub(r"\\(textbf|multicolumn\{\d+\}\{\w\}|item|caption)|[{}]", " ", text)


def forms(document: Document) -> dict[str, str]:
    """Each form's text, with single spaces between its words."""
    latex = to_latex_document(document)
    for name, table in document.tables.items():
        include = rf"\input{{tables/{name}}}"
        assert include in latex
        latex = latex.replace(include, to_latex(table))
    texts = {
        "HTML": " ".join(Text(to_html(document)).parts),
        "Markdown": re.sub(r"\\([\\`*_|<&~])", r"\1", to_markdown_document(document)),
        "LaTeX": plain_latex(latex),
    }
    return {form: " ".join(text.split()) for form, text in texts.items()}


@pytest.mark.parametrize("form", ("HTML", "Markdown", "LaTeX"))
def test_every_form_has_all_words_and_numbers(form):
    text = forms(DOCUMENT)[form]
    expected = [DOCUMENT.title, *DOCUMENT.notes, PUBLICATION[0], TABLE.title, TABLE.caption]
    expected += [part for claim in DOCUMENT.claims for part in
                 (claim.text, claim.verdict, claim.detail, claim.heading)]  # fmt: skip
    expected += [part for item in GLOSSARY.items() for part in item]
    expected += [cell_text(cell, AUROC_PERCENT) for cell in CELLS]
    expected += [name for column in COLUMNS for name in column] + ["a_1", "100 %"]
    expected += [part for each in DOCUMENT.pictures for part in (each.title, each.caption)]
    for listing in DOCUMENT.ran:
        expected += [listing.title, listing.caption, *(t for line in listing.lines for t in line)]
    expected += ["sketch datasets", "What was run", "Glossary", "95 % t interval"]
    assert [each for each in expected if each not in text] == []


def test_the_glossary_has_the_words_of_the_tables():
    assert {"Raw", "4×4", "Diff", "Diff†", "General", "BPD"} <= set(GLOSSARY)
    for text in (to_html(DOCUMENT), to_markdown_document(DOCUMENT), to_latex_document(DOCUMENT)):
        assert "https://arxiv.org/abs/2006.10848" in text


def test_the_latex_report_compiles(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "detection-sketch.tex").write_text(to_latex(TABLE))
    (tmp_path / "figures").mkdir()
    save_both(Figure(figsize=(2, 2)), tmp_path / "figures" / "one")
    compile_latex(to_latex_document(DOCUMENT), tmp_path)
