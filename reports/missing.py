"""The commands that would fill the gaps of a report's tables."""

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, compress, product

from oodflow.data.catalog import CATALOG, FAMILIES, data_folder, lookup
from oodflow.presets import presets_of
from oodflow.registration import MODELS
from oodflow.tracking.registry import Registry, is_plain
from oodflow.tracking.run_info import RunInfo
from reports.collect import core_of
from reports.layouts import (
    ALL,
    KIND_NAMES,
    LOSS_NAMES,
    MEAN,
    SCORE_NAMES,
    SETTING_NAMES,
)
from reports.tables import Cell, Entry, Table

__all__ = ["missing_commands"]

SEEDS = ("1", "2", "3")
EVALUATE = "oodflow evaluate"
GENERAL = KIND_NAMES["general"]
TRAININGS = {
    LOSS_NAMES[loss] + SETTING_NAMES[setting]: (loss, setting)
    for loss in LOSS_NAMES
    for setting in SETTING_NAMES
}
OWN_OPTIONS = {
    "depth": "model.depth",
    "hidden": "model.hidden",
    "batch_size": "optimisation.batch_size",
    "limit": "data.limit",
}
"""Options that a command takes over from a run beside the gap, where its preset differs."""
ANALYSES = {"folds": "folds", "model-correlation": "correlation", "fourier": "fourier"}


@dataclass(frozen=True)
class Gap:
    """A cell that lacks numbers: the table's kind, its families of datasets and models, the row
    and the column.
    """

    kind: str
    family: str
    model: str
    labels: tuple[str, ...]
    group: str
    column: str


def missing_commands(tables: Mapping[str, Table], registry: Registry) -> list[str]:
    """Command lines, each once, in an order in which each finds what it builds on.

    A gap is an empty cell, one with fewer seeds than others of its table, a row that is not there
    though a registered model would have it, and a model without numbers. Absent datasets and
    general models come first, then plain models, the general models of Diff†, other losses, and at
    last evaluations and analyses. Options are those of a run beside the gap; where there is none,
    the quick preset for generated images and folders, else the paper's.
    """
    found = {EVALUATE: 5} if any(map(_lacks_evaluation, registry.training)) else dict[str, int]()
    for name, table in tables.items():
        for gap in _gaps(name, table, registry):
            for stage, command in _filling(gap, registry):
                found[command] = max(stage, found.get(command, stage))
    # The table of all scores has the models alone that were analysed.
    scored = {run.tags["analysed"] for run in registry.analyses if run.tags["analysis"] == "scores"}
    if scored and any(is_plain(run) and run.run_id not in scored for run in registry.training):
        found["oodflow analyse --what scores"] = 6
    return sorted(found, key=lambda command: found[command])


def _lacks_evaluation(run: RunInfo) -> bool:
    """Whether a detector was never evaluated: one without outlier datasets has BPD alone."""
    kinds = {metric.partition("/")[0] for metric in run.metrics}
    wanted = {"auroc"} if core_of(run) else {"auroc", "bpd"}
    return run.tags["role"] == "in_distribution" and not kinds & wanted


def _gaps(name: str, table: Table, registry: Registry) -> Iterator[Gap]:
    """Cells of ours that lack seeds, or all numbers; means fill themselves."""
    kind, family, model = _parts(name, registry.families)
    runs = (*registry.training, *registry.evaluations, *registry.analyses)
    seed_by_run = {run.run_id: run.tags["seed"] for run in runs}

    def seeds(cell: Entry | None) -> set[str]:
        return {seed_by_run[each] for each in cell.run_ids} if isinstance(cell, Cell) else set()

    columns = (*table.columns, *(_lacking(table) if kind == "detection" else ()))
    # A general model has one seed, and a correlation those that both of its models have.
    whole = [
        kind != "model-correlation" and not any(title.endswith(GENERAL) for title in column)
        for column in columns
    ]
    short = (None,) * (len(columns) - len(table.columns))
    cells = {
        row.labels: (*row.cells, *short) for row in table.rows if not {MEAN, ALL} & {*row.labels}
    }
    in_table = [seeds(cell) for row in cells.values() for cell in compress(row, whole)]
    wanted = set[str]().union(*in_table)
    empty = (None,) * len(columns)
    for labels in dict.fromkeys((*cells, *_rows_of_models(kind, family, model, registry))):
        for (group, column), cell, of_all in zip(
            columns, cells.get(labels, empty), whole, strict=True
        ):
            filled = cell is not None and (not of_all or seeds(cell) >= wanted)
            if not filled and column not in ("paper", "Δ"):
                place = group.rsplit(": ", 1) if column == "ours" else (group, column)
                yield Gap(kind, family, model, labels, *place)


