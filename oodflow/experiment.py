"""The experiment as a value: what decides a run's numbers, its presets and its canonical hash.

Each parameter is written down once, as a field with its help and default. The options of the
command line and of ``MLproject``, the parameters logged to MLflow and the hash all come from the
fields. Two runs with the same hash are the same experiment.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, get_type_hints

from oodflow.errors import UserError

__all__ = [
    "AUTO",
    "COMPRESSORS",
    "MODELS",
    "OUTLIER_LOSSES",
    "PRECISIONS",
    "Data",
    "Experiment",
    "Loss",
    "Model",
    "Optimisation",
    "TUNED",
    "Option",
    "from_dict",
    "json_hash",
    "option",
    "options_of",
    "parameters",
    "spec_hash",
    "to_dict",
]

AUTO = "auto"
"""The default of an option whose value follows from the preset, the data or the registry."""

TUNED = "tuned"
"""An option whose value is the best one of the newest registered study."""

MODELS = (
    "glow",
    "glow-conditional",
    "glow-local",
    "glow-dense",
    "pixelcnn",
    "tarflow",
    "wide-resnet",
    "png",
    "webp",
    "jpeg2000",
)
COMPRESSORS = ("png", "webp", "jpeg2000")
"""Models without parameters: nothing to train, log p(x) = −bits·ln 2."""
OUTLIER_LOSSES = ("none", "binary", "margin")
PRECISIONS = ("fp32", "tf32", "bf16")


def option(
    help: str,
    default: Any = AUTO,
    choices: tuple[str, ...] = (),
    name: str = "",
    words: tuple[str, ...] = (),
    value: Any = dataclasses.MISSING,
) -> Any:
    """A field that is an option too, under its own name or ``name``.

    ``default`` is the option's default on the command line and in ``MLproject``, ``words`` are
    words that it takes in place of a number, and ``value`` is the field's own default.
    """
    facts = {"help": help, "default": default, "choices": choices, "name": name, "words": words}
    return field(default=value, metadata=facts)


def added(value: Any) -> Any:
    """A field that experiments before it do without: they have this value, and keep their hash."""
    return field(default=value, metadata={"added": True})


@dataclass(frozen=True)
class Model:
    """Architecture of a model; what a family does not have is 0.

    ``classes`` above 0 makes a Glow class-conditional; ``mixtures`` are PixelCNN++'s components;
    ``patch`` is the side of TarFlow's patches in pixels, ``layers`` how many each block has.
    """

    channels: int
    name: str = option("model family", "glow", MODELS, name="model")
    depth: int = option(
        "Glow: steps a scale; PixelCNN++: blocks a stage; Wide-ResNet: depth; TarFlow: blocks"
    )
    hidden: int = option("Glow: hidden channels; PixelCNN++: filters; Wide-ResNet, TarFlow: width")
    classes: int = 0
    mixtures: int = 0
    dropout: float = 0.0
    patch: int = added(0)
    layers: int = added(0)


@dataclass(frozen=True)
class Data:
    """Training images: the dataset's training fold, by its name in the catalogue."""

    dataset: str = option("dataset to train on; auto: sketch-general, for finetune sketch-shapes")
    limit: int = option("use only the first N images of each fold; 0: all", 0)
    digest: str = ""
    """Identity of the whole training fold: other images make another experiment."""


@dataclass(frozen=True)
class Loss:
    """Outlier loss added to the negative log-likelihood (S4.4, S7.5); inert when none.

    The binary classifier (S9) has ``classifier`` here: the outliers are its other class.
    """

    outlier_loss: str = option("loss against an outlier dataset", "none", OUTLIER_LOSSES)
    outlier_dataset: str = option("outlier images; auto: the dataset's general set")
    temperature: float = option(
        "T of the binary loss, in nats; tuned: from the newest study", 1000.0, words=(TUNED,)
    )
    outlier_weight: float = option(
        "weight λ of the outlier loss; auto: 6000 binary, 1 margin; tuned: from the newest study",
        words=(TUNED,),
    )
    outlier_digest: str = ""
    """Identity of the whole training fold of the outlier dataset."""
    margin: float = option(
        "margin of the margin loss, in nats; 0: the number of dimensions; tuned: newest study",
        0.0,
        words=(TUNED,),
        value=0.0,
    )


@dataclass(frozen=True)
class Optimisation:
    """How the weights are found; ``steps`` are updates in total (S4.1)."""

    steps: int = option("updates in total; auto: from epochs, or from the preset")
    batch_size: int = option("images a batch, and as many outliers; auto: from the preset")
    lr: float = option("learning rate; auto: from the preset")
    weight_decay: float = option("weight decay; auto: from the preset")
    warmup: int = option("updates of linear warm-up; auto: from the preset")
    report_every: int = option("updates between validations; auto: from the preset, or one pass")
    precision: str = option("arithmetic of the network", "fp32", PRECISIONS)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of one training run.

    ``init`` is ``scratch`` or the hash of the experiment whose weights are the start; ``general``
    is the hash of the experiment whose frozen model is the contrast in the outlier loss, or "".
    """

    model: Model
    data: Data
    loss: Loss
    optimisation: Optimisation
    init: str
    general: str
    seed: int


Section = TypeVar("Section")


@dataclass(frozen=True)
class Option:
    """One option of the command line and of ``MLproject``."""

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...]
    words: tuple[str, ...]


def options_of(section: type) -> Iterator[Option]:
    """The options among a section's fields, in order."""
    hints = get_type_hints(section)
    for each in dataclasses.fields(section):
        if "help" in each.metadata:
            facts = each.metadata
            name = facts["name"] or each.name
            yield Option(
                name,
                hints[each.name],
                facts["default"],
                facts["help"],
                facts["choices"],
                facts["words"],
            )


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain nested data, for JSON; an added field only where it says something.

    Thus an experiment has the dict, and the hash, that it had before the field was there.
    """

    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value
        return {
            each.name: plain(getattr(value, each.name))
            for each in dataclasses.fields(value)
            if not ("added" in each.metadata and getattr(value, each.name) == each.default)
        }

    return plain(experiment)


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """The inverse of :func:`to_dict`; raises UserError where a field is missing or unknown."""

    def build(kind: type[Section], given: Any) -> Section:
        hints = get_type_hints(kind)
        fields = dataclasses.fields(cast(Any, kind))
        needed = {each.name for each in fields if "added" not in each.metadata}
        if not isinstance(given, Mapping) or not needed <= set(given) <= set(hints):
            raise UserError(f"not an experiment of this version: {kind.__name__} holds {given!r}")
        return kind(
            **{
                name: build(cast(type, hint), given[name])
                if dataclasses.is_dataclass(hint)
                else hint(given[name])
                for name, hint in hints.items()
                if name in given
            }
        )

    return build(Experiment, values)


def spec_hash(experiment: Experiment) -> str:
    """Canonical hash of an experiment: two runs with the same one are the same experiment."""
    return json_hash(to_dict(experiment))


def json_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the sorted compact JSON, the first 16 hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parameters(experiment: Experiment) -> dict[str, str]:
    """Dotted names to values, as logged to MLflow: ``model.depth``, ``optimisation.lr``, ….

    The dots keep them apart from the plain names that ``mlflow run`` logs before the command; what
    belongs to no section is called ``experiment.seed``, ….
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                walk(f"{prefix}{name}.", value)
            else:
                flat[(prefix or "experiment.") + name] = str(value)

    walk("", dataclasses.asdict(experiment))
    return flat
