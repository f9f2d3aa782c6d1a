"""Which runs of a training are repetitions of each other: alike in their settings, one a seed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from oodflow.tracking.run_info import RunInfo

__all__ = ["IDENTITY", "Choice", "choose_runs", "setting_of"]

IDENTITY = (
    "model",
    "dataset",
    "role",
    "setting",
    "outlier_loss",
    "outlier_dataset",
    "init",
)
"""Tags that runs of one training have in common, whatever their seed."""

SETTINGS = ("model.", "data.", "loss.", "optimisation.")
"""Parameters that must agree for runs to be repetitions of each other."""

OWN = ("model.channels", "model.classes", "data.dataset", "data.digest", "loss.")
"""Of these, what is a training's own; in the others trainings beside each other should agree."""

STEPS = "optimisation.steps"
"""By design the same for the trainings on one dataset only: epochs are of its size."""

Settings = frozenset[tuple[str, str]]


def setting_of(run: RunInfo) -> tuple[tuple[str, ...], Settings]:
    """What runs have in common that differ in their seed alone: identity and parameters."""
    identity = tuple(run.tags.get(tag, "") for tag in IDENTITY)
    # Runs from before a field was added lack it, others have the value that means the same.
    given = {k: v for k, v in run.params.items() if k.startswith(SETTINGS) and v not in ("", "0")}
    return identity, frozenset(given.items())


NOTES = {
    "older": "older {runs} of the same seeds not counted",
    "others": "{runs} of other settings than most not counted",
    "tied": "{runs} of other settings with as many seeds not counted ({names})",
    "unevaluated": "newer {runs} not counted before an evaluation: oodflow evaluate",
}
"""What is said of the runs that are left out, by the reason."""


@dataclass(frozen=True)
class Choice:
    """The runs that count; lines that say which do not, and in what those that count differ."""

    runs: tuple[RunInfo, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    run: RunInfo
    training: tuple[str, ...]
    setting: Settings

    @cached_property
    def seed(self) -> str:
        return self.run.tags["seed"]

    @cached_property
    def numbers(self) -> int:
        """2 with AUROCs, 1 with bits per dimension alone, 0 with neither."""
        kinds = {name.partition("/")[0] for name in self.run.metrics}
        return 2 if "auroc" in kinds else int("bpd" in kinds)

    @cached_property
    def beside(self) -> tuple[str, ...]:
        """What trainings have in common whose numbers stand beside each other."""
        return tuple(self.run.tags.get(tag, "") for tag in ("model", "family", "role", "init"))

    @cached_property
    def shared(self) -> Settings:
        """The part of the setting in which trainings beside each other should agree."""
        return frozenset((name, value) for name, value in self.setting if not name.startswith(OWN))


def choose_runs(found: Iterable[RunInfo]) -> Choice:
    """Of each training the runs of one setting, one for each seed; ``found`` is newest first.

    The setting is that of most seeds; at a tie the one that agrees best with the trainings beside
    it, of the same model on the same family of datasets, then the newer one. Of a seed the newest
    run counts. In all this, runs with AUROCs come before others, and those with bits per dimension
    before the rest.
    """
    candidates = [_Candidate(run, *setting_of(run)) for run in found]
    trainings: dict[tuple[str, ...], list[_Candidate]] = {}
    for each in candidates:
        trainings.setdefault(each.training, []).append(each)
    agreement = _agreement(candidates)
    chosen: list[_Candidate] = []
    left_out: Counter[str] = Counter()
    differing: set[str] = set()
    for runs in trainings.values():
        seeds = {setting: _seeds(runs, setting) for setting in {each.setting for each in runs}}
        # Of equal ones max takes the first, which is the newest.
        best = max(runs, key=lambda each: (seeds[each.setting], agreement(each))).setting
        counted: dict[str, _Candidate] = {}
        for each in runs:
            if each.setting == best and each.numbers > getattr(
                counted.get(each.seed), "numbers", -1
            ):
                counted[each.seed] = each
        chosen += counted.values()
        most = max(each.numbers for each in counted.values())
        newest = max(each.run.started for each in counted.values() if each.numbers == most)
        for each in set(runs) - set(counted.values()):
            if each.numbers < most and each.run.started > newest:
                left_out["unevaluated"] += 1
            elif each.setting == best:
                left_out["older"] += 1
            elif seeds[each.setting] < seeds[best]:
                left_out["others"] += 1
            else:
                left_out["tied"] += 1
                differing |= {name for name, _ in each.setting ^ best}
    names = ", ".join(sorted(differing))
    lines = (
        f"{left_out[reason]} {line.format(runs='run' + 's' * (left_out[reason] > 1), names=names)}"
        for reason, line in NOTES.items()
        if left_out[reason]
    )
    return Choice(tuple(each.run for each in chosen), (*lines, *_mixtures(chosen)))


def _seeds(runs: Iterable[_Candidate], setting: Settings) -> tuple[int, ...]:
    """How many seeds of a training a setting has: with AUROCs, with any numbers, and altogether."""
    alike = [each for each in runs if each.setting == setting]
    return tuple(len({each.seed for each in alike if each.numbers >= least}) for least in (2, 1, 0))


def _agreement(candidates: Iterable[_Candidate]) -> Callable[[_Candidate], tuple[int, float]]:
    """How many seeds of the trainings beside a run have its parameters, and the newest time."""
    holders = {
        (each.beside, item, each.training, each.seed)
        for each in candidates
        if each.numbers
        for item in each.shared
    }
    counts = Counter((beside, item) for beside, item, *_ in holders)
    newest: dict[tuple[tuple[str, ...], Settings], float] = {}
    for each in candidates:
        place = each.beside, each.shared
        newest[place] = max(newest.get(place, 0.0), each.run.started)
    return lambda each: (
        sum(counts[each.beside, item] for item in each.shared),
        newest[each.beside, each.shared],
    )


def _mixtures(chosen: Iterable[_Candidate]) -> Iterator[str]:
    """A line for each parameter in which detectors beside each other differ."""
    beside: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for each in chosen:
        model, family, role, init = each.beside
        for where in (f"{family} datasets", each.run.tags["dataset"]):
            if role == "in_distribution":
                beside.setdefault((model, where, init), []).append(dict(each.shared))
    for (model, where, init), settings in beside.items():
        of_family = where.endswith(" datasets")
        for name in sorted({name for setting in settings for name in setting}):
            counts = Counter(setting.get(name, "0") for setting in settings)
            if len(counts) > 1 and (name != STEPS) == of_family:
                values = ", ".join(f"{value} in {count}" for value, count in counts.most_common())
                yield f"runs differ: {name} of {model} on {where}, init {init}: {values}"
