"""What people set: one frozen dataclass of options for each entry point.

The command line, ``MLproject`` and Python take the same values. An option that is None is taken
from the preset or the data; on the command line it is the word ``auto``.
"""

import dataclasses
import numbers
import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from oodflow.errors import UserError, unknown_name
from oodflow.experiment import CLASSIFIER, COMPRESSORS, OUTLIER_LOSSES, PRECISIONS
from oodflow.registration import MODELS, SCORES, Register

__all__ = [
    "AUTO",
    "PRESETS",
    "TUNED",
    "AnalyseOptions",
    "BenchOptions",
    "CheckModelOptions",
    "CheckOptions",
    "DataOptions",
    "DatasetListOptions",
    "DetectOptions",
    "DetectorOptions",
    "EvaluateOptions",
    "FinetuneOptions",
    "ImportOptions",
    "LossOptions",
    "ModelOptions",
    "OptimisationOptions",
    "Option",
    "Options",
    "PlaceOptions",
    "PrepareOptions",
    "QuickstartOptions",
    "ReportOptions",
    "ReproduceOptions",
    "RunListOptions",
    "RunOptions",
    "SampleOptions",
    "ScoreOptions",
    "Seeds",
    "ShowOptions",
    "StartOptions",
    "SyncOptions",
    "TrainOptions",
    "TrainingOptions",
    "TuneOptions",
    "TunableNumber",
    "carried",
    "checked",
    "options_of",
    "seed_list",
    "word_list",
]

AUTO = "auto"
"""The word for an option that follows from the preset, the data or the registry."""

TUNED = "tuned"
"""The word for the best value of the newest registered study."""

PRESETS = ("quick", "small", "paper")

FIELD_SCORES = ("typicality", "waic", "complexity", "dose", "dose_svm", "gradient")
"""Scores that need more than models, such as training images: no detector has them."""

SAMPLERS = ("tpe", "gp", "cmaes", AUTO)
PRUNERS = ("median", "hyperband", "none")

METRICS = ("auroc", "aupr", "aupr_out", "fpr95", "fpr95_out")
"""Of how well a score tells outliers; ``_out``: outliers are the positive class."""

RUN = "run (id or its beginning, or name) or models:/ URI"

DATA_DIR = "folder of the datasets; auto: OODFLOW_DATA, else the user's cache folder"

JSON = "print JSON instead of a table"

TunableNumber = float | Literal["tuned"]
Seeds = tuple[int, ...]


def option(
    help: str,
    default: Any = None,
    choices: Iterable[str] = (),
    *,
    name: str = "",
    required: bool = False,
    argument: bool = False,
    unfit: tuple[str, ...] = (),
) -> Any:
    """A field that people set, with its help and its default.

    A register as ``choices`` stands for its names, those of plug-ins included; ``unfit`` ones are
    not offered, since the command refuses them and says why. ``name`` replaces the field's name on
    the command line, where Python cannot use it. An ``argument`` is given without a name; a
    ``required`` option has to be given.
    """
    facts = {"name": name, "required": required, "argument": argument, "unfit": unfit}
    return field(default=default, metadata={"help": help, "choices": choices, **facts})


@dataclass(frozen=True)
class Option:
    """One option of an entry point, as the command line and ``MLproject`` need it."""

    name: str
    kind: type
    """int, float, str, bool, or tuple for seeds."""
    default: Any
    help: str
    choices: tuple[str, ...]
    plugins: tuple[str, ...]
    """Further choices, of plug-ins and one's own code."""
    unfit: tuple[str, ...]
    """Choices that are not offered: the command says why it refuses them."""
    words: tuple[str, ...]
    """Words that stand for a value: ``auto`` for None, and ``tuned``."""
    group: str
    """First line of the section that it belongs to."""
    flag: str
    """Its name on the command line, with underscores."""
    required: bool
    argument: bool


@dataclass(frozen=True)
class Options:
    """Options of an entry point; UserError for a value that is not among an option's choices."""

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            value = getattr(self, each.name)
            known = each.choices + each.plugins
            if each.choices and value not in known + each.unfit:
                raise unknown_name(each.name, str(value), filter(None, known))


@dataclass(frozen=True)
class ModelOptions(Options):
    """Model"""

    model: str = option("model family", "glow", MODELS, unfit=COMPRESSORS)
    preset: str = option(
        "quick: minutes on a CPU; small: up to an hour; paper: the published settings",
        "quick",
        PRESETS,
    )
    depth: int | None = option(
        "Glow: steps per scale; PixelCNN++: blocks per stage; Wide-ResNet: depth"
    )
    hidden: int | None = option("Glow: hidden channels; PixelCNN++: filters; Wide-ResNet: width")


