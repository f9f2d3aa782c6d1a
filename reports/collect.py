"""From a registry's runs to tidy frames: one number per row."""

from collections.abc import Iterable, Sequence

import pandas as pd

from oodflow.data.catalog import CATALOG, lookup, slug_of
from oodflow.tracking.registry import Registry, is_plain, seed_of
from oodflow.tracking.run_info import RunInfo

__all__ = [
    "FURTHER",
    "auroc_frame",
    "bpd_frame",
    "comparison_frame",
    "core_of",
    "correlation_frame",
    "folds_frame",
    "fourier_frame",
    "scores_frame",
]

FURTHER = ("celeba", "tinyimagenet")
"""Outlier datasets of the catalogue that are outside all means (S7.4)."""


def auroc_frame(
    registry: Registry,
    model: str,
    family: str,
    *,
    further: bool = False,
    metric: str = "auroc",
) -> pd.DataFrame:
    """AUROCs of a model family's in-distribution models on a family of datasets.

    Another ``metric`` takes their place where it is named. The models are those finetuned from
    the general model; classifiers are trained from scratch. The outlier datasets are those of the
    catalogue without :data:`FURTHER`, so that means are over the same ones whatever else a model
    was evaluated against; with ``further`` they are all the others.
    """
    start = "scratch" if model == "wide-resnet" else "general"
    rows = [
        {
            **_origin(run, name),
            "dataset": run.tags["dataset"],
            "setting": run.tags["setting"],
            # A classifier's outliers are its other class, not an outlier loss.
            "outlier_loss": run.tags["outlier_loss"].replace("classifier", "none"),
            "ood": ood,
            "score": score,
            "auroc": value,
        }
        for run in registry.training
        if run.tags["role"] == "in_distribution"
        and (run.tags["init"], run.tags["model"], run.tags["family"]) == (start, model, family)
        for core in (core_of(run),)
        for ood, score, value, name in _aurocs(run, f"{metric}/")
        if (ood not in core) == further
    ]
    columns = ["dataset", "setting", "outlier_loss", "ood", "score", "auroc"]
    return _frame(rows, columns)


def core_of(run: RunInfo) -> set[str]:
    """The outlier datasets that a model's mean is over."""
    name = run.tags["catalogued"]
    if name not in CATALOG and "plugin.dataset" in run.tags:
        # Its package is not here: all that it was evaluated against.
        return {ood for ood, *_ in _aurocs(run)} - set(FURTHER)
    return {slug_of(ood) for ood in lookup(name).ood} - set(FURTHER)


def _origin(run: RunInfo, metric: str) -> dict[str, object]:
    return {"run_id": run.run_id, "seed": seed_of(run), "metric": metric}


