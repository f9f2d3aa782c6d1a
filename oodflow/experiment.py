"""The experiment as a value: what decides a run's numbers, and its canonical hash.

The parameters logged to MLflow and the hash come from the fields. Two runs with the same hash are
the same experiment. What people set to get one is in :mod:`oodflow.options`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, get_type_hints

from oodflow.errors import UserError

__all__ = [
    "CLASSIFIER",
    "COMPRESSORS",
    "OUTLIER_LOSSES",
    "PRECISIONS",
    "Data",
    "Experiment",
    "Loss",
    "Model",
    "Optimisation",
    "from_dict",
    "json_hash",
    "parameters",
    "spec_hash",
    "to_dict",
]

CLASSIFIER = "wide-resnet"
COMPRESSORS = ("png", "webp", "jpeg2000")
"""Models without parameters: nothing to train, log p(x) = −bits·ln 2."""
OUTLIER_LOSSES = ("none", "binary", "margin")
PRECISIONS = ("fp32", "tf32", "bf16")


def added(value: Any) -> Any:
    """A field that experiments before it do without: they have this value, and keep their hash."""
    return field(default=value, metadata={"added": True})


@dataclass(frozen=True)
class Model:
    """Architecture of a model; fields that a family does not have are 0.

    ``classes`` above 0 makes a Glow class-conditional; ``mixtures`` are PixelCNN++'s components;
    ``patch`` is the side of TarFlow's patches in pixels, ``layers`` how many each block has.

    >>> Model(channels=3, name="glow", depth=4, hidden=32).classes
    0
    """

    channels: int
    name: str
    """Model family, one of :data:`oodflow.registration.MODELS`."""
    depth: int
    """Glow: steps a scale; PixelCNN++: blocks a stage; Wide-ResNet: depth; TarFlow: blocks."""
    hidden: int
    """Glow: hidden channels; PixelCNN++: filters; Wide-ResNet and TarFlow: width."""
    classes: int = 0
    mixtures: int = 0
    dropout: float = 0.0
    patch: int = added(0)
    layers: int = added(0)
    plugin: str = added("")
    """Package and version that registered the model; "" for a built-in one."""


@dataclass(frozen=True)
class Data:
    """Training images: the dataset's training fold, by its name in the catalogue.

    >>> Data("sketch-shapes", limit=0).dataset
    'sketch-shapes'
    """

    dataset: str
    limit: int
    """Only the first so many images of each fold; 0: all."""
    digest: str = ""
    """Identity of the whole training fold: other images make another experiment."""
    plugin: str = added("")
    """Package and version that registered the dataset; "" for a built-in one."""


@dataclass(frozen=True)
class Loss:
    """Outlier loss added to the negative log-likelihood (S4.4, S7.5); inert when none.

    The binary classifier (S9) has ``classifier`` here: the outliers are its other class.

    >>> Loss("binary", "sketch-general", temperature=1000.0, outlier_weight=6000.0).margin
    0.0
    """

    outlier_loss: str
    outlier_dataset: str
    temperature: float
    """T of the binary loss, in nats."""
    outlier_weight: float
    """Weight λ of the outlier loss."""
    outlier_digest: str = ""
    """Identity of the whole training fold of the outlier dataset."""
    margin: float = 0.0
    """Margin of the margin loss, in nats; 0: the number of dimensions."""
    outlier_plugin: str = added("")
    """Package and version that registered the outlier dataset; "" for a built-in one."""


@dataclass(frozen=True)
class Optimisation:
    """How the weights are found; ``steps`` are updates in total (S4.1).

    >>> Optimisation(
    ...     steps=100, batch_size=64, lr=2e-3, weight_decay=5e-5, warmup=50, report_every=50,
    ...     precision="fp32",
    ... ).steps
    100
    """

    steps: int
    batch_size: int
    """Images a batch, and as many outliers."""
    lr: float
    weight_decay: float
    warmup: int
    """Updates of linear warm-up."""
    report_every: int
    """Updates between validations."""
    precision: str
    """Arithmetic of the network, one of :data:`PRECISIONS`."""
    cooldown: int = added(0)
    """Updates at the end over which the learning rate falls linearly to zero."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of one training run.

    ``init`` is ``scratch``, or the hash of the experiment whose weights the training starts from.
    ``general`` is the hash of the experiment whose frozen model is the contrast in the outlier
    loss, or "".

    >>> experiment = Experiment(
    ...     Model(channels=3, name="glow", depth=4, hidden=32), Data("sketch-general", limit=0),
    ...     Loss("none", "", 0.0, 0.0), Optimisation(500, 64, 4e-3, 5e-5, 50, 100, "fp32"),
    ...     init="scratch", general="", seed=1,
    ... )
    >>> spec_hash(experiment)
    '65c4953226615bd7'
    """

    model: Model
    data: Data
    loss: Loss
    optimisation: Optimisation
    init: str
    general: str
    seed: int


Section = TypeVar("Section")


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
    """Canonical hash of an experiment: two runs with the same one are the same experiment.

    16 hexadecimal digits, the tag ``oodflow.spec`` of its run. Raises TypeError for what is no
    experiment. Loss and data count with their digests, so other images give another hash.

    >>> from dataclasses import replace
    >>> one = Experiment(
    ...     Model(3, "glow", 4, 32), Data("sketch-general", 0), Loss("none", "", 0.0, 0.0),
    ...     Optimisation(500, 64, 4e-3, 5e-5, 50, 100, "fp32"), "scratch", "", seed=1,
    ... )
    >>> spec_hash(one) == spec_hash(replace(one)), spec_hash(one) == spec_hash(replace(one, seed=2))
    (True, False)
    """
    return json_hash(to_dict(experiment))


def json_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the sorted compact JSON, the first 16 hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parameters(experiment: Experiment) -> dict[str, str]:
    """Dotted names to values, as logged to MLflow: ``model.depth``, ``optimisation.lr``, ….

    The dots distinguish them from the plain names that ``mlflow run`` logs before the command.
    Fields outside the sections are called ``experiment.seed``, ….
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
