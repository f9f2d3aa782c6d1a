"""Checkpoints: weights and training state as safetensors, written atomically and verified.

``model.safetensors`` holds a model's weights and the experiment that made them;
``training.safetensors`` holds weights, optimiser and position of an unfinished run, and between two
reports the sums for the next one, so that a resumed run gives the same numbers. Randomness
needs no state of its own: it is a function of seed and position (see ``oodflow.data.batches``). The
reports so far are in the run's journal, the one place for them. Both files carry a digest of their
tensors, which loading verifies. Nothing is pickled.

The state before the newest one stays in ``training.previous.safetensors``: a damaged file costs the
updates since then, not the training.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from oodflow.errors import ResourceError, UserError
from oodflow.experiment import Experiment, from_dict, spec_hash, to_dict
from oodflow.files import replaced
from oodflow.models.build import build_model
from oodflow.models.likelihood import LikelihoodModel
from oodflow.registration import MODELS
from oodflow.training.stabilisation import not_finite

__all__ = [
    "MODEL_FILE",
    "PREVIOUS_FILE",
    "STATE_FILE",
    "TrainingState",
    "load_model",
    "load_training",
    "newest_training",
    "refuse_not_finite",
    "save_model",
    "save_training",
    "tensor_digest",
    "write_atomically",
]

LARGE = 2_000_000
"""Models with at least so many values are built without random weights."""

MODEL_FILE = "model.safetensors"
STATE_FILE = "training.safetensors"
PREVIOUS_FILE = "training.previous.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """The state of a run: updates done, and the tensors of model and optimiser."""

    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums since the last report; none right after it."""


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of the names, 16 digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file whole or not at all, see :func:`oodflow.files.replaced`.

    Raises ResourceError where it cannot be written; the old one stays then.
    """
    try:
        with replaced(path, previous) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def _save(
    path: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, str],
    previous: Path | None = None,
) -> str:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = tensor_digest(plain)
    written = {**facts, "digest": digest}
    write_atomically(path, save(plain, {**written, "seal": _seal(written)}), previous)
    return digest


def _seal(facts: Mapping[str, str]) -> str:
    """SHA-256 of all metadata beside the tensors."""
    others = {name: text for name, text in facts.items() if name != "seal"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        # The reader of safetensors has one error for all; this one says what may not be read.
        path.open("rb").close()
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"damaged checkpoint {path}: {error}; use another run") from error
    if "digest" not in facts:
        raise UserError(f"{path} was not written by oodflow: it holds no digest of its weights")
    if tensor_digest(tensors) != facts["digest"] or _seal(facts) != facts.get("seal"):
        raise UserError(
            f"damaged checkpoint {path}: its content changed after it was written; use another run"
        )
    return tensors, facts


def save_model(path: Path, model: LikelihoodModel, experiment: Experiment) -> str:
    """Write a model's weights and the experiment behind them; returns the weights' digest."""
    return _save(path, model.state_dict(), {"experiment": json.dumps(to_dict(experiment))})


def _experiment(path: Path, facts: Mapping[str, str]) -> Experiment:
    try:
        return from_dict(json.loads(facts["experiment"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} names no experiment: {error}") from error


def load_model(path: Path) -> tuple[LikelihoodModel, Experiment, str]:
    """A model with its weights, its experiment, and the weights' digest.

    Raises UserError where the file is damaged, or its weights are not finite.
    """
    tensors, facts = _load(path)
    refuse_not_finite(tensors, str(path))
    experiment = _experiment(path, facts)
    # Random weights that are replaced at once cost a small model nothing, but a dense Glow's
    # projections take seconds each; the meta device costs its import, of seconds as well.
    large = sum(tensor.numel() for tensor in tensors.values()) > LARGE
    # A plug-in's model may compute what it needs when it is built.
    large &= not MODELS.origin(experiment.model.name)
    with torch.device("meta" if large else "cpu"), torch.random.fork_rng(devices=[]):
        model = build_model(experiment.model)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit its {experiment.model.name}: {what}") from error
    return model, experiment, facts["digest"]


def refuse_not_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise UserError where weights hold NaN or infinity: no number of such a model means much."""
    if bad := not_finite(tensors):
        raise UserError(
            f"{what} holds {len(bad)} of {len(tensors)} tensors that are not finite, such as "
            f"{bad[0]}: its training diverged; use another one"
        )


def save_training(folder: Path, state: TrainingState, experiment: Experiment) -> None:
    """Write the state of a run under way into its folder; the one before it is kept as well."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"optimiser/{name}": tensor for name, tensor in state.optimiser.items()}
    tensors |= {f"totals/{name}": tensor for name, tensor in state.totals.items()}
    facts = {"spec": spec_hash(experiment), "step": str(state.step)}
    _save(folder / STATE_FILE, tensors, facts, folder / PREVIOUS_FILE)


def load_training(path: Path, experiment: Experiment) -> TrainingState:
    """The state in a file; UserError where it is damaged or belongs to another experiment."""
    tensors, facts = _load(path)
    if facts.get("spec") != spec_hash(experiment):
        raise UserError(f"{path} belongs to another experiment; give it its own folder")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "totals": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return TrainingState(int(facts["step"]), **parts)


def newest_training(folder: Path, experiment: Experiment) -> tuple[TrainingState | None, str]:
    """The newest undamaged state, None before the first, and what is wrong with a newer one.

    The damaged one is replaced, so that it never becomes the previous one. Raises UserError where
    there are states, but all are damaged.
    """
    newest, damage = folder / STATE_FILE, ""
    for file in filter(Path.exists, (newest, folder / PREVIOUS_FILE)):
        try:
            state = load_training(file, experiment)
        except UserError as error:
            damage = damage or str(error)
        else:
            if file != newest:
                file.replace(newest)
            return state, damage
    if damage:
        raise UserError(f"{damage}, or remove {folder} to train this one from the beginning")
    return None, ""
