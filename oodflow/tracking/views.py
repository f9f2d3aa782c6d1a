"""Saved views of the MLflow UI: the run table with the columns, filter and groups of a question.

MLflow keeps a view as a tag of the experiment: its name, and the state of the page as compressed
JSON. Columns of metrics that no run has are not drawn, so that one view serves all datasets.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oodflow.data.catalog import CATALOG
from oodflow.tracking.numbers import COMPARED
from oodflow.tracking.run_info import PREFIX

__all__ = ["AUROC", "BPD", "DETECTORS", "TRIALS", "VIEWS", "WORKFLOW", "View", "missing_views"]

TAG = "mlflow.sharedViewState."
WORKFLOW = "workflowType=machine_learning"
"""In an address of the MLflow UI; without it a browser first shows its pages for chat models."""
NAME = "attributes.`Run Name`"
WIDTH = 155
"""Pixels of a column: the longest of ours, ``auroc/mean/diff_outlier``, is read whole."""


@dataclass(frozen=True)
class View:
    """One saved view. Columns are named as in the state of the page."""

    key: str
    name: str
    search: str
    """A filter as in MLflow's search of runs."""
    columns: tuple[str, ...]
    order_by: str
    ascending: bool = False
    grouped: bool = False
    """Whether runs that differ in their seed alone are folded under their mean."""

    @property
    def link(self) -> str:
        """The part of its address behind the experiment's."""
        return f"runs?{WORKFLOW}&viewStateShareKey={self.key}"

    @property
    def state(self) -> dict[str, object]:
        """The state of the page; what is absent has MLflow's defaults."""
        group = {"mode": "tag", "groupByData": f"{PREFIX}group"}
        return {
            "searchFilter": self.search,
            "orderByKey": self.order_by,
            "orderByAsc": self.ascending,
            "selectedColumns": [*self.columns],
            "columnOrder": [NAME, *self.columns],
            "columnWidths": {NAME: 2 * WIDTH} | dict.fromkeys(self.columns, WIDTH),
            "groupBy": {"aggregateFunction": "average", "groupByKeys": [group]}
            if self.grouped
            else None,
        }


def _tag(name: str, value: str) -> str:
    return f"tags.`{PREFIX}{name}` {value}"


def _metrics(*names: str) -> tuple[str, ...]:
    return tuple(f"metrics.`{name}`" for name in names)


def _datasets(pattern: str) -> tuple[str, ...]:
    # Those of plug-ins differ from machine to machine, which would each renew the views.
    built_in = (name for name in CATALOG.names() if name not in CATALOG.origins())
    return _metrics(*(pattern.format(name) for name in built_in))


TRAINED = _tag("weights", "LIKE '%'")
"""Runs with weights of their own; trials, evaluations and parents have none."""

AUROC = View(
    "oodflow-auroc",
    "AUROC by method, seeds grouped",
    f"{TRAINED} and {_tag('role', '= ' + repr('in_distribution'))}",
    _metrics(*(f"auroc/mean/{score}" for score in COMPARED)),
    "metrics.`auroc/mean/diff`",
    grouped=True,
)
BPD = View(
    "oodflow-bpd",
    "Likelihood (BPD)",
    TRAINED,
    (*_metrics("train/bpd", "valid/bpd"), *_datasets("bpd/{}")),
    # Ordered by the time, MLflow would add the parents of the runs.
    "metrics.`valid/bpd`",
    ascending=True,
    grouped=True,
)
TRIALS = View(
    "oodflow-trials",
    "Tuning trials",
    _tag("kind", "= 'trial'"),
    (
        *_metrics("tune/auroc", "tune/bpd_paid", "tune/dropped", "tune/skipped"),
        *(f"params.`loss.{name}`" for name in ("temperature", "margin", "outlier_weight")),
        *(f"tags.`{PREFIX}{name}`" for name in ("study", "reason")),
    ),
    "metrics.`tune/auroc`",
)
DETECTORS = View(
    "oodflow-detectors",
    "Detectors",
    _tag("kind", "= 'detector'"),
    (
        *(f"tags.`{PREFIX}{name}`" for name in ("dataset", "score", "detector")),
        *_metrics("false_positive_rate/0.05", "smallest_alpha"),
        *_datasets("detection_rate/{}/0.05"),
    ),
    "attributes.start_time",
)
VIEWS = (AUROC, BPD, TRIALS, DETECTORS)


def missing_views(tags: Mapping[str, str], now: int) -> Iterator[tuple[str, str]]:
    """Tag and value of each view that an experiment lacks or has in an older form.

    ``tags`` are the experiment's; ``now`` is ms since 1970. A view that somebody has saved in the
    UI since it was made stays as it is.

    >>> made = dict(missing_views({}, now=1))
    >>> len(made), dict(missing_views(made, now=2))
    (4, {})
    """
    for view in VIEWS:
        made = _read(tags.get(TAG + view.key, ""))
        touched = made.get("updatedAt") != made.get("createdAt")
        if touched or (made.get("name"), made.get("state")) == (view.name, view.state):
            continue
        packed = base64.b64encode(zlib.compress(json.dumps(view.state).encode())).decode()
        saved = {"createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
        yield TAG + view.key, json.dumps({"name": view.name, **saved})


def _read(tag: str) -> dict[str, object]:
    """A saved view with its state unpacked; compressors differ in the bytes that they write."""
    try:
        made = json.loads(tag)
        packed = base64.b64decode(made["state"].removeprefix("deflate;"))
        return made | {"state": json.loads(zlib.decompress(packed))}
    except (ValueError, KeyError, AttributeError, TypeError, zlib.error):
        return {}
