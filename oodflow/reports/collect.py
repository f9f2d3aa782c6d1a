"""From registered runs to tidy frames: one number a row, the newest run of each seed."""

from collections.abc import Iterable

import pandas as pd

from oodflow.data.catalog import CATALOG
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.tracking.store import Store

__all__ = ["auroc_frame", "bpd_frame", "registered_runs"]

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

AUROC_COLUMNS = ("run_id", "seed", "dataset", "setting", "outlier_loss", "ood", "score", "auroc")
BPD_COLUMNS = ("run_id", "seed", "dataset", "kind", "bpd")


def registered_runs(store: Store) -> tuple[list[RunInfo], int]:
    """Registered training runs in the catalogue's order of datasets, and how many were older.

    Runs of the same identity count once, the newest; the others are the older ones.
    """
    found = runs.find(store, {"registered": "true"}, status="FINISHED")
    newest: dict[tuple[str, ...], RunInfo] = {}
    for run in found:
        newest.setdefault(tuple(run.tags.get(tag, "") for tag in IDENTITY), run)
    order = {name: position for position, name in enumerate(CATALOG)}
    chosen = sorted(
        newest.values(),
        key=lambda run: (order.get(run.tags["dataset"], len(order)), int(run.tags["seed"])),
    )
    return chosen, len(found) - len(chosen)


def auroc_frame(chosen: Iterable[RunInfo], model: str = "glow") -> pd.DataFrame:
    """AUROCs of in-distribution models finetuned from the general one, for the detection table."""
    rows = []
    for run in chosen:
        tags = run.tags
        if tags["role"] != "in_distribution" or tags["init"] != "general" or tags["model"] != model:
            continue
        facts = CATALOG.get(tags["dataset"])
        oods = dict.fromkeys(facts.ood if facts else ())
        oods |= dict.fromkeys(
            name.split("/")[1] for name in run.metrics if name.startswith("auroc/")
        )
        for ood in oods:
            for name, value in run.metrics.items():
                kind, _, rest = name.partition("/")
                if kind == "auroc" and rest.startswith(f"{ood}/") and ood != "mean":
                    rows.append(
                        (
                            run.run_id,
                            int(tags["seed"]),
                            tags["dataset"],
                            tags["setting"],
                            tags["outlier_loss"],
                            ood,
                            rest.rpartition("/")[2],
                            value,
                        )
                    )
    return pd.DataFrame(rows, columns=list(AUROC_COLUMNS))


def bpd_frame(chosen: Iterable[RunInfo], model: str = "glow") -> pd.DataFrame:
    """BPD on in-distribution datasets under the general, from-scratch and finetuned models."""
    rows = []
    for run in chosen:
        tags = run.tags
        if tags["model"] != model or tags["outlier_loss"] != "none":
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
                rows.append((run.run_id, int(tags["seed"]), dataset, kind, value))
    return pd.DataFrame(rows, columns=list(BPD_COLUMNS)).drop_duplicates(
        ["seed", "dataset", "kind"]
    )
