"""From registered runs to tidy frames: one number a row, the newest run of each seed."""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from oodflow.data.catalog import CATALOG, slug_of
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.tracking.store import Store

__all__ = ["auroc_frame", "bpd_frame", "comparison_frame", "registered_runs"]

IDENTITY = (
    "model",
    "dataset",
    "role",
    "setting",
    "outlier_loss",
    "outlier_dataset",
    "init",
    "seed",
)
"""Tags that make two runs repetitions of each other; only the newest counts."""

AUROC_COLUMNS = ("run_id", "seed", "dataset", "setting", "outlier_loss", "ood", "score", "auroc",
                 "metric")  # fmt: skip
BPD_COLUMNS = ("run_id", "seed", "dataset", "kind", "bpd", "metric")


def registered_runs(store: Store) -> tuple[list[RunInfo], int]:
    """Registered training runs in the catalogue's order of datasets, and how many were older.

    Datasets go by their short names.

    Runs of the same identity count once, the newest; the others are the older ones.
    """
    found = [
        run
        for run in runs.find(store, {"registered": "true"}, status="FINISHED")
        if run.tags["kind"] in ("train", "finetune") and run.tags.get("dataset")
    ]
    newest: dict[tuple[str, ...], RunInfo] = {}
    for run in found:
        newest.setdefault(tuple(run.tags.get(tag, "") for tag in IDENTITY), run)
    order = {name: position for position, name in enumerate(CATALOG)}
    chosen = sorted(
        newest.values(),
        key=lambda run: (order.get(run.tags["dataset"], len(order)), int(run.tags["seed"])),
    )
    chosen = [
        replace(run, tags={**run.tags, "dataset": slug_of(run.tags["dataset"])}) for run in chosen
    ]
    return chosen, len(found) - len(chosen)


def auroc_frame(chosen: Iterable[RunInfo], model: str) -> pd.DataFrame:
    """AUROCs of one family's in-distribution models, for the detection table.

    Those finetuned from the general model; classifiers are trained from scratch.
    """
    start = "scratch" if model == "wide-resnet" else "general"
    rows = [
        (
            run.run_id,
            int(run.tags["seed"]),
            run.tags["dataset"],
            run.tags["setting"],
            # A classifier's outliers are its other class, not an outlier loss.
            run.tags["outlier_loss"].replace("classifier", "none"),
            ood,
            score,
            value,
            f"auroc/{ood}/{score}",
        )
        for run in chosen
        if run.tags["role"] == "in_distribution"
        and run.tags["init"] == start
        and run.tags["model"] == model
        for ood, score, value in _aurocs(run)
    ]
    return pd.DataFrame(rows, columns=list(AUROC_COLUMNS))


def _aurocs(run: RunInfo, prefix: str = "auroc/") -> list[tuple[str, str, float]]:
    """(outlier dataset, score, AUROC) of a run, the catalogue's outlier datasets first."""
    found = []
    for name, value in run.metrics.items():
        if name.startswith(prefix) and not name.startswith(f"{prefix}mean/"):
            ood, _, score = name.removeprefix(prefix).rpartition("/")
            found.append((ood, score, value))
    facts = CATALOG.get(run.tags["dataset"])
    order = {ood: place for place, ood in enumerate(facts.ood if facts else ())}
    found.sort(key=lambda row: order.get(row[0], len(order)))
    return found


def comparison_frame(store: Store) -> pd.DataFrame:
    """AUROC of the ratio to each general distribution, from evaluations: the newest of a seed.

    Columns: run_id, seed, model, dataset, fold, ood, general, auroc, metric. ``general`` is none
    (the raw likelihood), the name of the general model's family, or that name with `` alone``.
    """
    rows: dict[tuple[str, ...], tuple[str, float, str]] = {}
    for run in runs.find(store, {"kind": "evaluate", "registered": "true"}, status="FINISHED"):
        tags = run.tags
        if tags.get("outlier_loss") != "none" or tags.get("setting") != "unsupervised":
            continue
        fold = tags["inlier_fold"]
        names = {
            "raw": "none",
            "diff": tags["general_model"],
            "general": f"{tags['general_model']} alone",
        }
        prefix = "train_fold/auroc/" if fold == "train" else "auroc/"
        for ood, score, value in _aurocs(run, prefix):
            if score in names:
                key = (
                    tags["seed"],
                    tags["model"],
                    slug_of(tags["dataset"]),
                    fold,
                    ood,
                    names[score],
                )
                rows.setdefault(key, (run.run_id, value, f"{prefix}{ood}/{score}"))
    columns = ["seed", "model", "dataset", "fold", "ood", "general"]
    frame = pd.DataFrame([(*key, *value) for key, value in rows.items()],
                         columns=[*columns, "run_id", "auroc", "metric"])  # fmt: skip
    return frame.astype({"seed": int})


def bpd_frame(chosen: Iterable[RunInfo], model: str) -> pd.DataFrame:
    """BPD on in-distribution datasets under the general, from-scratch and finetuned models."""
    rows = []
    for run in chosen:
        tags = run.tags
        if (tags["model"], tags["outlier_loss"], tags["setting"]) != (
            model,
            "none",
            "unsupervised",
        ):
            continue
        kind = {"scratch": "scratch", "general": "finetuned"}.get(tags["init"])
        if tags["role"] == "general":
            kind = "general"
        for name, value in run.metrics.items():
            dataset = name.removeprefix("bpd/")
            own = dataset == tags["dataset"]
            facts = CATALOG.get(dataset)
            tested = facts is None or facts.role == "in_distribution"
            if name.startswith("bpd/") and kind and (own or kind == "general") and tested:
                rows.append((run.run_id, int(tags["seed"]), dataset, kind, value, name))
    return pd.DataFrame(rows, columns=list(BPD_COLUMNS)).drop_duplicates(
        ["seed", "dataset", "kind"]
    )
