"""Published claims, checked on registered runs: each holds, does not, is undecided or not measured.

Numbers are of one model on one family of datasets. Every claim is about differences: two numbers of
the same seed, subtracted. Their mean over the seeds has a 95 % t interval, mean ± t·s/√n with n − 1
degrees of freedom. A claim holds where the whole interval is on its side of the bound, does not
where all of it is on the other side, and is undecided where the interval covers the bound.
Differences on average are, as in the tables, of the mean over pairs within a seed. Glow is the
paper's model; of others only what was measured is a claim.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from scipy.stats import t

from oodflow.evaluation.metrics import mean_std
from oodflow.tracking.registry import Registry, is_plain
from oodflow.tracking.run_info import RunInfo
from reports.all_scores import NAMES
from reports.collect import auroc_frame, fourier_frame, scores_frame
from reports.document import (
    DOES_NOT_HOLD,
    HOLDS,
    IN_ONE_SEED,
    NOT_MEASURED,
    UNDECIDED,
    Claim,
)
from reports.layouts import LOSS_NAMES, SCORE_NAMES

__all__ = ["OF_THE_FIELD", "OF_THE_PAPER", "check_claims", "t_interval"]

OF_THE_PAPER, OF_THE_FIELD = "Claims of the paper", "Rankings of the field"

PAPER_MODEL = "glow"

FOURIER_MARGIN = 0.5
"""By how much the amplitude donors' correlation must exceed the phase donors' (S3: > 0.75)."""

CONFIDENCE = 0.95

Key = str | tuple[str, str]

Differences = Mapping[str, Sequence[float]]
"""Place → differences, one a seed."""


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean, mean ± t·s/√n; of a single value, that value twice.

    >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    mean, std = mean_std(values)
    count = len(values)
    reach = 0.0
    if count > 1:
        reach = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)
    return mean - reach, mean + reach


def check_claims(registry: Registry) -> tuple[Claim, ...]:
    """All claims for each family of datasets and each model that has in-distribution runs of it.

    Those of the paper come first, then the rankings that others published.
    """
    found: list[Claim] = []
    field: list[Claim] = []
    for family in registry.families:
        for model in dict.fromkeys((PAPER_MODEL, *_densities(registry, family))):
            frame = auroc_frame(registry, model, family)
            frame = frame[frame["setting"] == "unsupervised"]
            if frame.empty:
                continue
            where = family if model == PAPER_MODEL else f"{family}, {model}"
            claims = [
                _simpler(frame, _general_bits(registry, model, family), where),
                *(_loss(frame, score, where) for score in ("raw", "last_scale", "diff")),
                *(_outlier_general(frame, loss, where) for loss in ("none", "binary")),
                *_finetuning(registry, model, family, where),
            ]
            if model == PAPER_MODEL:
                claims.insert(0, _fourier(fourier_frame(registry, family), family))
                field += _of_the_field(registry, family)
            measured = (each for each in claims if each.verdict != NOT_MEASURED)
            found += claims if model == PAPER_MODEL else measured
    return (*found, *field)


def _densities(registry: Registry, family: str) -> list[str]:
    """The other models with likelihoods that were trained on a family, by name."""
    return sorted(
        {
            run.tags["model"]
            for run in registry.training
            if is_plain(run) and run.tags["family"] == family
        }
    )


def _fourier(frame: pd.DataFrame, family: str) -> Claim:
    """S3: low-level features, which amplitudes carry, dominate the likelihood."""
    text = (
        f"Likelihoods of Fourier-mixed images follow the amplitudes: the correlation with the "
        f"amplitude donors exceeds that with the phase donors by {FOURIER_MARGIN} ({family})"
    )
    sides = _sides(frame, ["dataset", "images"], "donor", "correlation", ("amplitude", "phase"))
    gaps = {f"{model} on {images}": values for (model, images), values in _by_place(sides)}
    return _judge(text, gaps, FOURIER_MARGIN, "+.2f", 1)


def _sides(
    frame: pd.DataFrame, place: list[str], key: str | list[str], value: str, both: Iterable[Key]
) -> list[pd.DataFrame]:
    """The numbers of two values of ``key``, each with a row a place and a column a seed.

    NaN stands for a gap; nothing is returned where one of the two has no number at all.
    """
    wide = frame.pivot_table(value, [*place, "seed"], key)
    return [wide[each].unstack("seed") for each in both] if {*both} <= {*wide} else []


def _by_place(sides: list[pd.DataFrame]) -> Iterable[tuple[tuple[str, str], list[float]]]:
    """Each pair of names, and first − second of the seeds that have both."""
    if not sides:
        return
    first, second = sides
    for place, row in (first - second).iterrows():
        if values := row.dropna().tolist():
            yield place, values


def _simpler(frame: pd.DataFrame, bits: Mapping[str, float], where: str) -> Claim:
    """The ratio repairs what the raw likelihood gets wrong: outliers that are simpler."""
    text = (
        "Against simpler outliers (fewer bits under the general model) the ratio is above the "
        f"raw likelihood ({where})"
    )
    plain = frame[frame["outlier_loss"] == "none"]
    return _judge(text, _against_simpler(plain, bits, "diff", "raw"), 0.0, "+.2f", 100)


def _against_simpler(
    frame: pd.DataFrame, bits: Mapping[str, float], first: str, second: str
) -> Differences:
    sides = _sides(frame, ["dataset", "ood"], "score", "auroc", (first, second))
    return {
        f"{dataset} against {ood}": values
        for (dataset, ood), values in _by_place(sides)
        if bits.get(ood, math.nan) < bits.get(dataset, math.nan)
    }


def _general_bits(registry: Registry, model: str, family: str) -> dict[str, float]:
    """Dataset → bits per dimension under the general model behind the family's models."""
    generals = {
        run.tags.get("general_run")
        for run in registry.training
        if is_plain(run) and (run.tags["model"], run.tags["family"]) == (model, family)
    }
    return {
        name.removeprefix("bpd/"): value
        for run in registry.training
        if run.run_id in generals
        for name, value in run.metrics.items()
        if name.startswith("bpd/")
    }


