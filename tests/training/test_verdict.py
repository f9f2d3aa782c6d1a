"""A training that diverged or skipped too much is told from one that learnt."""

import pytest
import torch

from oodflow.experiment import Model
from oodflow.models.build import build_model
from oodflow.training.verdict import MAX_SKIPPED, counts, why_failed

UPDATES = 40
ALLOWED = int(MAX_SKIPPED * UPDATES)


@pytest.fixture
def model():
    return build_model(Model(channels=1, name="glow", depth=1, hidden=4))


def reports(batches=0, updates=0):
    """Two reports with these counts of skipped batches and updates between them."""
    first = {"train/dropped_images": 1.0, "train/skipped_batches": float(batches)}
    return [first | {"train/skipped_updates": 0.0}, {"train/skipped_updates": float(updates)}]


def test_a_training_within_the_bounds_has_not_failed(model):
    assert why_failed(model, reports(ALLOWED - 3, 3), UPDATES, 0) == ""


@pytest.mark.parametrize(("batches", "updates"), [(ALLOWED + 1, 0), (0, ALLOWED + 1), (ALLOWED, 1)])
def test_skipped_batches_and_skipped_updates_count_alike(model, batches, updates):
    why = why_failed(model, reports(batches, updates), UPDATES, 0)
    assert f"{ALLOWED + 1} of {UPDATES} updates" in why


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_one_weight_that_is_not_finite_is_enough(model, bad):
    with torch.no_grad():
        list(model.parameters())[-1].flatten()[-1] = bad
    assert "1 of" in why_failed(model, reports(), UPDATES, 0)


def test_images_without_a_finite_likelihood_are_counted(model):
    assert "7 validation images" in why_failed(model, reports(), UPDATES, 7)


def test_counts_are_over_all_reports():
    assert counts(reports(2, 3)) == {
        "images dropped": 1,
        "batches skipped": 2,
        "updates skipped": 3,
    }
