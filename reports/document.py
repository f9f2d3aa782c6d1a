"""A report as a value: its tables, figures, claims and notes, before it is written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reports.render import markdown_text, to_markdown
from reports.tables import Table

__all__ = ["Claim", "Document", "Picture", "RunLink", "to_markdown_document"]

VERDICTS = {True: "holds", False: "does not hold", None: "not measured"}


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, whether the runs bear it out, and the numbers that say so."""

    text: str
    holds: bool | None
    """None where no registered run measures it."""
    detail: str
    """The numbers, and where it does not hold the places."""

    @property
    def verdict(self) -> str:
        return VERDICTS[self.holds]


@dataclass(frozen=True)
class Picture:
    """A figure of the report: ``figures/<name>.png`` and ``.pdf``, here with its PNG bytes."""

    name: str
    title: str
    caption: str
    png: bytes = field(repr=False)
    run_ids: tuple[str, ...] = ()
    """The runs that it is drawn from."""


@dataclass(frozen=True)
class RunLink:
    """A run behind a number: what it is called, and its page in the MLflow UI."""

    name: str
    url: str


@dataclass(frozen=True)
class Document:
    """Everything that a report shows, in its order."""

    title: str
    notes: tuple[str, ...]
    """Lines about what was counted and what was left out."""
    claims: tuple[Claim, ...]
    tables: Mapping[str, Table]
    """File name without its ending → table."""
    pictures: tuple[Picture, ...]
    runs: Mapping[str, RunLink]
    """Run id → the run, of all that stand behind a cell or picture."""
    links_need: str = ""
    """What has to run for the links to open; for the page alone, as it is of this machine."""


def to_markdown_document(document: Document) -> str:
    """``report.md``: notes, claims, tables, and the figures as links to ``figures/``."""
    parts = [f"# {markdown_text(document.title)}\n"]
    if document.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in document.notes) + "\n")
    if document.claims:
        lines = [
            f"| {markdown_text(claim.text)} | {claim.verdict} | {markdown_text(claim.detail)} |"
            for claim in document.claims
        ]
        head = "| Claim of the paper | in these runs | numbers |\n| --- | --- | --- |"
        parts.append("### Claims\n\n" + "\n".join([head, *lines]) + "\n")
    parts += [to_markdown(table) for table in document.tables.values()]
    for picture in document.pictures:
        title = markdown_text(picture.title)
        parts.append(
            f"### {title}\n\n![{title}](figures/{picture.name}.png)\n\n"
            f"{markdown_text(picture.caption)}\n"
        )
    return "\n".join(parts)
