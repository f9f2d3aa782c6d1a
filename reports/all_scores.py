"""The table "All scores": every score of the field on the same models, with honest statistics.

Its numbers are of the analyses ``scores``, which hold every score of every test image. Errors are
those of :mod:`oodflow.evaluation.comparison`: of the images and of the seeds.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from oodflow.data.catalog import lookup, slug_of
from oodflow.errors import UserError
from oodflow.evaluation.bootstrap import resample_counts
from oodflow.evaluation.comparison import (
    Combined,
    Estimate,
    combine,
    delong,
    holm,
    mean_estimate,
    resampled,
)
from oodflow.registration import SCORES
from oodflow.tracking import runs
from oodflow.tracking.registry import Registry, is_plain, seed_of
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store
from reports.layouts import ALL, MEAN, METRIC_NAMES, SCORE_NAMES
from reports.tables import LEVEL, METRICS, Cell, Row, Table

__all__ = ["ScoredModel", "all_scores_table", "mean_values", "read_scored_models"]

RESAMPLES = 200
"""Of the images, for the errors of metrics other than the AUROC."""

RESAMPLED = 5
"""Seeds whose images are resampled, at most: these errors are shared by all seeds."""

GROUPS = {
    "Likelihood": ("raw", "scale1", "scale2", "last_scale"),
    "Contrast": ("diff", "diff_outlier", "complexity"),
    "Typical set": ("typicality", "waic"),
    "Density of statistics": ("dose", "dose_svm", "gradient"),
}
NAMES = {
    **SCORE_NAMES,
    "scale1": "Scale 1",
    "scale2": "Scale 2",
    "complexity": "Complexity",
    "typicality": "Typicality",
    "waic": "WAIC",
    "dose": "DoSE",
    "dose_svm": "DoSE, SVM",
    "gradient": "Gradient",
}


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """A model of one dataset, all its seeds: the scores of every test image."""

    model: str
    family: str
    dataset: str
    catalogued: str
    seeds: tuple[int, ...]
    analyses: tuple[RunInfo, ...]
    """One a seed."""
    values: tuple[Mapping[str, Mapping[str, np.ndarray]], ...]
    """Of each seed: dataset → score → a value an image; the own dataset and the outliers'."""
    images: Mapping[str, str]
    """Dataset → digest of its images."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Those that every seed has, in the register's order."""
        common = set.intersection(*(set(each[self.dataset]) for each in self.values))
        names = [*SCORES.built_in, *sorted(common - set(SCORES.built_in))]
        return tuple(name for name in names if name in common)

    @property
    def oods(self) -> tuple[str, ...]:
        """Outlier datasets, those of the catalogue first."""
        known = [slug_of(name) for name in _facts(self.catalogued, "ood")]
        there = [name for name in self.values[0] if name != self.dataset]
        return tuple(sorted(there, key=lambda n: known.index(n) if n in known else len(known)))


def _facts(dataset: str, group: str) -> tuple[str, ...]:
    """A group of outlier datasets; none of a plug-in's dataset that is not there any more."""
    with suppress(UserError):
        return getattr(lookup(dataset), group)
    return ()


def read_scored_models(store: Store, registry: Registry) -> list[ScoredModel]:
    """The plain models whose scores were analysed; seeds of other images than most are left out.

    An analysis whose artifact was lost or is damaged counts as absent.
    """
    places: dict[tuple[str, str], list[RunInfo]] = {}
    for run in sorted(registry.analyses, key=seed_of):
        if run.tags["analysis"] == "scores" and is_plain(run):
            places.setdefault((run.tags["model"], run.tags["dataset"]), []).append(run)
    order = list(dict.fromkeys(run.tags["dataset"] for run in registry.training))
    found = []
    for (model, dataset), members in sorted(
        places.items(), key=lambda item: (order.index(item[0][1]), item[0][0])
    ):
        alike = [run.tags.get("images", "") for run in members]
        most = max(dict.fromkeys(alike), key=alike.count)
        read = []
        for run in members:
            with suppress(UserError):
                if run.tags.get("images") == most:
                    read.append((run, _values(store, run)))
        if read:
            found.append(
                ScoredModel(
                    model,
                    read[0][0].tags["family"],
                    dataset,
                    read[0][0].tags["catalogued"],
                    tuple(seed_of(run) for run, _ in read),
                    tuple(run for run, _ in read),
                    tuple(values for _, values in read),
                    dict(part.split("=") for part in most.split()),
                )
            )
    return found


