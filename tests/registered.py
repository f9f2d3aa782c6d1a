"""Registered runs without any training, for tests of what a report counts.

As a program it fills a store with a thousand of them, to time a report:
``MLFLOW_TRACKING_URI=sqlite:///many.db python tests/registered.py``.
"""

import itertools

import numpy as np

from oodflow.tracking import runs
from oodflow.tracking.store import Store, open_store

OODS = {
    "sketch-shapes": ("sketch-digits", "sketch-letters", "sketch-scenes"),
    "sketch-letters": ("sketch-digits", "sketch-shapes", "sketch-scenes"),
    "sketch-digits": ("sketch-shapes", "sketch-letters", "sketch-scenes"),
}
SCORES = ("raw", "scale1", "scale2", "last_scale", "diff", "diff_outlier")
PARAMS = {"model.depth": "4", "model.hidden": "32", "model.channels": "3", "data.limit": "0"}


def add_run(
    store: Store, metrics: dict[str, float], params=PARAMS, status="FINISHED", **tags
) -> str:
    """A registered run of Glow on shapes, finetuned from the general model, but for ``tags``."""
    usual = {
        "kind": "finetune",
        "model": "glow",
        "dataset": "sketch-shapes",
        "role": "in_distribution",
        "setting": "unsupervised",
        "outlier_loss": "none",
        "outlier_dataset": "",
        "init": "general",
        "seed": "1",
        "registered": "true",
    }
    run_id = runs.start(store, "made by a test", usual | tags)
    runs.log_parameters(store, run_id, params)
    runs.log_metrics(store, run_id, metrics)
    runs.end(store, run_id, status)
    return run_id


def add_general(store: Store, **tags) -> str:
    """A registered general model of the sketch family, with its BPD on every dataset."""
    bits = {"sketch-digits": 3.0, "sketch-scenes": 4.0, "sketch-shapes": 5.0, "sketch-letters": 5.1}
    return add_run(
        store,
        {f"bpd/{name}": value for name, value in bits.items()},
        **{"kind": "train", "role": "general", "dataset": "sketch-general", "init": "scratch"}
        | tags,
    )


def aurocs(rng: np.random.Generator, dataset: str, scores=SCORES) -> dict[str, float]:
    """An AUROC of every score against every outlier dataset, and their means."""
    found = {
        f"auroc/{ood}/{score}": float(rng.uniform(0.2, 0.99))
        for ood in OODS[dataset]
        for score in scores
    }
    for score in scores:
        values = [found[f"auroc/{ood}/{score}"] for ood in OODS[dataset]]
        found[f"auroc/mean/{score}"] = float(np.mean(values))
    return found


def fill(store: Store, seeds: int) -> int:
    """All settings of three datasets with so many seeds, with training curves; how many runs."""
    rng = np.random.default_rng(0)
    general = add_general(store)
    trainings = list(
        itertools.product(
            OODS,
            (
                ("none", "unsupervised", "general"),
                ("none", "unsupervised", "scratch"),
                ("none", "unsupervised", "own"),
                ("binary", "unsupervised", "general"),
                ("binary", "supervised", "general"),
                ("margin", "unsupervised", "general"),
            ),
            range(seeds),
        )
    )
    for dataset, (loss, setting, init), seed in trainings:
        metrics = aurocs(rng, dataset) | {f"bpd/{dataset}": float(rng.uniform(3, 4))}
        metrics |= {f"{name}/{ood}/{score}": 0.5 for name in ("aupr", "fpr95")
                    for ood in OODS[dataset] for score in SCORES}  # fmt: skip
        params = PARAMS | {f"optimisation.{name}": "1" for name in ("steps", "lr", "batch_size")}
        params |= {f"loss.{name}": "1" for name in ("temperature", "outlier_weight", "margin")}
        run_id = add_run(
            store, metrics, params, dataset=dataset, outlier_loss=loss, setting=setting, init=init,
            seed=str(seed), kind="train" if init == "scratch" else "finetune",
            general_run=general, general_outlier_run=general,
        )  # fmt: skip
        for step in range(50, 301, 50):
            curve = {"valid/bpd": float(rng.uniform(3, 4))}
            curve |= {f"valid/auroc/{ood}/diff": float(rng.uniform()) for ood in OODS[dataset]}
            runs.log_metrics(store, run_id, curve, step)
    return 1 + len(trainings)


if __name__ == "__main__":
    print(fill(open_store(), 56), "registered runs")
