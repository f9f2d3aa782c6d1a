"""From a plan to its tasks: one experiment each, as plain values that say what they build on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from oodflow.data.catalog import slug_of
from oodflow.errors import UserError, unknown_name
from oodflow.experiment import Experiment
from oodflow.options import ENTRY_POINTS, FinetuneOptions, Options, TrainOptions, options_of
from oodflow.plans.plan import RunPlan, Step
from oodflow.workflow.planning import dataset_of, outline, untuned

__all__ = ["SUBJECT", "TRAINING", "Task", "expand", "outlined", "with_runs"]

TRAINING = ("train", "finetune")
"""Entry points whose tasks are trainings: they have a seed."""

SUBJECT = "run"
"""The option of an evaluation or analysis that names the model; a step has a task for each."""

SIZES = ("depth", "hidden")
"""Options laid over all densities; a classifier's depth and width count other things."""


@dataclass(frozen=True)
class Task:
    """One training, evaluation, analysis or report that a plan asks for; it can be pickled."""

    name: str
    """Its own in the plan: the step, the values of ``each``, the seed."""
    step: str
    entry_point: str
    options: Options
    """The options of the entry point. Of those in ``needs`` the value is not known yet."""
    seed: int | None
    """None where the task is of no one seed."""
    each: Mapping[str, Any]
    """The multiplied options, those of the runs that it is about included."""
    needs: Mapping[str, str]
    """Option → the task whose run it takes: that one has to be done before."""
    after: tuple[str, ...] = ()
    """Tasks that have to be over, whatever has become of them: this one looks at all runs."""
    contrast: str = ""
    """The run that a training from scratch is contrasted with; it has no option for that."""


def expand(
    plan: RunPlan,
    *,
    seeds: Sequence[int] = (),
    values: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Task, ...]:
    """The plan's tasks, each after those that it builds on.

    ``seeds`` stand in place of the plan's, ``values`` in place of its own, and ``overrides`` are
    laid over the options of every task that has them.

    >>> from oodflow.plans.plan import read_plan
    >>> tasks = expand(read_plan("quickstart"), seeds=[7])
    >>> tasks[1].name, dict(tasks[1].needs)
    ('finetuned · seed 7', {'init': 'general · seed 7'})
    """
    known = {**plan.values, **(values or {})}
    for name in known:
        if name not in plan.values:
            raise UserError(f"{plan.source}: {unknown_name('value', name, plan.values)}")
    tasks: list[Task] = []
    for step in plan.steps:
        filled = replace(
            step,
            options={name: _filled(value, known) for name, value in step.options.items()},
            each={
                name: tuple(_filled(value, known) for value in listed)
                for name, listed in step.each.items()
            },
        )
        chosen = (tuple(seeds) or plan.seeds)[: step.seeds or None]
        tasks += _tasks(plan.source, filled, chosen, tuple(tasks), overrides or {})
    return tuple(tasks)


def outlined(task: Task) -> Experiment:
    """The experiment of a training as far as its options tell it; see :func:`outline`."""
    options = task.options
    assert isinstance(options, TrainOptions | FinetuneOptions)
    if isinstance(options, FinetuneOptions):
        options = untuned(options)
    facts = dataset_of(options)
    # Which general set is there does not matter for what a training is and costs.
    return outline(options, facts, facts.generals[-1] if facts.generals else facts.name)


def with_runs(task: Task, run_ids: Mapping[str, str]) -> Task:
    """The task with the runs of those that it needs; ``run_ids`` are by the names of tasks."""
    found = {option: run_ids[name] for option, name in task.needs.items()}
    if isinstance(task.options, TrainOptions):
        return replace(task, contrast=found.get("general", ""))
    return replace(task, options=replace(task.options, **found))


def _tasks(
    source: str,
    step: Step,
    seeds: Sequence[int],
    before: Sequence[Task],
    overrides: Mapping[str, Any],
) -> Iterator[Task]:
    """A step's tasks; finds what is wrong with their options before anything is trained."""
    for combination in product(*step.each.values()):
        each = dict(zip(step.each, combination, strict=True))
        words = [step.name, *(_word(name, value) for name, value in each.items())]
        for seed, subject in _subjects(step, seeds, before):
            own = {**(subject.each if subject else {}), **each}
            label = [subject.name] if subject else [f"seed {seed}"] if seed is not None else []
            name = " · ".join([*words, *label])
            options = {**step.options, **each}
            needs = {SUBJECT: subject.name} if subject else {}
            for option, (other, *_) in step.runs.items():
                if option != SUBJECT:
                    candidates = [task for task in before if task.step == other]
                    task = _fitting(source, name, option, candidates, seed, {**options, **own})
                    needs[option] = task.name
            looks_at_all = step.entry_point not in TRAINING and not subject
            after = tuple(task.name for task in before) if looks_at_all else ()
            try:
                typed = _options(step.entry_point, options, seed, overrides)
                task = Task(name, step.name, step.entry_point, typed, seed, own, needs, after)
                if step.entry_point in TRAINING:
                    outlined(task)
            except UserError as error:
                raise UserError(f"{source}, step {step.name}: {error}") from error
            yield task


def _word(option: str, value: Any) -> str:
    return slug_of(value) if isinstance(value, str) else f"{option} {value}"


def _subjects(
    step: Step, seeds: Sequence[int], before: Sequence[Task]
) -> list[tuple[int | None, Task | None]]:
    """What a step has a task for: seeds, or tasks whose runs it is about, or nothing special."""
    if step.entry_point in TRAINING:
        return [(seed, None) for seed in seeds]
    if SUBJECT not in step.runs:
        return [(None, None)]
    of = [task for name in step.runs[SUBJECT] for task in before if task.step == name]
    return [(task.seed, task) for task in of if task.seed in seeds]


def _fitting(
    source: str,
    name: str,
    option: str,
    candidates: Sequence[Task],
    seed: int | None,
    own: Mapping[str, Any],
) -> Task:
    """Of a step's tasks the one of this seed, or the only seed, with the same multiplied values.

    Values are compared by option; where that fits none, by value: the general model of Diff† has
    as its ``outlier_dataset`` what is the ``dataset`` of the model that it contrasts with.
    """
    if len({task.seed for task in candidates}) > 1:
        candidates = [task for task in candidates if task.seed == seed]
    values = list(own.values())
    by_option = [task for task in candidates if task.each.items() <= own.items()]
    fitting = by_option or [
        task for task in candidates if all(value in values for value in task.each.values())
    ]
    if len(fitting) != 1:
        names = ", ".join(task.name for task in fitting or candidates)
        found = f"{len(fitting)} fit: {names}" if fitting else f"none fits: {names or 'no run'}"
        raise UserError(f"{source}: {name} takes its {option} from one run, but {found}")
    return fitting[0]


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    """What ``$name`` stands for; any other value as it is."""
    named = isinstance(value, str) and value.startswith("$")
    return values[value[1:]] if named else value


def _options(
    entry_point: str, given: Mapping[str, Any], seed: int | None, overrides: Mapping[str, Any]
) -> Options:
    """The task's own options, what is laid over them, and defaults for the rest."""
    kind = ENTRY_POINTS[entry_point].options
    names = {each.name for each in options_of(kind)}
    laid = {name: value for name, value in overrides.items() if name in names}
    if given.get("model") == "wide-resnet":
        laid = {name: value for name, value in laid.items() if name not in SIZES}
    if seed is not None and entry_point in TRAINING:
        laid |= {"seeds": (seed,), "resume": True}
    return kind(**{**given, **laid})