def _values(store: Store, run: RunInfo) -> dict[str, dict[str, np.ndarray]]:
    with runs.artifact(store, run.run_id, "analysis/scores.npz") as local:
        try:
            with np.load(io.BytesIO(local.read_bytes()), allow_pickle=False) as file:
                found: dict[str, dict[str, np.ndarray]] = {}
                for name, values in file.items():
                    dataset, score = name.rsplit("/", 1)
                    found.setdefault(dataset, {})[score] = values
                return found
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"run {run.run_id}: its scores cannot be read") from error


@dataclass(frozen=True)
class _Line:
    """A row before it is a row: its estimates, one a seed, and where its numbers are from."""

    labels: tuple[str, ...]
    scores: tuple[str, ...]
    seeds: Mapping[int, Estimate]
    run_ids: tuple[str, ...]
    metrics: tuple[str, ...]
    """Without the score at the end."""


def _lines(scored: Sequence[ScoredModel], metric: str) -> Iterator[_Line]:
    """Pairs, then means of near and of far outliers, of each dataset; the overall mean at last."""
    averages = []
    for one in scored:
        counts = {
            name: resample_counts(one.images[name], len(one.values[0][name]["raw"]), RESAMPLES)
            for name in (one.dataset, *one.oods)
            if metric != "auroc"
        }
        pairs = [_pair(one, ood, metric, counts) for ood in one.oods]
        yield from pairs
        near = {slug_of(name) for name in _facts(one.catalogued, "near")}
        groups = {
            "Near mean": [line for line in pairs if line.labels[1] in near],
            "Far mean": [line for line in pairs if line.labels[1] not in near],
        }
        if all(groups.values()):
            for label, lines in groups.items():
                yield _mean_line((one.dataset, label), lines)
        averages.append(_mean_line((one.dataset, MEAN), pairs))
        yield averages[-1]
    if len(scored) > 1 and set.intersection(*(set(line.seeds) for line in averages)):
        yield _mean_line((ALL, MEAN), averages)


def _pair(one: ScoredModel, ood: str, metric: str, counts: Mapping[str, np.ndarray]) -> _Line:
    names = (one.dataset, ood)
    seeds = {}
    for seed, run, values in zip(one.seeds, one.analyses, one.values, strict=True):
        inliers, outliers = (np.stack([values[n][s] for s in one.scores]) for n in names)
        if metric == "auroc":
            seeds[seed] = delong(inliers, outliers, names)
            continue
        numbers = np.array([run.metrics[f"{metric}/{ood}/{score}"] for score in one.scores])
        enough = len(seeds) >= RESAMPLED
        drawn = (counts[name] for name in names)
        errors = {} if enough else resampled(metric, inliers, outliers, *drawn)
        seeds[seed] = Estimate(numbers, errors)
    ids = tuple(run.run_id for run in one.analyses)
    return _Line(names, one.scores, seeds, ids, (f"{metric}/{ood}",))


def _mean_line(labels: tuple[str, ...], lines: Sequence[_Line]) -> _Line:
    """The mean within each seed that all lines have, of the scores that all have."""
    scores = tuple(s for s in lines[0].scores if all(s in line.scores for line in lines))
    seeds = set.intersection(*(set(line.seeds) for line in lines))
    return _Line(
        labels,
        scores,
        {
            seed: mean_estimate([_chosen(line.seeds[seed], line.scores, scores) for line in lines])
            for seed in sorted(seeds)
        },
        tuple(dict.fromkeys(each for line in lines for each in line.run_ids)),
        tuple(dict.fromkeys(name for line in lines for name in line.metrics)),
    )


def _chosen(whole: Estimate, has: Sequence[str], wanted: Sequence[str]) -> Estimate:
    places = [has.index(score) for score in wanted]
    return Estimate(
        whole.values[places], {name: part[places] for name, part in whole.errors.items()}
    )


