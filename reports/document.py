"""A report as a value: its tables, figures, claims and notes, and its two forms of plain text.

HTML (:mod:`reports.page`), Markdown and LaTeX show the same words and numbers of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby

from reports.render import latex_text, markdown_text, to_markdown
from reports.tables import Table

__all__ = [
    "DOES_NOT_HOLD",
    "HOLDS",
    "IN_ONE_SEED",
    "NOT_MEASURED",
    "UNDECIDED",
    "Claim",
    "Document",
    "FamilyPart",
    "Listing",
    "Picture",
    "RunLink",
    "to_description",
    "to_latex_document",
    "to_markdown_document",
]

ADDRESS = 80
"""Characters by which the address of a figure grows in a run's description, about."""

HOLDS, DOES_NOT_HOLD, UNDECIDED = "holds", "does not hold", "undecided"
NOT_MEASURED = "not measured"
"""No registered run measures it."""
IN_ONE_SEED = " in one seed"
"""After a verdict without an interval."""

HOW_CLAIMS_ARE_JUDGED = (
    "Each number is a difference within a seed, averaged over n seeds; higher numbers speak for "
    "the claim. AUROCs are in %. In brackets is the 95 % t interval over the seeds. A claim holds "
    "where the interval is above its bound, and is undecided where the interval covers the bound. "
    "With one seed there is no interval, and the difference alone decides. A claim about several "
    "pairs of datasets holds if it holds in each; the intervals are not corrected for their number."
)

LATER_CLAIMS = (
    "Judged as above. WAIC is one number of all seeds: intervals of its differences have the "
    "spread of the other score alone."
)


@dataclass(frozen=True)
class Claim:
    """A published statement, whether the runs bear it out, and the numbers that say so."""

    text: str
    verdict: str
    detail: str
    """Differences with intervals, and where there are several those first that do not hold."""
    heading: str = ""

    @property
    def kind(self) -> str:
        """The verdict alone."""
        return self.verdict.removesuffix(IN_ONE_SEED)


