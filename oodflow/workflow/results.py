"""Results of runs for people: a table in the terminal and a run's description in MLflow."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from oodflow import console
from oodflow.data.catalog import slug_of
from oodflow.evaluation.metrics import mean_std
from oodflow.evaluation.scores import SCORES
from oodflow.tracking.numbers import headline
from oodflow.tracking.run_info import SHOWN, RunInfo
from oodflow.tracking.runs import ModelCard

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["auroc_rows", "describe", "describe_seeds", "model_card", "show_runs"]


PAPER = 6
"""The first scores of the register are those of the paper."""


def columns(run: RunInfo) -> tuple[str, ...]:
    """Scores to show: the paper's, then what else the run was evaluated by.

    ``general`` is the general model's log p alone, where another family's was compared.
    """
    others = {name.split("/")[2] for name in run.metrics if name.startswith("auroc/")}
    field = [name for name in SCORES.built_in[PAPER:] if name in others]
    return (*SCORES.built_in[:PAPER], *field, *sorted(others - set(SCORES.built_in)))


def auroc_rows(run: RunInfo) -> list[tuple[str, list[float | None]]]:
    """Outlier dataset → AUROC for each of :func:`columns`, None where there is none."""
    found: dict[str, list[float | None]] = {}
    for name in run.metrics:
        if name.startswith("auroc/"):
            ood = name.split("/")[1]
            found[ood] = [run.metrics.get(f"auroc/{ood}/{score}") for score in columns(run)]
    return sorted(found.items(), key=lambda row: (row[0] == "mean", row[0]))


def _text(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def describe(run: RunInfo, model_uri: str) -> str:
    """The run's description in Markdown: what it is, its numbers, how to use it."""
    bpd = ", ".join(
        f"{name.removeprefix('bpd/')} {value:.3f}"
        for name, value in sorted(run.metrics.items())
        if name.startswith("bpd/")
    )
    lines = [f"**{run.name}**", "", f"Bits per dimension: {bpd}"]
    if rows := auroc_rows(run):
        lines += [
            "",
            f"| AUROC in % | {' | '.join(columns(run))} |",
            "|---" * (len(columns(run)) + 1) + "|",
        ]
        lines += [f"| {ood} | {' | '.join(map(_text, values))} |" for ood, values in rows]
    return "\n".join([*lines, *(["", f"Model: `{model_uri}`"] if model_uri else [])])


VERSION_TAGS = ("bpd/", "accuracy/", "auroc/mean/")
"""Numbers that are tags of a registered version: its page shows no metrics."""


def model_card(run: RunInfo) -> ModelCard:
    """What the registry says of a trained model: its numbers, and what tells it from others."""
    tags, dataset = run.tags, slug_of(run.tags["dataset"])
    purpose = "general model" if tags["role"] == "general" else "in-distribution model"
    loss = tags["outlier_loss"]
    against = "" if loss == "none" else f", {loss} outlier loss against {tags['outlier_dataset']}"
    about = (
        f"{tags['model']}, {tags['setting']}, {purpose} of {dataset}{against}. "
        "Each version is a training run; the alias seed-N is the newest of seed N."
    )
    shown = {n: v for n, v in headline(run.metrics, dataset).items() if n.startswith(VERSION_TAGS)}
    facts = {tag: tags[tag] for tag in ("seed", "group", "spec") if tag in tags}
    facts["dataset_digest"] = run.params.get("data.digest", "")
    numbers = {name: f"{value:.4f}" for name, value in shown.items()}
    return ModelCard(about, describe(run, ""), facts | numbers)


def describe_seeds(finished: Sequence[RunInfo]) -> str:
    """Mean and sample standard deviation of BPD and AUROCs over seeds, as Markdown."""

    def said(name: str, scale: float, digits: int) -> str:
        values = [run.metrics[name] for run in finished if name in run.metrics]
        mean, std = mean_std(values) if values else (math.nan, math.nan)
        if not values:
            return "–"
        spread = "–" if math.isnan(std) else f"{scale * std:.{digits}f}"
        return f"{scale * mean:.{digits}f} ({spread})"

    seeds = ", ".join(run.tags["seed"] for run in finished)
    own = f"bpd/{slug_of(finished[0].tags['dataset'])}"
    lines = [f"Mean (standard deviation) over the seeds {seeds}.", ""]
    lines += [f"Bits per dimension: {said(own, 1, 3)}"]
    rows, names = auroc_rows(finished[0]), columns(finished[0])
    if rows:
        lines += ["", f"| AUROC in % | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [
            f"| {ood} | {' | '.join(said(f'auroc/{ood}/{name}', 100, 1) for name in names)} |"
            for ood, _ in rows
        ]
    return "\n".join(lines)


def show_runs(finished: Sequence[RunInfo]) -> None:
    """The results table at the end of a command."""
    console.show(_bpd_table(finished))
    if any(auroc_rows(run) for run in finished):
        console.show(_auroc_table(finished))


def _bpd_table(finished: Iterable[RunInfo]) -> "Table":
    from rich.table import Column, Table

    table = Table("run", Column("id", no_wrap=True), Column("bits per dimension", no_wrap=True))
    for run in finished:
        own = run.metrics.get(f"bpd/{slug_of(run.tags['dataset'])}")
        table.add_row(run.name, run.run_id[:SHOWN], "–" if own is None else f"{own:.3f}")
    return table


def _auroc_table(finished: Sequence[RunInfo]) -> "Table":
    from rich.table import Table

    # A score a row: there are more of them than a terminal has room for side by side.
    sets = [ood for ood, _ in auroc_rows(finished[0])]
    table = Table("seed", "score", *sets, title="AUROC in %")
    for run in finished:
        rows = dict(auroc_rows(run))
        scores = columns(run)
        for number, score in enumerate(scores):
            values = [rows[ood][number] if ood in rows else None for ood in sets]
            last = score == scores[-1]
            table.add_row(run.tags["seed"], score, *map(_text, values), end_section=last)
    return table