def mean_values(scored: Sequence[ScoredModel]) -> tuple[tuple[str, ...], np.ndarray]:
    """The scores that all pairs of datasets have, and their mean AUROCs, pairs × scores."""
    scores = tuple(s for s in scored[0].scores if all(s in one.scores for one in scored))
    values = [
        [np.mean([run.metrics[f"auroc/{ood}/{s}"] for run in one.analyses]) for s in scores]
        for one in scored
        for ood in one.oods
    ]
    return scores, np.array(values)


def all_scores_table(scored: Sequence[ScoredModel], metric: str = "auroc") -> Table:
    """A metric of every score of the models of one family, against every outlier dataset.

    In each row the best mean is bold together with all that cannot be told from it: whose paired
    difference has a p-value above 5 % by Holm's correction for all pairs of the table.
    """
    lines = list(_lines(scored, metric))
    present = dict.fromkeys(score for line in lines for score in line.scores)
    others = tuple(s for s in present if not any(s in members for members in GROUPS.values()))
    columns = [
        (group, score)
        for group, members in {**GROUPS, "Plug-ins": others}.items()
        for score in members
        if score in present
    ]
    measure = METRICS[metric]
    combined = [combine(list(line.seeds.values())) for line in lines]
    told = _told_apart(lines, combined, bool(measure.higher_is_better))
    rows = []
    for line, both, best in zip(lines, combined, told, strict=True):
        cells = tuple(
            _cell(line, both, line.scores.index(score), score) if score in line.scores else None
            for _, score in columns
        )
        bold = frozenset(place for place, (_, score) in enumerate(columns) if score in best)
        rows.append(Row(line.labels, cells, bold))
    fitted = sorted({run.tags.get("dose_statistics", "") for one in scored for run in one.analyses})
    absent = dict.fromkeys(
        part
        for one in scored
        for run in one.analyses
        for part in run.tags.get("absent", "").split("; ")
        if part and part.partition(":")[0] not in present
    )
    return Table(
        title="All scores" + ("" if metric == "auroc" else f": {METRIC_NAMES[metric]}"),
        caption=(
            f"{METRIC_NAMES[metric]} in %, in parentheses the standard deviation across seeds, in "
            "brackets a 95 % interval by the errors of the images "
            f"({'DeLong' if metric == 'auroc' else f'{RESAMPLES} resamples'}) and of the seeds "
            "together. Bold: the best of a row, and all that cannot be told from it at 5 % by "
            "paired tests on the same images, Holm-corrected over the table. WAIC is one number of "
            "all seeds. Near and far outliers are groups of the catalogue. "
            + " ".join(f"DoSE is of {names.replace(' ', ', ')}." for names in fitted if names)
            + "".join(f" Absent: {part}." for part in absent)
        ),
        row_header=("In-dist", "Out-dist"),
        columns=tuple((group, NAMES.get(score, score)) for group, score in columns),
        rows=tuple(rows),
        measure=measure,
    )


def _cell(line: _Line, both: Combined, place: int, score: str) -> Cell:
    return Cell(
        values=tuple(float(value) for value in both.values[:, place]),
        run_ids=line.run_ids,
        metrics=tuple(f"{name}/{score}" for name in line.metrics),
        interval=both.interval(place),
    )


def _told_apart(
    lines: Sequence[_Line], combined: Sequence[Combined], higher: bool
) -> list[set[str]]:
    """Of each line the best score, and those that it cannot be told from."""
    best = [
        int((np.argmax if higher else np.argmin)(each.values.mean(axis=0))) for each in combined
    ]
    places = [
        (number, place)
        for number, line in enumerate(lines)
        for place in range(len(line.scores))
        if place != best[number]
    ]
    adjusted = holm([combined[number].p_value(best[number], place) for number, place in places])
    told = [{line.scores[top]} for line, top in zip(lines, best, strict=True)]
    for (number, place), p_value in zip(places, adjusted, strict=True):
        if p_value >= LEVEL:
            told[number].add(lines[number].scores[place])
    return told