@dataclass(frozen=True)
class Listing:
    """A table of words: a line for each thing that is described."""

    title: str
    caption: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure of the report: ``figures/<name>.png`` and ``.pdf``, here with its PNG bytes."""

    name: str
    title: str
    caption: str
    png: bytes = field(repr=False)
    run_ids: tuple[str, ...] = ()
    """The runs that it is drawn from."""
    family: str = ""
    """Family of datasets."""


@dataclass(frozen=True)
class RunLink:
    """A run behind a number: what it is called, and its page in the MLflow UI."""

    name: str
    url: str


@dataclass(frozen=True)
class FamilyPart:
    """The part of a report about one family of datasets."""

    title: str
    tables: Mapping[str, Table]
    pictures: tuple[Picture, ...]

    @property
    def entries(self) -> tuple[Table | Picture, ...]:
        """Its tables and then its figures."""
        return (*self.tables.values(), *self.pictures)


@dataclass(frozen=True)
class Document:
    """Everything that a report shows, in its order."""

    title: str
    notes: tuple[str, ...]
    """Lines about what was counted and what was left out."""
    claims: tuple[Claim, ...]
    """Those under one heading stand together."""
    tables: Mapping[str, Table]
    """File name without its ending → table."""
    pictures: tuple[Picture, ...]
    runs: Mapping[str, RunLink]
    """Run id → the run, of all that stand behind a cell or picture."""
    paper: tuple[str, str] = ("", "")
    """The paper that the claims are of, and its address."""
    ran: tuple[Listing, ...] = ()
    """What was run."""
    glossary: Mapping[str, str] = field(default_factory=dict)
    links_need: str = ""
    """What has to run for the links to open; for the page alone, as it is of this machine."""

    @property
    def headings(self) -> Iterator[tuple[str, str, list[Claim]]]:
        """Of the claims under each heading: the heading, how they are judged, and they."""
        how = HOW_CLAIMS_ARE_JUDGED
        for heading, claims in groupby(self.claims, lambda claim: claim.heading):
            yield heading or "Claims", how, list(claims)
            how = LATER_CLAIMS

    @property
    def families(self) -> Iterator[FamilyPart]:
        """The tables and figures by their families of datasets."""
        of_tables = [table.family for table in self.tables.values()]
        for family in dict.fromkeys([*of_tables, *(each.family for each in self.pictures)]):
            tables = {name: table for name, table in self.tables.items() if table.family == family}
            pictures = tuple(each for each in self.pictures if each.family == family)
            yield FamilyPart(f"{family} datasets" if family else "Results", tables, pictures)


def to_markdown_document(document: Document) -> str:
    """``report.md``: the report with its figures as links to ``figures/``."""
    return "\n".join(_markdown_parts(document))


def to_description(document: Document, most: int) -> str:
    """The first claims, tables and figures as Markdown of at most so many characters, none cut.

    Figures take at most half of it, with the addresses that a run gives them in its description.
    """
    brief = replace(document, glossary={}, pictures=(), ran=())
    links = [f"\n{_image(picture)}\n" for picture in document.pictures]
    sizes = accumulate(len(link) + ADDRESS for link in links)
    fitting = [size for size in sizes if 2 * size <= most]
    room = most - (fitting[-1] if fitting else 0)
    found = "The whole report is the artifact `report.html`.\n"
    for part in _markdown_parts(brief):
        if len(found) + 1 + len(part) > room:
            break
        found += f"\n{part}"
    return found + "".join(links[: len(fitting)])


def _image(picture: Picture) -> str:
    return f"![{markdown_text(picture.title)}](figures/{picture.name}.png)"


def _markdown_parts(document: Document) -> list[str]:
    paper, address = document.paper
    parts = [f"# {markdown_text(document.title)}\n"]
    if paper:
        parts.append(f"[{markdown_text(paper)}]({address})\n")
    if document.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in document.notes) + "\n")
    for heading, how, claims in document.headings:
        parts.append(f"## {markdown_text(heading)}\n\n{markdown_text(how)}\n")
        head = "| claim | verdict | difference |\n| --- | --- | --- |"
        parts.append(
            "\n".join([head, *(_line(c.text, c.verdict, c.detail) for c in claims)]) + "\n"
        )
    if document.glossary:
        terms = (f"- **{markdown_text(term)}**: {markdown_text(text)}" for term, text in
                 document.glossary.items())  # fmt: skip
        parts.append("## Glossary\n\n" + "\n".join(terms) + "\n")
    for family in document.families:
        parts.append(f"## {markdown_text(family.title)}\n")
        parts += [to_markdown(table) for table in family.tables.values()]
        for picture in family.pictures:
            parts.append(
                f"### {markdown_text(picture.title)}\n\n{_image(picture)}\n\n"
                f"{markdown_text(picture.caption)}\n"
            )
    if document.ran:
        parts.append("## What was run\n")
    for listing in document.ran:
        rule = "| " + " | ".join("---" for _ in listing.header) + " |"
        lines = [_line(*listing.header), rule, *(_line(*line) for line in listing.lines)]
        parts.append(f"### {markdown_text(listing.title)}\n\n{markdown_text(listing.caption)}\n")
        parts.append("\n".join(lines) + "\n")
    return parts


def _line(*texts: str) -> str:
    return f"| {' | '.join(map(markdown_text, texts))} |"


def to_latex_document(document: Document) -> str:
    r"""``report.tex``: the report with its tables and figures from ``tables/`` and ``figures/``.

    It needs the packages booktabs, geometry, graphicx and hyperref.
    """
    paper, address = document.paper
    parts = [
        r"\documentclass{article}",
        r"\usepackage{booktabs,graphicx}",
        r"\usepackage[landscape,margin=1.5cm]{geometry}",
        r"\usepackage[hidelinks]{hyperref}",
        rf"\title{{{latex_text(document.title)}}}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
    ]
    if paper:
        parts.append(rf"\noindent\href{{{address}}}{{{latex_text(paper)}}}")
    parts += _items("itemize", [("", note) for note in document.notes])
    for heading, how, claims in document.headings:
        parts += [rf"\section{{{latex_text(heading)}}}", latex_text(how)]
        parts += _items("description", [(c.verdict, f"{c.text}. {c.detail}") for c in claims])
    if document.glossary:
        parts.append(r"\section{Glossary}")
        parts += _items("description", list(document.glossary.items()))
    for family in document.families:
        parts.append(rf"\clearpage\section{{{latex_text(family.title)}}}")
        parts += [rf"\input{{tables/{name}}}" for name in family.tables] + [r"\clearpage"]
        for picture in family.pictures:
            parts += [
                rf"\subsection*{{{latex_text(picture.title)}}}",
                r"\noindent\includegraphics[width=\linewidth,height=0.75\textheight,keepaspectratio]"
                rf"{{figures/{picture.name}.pdf}}",
                rf"\par\noindent {latex_text(picture.caption)}",
            ]
    if document.ran:
        parts.append(r"\section{What was run}")
    for listing in document.ran:
        parts += [rf"\subsection*{{{latex_text(listing.title)}}}", latex_text(listing.caption)]
        parts += _items("description", [
            (first, "; ".join(f"{name}: {text}" for name, text in
                              zip(listing.header[1:], rest, strict=True)))
            for first, *rest in listing.lines
        ])  # fmt: skip
    return "\n".join([*parts, r"\end{document}"]) + "\n"


def _items(kind: str, items: list[tuple[str, str]]) -> list[str]:
    """A LaTeX list, nothing without items; the braces guard what \\item would take for its own."""
    if not items:
        return []
    lines = [
        rf"\item{f'[{{{latex_text(term)}}}]' if term else ''} {{}}{latex_text(text)}"
        for term, text in items
    ]
    return [rf"\begin{{{kind}}}", *lines, rf"\end{{{kind}}}"]
