"""The paper's claims, checked on registered runs: each holds, does not, or was not measured.

Numbers are of one model on one family of datasets, averaged over pairs within a seed, then over
seeds, as in the tables. Glow is the paper's model; of others only what was measured is a claim.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from oodflow.tracking.registry import Registry, is_plain
from oodflow.tracking.run_info import RunInfo
from reports.all_scores import NAMES
from reports.collect import auroc_frame, fourier_frame, scores_frame
from reports.document import Claim
from reports.layouts import LOSS_NAMES, SCORE_NAMES

__all__ = ["check_claims"]

PAPER_MODEL = "glow"

FOURIER_MARGIN = 0.5
"""By how much the amplitude donors' correlation must exceed the phase donors' (S3: > 0.75)."""


def check_claims(registry: Registry) -> tuple[Claim, ...]:
    """All claims for each family of datasets and each model that has in-distribution runs of it."""
    found: list[Claim] = []
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
                claims += _of_the_field(registry, family)
            found += [each for each in claims if model == PAPER_MODEL or each.holds is not None]
    return tuple(found)


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
        f"Likelihoods of Fourier-mixed images follow the amplitudes: correlation with the "
        f"amplitude donors exceeds that with the phase donors by {FOURIER_MARGIN} ({family})"
    )
    means = frame.pivot_table("correlation", ["dataset", "images"], "donor")
    if means.empty:
        return Claim(text, None, "")
    gaps = {
        f"{model} on {images}": row["amplitude"] - row["phase"]
        for (model, images), row in _places(means)
    }
    return _all_above(text, gaps, FOURIER_MARGIN, "+.2f", 1)


def _simpler(frame: pd.DataFrame, bits: Mapping[str, float], where: str) -> Claim:
    """The ratio repairs what the raw likelihood gets wrong: outliers that are simpler."""
    text = (
        "Against simpler outliers (fewer bits under the general model) the ratio is above the "
        f"raw likelihood ({where})"
    )
    means = frame[frame["outlier_loss"] == "none"].pivot_table("auroc", ["dataset", "ood"], "score")
    if not {"raw", "diff"} <= set(means):
        return Claim(text, None, "")
    gaps = {
        f"{dataset} against {ood}": row["diff"] - row["raw"]
        for (dataset, ood), row in _places(means)
        if bits.get(ood, float("nan")) < bits.get(dataset, float("nan"))
    }
    return _all_above(text, gaps, 0.0, "+.1f", 100)


def _places(means: pd.DataFrame) -> Iterable[tuple[tuple[str, str], Mapping[str, float]]]:
    return means.to_dict("index").items()  # type: ignore[return-value]


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
    return _compare(
        text, _mean(frame, "binary", score), _mean(frame, "none", score), ("binary", "none"), False
    )


def _outlier_general(frame: pd.DataFrame, loss: str, where: str) -> Claim:
    text = (
        f"{SCORE_NAMES['diff_outlier']} is at least {SCORE_NAMES['diff']} on average, "
        f"{LOSS_NAMES[loss].lower()} ({where})"
    )
    names = (SCORE_NAMES["diff_outlier"], SCORE_NAMES["diff"])
    return _compare(
        text, _mean(frame, loss, "diff_outlier"), _mean(frame, loss, "diff"), names, True
    )


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
        for key in starts["general"].keys() & starts["scratch"].keys()
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
        means = {dataset: sum(values) / len(values) for dataset, values in sorted(gaps.items())}
        scale, digits = (100, "+.1f") if metric.startswith("auroc") else (1, "+.3f")
        yield _all_above(text, means, 0.0, digits, scale, equal=True)


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
    means = frame.pivot_table("auroc", ["dataset", "ood"], "score")
    bits = _general_bits(registry, PAPER_MODEL, family)
    for better, worse, source, simpler in FIELD:
        first, second = NAMES[better], NAMES[worse]
        if simpler:
            text = f"Against outliers of fewer bits {first} is above {second} ({source}; {family})"
            gaps = {
                f"{dataset} against {ood}": row[better] - row[worse]
                for (dataset, ood), row in _places(means)
                if {better, worse} <= set(means)
                and bits.get(ood, float("nan")) < bits.get(dataset, float("nan"))
            }
            yield _all_above(text, gaps, 0.0, "+.1f", 100)
        else:
            text = f"{first} is above {second} on average ({source}; {family})"
            above, below = (_mean(frame, "none", score) for score in (better, worse))
            yield _compare(text, above, below, (first, second), False)


def _mean(frame: pd.DataFrame, loss: str, score: str) -> float | None:
    """Mean over seeds of the mean over datasets of the mean over their outlier datasets."""
    chosen = frame[(frame["outlier_loss"] == loss) & (frame["score"] == score)]
    if chosen.empty:
        return None
    per_dataset = chosen.groupby(["seed", "dataset"])["auroc"].mean()
    return float(per_dataset.groupby("seed").mean().mean())


def _compare(
    text: str, first: float | None, second: float | None, names: Sequence[str], equal: bool
) -> Claim:
    if first is None or second is None:
        return Claim(text, None, "")
    holds = first >= second if equal else first > second
    return Claim(text, holds, f"{names[0]} {100 * first:.1f}, {names[1]} {100 * second:.1f}")


def _all_above(
    text: str,
    gaps: dict[str, float],
    margin: float,
    digits: str,
    scale: float,
    equal: bool = False,
) -> Claim:
    """Whether every gap exceeds the margin; the detail names each, those that do not first."""
    if not gaps:
        return Claim(text, None, "")
    failed = {name for name, gap in gaps.items() if not (gap >= margin if equal else gap > margin)}
    ordered = sorted(gaps, key=lambda name: name not in failed)
    detail = ", ".join(f"{name} {scale * gaps[name]:{digits}}" for name in ordered)
    detail = detail.replace(" -", " −")
    return Claim(
        text, not failed, f"not in {len(failed)} of {len(gaps)}: {detail}" if failed else detail
    )
