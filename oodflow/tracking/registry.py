"""The runs that a report counts: registered, of one training with equal settings, one per seed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from oodflow.data.catalog import CATALOG, FAMILIES, is_own, slug_of
from oodflow.tracking import runs
from oodflow.tracking.repetitions import choose_runs
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store

__all__ = [
    "CONTRASTS",
    "Registry",
    "is_plain",
    "read_registry",
    "seed_of",
]

CONTRASTS = {"diff": "general_run", "diff_outlier": "general_outlier_run"}
"""Score → the tag that names the general model behind it."""


@dataclass(frozen=True)
class Registry:
    """The runs that a report counts, datasets by their short names, and what it leaves out.

    ``training`` is in the catalogue's order of datasets, then by seed. Tags of all have
    ``family``, the family of their dataset, and ``catalogued``, its name in the catalogue.
    """

    training: tuple[RunInfo, ...]
    evaluations: tuple[RunInfo, ...]
    analyses: tuple[RunInfo, ...]
    notes: tuple[str, ...]
    """Lines that say which runs were left out, and in what those that count differ."""

    @property
    def families(self) -> tuple[str, ...]:
        """Families of datasets, each of which has its own tables: ours, then those of plug-ins."""
        present = sorted({run.tags["family"] for run in self.training} - {""})
        return tuple(dict.fromkeys((*FAMILIES, *present)))


def read_registry(store: Store) -> Registry:
    """What the store holds: registered, finished runs that were not deleted.

    Of the runs of one training those of :func:`oodflow.tracking.repetitions.choose_runs` count.
    Evaluations, the newest first, and the newest analyses count if their model's run does.
    """
    found = [_short(run) for run in runs.find(store, {"registered": "true"}, status="FINISHED")]
    trained = [run for run in found if run.tags["kind"] in ("train", "finetune")]
    choice = choose_runs(run for run in trained if run.tags.get("dataset"))
    known = {run.run_id for run in trained}
    chosen = [_without_lost_contrasts(runs.whole(store, run), known) for run in choice.runs]
    order = {name: position for position, name in enumerate(CATALOG.names())}
    chosen.sort(key=lambda run: (order.get(run.tags["dataset"], len(order)), seed_of(run)))
    ids = {run.run_id for run in chosen}
    return Registry(
        training=tuple(chosen),
        evaluations=tuple(
            runs.whole(store, run)
            for run in found
            if run.tags["kind"] == "evaluate" and run.tags.get("evaluated") in ids
        ),
        analyses=_newest_analyses(found, ids),
        notes=choice.notes + _mixed_scores(chosen),
    )


def _mixed_scores(found: Iterable[RunInfo]) -> tuple[str, ...]:
    """A line for each score that different versions of its package computed."""
    versions: dict[str, set[str]] = {}
    for run in found:
        for tag, value in run.tags.items():
            if tag.startswith("plugin.score."):
                versions.setdefault(tag.removeprefix("plugin.score."), set()).add(value)
    return tuple(
        f"score {name} is of {' and '.join(sorted(of))}; evaluate again to compare one version"
        for name, of in sorted(versions.items())
        if len(of) > 1
    )


def _short(run: RunInfo) -> RunInfo:
    dataset = run.tags.get("dataset", "")
    if is_own(dataset):
        family = "folder"
    elif facts := CATALOG.get(dataset):
        family = facts.family
    else:
        # Runs outlive the package that registered their dataset.
        family = "other" if run.tags.get("plugin.dataset") else ""
    own = {"dataset": slug_of(dataset), "family": family, "catalogued": dataset}
    return replace(run, tags={**run.tags, **own})


def seed_of(run: RunInfo) -> int:
    """The seed of a run's training."""
    return int(run.tags["seed"])


def _without_lost_contrasts(run: RunInfo, known: set[str]) -> RunInfo:
    """The run without the numbers of a ratio whose general model was deleted or not registered."""
    lost = [f"/{score}" for score, tag in CONTRASTS.items() if run.tags.get(tag) not in known]
    kept = {name: value for name, value in run.metrics.items() if not name.endswith(tuple(lost))}
    return replace(run, metrics=kept)


def _newest_analyses(found: Iterable[RunInfo], models: set[str]) -> tuple[RunInfo, ...]:
    """The newest run of each analysis of each of these models."""
    newest: dict[tuple[str, str], RunInfo] = {}
    for run in found:
        if run.tags["kind"] == "analyse" and run.tags.get("analysed") in models:
            newest.setdefault((run.tags["analysed"], run.tags["analysis"]), run)
    return tuple(newest.values())


def is_plain(run: RunInfo) -> bool:
    """Whether a run is an in-distribution model finetuned without an outlier loss, unsupervised."""
    tags = run.tags
    kind = (tags["role"], tags["outlier_loss"], tags["setting"], tags["init"])
    return kind == ("in_distribution", "none", "unsupervised", "general")
