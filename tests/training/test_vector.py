"""Parameters as parts of one vector: the same numbers as each by itself, and all of them."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Adamax

from oodflow.training import vector as module
from oodflow.training.vector import ALIGNED, ParameterVector


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 3))


def loss_of(model: nn.Module) -> torch.Tensor:
    images = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return model(images).square().mean()


def test_parameters_keep_their_values_and_become_views_at_aligned_places() -> None:
    model, untouched = network(), network()
    vector = ParameterVector(model.parameters())
    storage = vector.values.untyped_storage().data_ptr()
    for own, other in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(own, other)
        assert own.untyped_storage().data_ptr() == storage
        assert own.storage_offset() % ALIGNED == 0 and own.is_contiguous()
    assert vector.values.count_nonzero() == sum(p.count_nonzero() for p in model.parameters())


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda tensors: Adamax(tensors, lr=0.01, weight_decay=0.1),
        lambda tensors: Adam(tensors, lr=0.01, weight_decay=0.1, fused=True),
        lambda tensors: SGD(tensors, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
    ids=["Adamax", "Adam", "SGD"],
)
def test_updates_in_chunks_are_those_of_each_parameter_by_itself(
    monkeypatch: pytest.MonkeyPatch, optimiser: Any
) -> None:
    monkeypatch.setattr(module, "CHUNK", 37)
    model, reference = network(), network()
    vector = ParameterVector(model.parameters())
    chunks = vector.chunks()
    assert len(chunks) > len(vector.parameters)
    ours, theirs = optimiser(chunks), optimiser(list(reference.parameters()))
    for _ in range(5):
        vector.clear()
        loss_of(model).backward()
        vector.gather()
        ours.step()
        theirs.zero_grad()
        loss_of(reference).backward()
        theirs.step()
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(own, other, rtol=1e-6, atol=1e-8)
    # What lies between the parameters has not moved.
    assert vector.values.count_nonzero() == sum(p.count_nonzero() for p in model.parameters())


def test_a_parameter_without_a_gradient_has_a_gradient_of_zero() -> None:
    model = network()
    vector = ParameterVector(model.parameters())
    loss_of(model).backward()
    assert all(part.any() for part in vector.parts(vector.gather()))
    vector.clear()
    model[0](torch.ones(1, 2, 8, 8)).sum().backward()
    parts = vector.parts(vector.gather())
    assert [bool(part.any()) for part in parts] == [True, True, False, False]


def test_chunks_of_given_sizes_have_the_gradients_at_their_places() -> None:
    model = network()
    vector = ParameterVector(model.parameters())
    chunks = vector.chunks(vector.sizes)
    loss_of(model).backward()
    vector.gather()
    for chunk, parameter in zip(chunks, model.parameters(), strict=True):
        assert torch.equal(chunk.grad[: parameter.numel()], parameter.grad.flatten())
