"""``oodflow analyse``: what likelihoods depend on, and what they rank highest (S3, S6, S8).

Each analysis of each model is a run of its own. An existing one is not made again.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from oodflow import console
from oodflow.data.catalog import slug_of
from oodflow.errors import UserError, unknown_name
from oodflow.options import AUTO, AnalyseOptions
from oodflow.tracking import runs
from oodflow.tracking.registry import read_registry
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow.analyses import ANALYSES, AnalysisTask
from oodflow.workflow.session import Session, dataset_use, open_session

__all__ = ["analyse", "command"]

ALL = "all"

INHERITED = ("model", "dataset", "role", "setting", "outlier_loss", "init", "seed", "group")
"""Tags that an analysis takes from the analysed run."""

LOSSES = {"extremes": ("none", "binary")}
"""Outlier losses of the models that ``auto`` analyses; for other analyses, models without one."""


def command(options: AnalyseOptions) -> None:
    """Analyse one run, or for ``auto`` the finetuned models that a report counts."""
    session = open_session(options)
    made = analyse(session, options)
    for analysis in ANALYSES:
        _show([run for run in made if run.tags["analysis"] == analysis])
    shown = made[0].run_id if len(made) == 1 else made[0].parent or made[0].run_id
    console.say(f"see it: {session.store.how_to_see(shown)}")


def analyse(session: Session, chosen: AnalyseOptions) -> tuple[RunInfo, ...]:
    """The analyses as runs: of one model, or for ``auto`` of those that a report counts.

    Those that are there already, of the same weights, images and options, are found. Raises
    UserError for a run without a likelihood, and where something that an analysis needs is absent.
    """
    store = session.store
    tasks = [
        task
        for run, what in _targets(session, chosen, _names(chosen.what))
        for task in _tasks(session, run, chosen, what)
    ]
    missing = [task for task in tasks if not _known(session, task)]
    if len(missing) > 1:
        tags = {"kind": "analyse", "registered": "false"}
        with runs.recording(store, "analyses", tags, project_run=session.project_run) as parent:
            done = [_record(session, task, parent) for task in tasks]
    else:
        done = [_record(session, task, project_run=session.project_run) for task in tasks]
    return tuple(runs.get(store, run_id) for run_id in done)


def _names(text: str) -> list[str]:
    """The analyses that ``what`` names, in their own order."""
    given = {part.strip() for part in text.split(",")}
    for name in sorted(given - {ALL, *ANALYSES}):
        raise unknown_name("analysis", name, [ALL, *ANALYSES])
    return [name for name in ANALYSES if name in given or ALL in given]


def _targets(
    session: Session, chosen: AnalyseOptions, what: Sequence[str]
) -> list[tuple[RunInfo, list[str]]]:
    """Models, each with its analyses."""
    if chosen.run != AUTO:
        return [(runs.resolve(session.store, chosen.run), list(what))]
    found = []
    for run in read_registry(session.store).training:
        kind = tuple(run.tags[tag] for tag in ("role", "setting", "init"))
        names = [name for name in what if run.tags["outlier_loss"] in LOSSES.get(name, ("none",))]
        if names and kind == ("in_distribution", "unsupervised", "general"):
            # A report has the datasets under their short names.
            found.append((runs.get(session.store, run.run_id), names))
    if not found:
        raise UserError(
            "no registered in-distribution model to analyse; make one: oodflow finetune"
        )
    return found


def _tasks(
    session: Session, run: RunInfo, chosen: AnalyseOptions, what: Sequence[str]
) -> list[AnalysisTask]:
    """The analyses of one run; UserError before any work where one of them cannot be made."""
    trained = run.tags.get("kind") in ("train", "finetune")
    if not trained or run.tags.get("role") != "in_distribution":
        raise UserError(
            f"run {run.run_id} ({run.name}) holds no in-distribution model; choose one that "
            "`oodflow runs list --registered` shows"
        )
    if not session.model(run).model.is_density:
        raise UserError(
            f"run {run.run_id} holds a classifier, {run.tags['model']}, which has no likelihood to "
            "analyse; choose a run of another model"
        )
    return [ANALYSES[name](session, run, chosen) for name in what]


def _known(session: Session, task: AnalysisTask) -> str:
    """The finished run of the same analysis, or ""."""
    tags = {"kind": "analyse", "analysed": task.run.run_id, "spec": task.spec, "registered": "true"}
    found = runs.find(session.store, tags, status="FINISHED")
    return found[0].run_id if found else ""


def _record(session: Session, task: AnalysisTask, parent: str = "", project_run: str = "") -> str:
    """Make an analysis that is not there yet, as a run; returns the run's id."""
    store, name = session.store, f"{task.analysis} of {task.run.name}"
    if known := _known(session, task):
        console.say(f"{name}: already there, run {known}")
        return known
    tags = {tag: task.run.tags[tag] for tag in INHERITED if tag in task.run.tags} | {
        "kind": "analyse",
        "analysis": task.analysis,
        "analysed": task.run.run_id,
        "spec": task.spec,
        "registered": "false",
    }
    tags |= task.tags
    with runs.recording(store, name, tags, parent, project_run) as record:
        uses = [dataset_use(session, each.name, each.fold, "analysis") for each in task.images]
        runs.log_datasets(store, record, uses)
        findings = task.measure()
        # A correlation with likelihoods that are all equal is not defined.
        metrics = {key: value for key, value in findings.metrics.items() if math.isfinite(value)}
        runs.log_metrics(store, record, metrics)
        _keep(session, record, f"{task.analysis}.npz", findings.arrays)
        for key, picture in findings.pictures.items():
            runs.log_image(store, record, picture.numpy(), key)
        runs.set_tags(store, record, findings.tags)
        runs.set_tags(store, record, {}, description=_markdown(runs.get(store, record)))
        runs.set_tags(store, record, {"registered": "true"})
    console.say(f"{name}: run {record}")
    return record