@dataclass(frozen=True)
class DensityOptions(ModelOptions):
    """Model"""

    model: str = option("model family", "glow", MODELS, unfit=(*COMPRESSORS, CLASSIFIER))


@dataclass(frozen=True)
class DataOptions(Options):
    """Data"""

    dataset: str = option("dataset; auto: sketch-shapes, for train sketch-general", AUTO)
    limit: int = option("use only the first N images of each fold; 0: all", 0)


@dataclass(frozen=True)
class StartOptions(Options):
    """Start"""

    init: str = option(
        "weights to start from: own (of this dataset), a run (id or name), a models:/ URI; "
        "auto: the newest general model",
        AUTO,
    )
    general: str = option(
        "contrast of the binary loss: a run (id or name), a models:/ URI; auto: the newest", AUTO
    )
    supervised: bool = option("class-conditional Glow, trained with the labels", False)


@dataclass(frozen=True)
class LossOptions(Options):
    """Outlier loss"""

    outlier_loss: str = option("loss against an outlier dataset", "none", OUTLIER_LOSSES)
    outlier_dataset: str = option("outlier images; auto: the dataset's general set", AUTO)
    temperature: TunableNumber | None = option(
        "T of the binary loss, in nats; auto: 1000, grey 1000/3; tuned: from the newest study"
    )
    outlier_weight: TunableNumber | None = option(
        "weight λ of the outlier loss; auto: 6000 binary (grey 2000), 1 margin; tuned: newest study"
    )
    margin: TunableNumber = option(
        "margin of the margin loss, in nats; 0: the number of dimensions; tuned: newest study", 0.0
    )


@dataclass(frozen=True)
class OptimisationOptions(Options):
    """Optimisation"""

    steps: int | None = option("updates in total; auto: from epochs, or from the preset")
    epochs: int | None = option("passes over the data, in place of steps; auto: from the preset")
    batch_size: int | None = option("images per batch, and as many outliers; auto: by the preset")
    lr: float | None = option("learning rate; auto: from the preset")
    weight_decay: float | None = option("weight decay; auto: from the preset")
    warmup: int | None = option("updates of linear warm-up; auto: from the preset")
    cooldown: int | None = option(
        "updates at the end over which the rate falls to 0; auto: from the preset"
    )
    report_every: int | None = option(
        "updates between validations; auto: from the preset, or one pass"
    )
    precision: str = option("arithmetic of the network", "fp32", PRECISIONS)


@dataclass(frozen=True)
class PlaceOptions(Options):
    """Resources"""

    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU", AUTO)
    data_dir: str = option(DATA_DIR, AUTO)


@dataclass(frozen=True)
class RunOptions(PlaceOptions):
    """Run"""

    seeds: Seeds | None = option("comma-separated; several make a parent run; auto: 1")
    recompute: bool = option("compute activations twice, keep none: less memory, slower", False)
    accumulate: int = option("compute a batch in so many equal parts: less memory", 1)


@dataclass(frozen=True)
class TrainingOptions(ModelOptions, DataOptions, OptimisationOptions, RunOptions):
    """Run"""

    resume: bool = option("continue an interrupted run of the same experiment", False)


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """A training from scratch."""


@dataclass(frozen=True)
class FinetuneOptions(DensityOptions, TrainingOptions, StartOptions, LossOptions):
    """A training that starts from another model's weights."""


@dataclass(frozen=True)
class FittedOptions(Options):
    """Scores of the field"""

    train_images: int | None = option(
        "training images that scores are fitted to; auto: half the test images, at most 10000"
    )
    gradient: bool = option("the score gradient too: a backward pass over all images", False)


@dataclass(frozen=True)
class EvaluateOptions(PlaceOptions, FittedOptions):
    """Evaluation"""

    run: str = option(RUN + "; auto: all newest in-distribution models", AUTO)
    general: str = option(
        "general model: a run (id or name), a models:/ URI, png, webp, jpeg2000, none; "
        "auto: the newest",
        AUTO,
    )
    general_outlier: str = option(
        "general model of Diff†: likewise; auto: the newest of the seed", AUTO
    )
    inlier_fold: str = option("fold of the in-distribution images", "test", ("test", "train"))
    ood: str = option(
        "comma-separated outlier datasets; auto: the catalogue's that are present", AUTO
    )
    limit: int = option("use only the first N test images; 0: all", 0)


