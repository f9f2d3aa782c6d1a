"""Which run ``auto``, ``own`` or a reference means, and the command that makes a missing one."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from oodflow.data.catalog import data_folder, is_own, lookup
from oodflow.data.images import present
from oodflow.errors import UserError
from oodflow.experiment import Model
from oodflow.options import TUNED, FinetuneOptions
from oodflow.tracking import runs
from oodflow.tracking.registry import seed_of
from oodflow.tracking.repetitions import setting_of
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store

__all__ = [
    "contrast_of",
    "diff_outlier_general",
    "general_of",
    "general_sets",
    "in_distribution_runs",
    "newest_general",
    "other_seeds",
    "own_of",
    "tuned",
]

TUNABLE = ("temperature", "outlier_weight", "margin")
"""Options that take the word ``tuned``."""


def _models(store: Store, tags: dict[str, str]) -> list[RunInfo]:
    """Registered runs that hold a model, the newest first: evaluations have the same tags."""
    found = runs.find(store, {"registered": "true", **tags}, status="FINISHED")
    return [run for run in found if run.tags["kind"] in ("train", "finetune")]


def _newest(store: Store, tags: dict[str, str], fits: Callable[[RunInfo], bool]) -> RunInfo | None:
    return next((run for run in _models(store, tags) if fits(run)), None)


def _of_model(model: Model) -> Callable[[RunInfo], bool]:
    wanted = {
        "model.depth": str(model.depth),
        "model.hidden": str(model.hidden),
        "model.channels": str(model.channels),
    }
    return lambda run: wanted.items() <= run.params.items()


def _required(
    found: RunInfo | None, what: str, command: str, options: str, model: Model
) -> RunInfo:
    """The run found; else the error that says how to make one."""
    if found:
        return found
    raise UserError(
        f"no registered {model.name} {what}; make one: oodflow {command} --model {model.name} "
        f"{options} --depth {model.depth} --hidden {model.hidden}"
    )


def general_of(store: Store, reference: str, dataset: str, model: Model, preset: str) -> RunInfo:
    """The general model to start or contrast with: a reference, or for ``auto`` the newest."""
    if reference != "auto":
        return runs.resolve(store, reference)
    sets = general_sets(dataset)
    there = (name for name in sets if present(name, data_folder("auto")))
    return _required(
        newest_general(store, dataset, model),
        f"of a general set with depth {model.depth}, width {model.hidden} and "
        f"{model.channels} channels",
        "train",
        f"--dataset {shlex.quote(next(there, sets[-1]))} --preset {preset}",
        model,
    )


def general_sets(dataset: str) -> tuple[str, ...]:
    """The general sets that a dataset can be contrasted with, the paper's own first.

    A general set has itself.
    """
    facts = lookup(dataset)
    return facts.generals or (facts.name,)


def newest_general(store: Store, dataset: str, model: Model) -> RunInfo | None:
    """The newest registered general model of this architecture on the dataset's general set.

    Of several sets the first that has one counts; a user's own general folder comes last.
    """
    tags = {"role": "general", "model": model.name, "outlier_loss": "none", "init": "scratch"}
    fitting = list(filter(_of_model(model), _models(store, tags)))
    for general in general_sets(dataset):
        for run in fitting:
            if run.tags["dataset"] == general:
                return run
    return next((run for run in fitting if is_own(run.tags["dataset"])), None)


def own_of(store: Store, dataset: str, model: Model, preset: str, seed: int) -> RunInfo:
    """The model trained from scratch on the same dataset with this seed (S7.2, "own")."""
    tags = {"dataset": dataset, "model": model.name, "init": "scratch", "seed": str(seed)}
    return _required(
        _newest(store, tags, _of_model(model)),
        f"trained from scratch on {dataset} with seed {seed}",
        "train",
        f"--dataset {shlex.quote(dataset)} --preset {preset} --seeds {seed}",
        model,
    )


def contrast_of(store: Store, reference: str, outliers: str, model: Model, seed: int) -> RunInfo:
    """Diff†: the in-distribution model that a general model's outlier loss contrasts with."""
    if reference != "auto":
        return runs.resolve(store, reference)
    tags = {
        "dataset": outliers,
        "model": model.name,
        "outlier_loss": "none",
        "setting": "unsupervised",
        "seed": str(seed),
    }
    return _required(
        _newest(store, tags, _of_model(model)),
        f"on {outliers} with seed {seed} to contrast with",
        "finetune",
        f"--dataset {shlex.quote(outliers)} --seeds {seed}",
        model,
    )


def tuned(
    store: Store, options: FinetuneOptions, dataset: str
) -> tuple[FinetuneOptions, dict[str, str]]:
    """The options with the best values of the newest study where they say ``tuned``.

    Also the tags that trace them to the study and its trial.
    """
    names = [name for name in TUNABLE if getattr(options, name) == TUNED]
    if not names:
        return options, {}
    loss = options.outlier_loss
    tags = {"kind": "tune", "dataset": dataset, "model": options.model, "outlier_loss": loss}
    studies = runs.find(store, {"registered": "true", **tags}, status="FINISHED")
    if loss == "none" or not studies:
        raise UserError(
            f"no registered study of the {loss} loss with {options.model} on {dataset}; make one: "
            f"oodflow tune --dataset {shlex.quote(dataset)} --model {options.model} "
            f"--outlier-loss {'binary' if loss == 'none' else loss}"
        )
    study, values = studies[0], dict[str, Any]()
    for name in names:
        if f"best_{name}" not in study.tags:
            raise UserError(f"study {study.tags['study']} did not search {name}; give its value")
        values[name] = float(study.tags[f"best_{name}"])
    return replace(options, **values), {
        "tuned_study": study.tags["study"],
        "tuned_trial": study.tags["best_trial"],
        "tuned_run": study.run_id,
    }


def diff_outlier_general(store: Store, run: RunInfo) -> RunInfo | None:
    """The general model of Diff† for an in-distribution run: newest of its dataset and seed."""
    tags = {
        "role": "general",
        "model": run.tags["model"],
        "outlier_loss": "binary",
        "outlier_dataset": run.tags["dataset"],
        "seed": run.tags["seed"],
    }
    channels = run.params.get("model.channels")
    return _newest(store, tags, lambda found: found.params.get("model.channels") == channels)


def other_seeds(store: Store, run: RunInfo) -> list[RunInfo]:
    """The newest registered run of each other seed with the same settings, by seed."""
    names = ("model", "dataset", "role", "setting", "outlier_loss", "init")
    newest: dict[str, RunInfo] = {}
    for found in _models(store, {name: run.tags[name] for name in names if name in run.tags}):
        if setting_of(found) == setting_of(run) and found.tags["seed"] != run.tags["seed"]:
            newest.setdefault(found.tags["seed"], found)
    return sorted(newest.values(), key=seed_of)


def in_distribution_runs(store: Store) -> list[RunInfo]:
    """The newest registered in-distribution run of each experiment, oldest first."""
    newest: dict[str, RunInfo] = {}
    for run in _models(store, {"role": "in_distribution"}):
        newest.setdefault(run.tags["spec"], run)
    return list(reversed(newest.values()))
