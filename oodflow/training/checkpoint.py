"""Checkpoints: weights and training state as safetensors, written atomically and verified.

``model.safetensors`` holds a model's weights and the experiment that made them;
``training.safetensors`` holds weights, optimiser, position and reports of a run under way, so that
a resumed run goes on to the same numbers. Randomness needs no state of its own: it is a function
of seed and position (see ``oodflow.data.batches``). Both carry a digest of their tensors, which
loading verifies. Nothing is pickled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from oodflow.errors import UserError
from oodflow.experiment import Experiment, from_dict, spec_hash, to_dict
from oodflow.models.build import build_model
from oodflow.models.likelihood import LikelihoodModel

__all__ = [
    "MODEL_FILE",
    "STATE_FILE",
    "TrainingState",
    "load_model",
    "load_training",
    "save_model",
    "save_training",
    "tensor_digest",
]

MODEL_FILE = "model.safetensors"
STATE_FILE = "training.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """Where a run is: updates done, tensors of model and optimiser, and the reports so far."""

    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    reports: list[dict[str, Any]]


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of the names, 16 digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_atomically(path: Path, content: bytes) -> None:
    """Write and sync a sibling file, then rename it: the name holds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; free space or mend it") from error


def _save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = tensor_digest(plain)
    written = {**facts, "digest": digest}
    write_atomically(path, save(plain, {**written, "seal": _seal(written)}))
    return digest


def _seal(facts: Mapping[str, str]) -> str:
    """SHA-256 of everything that is written beside the tensors."""
    others = {name: text for name, text in facts.items() if name != "seal"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"damaged checkpoint {path}: {error}; use another run") from error
    if "digest" not in facts:
        raise UserError(f"{path} was not written by oodflow: it holds no digest of its weights")
    if tensor_digest(tensors) != facts["digest"] or _seal(facts) != facts.get("seal"):
        raise UserError(f"damaged checkpoint {path}: its content changed after it was written")
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
    """A model with its weights, its experiment, and the weights' digest."""
    tensors, facts = _load(path)
    experiment = _experiment(path, facts)
    # No random weights that are replaced at once: a dense Glow's projections take seconds each.
    with torch.device("meta"):
        model = build_model(experiment.model)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit its {experiment.model.name}: {what}") from error
    return model, experiment, facts["digest"]


def save_training(path: Path, state: TrainingState, experiment: Experiment) -> None:
    """Write the state of a run under way over the previous one."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"optimiser/{name}": tensor for name, tensor in state.optimiser.items()}
    facts = {
        "spec": spec_hash(experiment),
        "step": str(state.step),
        "reports": json.dumps(state.reports),
    }
    _save(path, tensors, facts)


def load_training(path: Path, experiment: Experiment) -> TrainingState:
    """The state written last; UserError where it belongs to another experiment."""
    tensors, facts = _load(path)
    if facts.get("spec") != spec_hash(experiment):
        raise UserError(f"{path} belongs to another experiment; give it its own folder")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return TrainingState(int(facts["step"]), **parts, reports=json.loads(facts["reports"]))
