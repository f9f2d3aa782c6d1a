"""What people set: one frozen dataclass of options for each entry point.

The command line, ``MLproject`` and Python take the same values. An option that is None follows from
the preset or the data; the word for it on the command line is ``auto``.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from oodflow.errors import UserError, unknown_name
from oodflow.experiment import MODELS, OUTLIER_LOSSES, PRECISIONS

__all__ = [
    "AUTO",
    "ENTRY_POINTS",
    "PRESETS",
    "TUNED",
    "AnalyseOptions",
    "BenchOptions",
    "DataOptions",
    "EntryPoint",
    "EvaluateOptions",
    "FinetuneOptions",
    "LossOptions",
    "ModelOptions",
    "OptimisationOptions",
    "Option",
    "Options",
    "PlaceOptions",
    "QuickstartOptions",
    "ReportOptions",
    "ReproduceOptions",
    "RunOptions",
    "Seeds",
    "StartOptions",
    "TrainOptions",
    "TrainingOptions",
    "TuneOptions",
    "TunableNumber",
    "carried",
    "options_of",
    "seed_list",
]

AUTO = "auto"
"""The word for an option that follows from the preset, the data or the registry."""

TUNED = "tuned"
"""The word for the best value of the newest registered study."""

PRESETS = ("quick", "paper")

TunableNumber = float | Literal["tuned"]
Seeds = tuple[int, ...]


def option(help: str, default: Any = None, choices: tuple[str, ...] = ()) -> Any:
    """A field that people set, with its help and its default."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Option:
    """One option of an entry point, as the command line and ``MLproject`` need it."""

    name: str
    kind: type
    """int, float, str, bool, or tuple for seeds."""
    default: Any
    help: str
    choices: tuple[str, ...]
    words: tuple[str, ...]
    """Words that stand for a value: ``auto`` for None, and ``tuned``."""
    group: str
    """First line of the section that it belongs to."""


@dataclass(frozen=True)
class Options:
    """Options of an entry point; UserError for a value that is none of an option's choices."""

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            value = getattr(self, each.name)
            if each.choices and value not in each.choices:
                raise unknown_name(each.name, str(value), each.choices)


@dataclass(frozen=True)
class ModelOptions(Options):
    """Model"""

    model: str = option("model family", "glow", MODELS)
    preset: str = option("quick: minutes on a CPU; paper: the published settings", "quick", PRESETS)
    depth: int | None = option(
        "Glow: steps a scale; PixelCNN++: blocks a stage; Wide-ResNet: depth"
    )
    hidden: int | None = option("Glow: hidden channels; PixelCNN++: filters; Wide-ResNet: width")


@dataclass(frozen=True)
class DataOptions(Options):
    """Data"""

    dataset: str = option("dataset; auto: sketch-shapes, for train sketch-general", AUTO)
    limit: int = option("use only the first N images of each fold; 0: all", 0)


@dataclass(frozen=True)
class StartOptions(Options):
    """Start"""

    init: str = option("start: own, a run id, a models:/ URI; auto: the newest general model", AUTO)
    general: str = option(
        "contrast of the binary loss: a run id, a models:/ URI; auto: newest", AUTO
    )
    supervised: bool = option("class-conditional Glow, trained with the labels", False)


@dataclass(frozen=True)
class LossOptions(Options):
    """Outlier loss"""

    outlier_loss: str = option("loss against an outlier dataset", "none", OUTLIER_LOSSES)
    outlier_dataset: str = option("outlier images; auto: the dataset's general set", AUTO)
    temperature: TunableNumber = option(
        "T of the binary loss, in nats; tuned: from the newest study", 1000.0
    )
    outlier_weight: TunableNumber | None = option(
        "weight λ of the outlier loss; auto: 6000 binary, 1 margin; tuned: from the newest study"
    )
    margin: TunableNumber = option(
        "margin of the margin loss, in nats; 0: the number of dimensions; tuned: newest study", 0.0
    )


@dataclass(frozen=True)
class OptimisationOptions(Options):
    """Optimisation"""

    steps: int | None = option("updates in total; auto: from epochs, or from the preset")
    epochs: int | None = option("passes over the data, in place of steps; auto: from the preset")
    batch_size: int | None = option("images a batch, and as many outliers; auto: from the preset")
    lr: float | None = option("learning rate; auto: from the preset")
    weight_decay: float | None = option("weight decay; auto: from the preset")
    warmup: int | None = option("updates of linear warm-up; auto: from the preset")
    report_every: int | None = option(
        "updates between validations; auto: from the preset, or one pass"
    )
    precision: str = option("arithmetic of the network", "fp32", PRECISIONS)