def _loss(frame: pd.DataFrame, score: str, where: str) -> Claim:
    text = f"The binary outlier loss improves {SCORE_NAMES[score]} on average ({where})"
    return _on_average(text, frame, {"binary": ("binary", score), "none": ("none", score)})


def _outlier_general(frame: pd.DataFrame, loss: str, where: str) -> Claim:
    text = (
        f"{SCORE_NAMES['diff_outlier']} is at least {SCORE_NAMES['diff']} on average, "
        f"{LOSS_NAMES[loss].lower()} ({where})"
    )
    both = {SCORE_NAMES[score]: (loss, score) for score in ("diff_outlier", "diff")}
    return _on_average(text, frame, both, equal=True)


def _finetuning(registry: Registry, model: str, family: str, where: str) -> Iterable[Claim]:
    """S7.2: against from-scratch models of the same dataset, seed and number of updates."""
    starts: dict[str, dict[tuple[str, ...], RunInfo]] = {"scratch": {}, "general": {}}
    for run in registry.training:
        tags = run.tags
        same = (tags["role"], tags["setting"], tags["outlier_loss"], tags["model"], tags["family"])
        wanted = ("in_distribution", "unsupervised", "none", model, family)
        if same == wanted and tags["init"] in starts:
            steps = run.params.get("optimisation.steps", "")
            starts[tags["init"]][tags["dataset"], tags["seed"], steps] = run
    pairs = [
        (starts["general"][key], starts["scratch"][key])
        for key in sorted(starts["general"].keys() & starts["scratch"].keys())
    ]
    for metric, what, sign in (("bpd/", "bits per dimension", -1), ("auroc/mean/diff", "Diff", 1)):
        text = (
            f"At equal updates, finetuned models are at least as good as from-scratch ones: {what} "
            f"({where})"
        )
        gaps: dict[str, list[float]] = {}
        for tuned, scratch in pairs:
            dataset = tuned.tags["dataset"]
            name = metric + dataset if metric == "bpd/" else metric
            if name in tuned.metrics and name in scratch.metrics:
                gap = sign * (tuned.metrics[name] - scratch.metrics[name])
                gaps.setdefault(dataset, []).append(gap)
        scale, digits = (100, "+.2f") if metric.startswith("auroc") else (1, "+.3f")
        yield _judge(text, gaps, 0.0, digits, scale, equal=True)


FIELD = (
    ("typicality", "raw", "arXiv:1906.02994", True),
    ("complexity", "raw", "arXiv:1909.11480", True),
    ("waic", "raw", "arXiv:1810.01392", False),
    ("dose", "typicality", "arXiv:2006.09273", False),
    ("dose", "waic", "arXiv:2006.09273", False),
    ("gradient", "typicality", "arXiv:2403.01485", False),
    ("diff", "complexity", "arXiv:2006.10848", False),
)
"""Published rankings: the better score, the other one, where from, whether of simpler outliers."""


