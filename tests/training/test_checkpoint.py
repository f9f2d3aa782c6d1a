"""Checkpoints: exact, atomic, verified, and never unpickled."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from oodflow.errors import UserError
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.build import build_model
from oodflow.training import checkpoint

EXPERIMENT = Experiment(
    Model(1, "glow", 1, 4),
    Data("x", 0),
    Loss("none", "", 0.0, 0.0),
    Optimisation(10, 8, 1e-3, 0.1, 0, 5, "fp32"),
    "scratch",
    "",
    seed=0,
)


def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module, str]:
    model = build_model(EXPERIMENT.model)
    path = tmp_path / "model.safetensors"
    return path, model, checkpoint.save_model(path, model, EXPERIMENT)


def test_a_model_comes_back_as_it_was(tmp_path) -> None:
    path, model, digest = saved(tmp_path)
    loaded, experiment, found = checkpoint.load_model(path)
    assert experiment == EXPERIMENT and found == digest
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_the_digest_is_of_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    digest = checkpoint.tensor_digest(base)
    assert checkpoint.tensor_digest(dict(reversed(base.items()))) == digest
    others = [
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**base, "b": torch.tensor([1.0000001])},
        {"c": base["a"], "b": base["b"]},
    ]
    assert len({digest, *map(checkpoint.tensor_digest, others)}) == 5


@pytest.mark.parametrize("at", [0.02, 0.5, 0.99])
def test_a_flipped_bit_anywhere_is_found(tmp_path, at: float) -> None:
    path, _, _ = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors"):
        checkpoint.load_model(path)


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_file_cut_short_is_named(tmp_path, keep: int) -> None:
    path, _, _ = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged checkpoint .*model.safetensors"):
        checkpoint.load_model(path)


def test_a_pickle_is_refused_and_not_run(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_model(path)
    torch.save({"x": Bomb()}, path)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_model(path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_are_refused(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    model = build_model(replace(EXPERIMENT.model, depth=2))
    checkpoint.save_model(path, model, EXPERIMENT)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_model(path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch) -> None:
    path, _, digest = saved(tmp_path)

    def full_disk(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        saved(tmp_path)
    assert checkpoint.load_model(path)[2] == digest
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_training_state_of_another_experiment_is_refused(tmp_path) -> None:
    state = checkpoint.TrainingState(3, {"a": torch.ones(2)}, {"0/step": torch.ones(1)}, [{"x": 1}])
    checkpoint.save_training(tmp_path / "s", state, EXPERIMENT)
    found = checkpoint.load_training(tmp_path / "s", EXPERIMENT)
    assert (found.step, found.reports) == (3, [{"x": 1}])
    assert torch.equal(found.model["a"], state.model["a"])
    with pytest.raises(UserError, match="another experiment"):
        checkpoint.load_training(tmp_path / "s", replace(EXPERIMENT, seed=1))


def test_weights_are_stored_under_their_plain_names(tmp_path) -> None:
    path, model, _ = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