@dataclass(frozen=True)
class TuneOptions(DensityOptions, DataOptions, StartOptions, OptimisationOptions, RunOptions):
    """Study"""

    outlier_loss: str = option("loss whose parameters are searched", "binary", ("binary", "margin"))
    outlier_dataset: str = option("outlier images; auto: the dataset's general set", AUTO)
    trials: int = option("trials in the study, counted over all its workers", 20)
    study: str = option("name of the study; auto: from model, dataset and loss", AUTO)
    storage: str = option(
        "Optuna storage: a database URL, or journal:FILE on network file systems",
        "sqlite:///optuna.db",
    )
    objective: str = option(
        "auroc, or NAME=WEIGHT,… for several datasets; add bpd for a second objective", "auroc"
    )
    sampler: str = option(
        "how parameters are proposed; cmaes knows no bounds of stability; auto: gp, or tpe with "
        "two objectives or over 200 trials",
        "tpe", SAMPLERS,
    )  # fmt: skip
    pruner: str = option("how trials are stopped early", "median", PRUNERS)
    images: int = option("training images, and as many outliers, in the train-set AUROC", 1000)
    temperature_low: float = option("lowest T", 10.0)
    temperature_high: float = option("highest T", 100_000.0)
    outlier_weight_low: float | None = option("lowest λ; auto: 100 binary, 0.01 margin")
    outlier_weight_high: float | None = option("highest λ; auto: 1e6 binary, 100 margin")
    margin_low: float = option("lowest margin, in nats", 100.0)
    margin_high: float = option("highest margin, in nats", 100_000.0)
    max_dropped: float = option("largest share of images dropped", 0.05)
    max_skipped: float = option("largest share of updates skipped", 0.05)
    max_bpd: float = option("largest loss in bits per dimension against the general model", 1.0)


@dataclass(frozen=True)
class AnalyseOptions(PlaceOptions, FittedOptions):
    """Analysis"""

    what: str = option(
        "all, or a list with commas of fourier, correlation, extremes, folds, scores", "all"
    )
    run: str = option(RUN + "; auto: the finetuned models that a report counts", AUTO)
    images: str = option("datasets of the Fourier mix; auto: the own and two outlier datasets",
                         AUTO)  # fmt: skip
    top: int = option("how many of the highest-scoring general images to keep", 12)
    subset: int = option("general images to score; at most those of the training fold", 120_000)
    limit: int = option("use only the first N test images; 0: all", 0)


@dataclass(frozen=True)
class ReportOptions(Options):
    """Report"""

    out: str = option("folder for the report's files", "report")
    published: bool = option("show the paper's numbers beside ours: Tables S1 to S4, S5.2", False)
    metric: str = option("what the tables of detection show", "auroc", METRICS)
    bootstrap: int = option("resamples for a 95 % interval of each AUROC; 0: no intervals", 0)
    missing: bool = option("only print the commands that would fill the empty cells", False)


@dataclass(frozen=True)
class WorkerOptions(Options):
    """Workers"""

    workers: int | None = option(
        "tasks run side by side on this machine; auto: one per CPU core, at most 8; on a GPU 1"
    )


@dataclass(frozen=True)
class QuickstartOptions(DensityOptions, TrainingOptions, WorkerOptions, ReportOptions):
    """The whole method on one dataset; seeds are 1, 2 and 3 unless others are given."""


@dataclass(frozen=True)
class ReproduceOptions(PlaceOptions, WorkerOptions):
    """Plan"""

    plan: str = option(
        "sketch, real, flows, paper, quickstart, or the path of a YAML file", "sketch"
    )
    dry_run: bool = option("only show which runs exist, which are missing, and their cost", False)
    only: str = option("comma-separated steps of the plan", "all")
    seeds: Seeds | None = option("comma-separated; auto: the plan's")
    general_set: str = option(
        "general distribution; auto: the plan's, else one that is present", AUTO
    )
    preset: str | None = option("quick, small or paper for all trainings; auto: the plan's", None,
                                (*PRESETS,))  # fmt: skip
    depth: int | None = option("depth of all densities; auto: the plan's")
    hidden: int | None = option("width of all densities; auto: the plan's")
    limit: int | None = option("only the first N images of each fold; 0: all; auto: the plan's")
    steps: int | None = option("updates of every training; auto: the plan's")
    batch_size: int | None = option("images per batch; auto: the plan's")
    report_every: int | None = option("updates between validations; auto: the plan's")
    engine: str = option("process: on this machine; ray: on a Ray cluster", "process",
                         ("process", "ray"))  # fmt: skip
    ray_address: str = option("address of the cluster; auto: RAY_ADDRESS, else a local one", AUTO)
    cpus: int = option("with ray: CPU cores per task", 1)
    gpus: float | None = option("with ray: GPUs per task, such as 0.5; auto: 1 if there are GPUs")
    retries: int = option("further attempts at a task whose worker died", 2)
    out: str = option("folder for the report's files", "report")


