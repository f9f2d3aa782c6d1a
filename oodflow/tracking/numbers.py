"""Which numbers of a run are MLflow metrics, and the tables that hold all of them.

The MLflow UI draws a chart and offers a column for each metric. Those that people compare are
metrics, at most 25 for a training; ``metrics.json`` and ``validation.json`` hold every number under
its name, as tables that the UI shows and sets side by side.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from oodflow.registration import SCORES

__all__ = ["COMPARED", "CURVES", "TABLE", "headline", "curves", "decoded", "encoded"]

TABLE = "metrics.json"
"""All final numbers of a run: columns ``metric`` and ``value``."""
CURVES = "validation.json"
"""All reports of a training: a column for each name, a row for each report."""

COMPARED = ("diff", "raw", "diff_outlier", "last_scale")
"""Scores whose AUROCs are metrics, the most wanted first."""
OWN = ("bpd", "accuracy")
"""Of a model's own dataset the first of these is a metric."""
DATASET_AUROCS = 12
"""AUROCs of single outlier datasets among the metrics of a run, at most."""


def headline(numbers: Mapping[str, float], dataset: str) -> dict[str, float]:
    """Those final numbers of a model that are metrics; ``dataset`` is its own, by its short name.

    ``bpd/<dataset>``, or of a classifier ``accuracy/<dataset>``; ``auroc/mean/<score>`` of the
    scores of :data:`COMPARED` and of packages; ``auroc/<ood>/<score>`` of :data:`COMPARED`, of its
    first scores alone where there are more than three outlier datasets.

    >>> names = ["bpd/a", "bpd/b", "auroc/b/raw", "auroc/b/scale1", "aupr/b/raw", "auroc/mean/raw"]
    >>> [*headline(dict.fromkeys(names, 0.5), "a")]
    ['bpd/a', 'auroc/b/raw', 'auroc/mean/raw']
    """
    oods = {ood for name in numbers if (ood := _auroc(name)[0])} - {"mean"}
    single = COMPARED[: DATASET_AUROCS // max(len(oods), 1)]
    own = next((name for kind in OWN if (name := f"{kind}/{dataset}") in numbers), "")

    def wanted(name: str) -> bool:
        ood, score = _auroc(name)
        if ood == "mean":
            return score in COMPARED or score not in SCORES.built_in
        return score in single or name == own

    # Pages that begin with one metric take the first.
    found = sorted(numbers, key=lambda name: name != f"auroc/mean/{COMPARED[0]}")
    return {name: numbers[name] for name in found if wanted(name)}


def _auroc(name: str) -> tuple[str, str]:
    """Outlier dataset and score of an AUROC, of inliers of whichever fold; else "" and ""."""
    *_, metric, ood, score = ("", "", *name.split("/"))
    return (ood, score) if metric == "auroc" else ("", "")


def curves(report: Mapping[str, float]) -> dict[str, float]:
    """Those numbers of a training's report that are metrics.

    Of the AUROCs on the validation images the mean of one score over the outlier datasets.

    >>> [*curves({"valid/bpd": 3.0, "valid/auroc/a/diff": 0.5, "valid/auroc/mean/diff": 0.5})]
    ['valid/bpd', 'valid/auroc/mean/diff']
    """
    means = (f"valid/auroc/mean/{score}" for score in COMPARED)
    shown = next((name for name in means if name in report), "")
    return {
        name: value
        for name, value in report.items()
        if name == shown or not name.startswith("valid/auroc/")
    }


def encoded(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as the JSON that ``mlflow.log_table`` writes; no number where one is not finite."""

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps({"columns": [*columns], "data": [[*map(plain, row)] for row in rows]})


def decoded(text: str) -> dict[str, float]:
    """The numbers of :data:`TABLE` by their names.

    >>> decoded(encoded(["metric", "value"], [("bpd/a", 0.1 + 0.2), ("bpd/b", math.nan)]))
    {'bpd/a': 0.30000000000000004, 'bpd/b': nan}
    """
    return {name: math.nan if value is None else value for name, value in json.loads(text)["data"]}