def _lacking(table: Table) -> list[tuple[str, str]]:
    """The columns of scores that one outlier loss has and another lacks altogether."""
    groups = [each for each in dict.fromkeys(group for group, _ in table.columns)
              if TRAININGS.get(each, ("", ""))[1] == "unsupervised"]  # fmt: skip
    present = {name for _, name in table.columns}
    scores = [name for name in SCORE_NAMES.values() if name in present]
    return [column for column in product(groups, scores) if column not in table.columns]


def _rows_of_models(
    kind: str, family: str, model: str, registry: Registry
) -> Iterator[tuple[str, ...]]:
    """The rows that the registered models of a table have, once they are all evaluated."""
    for run in registry.training:
        tags = run.tags
        detector = (tags["role"], tags["family"], tags["model"])
        if detector != ("in_distribution", family, model):
            continue
        if kind == "bpd":
            yield (tags["dataset"],)
        elif kind == "detection":
            yield from ((tags["dataset"], ood) for ood in sorted(core_of(run)))


def _parts(name: str, families: Collection[str] = FAMILIES) -> tuple[str, str, str]:
    """Kind, family of datasets, and family of models in a table's file name.

    >>> _parts("general-distributions-sketch"), _parts("bpd-natural-glow-local")
    (('general-distributions', 'sketch', 'glow'), ('bpd', 'natural', 'glow-local'))
    """
    words = name.split("-")
    place = next(i for i, word in enumerate(words) if i and word in families)
    return "-".join(words[:place]), words[place], "-".join(words[place + 1 :]) or "glow"


def _filling(gap: Gap, registry: Registry) -> Iterator[tuple[int, str]]:
    """(stage, command) of all that a gap may need, less the trainings that are there."""
    if gap.kind in ANALYSES:
        yield 6, f"oodflow analyse --what {ANALYSES[gap.kind]}"
        return
    if gap.kind.startswith("general-distributions"):
        fold = " --inlier-fold train" if gap.kind.endswith("training-fold") else ""
        yield 6, f"oodflow evaluate --general {gap.column.removesuffix(' alone')}{fold}"
        return
    dataset = gap.labels[0]
    if dataset not in CATALOG or gap.model not in MODELS:
        return
    for name in gap.labels:
        yield from _absent(name)
    if gap.model == "wide-resnet" or (gap.kind, gap.column) == ("bpd", KIND_NAMES["scratch"]):
        needed = _training(registry, gap, "train", dataset, init="scratch")
    elif gap.kind == "bpd":
        needed = _general(registry, gap, dataset)
        if gap.column != GENERAL:
            needed = chain(needed, _training(registry, gap, "finetune", dataset))
    else:
        needed = _detection(registry, gap, dataset)
    # A training evaluates what it has made.
    yield from list(needed) or [(5, EVALUATE)]


def _detection(registry: Registry, gap: Gap, dataset: str) -> Iterator[tuple[int, str]]:
    loss, setting = TRAININGS[gap.group]
    yield from _general(registry, gap, dataset)
    if gap.column == SCORE_NAMES["diff_outlier"]:
        yield from _training(registry, gap, "finetune", dataset)
        # Only now, so that later commands find it and earlier models are evaluated again.
        general = _general_set(registry, gap, dataset)
        yield from _training(
            registry, gap, "finetune", general, loss="binary", outliers=dataset, stage=3
        )
    yield from _training(
        registry,
        gap,
        "finetune",
        dataset,
        loss=loss,
        setting=setting,
        stage=2 + 2 * (loss != "none"),
    )
    yield 5, EVALUATE


