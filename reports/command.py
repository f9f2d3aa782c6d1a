"""``oodflow report``: tables, figures and claims of everything that is registered."""

import json
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from oodflow import console
from oodflow.errors import UserError
from oodflow.options import ReportOptions
from oodflow.tracking import runs
from oodflow.tracking.registry import Registry, read_registry
from oodflow.tracking.run_info import RunInfo, sqlite_file
from oodflow.tracking.store import Store, open_store
from reports.about import GLOSSARY, PUBLICATION, what_was_run
from reports.all_scores import read_scored_models
from reports.claims import check_claims
from reports.contents import all_tables, score_tables
from reports.document import (
    Document,
    Picture,
    RunLink,
    to_description,
    to_latex_document,
    to_markdown_document,
)
from reports.drawings import draw_all, rank_drawings
from reports.missing import missing_commands
from reports.overview import save_both
from reports.page import to_html
from reports.provenance import provenance, runs_behind
from reports.render import to_csv, to_latex, to_markdown, to_rich
from reports.replicates import replicates_of

__all__ = ["command", "write_report"]

NUMBERS = ("auroc/", "bpd/")
"""Metrics without which there is nothing to report."""

NOTE = 8000
"""Characters of a run's description, at most: MLflow cuts what is longer."""

FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}


def command(chosen: ReportOptions) -> None:
    """Write the report of everything that is registered, or print what would fill its gaps."""
    store = open_store()
    if not chosen.missing:
        write_report(store, chosen, runs.project_run(store))
        return
    registry = read_registry(store)
    for line in missing_commands(all_tables(registry, chosen.published), registry):
        console.say(line)


def write_report(store: Store, chosen: ReportOptions, project_run: str = "") -> RunInfo:
    """The report in a folder and as a run: ``report.html``, ``.md`` and ``.tex``, with its parts.

    ``tables/`` has Markdown, LaTeX and CSV, ``figures/`` PNG and PDF, ``provenance.json`` says for
    every cell where it is from.
    """
    if chosen.bootstrap < 0:
        raise UserError(f"bootstrap is {chosen.bootstrap}; it must be 0 or a number of resamples")
    if chosen.published and chosen.metric != "auroc":
        raise UserError(f"the paper has no {chosen.metric}; leave out published or metric")
    out = Path(chosen.out)
    registry = read_registry(store)
    if not any(name.startswith(NUMBERS) for run in registry.training for name in run.metrics):
        raise UserError("no registered run to report; make some: oodflow main")
    tags = {"kind": "report", "registered": "false"}
    with runs.recording(store, "report", tags, project_run=project_run) as record:
        _make_folders(out)
        document = _document(store, registry, chosen, out)
        _write(document, registry, out)
        for folder in ("tables", "figures"):
            if any((out / folder).iterdir()):
                runs.log_artifacts(store, record, out / folder, folder)
        for name in ("provenance.json", "report.html", "report.tex"):
            runs.log_text(store, record, (out / name).read_text(), name)
        runs.set_tags(store, record, {}, description=to_description(document, NOTE))
    _show(document)
    console.say(f"{len(registry.training)} runs; open {(out / 'report.html').absolute()}")
    console.say(f"see it: {store.how_to_see(record)}")
    return runs.get(store, record)


def _make_folders(out: Path) -> None:
    """The report's own folders, empty."""
    try:
        for folder in ("tables", "figures"):
            # There need not be any yet.
            with suppress(FileNotFoundError):
                shutil.rmtree(out / folder)
            (out / folder).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another out") from error