@dataclass(frozen=True)
class PlaceOptions(Options):
    """Resources"""

    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU", AUTO)
    data_dir: str = option(
        "folder of the datasets; auto: OODFLOW_DATA, else the user's cache", AUTO
    )


@dataclass(frozen=True)
class RunOptions(PlaceOptions):
    """Run"""

    seeds: Seeds | None = option("comma-separated; several make a parent run; auto: 1")
    recompute: bool = option("compute activations twice and keep none: less memory, slower", False)
    accumulate: int = option("equal parts of a batch, one after another: less memory", 1)


@dataclass(frozen=True)
class TrainingOptions(ModelOptions, DataOptions, OptimisationOptions, RunOptions):
    """What every training has."""

    resume: bool = option("continue an interrupted run of the same experiment", False)


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """A training from scratch."""


@dataclass(frozen=True)
class FinetuneOptions(TrainingOptions, StartOptions, LossOptions):
    """A training that starts from another model's weights."""


@dataclass(frozen=True)
class EvaluateOptions(PlaceOptions):
    """Evaluation"""

    run: str = option("run id or models:/ URI; auto: all newest in-distribution models", AUTO)
    general: str = option(
        "general model: a run id, a models:/ URI, png, webp, jpeg2000, none; auto: newest", AUTO
    )
    general_outlier: str = option(
        "general model of Diff†: likewise; auto: newest of the seed", AUTO
    )
    inlier_fold: str = option("fold of the in-distribution images", "test", ("test", "train"))
    ood: str = option(
        "comma-separated outlier datasets; auto: the catalogue's that are present", AUTO
    )
    limit: int = option("use only the first N test images; 0: all", 0)


@dataclass(frozen=True)
class TuneOptions(ModelOptions, DataOptions, StartOptions, OptimisationOptions, RunOptions):
    """Study"""

    outlier_loss: str = option("loss whose parameters are searched", "binary", ("binary", "margin"))
    outlier_dataset: str = option("outlier images; auto: the dataset's general set", AUTO)
    trials: int = option("trials that the study is to have, of all workers together", 20)
    study: str = option("its name; auto: from model, dataset and loss", AUTO)
    storage: str = option(
        "Optuna storage: a database URL, or journal:FILE on network file systems",
        "sqlite:///optuna.db",
    )
    objective: str = option(
        "auroc, or NAME=WEIGHT,… for several datasets; with bpd multi-objective", "auroc"
    )
    images: int = option("training images of either kind that the AUROC is taken over", 1000)
    temperature_low: float = option("lowest T", 10.0)
    temperature_high: float = option("highest T", 100_000.0)
    outlier_weight_low: float | None = option("lowest λ; auto: 100 binary, 0.01 margin")
    outlier_weight_high: float | None = option("highest λ; auto: 1e6 binary, 100 margin")
    margin_low: float = option("lowest margin, in nats", 100.0)
    margin_high: float = option("highest margin, in nats", 100_000.0)
    max_dropped: float = option("share of images that may be dropped", 0.05)
    max_skipped: float = option("share of updates that may be skipped", 0.05)
    max_bpd: float = option("bits per dimension that may be lost to the general model", 1.0)


@dataclass(frozen=True)
class AnalyseOptions(PlaceOptions):
    """Analysis"""

    what: str = option("all, or of fourier, correlation, extremes, folds some with commas", "all")
    run: str = option("run id or models:/ URI; auto: the finetuned models that a report counts",
                      AUTO)  # fmt: skip
    images: str = option("datasets of the Fourier mix; auto: the own one and two outlier datasets",
                         AUTO)  # fmt: skip
    top: int = option("highest-scoring general images that are kept", 12)
    subset: int = option("general images that are scored; at most the training fold has", 120_000)
    limit: int = option("use only the first N test images; 0: all", 0)


@dataclass(frozen=True)
class ReportOptions(Options):
    """Report"""

    out: str = option("folder for the report's files", "report")
    published: bool = option("beside ours the paper's numbers, Tables S1 to S4 and S5.2", False)
    bootstrap: int = option("resamples of a 95 % interval for each AUROC; 0: no intervals", 0)
    missing: bool = option("only print the commands that would fill the tables' gaps", False)


@dataclass(frozen=True)
class WorkerOptions(Options):
    """Workers"""

    workers: int | None = option(
        "tasks done side by side on this machine, a thread each; auto: as many as cores, on a GPU 1"
    )


