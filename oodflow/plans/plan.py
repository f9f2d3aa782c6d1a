"""Plans of many runs: a YAML file, read and checked against the options of the entry points.

A plan is a list of steps, each an entry point with its options::

    title: the loss comparison
    seeds: [1, 2, 3]
    values: {general: sketch-general}     # what $general stands for below
    with: {preset: quick}                 # options of every step that has them
    steps:
      - name: general
        entry_point: train
        with: {dataset: $general}         # options of this step
        seeds: 1                          # the first seed alone; without it all of them
      - name: outlier-loss
        entry_point: finetune
        each:                             # a run for each combination, and each seed
          dataset: [sketch-shapes, sketch-letters]
          outlier_loss: [binary, margin]
        from: {init: general}             # options whose value is a run of another step
      - name: png
        entry_point: evaluate
        with: {general: png}
        from: {run: outlier-loss}         # an evaluation for each run of that step

A step comes after those that it names in ``from``. Of their runs it takes the one of its own seed,
or the only seed, whose ``each`` options have the values that its own options have.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from oodflow.data.catalog import dataset_list, lookup
from oodflow.entry_points import ENTRY_POINTS
from oodflow.errors import UserError, unknown_name
from oodflow.options import AUTO, Option, checked, options_of
from oodflow.plans.plan_yaml import read_yaml

__all__ = ["RUN_OPTIONS", "RunPlan", "Step", "built_in", "options_in_plans", "read_plan"]

RUN_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "train": ("general",),
    "finetune": ("init", "general"),
    "evaluate": ("run", "general", "general_outlier"),
    "analyse": ("run",),
    "report": (),
}
"""The entry points of a plan, and what each takes from other steps.

A training from scratch has no option ``general``: for it the run is the general model that its
curves and its evaluation contrast with.
"""

DECIDED = ("seeds", "resume", "device", "data_dir", "out")
"""Options that belong to the command or follow from the plan: no step sets them."""

DATASETS = ("dataset", "outlier_dataset", "ood")
"""Options that name datasets of the catalogue."""

PLAN_KEYS = ("title", "seeds", "values", "with", "steps")
STEP_KEYS = ("name", "entry_point", "with", "each", "from", "seeds")


@dataclass(frozen=True)
class Step:
    """One entry of a plan, checked."""

    name: str
    entry_point: str
    options: Mapping[str, Any]
    """Those of the plan and of the step; ``$name`` where a value of the plan stands."""
    each: Mapping[str, tuple[Any, ...]]
    """Option → the values that are multiplied out."""
    runs: Mapping[str, tuple[str, ...]]
    """Option → the steps whose runs it takes."""
    seeds: int
    """How many of the plan's seeds, counted from the first; 0: all."""


@dataclass(frozen=True)
class RunPlan:
    """A plan of many runs, checked."""

    source: str
    """Name or path that it was read by."""
    text: str
    title: str
    seeds: tuple[int, ...]
    values: Mapping[str, str]
    """What ``$name`` stands for."""
    steps: tuple[Step, ...]


def built_in() -> dict[str, str]:
    """Name → text of the plans that come with the package."""
    folder = files("oodflow") / "plans"
    found = sorted(each.name for each in folder.iterdir() if each.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): (folder / name).read_text("utf-8") for name in found}


def options_in_plans(entry_point: str) -> dict[str, Option]:
    """The options that a step of this entry point may set, by name."""
    known = {each.name: each for each in options_of(ENTRY_POINTS[entry_point].options)}
    return {name: each for name, each in known.items() if name not in DECIDED}


def read_plan(reference: str) -> RunPlan:
    """The plan of a built-in name or in a file; UserError where anything in it is wrong.

    >>> plan = read_plan("quickstart")
    >>> [step.name for step in plan.steps][:2], plan.seeds
    (['general', 'finetuned'], (1, 2, 3))
    """
    known = built_in()
    if reference in known:
        return parse_plan(reference, known[reference])
    try:
        text = Path(reference).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(known)
        raise UserError(
            f"no plan {reference!r} ({error}); available: {names}, or the path of a YAML file"
        ) from error
    return parse_plan(reference, text)


