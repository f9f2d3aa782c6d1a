"""AUROCs of the sketch family do not depend on the precision that its models are scored in."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from oodflow.data.catalog import lookup
from oodflow.evaluation.metrics import auroc
from oodflow.evaluation.scores import compute_scores
from oodflow.evaluation.scoring import score_images
from oodflow.models.precision import precision_context
from oodflow.tracking import runs
from oodflow.workflow.session import Session

aten = torch.ops.aten

FACTORS = {
    aten.conv2d.default: 2,
    aten.convolution.default: 2,
    aten.convolution_backward.default: 3,
    aten.matmul.default: 2,
    aten.mm.default: 2,
    aten.bmm.default: 2,
}
"""Products that a GPU may compute in TF32 → how many of the first arguments it rounds."""


class TF32(TorchDispatchMode):
    """What TF32 does on a GPU, on any device: factors lose 13 bits of 23, sums are float32.

    Only where :func:`precision_context` allows it. Bits are cut off, which is never finer than
    what hardware does.
    """

    rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        count = FACTORS.get(func, 0)
        if torch.backends.cudnn.allow_tf32 and count:
            self.rounded += 1
            args = (*map(cut_off, args[:count]), *args[count:])
        return func(*args, **(kwargs or {}))


def cut_off(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.int32) & -(2**13)).view(torch.float32) if x.dtype == torch.float32 else x


def test_the_emulation_rounds_factors_to_10_bits_and_sums_exactly() -> None:
    x = torch.tensor([[1 + 2**-10, 1 + 2**-11], [-1 - 2**-11, 3.0]])
    assert cut_off(x).tolist() == [[1 + 2**-10, 1.0], [-1.0, 3.0]]
    with precision_context("tf32", torch.device("cpu")), TF32() as mode:
        product = x @ torch.eye(2)
        total = x + 2**-20
    assert product.tolist() == cut_off(x).tolist() and mode.rounded == 1
    assert torch.equal(total, x + 2**-20)


@pytest.fixture(scope="module")
def session(blank_workspace, tmp_path_factory) -> Session:
    """A general Glow, and one finetuned from it with the binary loss, after some training."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("precision") / "workspace")
    settings = ("--hidden", "16", "--limit", "2000", "--report-every", "1000")
    for words in (
        ("train", "--dataset", "sketch-general", "--steps", "120"),
        ("finetune", "--outlier-loss", "binary", "--steps", "60"),
    ):
        done = workspace.oodflow(*words, *settings)
        assert done.code == 0, done.err
    return Session(workspace.store(), workspace.data, torch.device("cpu"), "")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.long
def test_aurocs_are_those_of_float32_within_a_hundredth(session: Session, precision: str) -> None:
    [general] = runs.find(session.store, {"kind": "train"})
    [finetuned] = runs.find(session.store, {"kind": "finetune"})
    outliers = lookup("sketch-shapes").ood
    assert len(outliers) == 3

    def scores(dataset: str, used: str):
        images = session.images(dataset, "test", 500)
        own, contrast = (
            score_images(
                session.model(run).model,
                images.pixels,
                images.labels,
                device="cpu",
                dequantised=False,
                precision=used,
            )
            for run in (finetuned, general)
        )
        return compute_scores(own, general=contrast)

    exact = {name: scores(name, "fp32") for name in ("sketch-shapes", *outliers)}
    with TF32() as mode:
        rounded = {name: scores(name, precision) for name in exact}
    assert (mode.rounded > 0) == (precision == "tf32")
    for name in ("raw", "last_scale", "diff"):
        assert (exact["sketch-shapes"][name] != rounded["sketch-shapes"][name]).any()
        for outlier in outliers:
            first, second = (
                auroc(each["sketch-shapes"][name], each[outlier][name]) for each in (exact, rounded)
            )
            assert second == pytest.approx(first, abs=0.01), (name, outlier)


def test_validation_is_in_the_precision_of_the_training(blank, tiny, monkeypatch) -> None:
    used = []

    def score(*args, **given):
        used.append(given.get("precision", "fp32"))
        return score_images(*args, **given)

    monkeypatch.setattr("oodflow.evaluation.validation.score_images", score)
    assert blank.oodflow("train", *tiny, "--precision", "bf16").code == 0
    assert used and set(used) == {"bf16"}
