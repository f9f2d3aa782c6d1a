"""Every table that a registry fills, in the order of the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from oodflow.registration import MODELS
from oodflow.tracking.registry import Registry
from reports.all_scores import ScoredModel, all_scores_table
from reports.collect import (
    auroc_frame,
    bpd_frame,
    comparison_frame,
    correlation_frame,
    folds_frame,
    fourier_frame,
)
from reports.layouts import (
    MEAN,
    METRIC_NAMES,
    SCORE_NAMES,
    bpd_table,
    comparison_table,
    correlation_table,
    detection_table,
    folds_table,
    fourier_table,
)
from reports.published import PAPER, beside
from reports.render import number_text
from reports.tables import METRICS, Cell, Table

__all__ = ["all_tables", "score_tables"]

Refine = Callable[[pd.DataFrame], pd.DataFrame]
"""A function applied to a frame of AUROCs first, such as adding bootstrap replicates."""


def all_tables(
    registry: Registry,
    published: bool,
    refine: Refine = lambda frame: frame,
    metric: str = "auroc",
) -> dict[str, Table]:
    """File name → table; Glow's come first within a family of datasets.

    Where ``published``, the paper's numbers are beside ours, and the tables that only the paper
    fills are there too. Tables of detection show the ``metric``.
    """
    tables: dict[str, Table] = {}
    present = {(run.tags["family"], run.tags["model"]) for run in registry.training}
    wanted = present | {(family, model) for _, family, model in PAPER if published}
    # Runs outlive the package that registered their model.
    models = dict.fromkeys((*MODELS.names(), *sorted(model for _, model in present)))
    for family in registry.families:
        for model in [name for name in models if (family, name) in wanted]:
            for kind, table in _of_model(registry, model, family, refine, metric).items():
                paper = PAPER.get((kind, family, model), ()) if published else ()
                if not table.rows and not paper:
                    continue
                shown = beside(table, paper) if paper else table
                name = f"{kind}-{family}" + (f"-{model}" if model != "glow" else "")
                tables[name] = _of_family(shown, family)
        if family not in {of_run for of_run, _ in present}:
            continue
        for kind, table in _across_models(registry, family, refine, metric).items():
            if table.rows:
                tables[f"{kind}-{family}"] = _of_family(table, family)
    return tables


def score_tables(
    scored: Sequence[ScoredModel], metric: str, on_progress: Callable[[int], None]
) -> dict[str, Table]:
    """File name → table of all scores, of each family of datasets and models.

    By the AUROC, FPR95 and AUPR, and by ``metric``; the AUROC's has no metric in its name.
    ``on_progress`` gets how many tables are done.
    """
    groups: dict[tuple[str, str], list[ScoredModel]] = {}
    for one in scored:
        groups.setdefault((one.family, one.model), []).append(one)
    tables: dict[str, Table] = {}
    for (family, model), members in groups.items():
        for each in dict.fromkeys(("auroc", "fpr95", "aupr", metric)):
            table = all_scores_table(members, each)
            kind = "all-scores" + (f"-{each.replace('_', '-')}" if each != "auroc" else "")
            name = f"{kind}-{family}" + (f"-{model}" if model != "glow" else "")
            of_model = "" if model == "glow" else f" of {model}"
            tables[name] = _of_family(replace(table, title=f"{table.title}{of_model}"), family)
            on_progress(len(tables))
    return tables


def _of_family(table: Table, family: str) -> Table:
    return replace(table, title=f"{table.title} ({family})", family=family)


def _with_failures(table: Table) -> Table:
    """The table with a sentence on the pairs where the ratio is worse than the raw likelihood."""
    raw, diff = SCORE_NAMES["raw"], SCORE_NAMES["diff"]
    better = 1 if table.measure.higher_is_better else -1
    failed = []
    for group in dict.fromkeys(group for group, _ in table.columns):
        if not {(group, raw), (group, diff)} <= {*table.columns}:
            continue
        places = [table.columns.index((group, name)) for name in (diff, raw)]
        for row in table.rows:
            ratio, plain = (row.cells[place] for place in places)
            if (
                isinstance(ratio, Cell)
                and isinstance(plain, Cell)
                and row.labels[-1] != MEAN
                and better * (ratio.mean - plain.mean) < 0
            ):
                numbers = (number_text(cell.mean, table.measure) for cell in (ratio, plain))
                failed.append(
                    f"{' against '.join(row.labels)} ({group.lower()}: {' and '.join(numbers)})"
                )
    if not failed:
        return table
    verb = "below" if better > 0 else "above"
    return replace(table, caption=f"{table.caption} {diff} is {verb} {raw} on {', '.join(failed)}.")


def _by_metric(table: Table, metric: str) -> Table:
    """A table of AUROCs as one of another metric, whose numbers it has."""
    if metric == "auroc":
        return table
    caption = table.caption.replace("AUROC", METRIC_NAMES[metric])
    return replace(table, caption=caption, measure=METRICS[metric])


def _of_model(
    registry: Registry, model: str, family: str, refine: Refine, metric: str
) -> dict[str, Table]:
    title = "" if model == "glow" else model
    frame = refine(auroc_frame(registry, model, family, metric=metric))
    further = refine(auroc_frame(registry, model, family, further=True, metric=metric))
    tables = {
        "detection": _by_metric(detection_table(frame, title), metric),
        "further": _by_metric(detection_table(further, title, means=False), metric),
        "bpd": bpd_table(bpd_frame(registry, model, family), title),
    }
    return {kind: _with_failures(table) for kind, table in tables.items()}


def _across_models(
    registry: Registry, family: str, refine: Refine, metric: str
) -> dict[str, Table]:
    test, training = (
        _by_metric(comparison_table(frame), metric)
        for frame in (
            refine(comparison_frame(registry, family, "test", metric)),
            comparison_frame(registry, family, "train", metric),
        )
    )
    return {
        "general-distributions": test,
        "general-distributions-training-fold": replace(
            training,
            title=f"{training.title}, training-fold inliers",
            caption=f"{training.caption} Not comparable with test-fold inliers (S6).",
        ),
        "folds": folds_table(folds_frame(registry, family)),
        "model-correlation": correlation_table(correlation_frame(registry, family)),
        "fourier": fourier_table(fourier_frame(registry, family)),
    }