@dataclass(frozen=True)
class QuickstartOptions(TrainingOptions, WorkerOptions, ReportOptions):
    """The whole method on one dataset; seeds are 1, 2 and 3 unless others are given."""


@dataclass(frozen=True)
class ReproduceOptions(PlaceOptions, WorkerOptions):
    """Plan"""

    plan: str = option("sketch, paper, quickstart, or the path of a YAML file", "sketch")
    dry_run: bool = option("say what is there, what is missing and what that costs", False)
    only: str = option("comma-separated steps of the plan", "all")
    seeds: Seeds | None = option("comma-separated; auto: the plan's")
    general_set: str = option(
        "general distribution; auto: the plan's, else one that is present", AUTO
    )
    preset: str | None = option("quick or paper for all trainings; auto: the plan's", None,
                                (*PRESETS,))  # fmt: skip
    depth: int | None = option("depth of all densities; auto: the plan's")
    hidden: int | None = option("width of all densities; auto: the plan's")
    limit: int | None = option("only the first N images of each fold; 0: all; auto: the plan's")
    steps: int | None = option("updates of every training; auto: the plan's")
    batch_size: int | None = option("images a batch; auto: the plan's")
    report_every: int | None = option("updates between validations; auto: the plan's")
    engine: str = option("process: on this machine; ray: on a Ray cluster", "process",
                         ("process", "ray"))  # fmt: skip
    ray_address: str = option("the cluster; auto: RAY_ADDRESS, else one here for this call", AUTO)
    cpus: int = option("with ray: CPU cores a task", 1)
    gpus: float | None = option("with ray: GPUs a task, such as 0.5; auto: 1 where there are GPUs")
    retries: int = option("new attempts at a task whose worker died", 2)
    out: str = option("folder for the report's files", "report")


@dataclass(frozen=True)
class BenchOptions(ModelOptions):
    """Measurement"""

    loss: str = option("loss; with outliers a frozen model and as many images more", "none",
                       OUTLIER_LOSSES)  # fmt: skip
    batch_size: int | None = option("images a batch, and as many outliers; auto: from the preset")
    precision: str = option("arithmetic of the network", "fp32", PRECISIONS)
    recompute: bool = option("compute activations twice and keep none: less memory, slower", False)
    compare: str = option("eager: also one layer after another, as the textbook has it", "none",
                          ("none", "eager"))  # fmt: skip
    steps: int = option("updates that are timed", 20)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU", AUTO)
    json: bool = option("print JSON instead of a table", False)


Section = TypeVar("Section", bound=Options)


def options_of(section: type[Options]) -> Iterator[Option]:
    """The options of a section: those of its parts first, in their order, then its own."""
    hints = get_type_hints(section)
    fields = {each.name: each for each in dataclasses.fields(section)}
    for name, part in _declared(section).items():
        facts = fields[name]
        kinds = [kind for kind in get_args(hints[name]) or (hints[name],) if kind is not Ellipsis]
        if hints[name] is Seeds or Seeds in kinds:
            kind: Any = tuple
        else:
            kind = next(kind for kind in kinds if isinstance(kind, type) and kind is not NoneType)
        literals = tuple(word for each in kinds for word in get_args(each) if isinstance(word, str))
        words = (AUTO,) * (NoneType in kinds) + literals
        choices = facts.metadata["choices"] + ((None,) * (NoneType in kinds and kind is str))
        group = (part.__doc__ or "").splitlines()[0]
        yield Option(name, kind, facts.default, facts.metadata["help"], choices, words, group)


def _declared(section: type) -> dict[str, type]:
    """Name of each field → the section that declares it; a section overrides those of its parts."""
    found: dict[str, type] = {}
    for part in section.__bases__:
        for name, declarer in _declared(part).items():
            found.setdefault(name, declarer)
    return found | dict.fromkeys(vars(section).get("__annotations__", {}), section)


def carried(section: type[Section], source: Options, **own: Any) -> Section:
    """A section with the options that ``source`` has under the same names, and ``own`` ones.

    >>> carried(TrainOptions, FinetuneOptions(steps=5), dataset="svhn").steps
    5
    """
    names = {each.name for each in dataclasses.fields(section)}
    shared = {each.name: getattr(source, each.name) for each in dataclasses.fields(source)}
    return section(**{name: value for name, value in shared.items() if name in names} | own)