def parse_plan(source: str, text: str) -> RunPlan:
    """The plan that a text describes; ``source`` is what errors call it."""
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    plan = _keys(source, "the plan", content, PLAN_KEYS, "key")
    lacking = [key for key in ("title", "seeds", "steps") if not plan.get(key)]
    if lacking:
        raise UserError(f"{source}: the plan has no {lacking[0]}")
    seeds = _list(source, "seeds", plan["seeds"])
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        raise UserError(
            f"{source}: seeds is {seeds!r}; write whole numbers from 0, as in [1, 2, 3]"
        )
    known = {name: each for entry in RUN_OPTIONS for name, each in options_in_plans(entry).items()}
    values = _mapping(source, "values", plan.get("values"))
    shared = _keys(source, "with", plan.get("with"), known, "option")
    steps: list[Step] = []
    for number, each in enumerate(_list(source, "steps", plan["steps"]), 1):
        steps.append(_step(source, number, each, shared, values, [step.name for step in steps]))
    return RunPlan(source, text, str(plan["title"]), tuple(seeds), values, tuple(steps))


def _step(
    source: str,
    number: int,
    content: Any,
    shared: Mapping[str, Any],
    values: Mapping[str, Any],
    before: Sequence[str],
) -> Step:
    name = _mapping(source, f"step {number}", content).get("name")
    if not isinstance(name, str) or not name or "," in name or name in before:
        raise UserError(
            f"{source}: step {number} has the name {name!r}; give it one of its own, without commas"
        )
    where = f"{source}, step {name}"
    step = _keys(where, "keys", content, STEP_KEYS, "key")
    entry_point = str(step.get("entry_point"))
    if entry_point not in RUN_OPTIONS:
        raise UserError(f"{where}: {unknown_name('entry point', entry_point, RUN_OPTIONS)}")
    known = options_in_plans(entry_point)
    of_it = f"option of {entry_point}"
    own = _keys(where, "with", step.get("with"), known, of_it)
    each = _keys(where, "each", step.get("each"), known, of_it)
    taken = _keys(where, "from", step.get("from"), RUN_OPTIONS[entry_point], f"run {of_it}")
    for option in {*own} & {*each} | {*own} & {*taken} | {*each} & {*taken}:
        raise UserError(f"{where}: {option} is given twice, in two of with, each and from")
    count = step.get("seeds", 0)
    if type(count) is not int or count < ("seeds" in step):
        raise UserError(f"{where}: seeds is {count!r}; write how many of the plan's first it takes")
    given = {k: v for k, v in shared.items() if k in known and k not in (*each, *taken)} | own
    return Step(
        name=name,
        entry_point=entry_point,
        options={option: _value(where, known[option], v, values) for option, v in given.items()},
        each={
            option: tuple(
                _value(where, known[option], v, values) for v in _list(where, option, listed)
            )
            for option, listed in each.items()
        },
        runs={option: _steps(where, option, named, before) for option, named in taken.items()},
        seeds=count,
    )


def _mapping(where: str, what: str, content: Any) -> dict[str, Any]:
    """A mapping of names, which may be absent."""
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{where}: {what} is {content!r}; write NAME: VALUE pairs")
    return content


def _keys(where: str, what: str, content: Any, known: Iterable[str], kind: str) -> dict[str, Any]:
    """A mapping whose names are all known."""
    found, names = _mapping(where, what, content), tuple(known)
    for key in found:
        if key not in names:
            raise UserError(f"{where}: {unknown_name(kind, key, names)}")
    return found


def _list(where: str, what: str, content: Any) -> list[Any]:
    """A list of different things, at least one."""
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}: {what} is {content!r}; write a list, as in [a, b]")
    for position, each in enumerate(content):
        if each in content[:position]:
            raise UserError(f"{where}: {what} has {each!r} twice")
    return content


def _steps(where: str, option: str, named: Any, before: Sequence[str]) -> tuple[str, ...]:
    """The steps whose runs an option takes: one, or for ``run`` a list."""
    names = _list(where, option, named) if isinstance(named, list) else [named]
    if len(names) > 1 and option != "run":
        raise UserError(f"{where}: {option} takes a run of one step, not of {len(names)}")
    for name in names:
        if name not in before:
            raise UserError(f"{where}: {option} is {name!r}, which is not an earlier step")
    return tuple(names)


def _value(where: str, option: Option, value: Any, values: Mapping[str, Any]) -> Any:
    """A value of the option's type, the name of a value of the plan (``$name``), or an error."""
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in values:
            raise UserError(f"{where}: {unknown_name('value', value, [f'${v}' for v in values])}")
        _value(where, option, values[value[1:]], {})
        return value
    # 1e4 is a number with a point in YAML.
    if option.kind is int and type(value) is float and value.is_integer():
        value = int(value)
    try:
        # YAML writes the number 6000 and the hash of an experiment knows 6000.0.
        value = checked(option, value)
        if option.choices and value not in option.choices:
            raise unknown_name(option.name, str(value), filter(None, option.choices))
        if option.name in DATASETS and value != AUTO:
            for name in dataset_list(str(value)) if option.name == "ood" else (str(value),):
                lookup(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return value
