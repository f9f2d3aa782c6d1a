"""Score tables against a density with a known closed form, and their Parquet file."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import kstest, norm
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.evaluation.score_table import read_table, write_table
from oodflow.evaluation.scoring import NOISE_CHUNK, dequantisation_noise, score_images
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import LocalGlow
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.tarflow import TarFlow

SHAPE = (3, 4, 4)
STDS = (20.0, 50.0, 90.0)


class GaussianPerScale(LikelihoodModel):
    """Channel i is scale i: independent N(128, STDS[i]²) per sub-pixel, density per level."""

    def __init__(self, scales: int = 3) -> None:
        super().__init__()
        self.image_shape = SHAPE
        self.scales = scales
        self.frozen = nn.Dropout().eval()
        self.batches: list[int] = []
        self.training_seen: set[bool] = set()

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        self.batches.append(len(images))
        self.training_seen.add(self.training)
        std = torch.tensor(STDS).view(1, 3, 1, 1)
        z = (images.float() + noise - 128) / std
        log_prob = (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=(2, 3))
        return log_prob if self.scales == 3 else log_prob.sum(dim=1, keepdim=True)


def random_pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)


def closed_form(pixels: Tensor, noise: np.ndarray | float) -> np.ndarray:
    """N×3 contributions, by scipy in float64."""
    std = np.reshape(STDS, (1, 3, 1, 1))
    return norm.logpdf(pixels.numpy().astype(float) + noise, 128, std).sum(axis=(2, 3))


def test_columns_are_the_closed_form_in_order():
    pixels, labels = random_pixels(70), torch.arange(70) % 4
    frame = score_images(GaussianPerScale(), pixels, labels, device="cpu", batch_size=32)
    assert list(frame.columns) == (
        ["index", "label", "log_prob", "scale1", "scale2", "scale3", "log_prob_dequantised"]
    )
    assert [str(kind) for kind in frame.dtypes] == ["int64"] * 2 + ["float64"] * 5
    assert frame["index"].tolist() == list(range(70))
    assert frame["label"].tolist() == labels.tolist()
    expected = closed_form(pixels, 0.5)
    scales = frame[["scale1", "scale2", "scale3"]].to_numpy()
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    np.testing.assert_allclose(frame["log_prob"], expected.sum(axis=1), rtol=1e-6)
    noise = dequantisation_noise(0, 70, SHAPE, seed=0).numpy().astype(float)
    np.testing.assert_allclose(
        frame["log_prob_dequantised"], closed_form(pixels, noise).sum(axis=1), rtol=1e-6
    )


def test_model_without_scales_and_images_without_labels():
    frame = score_images(GaussianPerScale(scales=1), random_pixels(3), None, device="cpu")
    assert list(frame.columns) == ["index", "label", "log_prob", "log_prob_dequantised"]
    assert frame["label"].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("batch_size", [1, 7, 32, 33, 250])
def test_nothing_depends_on_the_batch_size(batch_size):
    pixels = random_pixels(75)
    reference = score_images(GaussianPerScale(), pixels, None, device="cpu", batch_size=64)
    frame = score_images(GaussianPerScale(), pixels, None, device="cpu", batch_size=batch_size)
    # The last float32 bits of a sum may depend on the batch; another noise would show by far.
    pd.testing.assert_frame_equal(frame, reference, rtol=1e-6)


def test_an_image_has_the_same_score_among_fewer_images():
    pixels = random_pixels(75)
    full = score_images(GaussianPerScale(), pixels, None, device="cpu")
    part = score_images(GaussianPerScale(), pixels[:40], None, device="cpu")
    pd.testing.assert_frame_equal(part, full[:40], rtol=1e-6)


def test_seed_changes_only_the_dequantised_column():
    pixels = random_pixels(40)
    first, second = (
        score_images(GaussianPerScale(), pixels, None, device="cpu", seed=seed) for seed in (0, 1)
    )
    column = "log_prob_dequantised"
    assert (first[column] != second[column]).all()
    pd.testing.assert_frame_equal(first.drop(columns=column), second.drop(columns=column))


def test_noise_is_uniform_and_differs_between_images():
    noise = dequantisation_noise(0, 4 * NOISE_CHUNK, SHAPE, seed=3)
    assert noise.min() >= 0 and noise.max() < 1
    assert kstest(noise.flatten().numpy(), "uniform").pvalue > 0.01
    assert len(noise.flatten(1).unique(dim=0)) == len(noise)
    assert torch.equal(noise[10:100], dequantisation_noise(10, 100, SHAPE, seed=3))


def test_modes_of_the_submodules_are_restored_even_after_an_error():
    model = GaussianPerScale().train()
    model.frozen.eval()
    score_images(model, random_pixels(3), None, device="cpu")
    assert model.training_seen == {False}
    assert model.training and not model.frozen.training

    def fail(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_images(model, random_pixels(3), None, device="cpu", on_progress=fail)
    assert model.training and not model.frozen.training


def test_progress_is_the_number_of_images_so_far():
    done: list[int] = []
    model = GaussianPerScale()
    score_images(
        model, random_pixels(43), None, device="cpu", batch_size=20, on_progress=done.append
    )
    assert done == [20, 40, 43]
    # The last three are filled up: a few would be computed by other code.
    assert model.batches == [20, 20, 20, 20, 16, 16]


def test_non_finite_values_stay(monkeypatch):
    def forward(images: Tensor, noise: Tensor | float) -> Tensor:
        return torch.tensor([[1.0, -math.inf, 2.0], [math.nan, 0.0, 0.0]])

    model = GaussianPerScale()
    monkeypatch.setattr(model, "forward", forward)
    frame = score_images(model, random_pixels(2), None, device="cpu")
    assert frame["log_prob"][0] == -math.inf and math.isnan(frame["log_prob"][1])
    assert frame["scale2"].tolist() == [-math.inf, 0.0]


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, "N×3×4×4, but got uint8 2×1×4×4"),
        (torch.zeros(2, *SHAPE), None, "but got float32 2×3×4×4"),
        (torch.zeros(0, *SHAPE, dtype=torch.uint8), None, "no images"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.zeros(3), "2 images have 3 labels"),
    ],
)
def test_unfit_images_are_refused(pixels, labels, message):
    with pytest.raises(UserError, match=message):
        score_images(GaussianPerScale(), pixels, labels, device="cpu")


@pytest.fixture
def written(tmp_path):
    frame = score_images(GaussianPerScale(), random_pixels(40), torch.arange(40), device="cpu")
    frame.loc[3, "log_prob"] = -math.inf
    frame.loc[4, "log_prob"] = math.nan
    path = tmp_path / "scores" / "cifar10-test.parquet"
    write_table(frame, path, facts={"dataset": "cifar10", "fold": "tést"})
    return frame, path


def test_parquet_round_trip_is_exact(written):
    frame, path = written
    again, facts = read_table(path)
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    assert facts == {"dataset": "cifar10", "fold": "tést"}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_failed_writing_keeps_the_old_file_and_leaves_nothing_behind(written, monkeypatch):
    frame, path = written
    before = path.read_bytes()

    def fail(table, where, **options):
        where.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("oodflow.evaluation.score_table.pq.write_table", fail)
    with pytest.raises(OSError, match="no space"):
        write_table(frame, path, facts={})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"not a parquet file" * 10,
        # One bit of the first page, which only its checksum can tell.
        lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    ],
)
def test_damaged_files_are_refused_by_name(written, damage):
    _, path = written
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"cifar10-test\.parquet cannot be read"):
        read_table(path)


def test_missing_and_foreign_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet does not exist"):
        read_table(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path)
    foreign = tmp_path / "foreign.parquet"
    pd.DataFrame({"index": [0]}).to_parquet(foreign)
    with pytest.raises(UserError, match=r"foreign\.parquet is not a score table"):
        read_table(foreign)
    write_table(pd.DataFrame({"index": [0], "label": [0]}), foreign, facts={})
    with pytest.raises(UserError, match="lacks 'log_prob, log_prob_dequantised'"):
        read_table(foreign)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Glow(3, depth=1, hidden=8),
        lambda: ConditionalGlow(3, depth=1, hidden=8),
        lambda: LocalGlow(3, depth=1, hidden=8),
        lambda: TarFlow(3, patch=8, depth=2, layers=1, width=16),
    ],
)
def test_a_flows_contributions_come_in_two_parts_from_the_one_pass(make):
    torch.manual_seed(3)
    flow = make()
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    flow.initialise(pixels, 0.5)
    frame = score_images(flow, pixels, None, device="cpu", dequantised=False)
    with torch.no_grad():
        latents = [each.double().numpy() for each in flow.encode(flow.preprocess(pixels, 0.5))[0]]
    total = np.zeros(5)
    for i, latent in enumerate(latents, start=1):
        prior = norm.logpdf(latent).sum(axis=1)
        np.testing.assert_allclose(frame[f"prior{i}"], prior, rtol=1e-5)
        total += frame[f"prior{i}"] + frame[f"logdet{i}"]
        if flow.scales > 1:
            both = frame[f"prior{i}"] + frame[f"logdet{i}"]
            np.testing.assert_allclose(both, frame[f"scale{i}"], rtol=1e-12)
    np.testing.assert_allclose(total, frame["log_prob"], rtol=1e-12)


def test_the_latents_of_a_class_conditional_flow_have_the_density_of_the_classes_mixture():
    torch.manual_seed(4)
    flow = ClassConditionalGlow(1, classes=3, depth=1, hidden=8)
    pixels = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    flow.initialise(pixels, 0.5)
    for parameter in flow.per_class.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    frame = score_images(flow, pixels, None, device="cpu", dequantised=False)
    with torch.no_grad():
        latents = flow.transform(flow.preprocess(pixels, 0.5))[0]
        moments = [[each.double().numpy() for each in part.moments()] for part in flow.per_class]
    per_class = sum(
        norm.logpdf(latent.double().numpy()[:, None], mean, np.exp(log_std)).sum(axis=2)
        for latent, (mean, log_std) in zip(latents, moments, strict=True)
    )
    mixture = logsumexp(per_class, axis=1) - math.log(3)
    np.testing.assert_allclose(frame.filter(like="prior").sum(axis=1), mixture, rtol=1e-5)