def _keep(session: Session, record: str, name: str, arrays: Mapping[str, Any]) -> None:
    """Put arrays, where there are any, as ``analysis/<name>`` under a run's artifacts."""
    if arrays:
        with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
            np.savez_compressed(Path(folder) / name, **arrays)
            runs.log_artifacts(session.store, record, Path(folder), "analysis")


Cells = dict[tuple[str, str], str]
"""(row, column) → text."""


def _correlations(run: RunInfo) -> Cells:
    return {
        (name.split("/")[1], name.split("/")[2]): f"{value:.3f}"
        for name, value in run.metrics.items()
        if name.startswith("spearman/")
    }


def _thresholds(run: RunInfo) -> Cells:
    return {
        (name.split("/")[1], "nats"): f"{value:.1f}"
        for name, value in run.metrics.items()
        if name.endswith("/threshold")
    }


def _both_folds(run: RunInfo) -> Cells:
    cells = {}
    for name in run.metrics:
        if name.startswith("gap/"):
            what = name.removeprefix("gap/")
            test, train = run.metrics[f"auroc/{what}"], run.metrics[f"train_fold/auroc/{what}"]
            ood, score = what.split("/")
            cells[ood, score] = f"{100 * test:.1f} → {100 * train:.1f}"
    return cells


def _aurocs(run: RunInfo) -> Cells:
    return {
        (name.split("/")[2], name.split("/")[1]): f"{100 * value:.1f}"
        for name, value in run.metrics.items()
        if name.startswith("auroc/")
    }


TABLES: Mapping[str, tuple[str, Callable[[RunInfo], Cells]]] = {
    "fourier": (
        "Rank correlation of log p of mixed images with that of their donors",
        _correlations,
    ),
    "correlation": ("Rank correlation of log p with that of other models", _correlations),
    "extremes": ("Lowest score of the highest-scoring images", _thresholds),
    "folds": ("AUROC in %, inliers of the test → of the training fold", _both_folds),
    "scores": ("AUROC in % of every score", _aurocs),
}
"""Title and cells of each analysis's table."""


def _show(made: Sequence[RunInfo]) -> None:
    """The results of one kind of analysis in the terminal."""
    if not made:
        return
    title, cells_of = TABLES[made[0].tags["analysis"]]
    found = [cells_of(run) for run in made]
    columns = sorted({column for cells in found for _, column in cells})
    table = Table("model", "dataset", "loss", "seed", "", *columns, title=title)
    for run, cells in zip(made, found, strict=True):
        tags = run.tags
        facts = [tags["model"], slug_of(tags["dataset"]), tags["outlier_loss"], tags["seed"]]
        for row in sorted({row for row, _ in cells}):
            table.add_row(*facts, row, *(cells.get((row, column), "–") for column in columns))
    console.show(table)
    for line in dict.fromkeys(line for run in made for line in _notes(run)):
        console.say(line)


def _notes(run: RunInfo) -> list[str]:
    """What an analysis could not make, and why; what it made of fewer numbers than others."""
    absent = [f"absent: {part}" for part in run.tags.get("absent", "").split("; ") if part]
    statistics = run.tags.get("dose_statistics", "")
    return absent + ([f"dose is of {statistics.replace(' ', ', ')}"] if statistics else [])


def _markdown(run: RunInfo) -> str:
    """An analysis's description: its title, its run, its numbers."""
    title, cells_of = TABLES[run.tags["analysis"]]
    cells = cells_of(run)
    columns = sorted({column for _, column in cells})
    lines = [
        f"**{run.name}**",
        "",
        f"{title}. Of run `{run.tags['analysed']}`.",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in sorted({row for row, _ in cells}):
        texts = (cells.get((row, column), "–") for column in columns)
        lines.append(f"| {row} | {' | '.join(texts)} |")
    lines += ["", *(f"- {line}" for line in _notes(run))]
    return "\n".join(lines).rstrip()