def _of_the_field(registry: Registry, family: str) -> Iterable[Claim]:
    """Whether rankings of scores that others published hold for these models."""
    frame = scores_frame(registry, family)
    if frame.empty:
        return
    bits = _general_bits(registry, PAPER_MODEL, family)
    for better, worse, source, simpler in FIELD:
        first, second = NAMES[better], NAMES[worse]
        if simpler:
            text = f"Against outliers of fewer bits {first} is above {second} ({source}; {family})"
            gaps = _against_simpler(frame, bits, better, worse)
            yield _judge(text, gaps, 0.0, "+.2f", 100, heading=OF_THE_FIELD)
        else:
            text = f"{first} is above {second} on average ({source}; {family})"
            both = {first: ("none", better), second: ("none", worse)}
            yield _on_average(text, frame, both, heading=OF_THE_FIELD)


def _on_average(
    text: str,
    frame: pd.DataFrame,
    both: Mapping[str, tuple[str, str]],
    *,
    equal: bool = False,
    heading: str = OF_THE_PAPER,
) -> Claim:
    """Whether the first of two is above the second in the mean over pairs of datasets.

    ``both`` maps two names to outlier loss and score. The mean is over outlier datasets, then over
    in-distribution datasets, within each seed that has both numbers of every pair.
    """
    place = ["dataset", "ood"]
    sides = _sides(frame, place, ["outlier_loss", "score"], "auroc", both.values())
    means: list[list[float]] = []
    if sides:
        there = [side.notna() for side in sides]
        pairs = there[0].any(axis="columns") & there[1].any(axis="columns")
        seeds = (there[0] & there[1])[pairs].all()
        seeds = seeds[seeds].index
        means = [side.loc[pairs, seeds].groupby("dataset").mean().mean().tolist() for side in sides]
    gaps = {"": [first - second for first, second in zip(*means, strict=True)]} if means else {}
    shown = (
        f"{name} {100 * sum(of) / len(of):.1f}"
        for name, of in zip(both, means, strict=bool(means))
        if of
    )
    return _judge(text, gaps, 0.0, "+.2f", 100, equal=equal, heading=heading,
                  numbers=", ".join(shown))  # fmt: skip


def _judge(
    text: str,
    gaps: Differences,
    bound: float,
    digits: str,
    scale: float,
    *,
    equal: bool = False,
    heading: str = OF_THE_PAPER,
    numbers: str = "",
) -> Claim:
    """Whether the differences exceed the bound in every place; the detail names each.

    ``equal`` means that the bound itself is enough.
    """
    found: dict[str, list[str]] = {DOES_NOT_HOLD: [], UNDECIDED: [], HOLDS: []}
    single = {verdict: False for verdict in found}
    for name, numbers_of_seeds in gaps.items():
        # A diverged model has no finite likelihood to compare.
        values = [value for value in numbers_of_seeds if math.isfinite(value)]
        if not values:
            continue
        # Rounded: 0.9 + 0.5 − 0.8 − 0.6 is not 0.
        low, high = (round(end, 12) for end in t_interval(values))
        if low > bound or (equal and low == bound):
            verdict = HOLDS
        elif high < bound or (not equal and high == bound):
            verdict = DOES_NOT_HOLD
        else:
            verdict = UNDECIDED
        mean, *ends = (
            f"{scale * number + 0.0:{digits}}".replace("-", "−")
            for number in (sum(values) / len(values), low, high)
        )
        spread = f"[{ends[0]}, {ends[1]}] (n = {len(values)})"
        alone = len(values) == 1
        single[verdict] |= alone
        shown = "(one seed, no interval)" if alone else spread
        found[verdict].append(f"{name} {mean} {shown}".strip())
    found = {verdict: places for verdict, places in found.items() if places}
    if not found:
        return Claim(text, NOT_MEASURED, "", heading)
    # One place where it fails is enough, and all are needed where it holds.
    verdict = next(iter(found))
    count = sum(map(len, found.values()))
    parts = [", ".join(places) for places in found.values()]
    if len(found) > 1:
        parts = [
            f"{each} in {len(places)} of {count}: {part}"
            for (each, places), part in zip(found.items(), parts, strict=True)
        ]
    detail = "; ".join([*parts, *filter(None, [numbers])])
    return Claim(text, verdict + IN_ONE_SEED * single[verdict], detail, heading)
