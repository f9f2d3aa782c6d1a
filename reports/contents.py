"""Every table that a registry fills, in the order of the report."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from oodflow.registration import MODELS
from oodflow.tracking.registry import Registry
from reports.collect import (
    auroc_frame,
    bpd_frame,
    comparison_frame,
    correlation_frame,
    folds_frame,
    fourier_frame,
)
from reports.layouts import (
    bpd_table,
    comparison_table,
    correlation_table,
    detection_table,
    folds_table,
    fourier_table,
    loss_table,
)
from reports.published import PAPER, beside
from reports.tables import Table

__all__ = ["all_tables"]

Refine = Callable[[pd.DataFrame], pd.DataFrame]
"""A function applied to a frame of AUROCs first, such as adding bootstrap replicates."""


def all_tables(
    registry: Registry, published: bool, refine: Refine = lambda frame: frame
) -> dict[str, Table]:
    """File name → table; Glow's come first within a family of datasets.

    Where ``published``, the paper's numbers are beside ours, and the tables that only the paper
    fills are there too.
    """
    tables: dict[str, Table] = {}
    present = {(run.tags["family"], run.tags["model"]) for run in registry.training}
    wanted = present | {(family, model) for _, family, model in PAPER if published}
    # Runs outlive the package that registered their model.
    models = dict.fromkeys((*MODELS.names(), *sorted(model for _, model in present)))
    for family in registry.families:
        for model in [name for name in models if (family, name) in wanted]:
            for kind, table in _of_model(registry, model, family, refine).items():
                paper = PAPER.get((kind, family, model), ()) if published else ()
                if not table.rows and not paper:
                    continue
                shown = beside(table, paper) if paper else table
                name = f"{kind}-{family}" + (f"-{model}" if model != "glow" else "")
                tables[name] = replace(shown, title=f"{table.title} ({family})")
        if family not in {of_run for of_run, _ in present}:
            continue
        for kind, table in _across_models(registry, family, refine).items():
            if table.rows:
                tables[f"{kind}-{family}"] = replace(table, title=f"{table.title} ({family})")
    return tables


def _of_model(registry: Registry, model: str, family: str, refine: Refine) -> dict[str, Table]:
    title = "" if model == "glow" else model
    frame = refine(auroc_frame(registry, model, family))
    further = refine(auroc_frame(registry, model, family, further=True))
    tables = {
        "detection": detection_table(frame, title),
        "further": detection_table(further, title, means=False),
        "bpd": bpd_table(bpd_frame(registry, model, family), title),
    }
    # One loss alone is a part of the table before.
    if frame["outlier_loss"].nunique() > 1:
        tables["losses"] = loss_table(frame, title)
    return tables


def _across_models(registry: Registry, family: str, refine: Refine) -> dict[str, Table]:
    training = comparison_table(comparison_frame(registry, family, "train"))
    return {
        "general-distributions": comparison_table(
            refine(comparison_frame(registry, family, "test"))
        ),
        "general-distributions-training-fold": replace(
            training,
            title=f"{training.title}, training-fold inliers",
            caption=f"{training.caption} Not comparable with test-fold inliers (S6).",
        ),
        "folds": folds_table(folds_frame(registry, family)),
        "model-correlation": correlation_table(correlation_frame(registry, family)),
        "fourier": fourier_table(fourier_frame(registry, family)),
    }
