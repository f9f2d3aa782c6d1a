"""Options that do not change a run's numbers, and which options each entry point takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from oodflow.errors import UserError
from oodflow.experiment import (
    AUTO,
    OUTLIER_LOSSES,
    PRECISIONS,
    Data,
    Loss,
    Model,
    Optimisation,
    Option,
    option,
    options_of,
)

__all__ = [
    "Analysis",
    "BENCH",
    "Benchmark",
    "ENTRY_POINTS",
    "EntryPoint",
    "Evaluation",
    "Reporting",
    "Reproduction",
    "Resuming",
    "Running",
    "Start",
    "Tuning",
    "pick",
    "seed_list",
]

PRESETS = ("quick", "paper")


@dataclass(frozen=True)
class Running:
    """How and where runs are made."""

    preset: str = option("quick: minutes on a CPU; paper: the published settings", "quick", PRESETS)
    seeds: str = option("comma-separated; several make a parent run; auto: 1, for main 1,2,3")
    epochs: int = option("passes over the data, in place of steps; auto: from the preset")
    recompute: bool = option("compute activations twice and keep none: less memory, slower", False)
    accumulate: int = option("equal parts of a batch, one after another: less memory", 1)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU")
    data_dir: str = option("folder of the datasets; auto: OODFLOW_DATA, else the user's cache")


@dataclass(frozen=True)
class Resuming:
    """What becomes of a run that was interrupted."""

    resume: bool = option("go on with an interrupted run of the same experiment", False)


@dataclass(frozen=True)
class Tuning:
    """An Optuna study of the outlier loss; workers with the same study and storage share it."""

    outlier_loss: str = option("loss whose parameters are searched", "binary", ("binary", "margin"))
    outlier_dataset: str = option("outlier images; auto: the dataset's general set")
    trials: int = option("trials that the study is to have, of all workers together", 20)
    study: str = option("its name; auto: from model, dataset and loss")
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
    outlier_weight_low: float = option("lowest λ; auto: 100 binary, 0.01 margin")
    outlier_weight_high: float = option("highest λ; auto: 1e6 binary, 100 margin")
    margin_low: float = option("lowest margin, in nats", 100.0)
    margin_high: float = option("highest margin, in nats", 100_000.0)
    max_dropped: float = option("share of images that may be dropped", 0.05)
    max_skipped: float = option("share of updates that may be skipped", 0.05)
    max_bpd: float = option("bits per dimension that may be lost to the general model", 1.0)


@dataclass(frozen=True)
class Start:
    """Where finetuning starts, and which frozen model its outlier loss contrasts with."""

    init: str = option("start: own, a run id, a models:/ URI; auto: the newest general model")
    general: str = option("contrast of the binary loss: a run id, a models:/ URI; auto: newest")
    supervised: bool = option("class-conditional Glow, trained with the labels", False)


@dataclass(frozen=True)
class Evaluation:
    """Which models are evaluated against which."""

    run: str = option("run id or models:/ URI; auto: all newest in-distribution models")
    general: str = option(
        "general model: a run id, a models:/ URI, png, webp, jpeg2000, none; auto: newest"
    )
    general_outlier: str = option("general model of Diff†: likewise; auto: newest of the seed")
    inlier_fold: str = option("fold of the in-distribution images", "test", ("test", "train"))
    ood: str = option("comma-separated outlier datasets; auto: the catalogue's that are present")
    limit: int = option("use only the first N test images; 0: all", 0)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU")
    data_dir: str = option("folder of the datasets; auto: OODFLOW_DATA, else the user's cache")


@dataclass(frozen=True)
class Analysis:
    """Which models are analysed, and how."""

    what: str = option("all, or of fourier, correlation, extremes, folds some with commas", "all")
    run: str = option("run id or models:/ URI; auto: the finetuned models that a report counts")
    images: str = option("datasets of the Fourier mix; auto: the own one and two outlier datasets")
    top: int = option("highest-scoring general images that are kept", 12)
    subset: int = option("general images that are scored; at most the training fold has", 120_000)
    limit: int = option("use only the first N test images; 0: all", 0)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU")
    data_dir: str = option("folder of the datasets; auto: OODFLOW_DATA, else the user's cache")


@dataclass(frozen=True)
class Reporting:
    """Where the report goes."""

    out: str = option("folder for the report's files", "report")
    published: bool = option("beside ours the paper's numbers, Tables S1 to S4 and S5.2", False)
    bootstrap: int = option("resamples of a 95 % interval for each AUROC; 0: no intervals", 0)
    missing: bool = option("only print the commands that would fill the tables' gaps", False)


@dataclass(frozen=True)
class Reproduction:
    """Which plan of runs is carried out, by whom, and what is laid over its own options."""

    plan: str = option("sketch, paper, quickstart, or the path of a YAML file", "sketch")
    dry_run: bool = option("say what is there, what is missing and what that costs", False)
    only: str = option("comma-separated steps of the plan", "all")
    seeds: str = option("comma-separated; auto: the plan's")
    general_set: str = option("general distribution; auto: the plan's, else one that is present")
    preset: str = option("quick or paper for all trainings; auto: the plan's", AUTO,
                         (AUTO, *PRESETS))  # fmt: skip
    depth: int = option("depth of all densities; auto: the plan's")
    hidden: int = option("width of all densities; auto: the plan's")
    limit: int = option("only the first N images of each fold; 0: all; auto: the plan's")
    steps: int = option("updates of every training; auto: the plan's")
    batch_size: int = option("images a batch; auto: the plan's")
    report_every: int = option("updates between validations; auto: the plan's")
    engine: str = option("process: one task after the other; ray: on a Ray cluster", "process",
                         ("process", "ray"))  # fmt: skip
    ray_address: str = option("the cluster; auto: RAY_ADDRESS, else one here for this call")
    cpus: int = option("with ray: CPU cores a task", 1)
    gpus: float = option("with ray: GPUs a task, such as 0.5; auto: 1 where there are GPUs")
    retries: int = option("with ray: new attempts at a task whose worker died", 2)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU")
    data_dir: str = option("folder of the datasets; auto: OODFLOW_DATA, else the user's cache")
    out: str = option("folder for the report's files", "report")


@dataclass(frozen=True)
class Benchmark:
    """Which update of a training is measured, and beside what."""

    preset: str = option("quick: minutes on a CPU; paper: the published settings", "quick", PRESETS)
    loss: str = option("loss; with outliers a frozen model and as many images more", "none",
                       OUTLIER_LOSSES)  # fmt: skip
    batch_size: int = option("images a batch, and as many outliers; auto: from the preset")
    precision: str = option("arithmetic of the network", "fp32", PRECISIONS)
    recompute: bool = option("compute activations twice and keep none: less memory, slower", False)
    compare: str = option("eager: also one layer after another, as the textbook has it", "none",
                          ("none", "eager"))  # fmt: skip
    steps: int = option("updates that are timed", 20)
    device: str = option("cpu, cuda, cuda:1, …; auto: the first GPU, else the CPU")
    json: bool = option("print JSON instead of a table", False)


@dataclass(frozen=True)
class EntryPoint:
    """A command: one line of help, its sections of options, and examples."""

    help: str
    sections: tuple[type, ...]
    examples: tuple[str, ...]

    def options(self) -> Iterator[Option]:
        for section in self.sections:
            yield from options_of(section)


ENTRY_POINTS: Mapping[str, EntryPoint] = {
    "main": EntryPoint(
        "Quickstart: train, finetune and evaluate on the embedded data, then report.",
        (Model, Data, Optimisation, Running, Resuming, Reporting),
        ("oodflow main", "oodflow main --seeds 1,2 --steps 20"),
    ),
    "train": EntryPoint(
        "Train a model from scratch; on a general dataset it becomes a general model.",
        (Model, Data, Optimisation, Running, Resuming),
        ("oodflow train", "oodflow train --dataset cifar10 --preset paper --seeds 1,2,3"),
    ),
    "finetune": EntryPoint(
        "Train on a dataset from the general model's weights, with or without an outlier loss.",
        (Model, Data, Start, Loss, Optimisation, Running, Resuming),
        (
            "oodflow finetune --dataset sketch-letters",
            "oodflow finetune --outlier-loss binary --temperature 1000 --outlier-weight 6000",
            "oodflow finetune --dataset sketch-general --outlier-loss binary "
            "--outlier-dataset sketch-shapes   # Diff†",
        ),
    ),
    "evaluate": EntryPoint(
        "Score test images under registered models: BPD, AUROC, AUPR, FPR95, figures.",
        (Evaluation,),
        ("oodflow evaluate", "oodflow evaluate --run RUN_ID --ood sketch-digits,sketch-scenes"),
    ),
    "tune": EntryPoint(
        "Search the outlier loss's parameters for the best train-set anomaly detection (S4.4).",
        (Tuning, Model, Data, Start, Optimisation, Running),
        (
            "oodflow tune",
            "oodflow tune --trials 50 --dataset cifar10 --preset paper --steps 2000",
            "oodflow tune --outlier-loss margin --objective auroc,bpd",
            "oodflow finetune --outlier-loss binary --temperature tuned --outlier-weight tuned",
        ),
    ),
    "analyse": EntryPoint(
        "Analyse registered models: Fourier mixes, correlations, extreme images, inlier folds.",
        (Analysis,),
        (
            "oodflow analyse",
            "oodflow analyse --what extremes --run RUN_ID --top 20",
            "oodflow analyse --what fourier --images cifar10,svhn",
        ),
    ),
    "report": EntryPoint(
        "Write the tables and figures of all registered runs, as Markdown, LaTeX and CSV.",
        (Reporting,),
        ("oodflow report", "oodflow report --out paper/tables"),
    ),
    "reproduce": EntryPoint(
        "Make every run behind the tables and figures, as a plan says; the same command goes on.",
        (Reproduction,),
        (
            "oodflow reproduce --dry-run",
            "oodflow reproduce --only general,finetuned --seeds 1",
            "oodflow reproduce --plan paper --general-set imagenet32",
            "oodflow reproduce --plan paper --engine ray --gpus 0.5",
        ),
    ),
}

BENCH = EntryPoint(
    "Measure an update of a training: its parts, memory, and this device's floor for it.",
    (Model, Benchmark),
    (
        "oodflow bench --compare eager",
        "oodflow bench --preset paper --batch-size 8 --steps 3 --loss binary",
    ),
)
"""Of the command line alone: an MLflow project makes runs, and this makes none."""

Section = TypeVar("Section")


def pick(section: type[Section], given: Mapping[str, Any]) -> Section:
    """The section's options out of all that were given."""
    return section(**{each.name: given[each.name] for each in options_of(section)})


def seed_list(text: str, default: str = "1") -> list[int]:
    """The seeds of a comma-separated list, each once.

    >>> seed_list("3,1,3"), seed_list("auto")
    ([3, 1], [1])
    """
    try:
        seeds = [int(part) for part in (default if text == AUTO else text).split(",")]
    except ValueError as error:
        raise UserError(
            f"seeds is {text!r}; write whole numbers with commas, as in 1,2,3"
        ) from error
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"seeds is {text!r}; a seed is at least 0 and below 2^63")
    return list(dict.fromkeys(seeds))
