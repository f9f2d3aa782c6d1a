"""Checkpoints: exact, atomic, verified, and never unpickled."""

import contextlib
import pickle
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from oodflow.errors import ResourceError, UserError
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


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a real limit of the system, as a full disk is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path) -> None:
    path, _, digest = saved(tmp_path)
    with room_for(1000), pytest.raises(ResourceError, match=f"cannot write {path}: ") as error:
        saved(tmp_path)
    assert "\n" not in str(error.value)
    assert checkpoint.load_model(path)[2] == digest
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_half_written_is_no_hindrance(tmp_path) -> None:
    path, _, _ = saved(tmp_path)
    path.with_name(f"{path.name}.partial").write_bytes(b"half")
    _, _, digest = saved(tmp_path)
    assert checkpoint.load_model(path)[2] == digest
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# The state of a training


def state(step: int) -> checkpoint.TrainingState:
    return checkpoint.TrainingState(step, {"a": torch.full((2,), step)}, {"0/x": torch.ones(1)})


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run's folder after the states of updates 3, 6 and 9."""
    for step in (3, 6, 9):
        checkpoint.save_training(tmp_path, state(step), EXPERIMENT)
    return tmp_path


def newest(folder: Path) -> tuple[int, str]:
    """The update of the newest whole state, its tensors checked, and the damage."""
    found, damage = checkpoint.newest_training(folder, EXPERIMENT)
    assert found and found.model["a"].tolist() == [found.step, found.step]
    assert found.optimiser.keys() == {"0/x"}
    return found.step, damage


def test_training_state_of_another_experiment_is_refused(folder) -> None:
    assert newest(folder) == (9, "")
    with pytest.raises(UserError, match="another experiment"):
        checkpoint.newest_training(folder, replace(EXPERIMENT, seed=1))


def test_before_the_first_state_there_is_none(tmp_path) -> None:
    assert checkpoint.newest_training(tmp_path, EXPERIMENT) == (None, "")


def test_two_states_are_kept_and_nothing_else(folder) -> None:
    names = {checkpoint.STATE_FILE, checkpoint.PREVIOUS_FILE}
    assert {file.name for file in folder.iterdir()} == names
    before = checkpoint.load_training(folder / checkpoint.PREVIOUS_FILE, EXPERIMENT)
    assert before.step == 6


@pytest.mark.parametrize("damage", ["cut to nothing", "cut short", "a flipped bit"])
def test_a_damaged_newest_state_is_replaced_by_the_one_before(folder, damage: str) -> None:
    file = folder / checkpoint.STATE_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    damaged = {"cut to nothing": b"", "cut short": content[:-5], "a flipped bit": content}
    file.write_bytes(damaged[damage])
    step, said = newest(folder)
    assert step == 6 and f"damaged checkpoint {file}" in said
    # The damaged one is gone for good, also where a crash follows the next renaming.
    assert newest(folder) == (6, "")
    checkpoint.save_training(folder, state(9), EXPERIMENT)
    file.unlink()
    assert newest(folder) == (6, "")


def test_a_crash_between_the_two_renamings_leaves_the_state_before(folder) -> None:
    file = folder / checkpoint.STATE_FILE
    file.replace(folder / checkpoint.PREVIOUS_FILE)
    assert newest(folder) == (9, "")
    assert file.exists()


def test_without_any_whole_state_the_folder_to_remove_is_named(folder) -> None:
    for name in (checkpoint.STATE_FILE, checkpoint.PREVIOUS_FILE):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"damaged checkpoint .* remove {folder} ") as error:
        checkpoint.newest_training(folder, EXPERIMENT)
    assert "\n" not in str(error.value)


def test_a_state_that_does_not_fit_on_the_disk_leaves_both_others(folder) -> None:
    with room_for(100), pytest.raises(ResourceError, match=checkpoint.STATE_FILE):
        checkpoint.save_training(folder, state(12), EXPERIMENT)
    test_two_states_are_kept_and_nothing_else(folder)
    assert newest(folder) == (9, "")


def test_weights_are_stored_under_their_plain_names(tmp_path) -> None:
    path, model, _ = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
