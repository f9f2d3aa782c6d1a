"""Precision: who computes in what, and that nothing is left behind."""

import pytest
import torch

from oodflow.models.precision import full_precision, precision_context

CPU = torch.device("cpu")


def flags() -> tuple[bool, bool, bool]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        ("fp32", (False, False, False)),
        ("tf32", (True, True, False)),
        ("bf16", (False, False, True)),
    ],
)
def test_a_precision_holds_inside_and_is_undone_after_an_error(
    precision: str, inside: tuple[bool, bool, bool]
) -> None:
    before = flags()
    with pytest.raises(KeyError), precision_context(precision, CPU):
        assert flags() == inside
        with full_precision(CPU):
            assert flags() == (False, False, False)
        assert flags() == inside
        raise KeyError
    assert flags() == before


def test_bfloat16_rounds_products_but_not_those_in_full_precision() -> None:
    a, b = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = a @ b
    with precision_context("bf16", CPU):
        assert (a @ b).dtype == torch.bfloat16
        with full_precision(CPU):
            assert torch.equal(a @ b, exact)