def _general_set(registry: Registry, gap: Gap, dataset: str) -> str:
    """The general set of existing runs, else one that is still available.

    The generated set stands in for a real one with generated images only.
    """
    names = lookup(dataset).generals
    names = names[-1:] if gap.family == "sketch" else names[:-1]
    there = [
        run.tags["dataset"]
        for run in registry.training
        if run.tags["model"] == gap.model and run.tags["dataset"] in names
    ]
    # The paper's own, the first of several, was withdrawn.
    return there[0] if there else names[min(1, len(names) - 1)]


def _absent(dataset: str) -> Iterator[tuple[int, str]]:
    """The command that prepares a dataset whose files are not there."""
    # Imported here: it needs torch, whose import takes a second, and a report does not.
    from oodflow.data.images import present

    if dataset in CATALOG and not present(dataset, data_folder("auto")):
        how = "--download" if lookup(dataset).downloadable else "--from PATH"
        yield 0, f"oodflow datasets prepare {dataset} {how}"


def _general(registry: Registry, gap: Gap, dataset: str) -> Iterator[tuple[int, str]]:
    general = _general_set(registry, gap, dataset)
    yield from _absent(general)
    yield from _training(registry, gap, "train", general, init="scratch", stage=1)


def _training(
    registry: Registry,
    gap: Gap,
    command: str,
    dataset: str,
    *,
    init: str = "general",
    loss: str = "none",
    setting: str = "unsupervised",
    outliers: str = "",
    stage: int = 2,
) -> Iterator[tuple[int, str]]:
    """The command of a training for the seeds that it lacks, or none; a general model has one."""
    wanted = {"model": gap.model, "dataset": dataset, "setting": setting, "init": init}
    if gap.model != "wide-resnet":
        wanted["outlier_loss"] = loss
    if outliers:
        wanted["outlier_dataset"] = outliers
    there = {run.tags["seed"] for run in registry.training if wanted.items() <= run.tags.items()}
    detectors = [
        run.tags
        for run in registry.training
        if (run.tags["role"], run.tags["family"]) == ("in_distribution", gap.family)
    ]
    of_model = [tags for tags in detectors if tags["model"] == gap.model]
    if stage == 1:
        lacking = set() if there else {"1"}
    else:
        lacking = ({tags["seed"] for tags in of_model or detectors} or {*SEEDS}) - there
    if not lacking:
        return
    beside = [
        run
        for run in registry.training
        if run.tags["model"] == gap.model and run.tags["family"] == lookup(dataset).family
    ]
    options = {"dataset": dataset, "model": gap.model, **_settings(gap, command, init, beside)}
    options |= {"outlier-loss": loss} if loss != "none" else {}
    options |= {"outlier-dataset": outliers} if outliers else {}
    options |= {"supervised": "true"} if setting == "supervised" else {}
    words = [f"--{name} {shlex.quote(value)}" for name, value in options.items()]
    seeds = ",".join(sorted(lacking, key=int))
    yield stage, f"oodflow {command} {' '.join(words)} --seeds {seeds}"


def _settings(gap: Gap, command: str, init: str, beside: list[RunInfo]) -> dict[str, str]:
    """The preset, and the options in which a run of the same command beside the gap differs."""
    if not beside:
        return {"preset": "quick" if gap.family in ("sketch", "folder") else "paper"}
    model = next((run for run in beside if run.tags["kind"] == command), beside[0]).params
    presets = presets_of(gap.model)
    published = "paper" in presets and model.get("model.depth") == str(presets["paper"].depth)
    name = "paper" if published else "quick"
    preset = presets[name]
    usual = {"depth": preset.depth, "hidden": preset.hidden, "batch_size": preset.batch_size}
    own = {
        option.replace("_", "-"): model[parameter]
        for option, parameter in OWN_OPTIONS.items()
        if parameter in model and model[parameter] != str(usual.get(option, 0))
    }
    steps = preset.finetune_steps if command == "finetune" else preset.scratch_steps
    alike = [run for run in beside if (run.tags["kind"], run.tags["init"]) == (command, init)]
    given = alike[0].params.get("optimisation.steps", "") if alike else ""
    if given and steps and given != str(steps):
        own["steps"] = given
    return {"preset": name, **own}