@dataclass(frozen=True)
class EntryPoint:
    """A command: one line of help, its options, examples, and what ``MLproject`` shows of it."""

    help: str
    options: type[Options]
    examples: tuple[str, ...]
    project: tuple[str, ...] = ()
    """Options that people set most, which ``MLproject`` lists; it takes all the others as well."""


ENTRY_POINTS: Mapping[str, EntryPoint] = {
    "main": EntryPoint(
        "Quickstart: train, finetune and evaluate on the embedded data, then report.",
        QuickstartOptions,
        ("oodflow main", "oodflow main --seeds 1,2 --steps 20"),
        ("dataset", "seeds", "steps", "workers", "device", "out"),
    ),
    "train": EntryPoint(
        "Train a model from scratch; on a general dataset it becomes a general model.",
        TrainOptions,
        ("oodflow train", "oodflow train --dataset cifar10 --preset paper --seeds 1,2,3"),
        ("model", "preset", "dataset", "seeds", "epochs", "steps", "batch_size", "lr", "device",
         "precision"),
    ),
    "finetune": EntryPoint(
        "Train on a dataset from the general model's weights, with or without an outlier loss.",
        FinetuneOptions,
        (
            "oodflow finetune --dataset sketch-letters",
            "oodflow finetune --outlier-loss binary --temperature 1000 --outlier-weight 6000",
            "oodflow finetune --dataset sketch-general --outlier-loss binary "
            "--outlier-dataset sketch-shapes   # Diff†",
        ),
        ("model", "preset", "dataset", "seeds", "init", "supervised", "outlier_loss",
         "outlier_dataset", "general", "temperature", "outlier_weight", "margin", "epochs",
         "steps", "batch_size", "lr", "device", "precision"),
    ),
    "evaluate": EntryPoint(
        "Score test images under registered models: BPD, AUROC, AUPR, FPR95, figures.",
        EvaluateOptions,
        ("oodflow evaluate", "oodflow evaluate --run RUN_ID --ood sketch-digits,sketch-scenes"),
        ("run", "general", "general_outlier", "ood", "limit", "device"),
    ),
    "tune": EntryPoint(
        "Search the outlier loss's parameters for the best train-set anomaly detection (S4.4).",
        TuneOptions,
        (
            "oodflow tune",
            "oodflow tune --trials 50 --dataset cifar10 --preset paper --steps 2000",
            "oodflow tune --outlier-loss margin --objective auroc,bpd",
            "oodflow finetune --outlier-loss binary --temperature tuned --outlier-weight tuned",
        ),
        ("trials", "dataset", "outlier_loss", "objective", "study", "storage", "preset", "seeds",
         "steps", "device"),
    ),
    "analyse": EntryPoint(
        "Analyse registered models: Fourier mixes, correlations, extreme images, inlier folds.",
        AnalyseOptions,
        (
            "oodflow analyse",
            "oodflow analyse --what extremes --run RUN_ID --top 20",
            "oodflow analyse --what fourier --images cifar10,svhn",
        ),
        ("what", "run", "images", "top", "subset", "device"),
    ),
    "report": EntryPoint(
        "Write the tables and figures of all registered runs, as Markdown, LaTeX and CSV.",
        ReportOptions,
        ("oodflow report", "oodflow report --out paper/tables"),
        ("out", "published", "bootstrap", "missing"),
    ),
    "reproduce": EntryPoint(
        "Make every run behind the tables and figures, as a plan says; the same command goes on.",
        ReproduceOptions,
        (
            "oodflow reproduce --dry-run",
            "oodflow reproduce --only general,finetuned --seeds 1",
            "oodflow reproduce --plan paper --general-set imagenet32",
            "oodflow reproduce --plan paper --engine ray --gpus 0.5",
        ),
        ("plan", "dry_run", "only", "seeds", "general_set", "workers", "engine", "device", "out"),
    ),
    "bench": EntryPoint(
        "Measure an update of a training: its parts, memory, and this device's floor for it.",
        BenchOptions,
        (
            "oodflow bench --compare eager",
            "oodflow bench --preset paper --batch-size 8 --steps 3 --loss binary",
        ),
    ),
}  # fmt: skip
"""By name. What lists no options for ``MLproject`` makes no run: it is of the command line alone.
"""


def seed_list(text: str) -> Seeds:
    """The seeds of a comma-separated list, each once; UserError for anything else.

    >>> seed_list("3,1,3")
    (3, 1)
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"seeds is {text!r}; write whole numbers with commas, as in 1,2,3"
        ) from error
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"seeds is {text!r}; a seed is at least 0 and below 2^63")
    return tuple(dict.fromkeys(seeds))