def _document(store: Store, registry: Registry, chosen: ReportOptions, out: Path) -> Document:
    """Everything that the report shows; its figures are in ``figures/`` then."""
    notes = [f"{len(registry.training)} registered training runs", *registry.notes]
    if chosen.bootstrap:
        notes.append(
            "in brackets after an AUROC is its 95 % bootstrap interval over the test images "
            f"({chosen.bootstrap} resamples)"
        )
        with console.progress("bootstrap", 0) as advance:
            refine = replicates_of(store, registry, chosen.bootstrap, advance)
            tables = all_tables(registry, chosen.published, refine, chosen.metric)
    else:
        tables = all_tables(registry, chosen.published, metric=chosen.metric)
    with console.progress("all scores", 0) as advance:
        scored = read_scored_models(store, registry)
        tables |= score_tables(scored, chosen.metric, advance)
    pictures = []
    with console.progress("figures", 0) as advance:
        drawings = (*draw_all(store, registry), *rank_drawings(scored))
        for number, drawing in enumerate(drawings, start=1):
            png, _ = save_both(drawing.figure, out / "figures" / drawing.name)
            pictures.append(
                Picture(
                    drawing.name,
                    drawing.title,
                    drawing.caption,
                    png.read_bytes(),
                    drawing.run_ids,
                    drawing.family,
                )
            )
            advance(number)
    known = _by_id(registry)
    behind = [*runs_behind(tables.values()), *(i for each in pictures for i in each.run_ids)]
    return Document(
        title="oodflow report",
        notes=tuple(notes),
        claims=check_claims(registry),
        tables=tables,
        pictures=tuple(pictures),
        runs={run_id: _link(store, known.get(run_id), run_id) for run_id in dict.fromkeys(behind)},
        paper=PUBLICATION,
        ran=what_was_run(registry),
        glossary=GLOSSARY,
        links_need=_ui_command(store),
    )


def _ui_command(store: Store) -> str:
    """The command that starts the MLflow UI; of an SQLite store, the one for its own folder."""
    file = sqlite_file(store.uri)
    here = f"sqlite:///{file.name}" if file else store.uri
    return store.ui_command.replace(shlex.quote(store.uri), shlex.quote(here))


def _by_id(registry: Registry) -> dict[str, RunInfo]:
    counted = (*registry.training, *registry.evaluations, *registry.analyses)
    return {run.run_id: run for run in counted}


def _link(store: Store, run: RunInfo | None, run_id: str) -> RunLink:
    # A general model behind a picture may have a newer successor that is counted in its place.
    found = run or runs.get(store, run_id)
    return RunLink(found.name, store.page(found.experiment_id, run_id))


def _write(document: Document, registry: Registry, out: Path) -> None:
    """The report's files next to its figures."""
    known = _by_id(registry)
    facts = {run_id: _facts(known, run_id) for run_id in runs_behind(document.tables.values())}
    origin = provenance(document.tables, facts)
    text = json.dumps(origin, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "provenance.json").write_text(text + "\n")
    for name, table in document.tables.items():
        for extension, render in FORMATS.items():
            (out / "tables" / f"{name}.{extension}").write_text(render(table))
    (out / "report.md").write_text(to_markdown_document(document))
    (out / "report.tex").write_text(to_latex_document(document))
    (out / "report.html").write_text(to_html(document))


def _facts(known: Mapping[str, RunInfo], run_id: str) -> dict[str, str]:
    """A run's git commit, and the digest of the weights that its numbers are of; "" if unknown."""
    tags = known[run_id].tags
    model = known.get(tags.get("evaluated", tags.get("analysed", run_id)), known[run_id])
    return {"git_commit": known[run_id].commit, "weights_digest": model.tags.get("weights", "")}


def _show(document: Document) -> None:
    """Tables, claims and notes in the terminal."""
    from rich.table import Table
    from rich.text import Text

    for table in document.tables.values():
        for part in to_rich(table):
            console.show(part)
    for heading, _, claims in document.headings:
        shown = Table("claim", "verdict", "difference", title=heading, title_justify="left")
        for claim in claims:
            shown.add_row(Text(claim.text), claim.verdict, Text(claim.detail))
        console.show(shown)
    for note in document.notes:
        console.say(note)