@dataclass(frozen=True)
class BenchOptions(ModelOptions):
    """Measurement"""

    loss: str = option("outlier loss of the training; doubles the images per update", "none",
                       OUTLIER_LOSSES)  # fmt: skip
    batch_size: int | None = option("images per batch, and as many outliers; auto: by the preset")
    precision: str = option("arithmetic of the network", "fp32", PRECISIONS)
    recompute: bool = option("compute activations twice, keep none: less memory, slower", False)
    compare: str = option("eager: time the plain form too, one layer after another", "none",
                          ("none", "eager"))  # fmt: skip
    steps: int = option("updates that are timed", 20)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU", AUTO)
    json: bool = option(JSON, False)


@dataclass(frozen=True)
class RunListOptions(Options):
    """Filters"""

    dataset: str = option("only runs on this dataset", "")
    kind: str = option("only train, finetune, evaluate, seeds, … runs", "")
    registered: bool = option("only runs that reports may use", False)
    json: bool = option(JSON, False)


@dataclass(frozen=True)
class ShowOptions(Options):
    """Run"""

    run: str = option(RUN, argument=True, required=True)
    json: bool = option("print JSON instead of tables", False)


@dataclass(frozen=True)
class SyncOptions(PlaceOptions):
    """Run"""

    run: str = option("run (id or name); without one, all runs kept here", "", argument=True)


@dataclass(frozen=True)
class DataFolderOptions(Options):
    """Data"""

    data_dir: str = option(DATA_DIR, AUTO)


@dataclass(frozen=True)
class DatasetListOptions(DataFolderOptions):
    """Data"""

    json: bool = option(JSON, False)


@dataclass(frozen=True)
class PrepareOptions(DataFolderOptions):
    """Preparation"""

    dataset: str = option(
        "name, folder:PATH or array:FILE", argument=True, required=True, name="name"
    )
    source: str = option("where the raw files are, if not in the data folder", "", name="from")
    download: bool = option("download the raw files", False)
    skip_broken: bool = option("leave out images that cannot be read", False)
    exclude: tuple[str, ...] = option("tiny: file with numbers of images to leave out", ())


@dataclass(frozen=True)
class CheckOptions(DataFolderOptions):
    """Check"""

    dataset: str = option(
        "name, folder:PATH or array:FILE", argument=True, required=True, name="name"
    )
    out: str = option("file of the contact sheet; default: NAME-contact-sheet.png", "")


@dataclass(frozen=True)
class CheckModelOptions(Options):
    """Model"""

    model: str = option("model family", argument=True, required=True, name="name")
    preset: str = option("settings that it is built with", "quick", PRESETS)
    channels: int = option("channels of its images: 1 or 3", 1)


@dataclass(frozen=True)
class ScoreOptions(Options):
    """Scoring"""

    run: str = option(RUN, argument=True, required=True)
    paths: tuple[str, ...] = option("image files or folders", (), argument=True, required=True)
    out: str = option("file to write, .csv or .parquet", "", required=True)
    resize: bool = option("resize images of a size that the model's dataset does not have", False)
    device: str = option("cpu, cuda, …", AUTO)


@dataclass(frozen=True)
class DetectorOptions(PlaceOptions):
    """Detector"""

    run: str = option("in-distribution model: " + RUN + "; auto: the newest", AUTO, argument=True)
    score: str = option(
        "auto: the best that the registered contrasts allow", AUTO, SCORES, unfit=FIELD_SCORES
    )
    calibrate: str = option("images not trained on: test, a dataset, or folder:PATH", "test")
    general: str = option("general model of diff; auto: that of the run", AUTO)
    general_outlier: str = option("general model of diff_outlier; auto: newest of the seed", AUTO)
    champion: bool = option("give the new version the alias champion", False)