def _frame(rows: Sequence[dict[str, object]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["run_id", "seed", "metric", *columns])


def _aurocs(run: RunInfo, prefix: str = "auroc/") -> list[tuple[str, str, float, str]]:
    """(outlier dataset, score, AUROC, metric) of a run, the catalogue's outlier datasets first."""
    found = []
    for name, value in run.metrics.items():
        if name.startswith(prefix) and not name.startswith(f"{prefix}mean/"):
            ood, _, score = name.removeprefix(prefix).rpartition("/")
            found.append((ood, score, value, name))
    facts = CATALOG.get(run.tags["dataset"])
    order = {ood: place for place, ood in enumerate(facts.ood if facts else ())}
    found.sort(key=lambda row: order.get(row[0], len(order)))
    return found


def bpd_frame(registry: Registry, model: str, family: str) -> pd.DataFrame:
    """BPD on in-distribution datasets under the general, from-scratch and finetuned models."""
    rows = []
    for run in registry.training:
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
            facts = CATALOG.get(dataset)
            own = dataset == tags["dataset"]
            of_family = facts.family == family if facts else own and tags["family"] == family
            tested = facts is None or facts.role == "in_distribution"
            wanted = kind and of_family and tested and (own or kind == "general")
            if name.startswith("bpd/") and wanted:
                rows.append({**_origin(run, name), "dataset": dataset, "kind": kind, "bpd": value})
    frame = _frame(rows, ["dataset", "kind", "bpd"])
    return frame.drop_duplicates(["seed", "dataset", "kind"])


def comparison_frame(
    registry: Registry, family: str, fold: str, metric: str = "auroc"
) -> pd.DataFrame:
    """AUROC of the ratio to each general distribution, of inliers of a fold.

    From evaluations against other families' general models, or of training-fold inliers, and for
    the models that have one from their own numbers too. ``general`` is none (the raw likelihood),
    the name of the general model's family, or that name with `` alone``. Of several evaluations the
    newest counts.
    """
    by_id = {run.run_id: run for run in registry.training}
    rows, compared = [], {}
    for run in registry.evaluations:
        model = by_id[run.tags["evaluated"]]
        if run.tags["inlier_fold"] != fold or not is_plain(model) or model.tags["family"] != family:
            continue
        general = run.tags["general_model"]
        if fold == "train" or general not in ("none", model.tags["model"]):
            prefix = f"train_fold/{metric}/" if fold == "train" else f"{metric}/"
            names = {"diff": general, "general": f"{general} alone"}
            rows += _compared(
                model, run, prefix, names | {"raw": "none"} if fold == "train" else names
            )
            compared[model.run_id] = model
    if fold == "test":
        for model in compared.values():
            names = {"raw": "none", "diff": model.tags["model"]}
            rows += _compared(model, model, f"{metric}/", names)
    frame = _frame(rows, ["model", "dataset", "ood", "general", "auroc"])
    frame = frame.drop_duplicates(["seed", "model", "dataset", "ood", "general"])
    order = {name: position for position, name in enumerate(CATALOG.names())}
    return frame.sort_values(
        "dataset",
        key=lambda names: names.map(lambda name: order.get(name, len(order))),
        kind="stable",
    )


def _compared(
    model: RunInfo, run: RunInfo, prefix: str, names: dict[str, str]
) -> list[dict[str, object]]:
    return [
        {
            **_origin(run, metric),
            "seed": seed_of(model),
            "model": model.tags["model"],
            "dataset": model.tags["dataset"],
            "ood": ood,
            "general": names[score],
            "auroc": value,
        }
        for ood, score, value, metric in _aurocs(run, prefix)
        if score in names
    ]


def folds_frame(registry: Registry, family: str) -> pd.DataFrame:
    """AUROCs of Glow with inliers of the test and of the training fold, from analyses (S6)."""
    prefixes = {"test": "auroc/", "train": "train_fold/auroc/"}
    rows = [
        {
            **_origin(run, metric),
            "dataset": run.tags["dataset"],
            "ood": ood,
            "score": score,
            "fold": fold,
            "auroc": value,
        }
        for run in _analyses(registry, "folds", family)
        for fold, prefix in prefixes.items()
        for ood, score, value, metric in _aurocs(run, prefix)
    ]
    return _frame(rows, ["dataset", "ood", "score", "fold", "auroc"])


def scores_frame(registry: Registry, family: str) -> pd.DataFrame:
    """AUROCs of every score of Glow, from analyses."""
    rows = [
        {
            **_origin(run, metric),
            "dataset": run.tags["dataset"],
            "outlier_loss": "none",
            "ood": ood,
            "score": score,
            "auroc": value,
        }
        for run in _analyses(registry, "scores", family)
        for ood, score, value, metric in _aurocs(run)
    ]
    return _frame(rows, ["dataset", "outlier_loss", "ood", "score", "auroc"])


def fourier_frame(registry: Registry, family: str) -> pd.DataFrame:
    """Rank correlations of mixed images with their donors under Glow, from analyses (S3)."""
    rows = [
        {
            **_origin(run, metric),
            "dataset": run.tags["dataset"],
            "images": images,
            "donor": donor,
            "correlation": value,
        }
        for run in _analyses(registry, "fourier", family)
        for images, donor, value, metric in _spearmans(run)
    ]
    return _frame(rows, ["dataset", "images", "donor", "correlation"])


def correlation_frame(registry: Registry, family: str) -> pd.DataFrame:
    """Rank correlations of likelihoods between models, from analyses."""
    rows = [
        {
            **_origin(run, metric),
            "dataset": run.tags["dataset"],
            "first": run.tags["model"],
            "second": other,
            "images": images,
            "correlation": value,
        }
        for run in _analyses(registry, "correlation", family, model="")
        for images, other, value, metric in _spearmans(run)
    ]
    return _frame(rows, ["dataset", "first", "second", "images", "correlation"])


def _analyses(
    registry: Registry, analysis: str, family: str, model: str = "glow"
) -> Iterable[RunInfo]:
    """Analyses of models without outlier loss, by seed; ``model`` "" means of every family."""
    wanted = [
        run
        for run in registry.analyses
        if (run.tags["analysis"], run.tags["family"]) == (analysis, family)
        and is_plain(run)
        and model in ("", run.tags["model"])
    ]
    order = {name: position for position, name in enumerate(CATALOG.names())}
    return sorted(
        wanted, key=lambda run: (order.get(run.tags["dataset"], len(order)), seed_of(run))
    )


def _spearmans(run: RunInfo) -> list[tuple[str, str, float, str]]:
    """(images, with whom, correlation, metric) of an analysis."""
    return [
        (*name.removeprefix("spearman/").rsplit("/", 1), value, name)  # type: ignore[misc]
        for name, value in sorted(run.metrics.items())
        if name.startswith("spearman/")
    ]