@dataclass(frozen=True)
class DetectOptions(Options):
    """Detection"""

    detector: str = option(
        "models:/NAME/VERSION, models:/NAME@champion, a run (id or name), or a folder",
        argument=True,
        required=True,
    )
    paths: tuple[str, ...] = option("image files or folders", (), argument=True, required=True)
    alpha: float = option("false-positive rate of the decisions", 0.05)
    fdr: float | None = option("decide at this false discovery rate instead (Benjamini–Hochberg)")
    out: str = option("file of a row per image, .csv or .parquet", "")
    html: str = option("page with the most anomalous images first", "")
    fail_on_anomaly: bool = option("exit with code 1 where an image is anomalous", False)
    device: str = option("cpu, cuda, …", AUTO)


@dataclass(frozen=True)
class SampleOptions(Options):
    """Samples"""

    run: str = option(RUN, argument=True, required=True)
    count: int = option("images", 64)
    out: str = option("picture to write", "samples.png")
    temperature: float = option("standard deviation of a flow's latents; lower: more likely images",
                                1.0)  # fmt: skip
    seed: int = option("seed of the draw", 0)
    device: str = option("cpu, cuda, …", AUTO)


@dataclass(frozen=True)
class ImportOptions(Options):
    """Import"""

    file: str = option("checkpoint", argument=True, required=True)
    format: str = option("authors, glow-pytorch, pixelcnn-pp or tarflow", "", required=True)
    dataset: str = option("dataset that the model was trained on", "")
    role: str = option("what the model is for", "in_distribution", ("in_distribution", "general"))


Section = TypeVar("Section", bound=Options)


def options_of(section: type[Options]) -> Iterator[Option]:
    """The options of a section: those of its base classes first, in their order, then its own."""
    hints = get_type_hints(section)
    fields = {each.name: each for each in dataclasses.fields(section)}
    for name, part in _declared(section).items():
        facts = fields[name]
        whole = get_origin(hints[name]) is tuple
        kinds = (hints[name],) if whole else get_args(hints[name]) or (hints[name],)
        kind = next(get_origin(each) or each for each in kinds if each is not NoneType)
        literals = tuple(word for each in kinds for word in get_args(each) if isinstance(word, str))
        words = (AUTO,) * (NoneType in kinds) + literals
        given = facts.metadata["choices"]
        register = given if isinstance(given, Register) else None
        choices = register.built_in if register is not None else tuple(given)
        unfit = facts.metadata["unfit"]
        choices = tuple(each for each in choices if each not in unfit)
        # A default that is none of them stands for one.
        choices = (facts.default,) * (facts.default not in choices) + choices if choices else ()
        group = (part.__doc__ or "").splitlines()[0]
        yield Option(
            name=name,
            kind=kind,
            default=facts.default,
            help=facts.metadata["help"],
            choices=choices,
            plugins=register.names()[len(register.built_in) :] if register is not None else (),
            unfit=unfit,
            words=words,
            group=group,
            flag=facts.metadata["name"] or name,
            required=facts.metadata["required"],
            argument=facts.metadata["argument"],
        )


def _declared(section: type) -> dict[str, type]:
    """Name of each field → the section that declares it; a section overrides its base classes."""
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


KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def checked(option: Option, value: Any) -> Any:
    """The value of an option in its own type, from what Python or YAML have in its place.

    Whole numbers stand for numbers, paths for texts, lists and ranges for seeds, and ``auto`` for
    None where the option knows that word. Raises UserError for anything else.

    >>> [steps] = [each for each in options_of(TrainOptions) if each.name == "steps"]
    >>> checked(steps, 100), checked(steps, "auto")
    (100, None)
    """
    if value is None and AUTO in option.words or isinstance(value, str) and value in option.words:
        return None if value == AUTO else value
    if option.kind is tuple:
        several = isinstance(value, Iterable) and not isinstance(value, str)
        return seed_list(",".join(map(str, value if several else [value])))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    # Numbers of numpy are such ones; True is a whole number in Python, but not for people.
    if option.kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if option.kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if type(value) is not option.kind:
        wanted = ", ".join((KINDS[option.kind], *option.words))
        raise UserError(f"{option.name} is {reprlib.repr(value)}; it takes {wanted}")
    return value


def word_list(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list; a comma within a word is written as ``\\,``.

    >>> word_list("cifar10, folder:a\\\\,b")
    ('cifar10', 'folder:a,b')
    """
    words = re.split(r"(?<!\\),", text)
    return tuple(word.strip().replace("\\,", ",") for word in words)


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
