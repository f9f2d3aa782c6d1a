"""``--recompute`` reaches the training, and leaves its numbers and its experiment as they are."""

import pytest

from oodflow.models import form
from oodflow.tracking import runs
from oodflow.training.loop import Trainer


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """The form of each training that is begun; the training itself goes on."""
    forms, run = [], Trainer.run

    def watched(trainer, on_step=None):
        forms.append(trainer.form)
        return run(trainer, on_step)

    monkeypatch.setattr(Trainer, "run", watched)
    return forms


def test_recomputed_training_is_the_same_experiment_with_the_same_numbers(blank, tiny, seen):
    for words in ((), ("--recompute",)):
        outcome = blank.oodflow("train", *tiny, *words)
        assert outcome.code == 0, outcome.err
    assert seen == ["fused", "recomputed"] and set(seen) <= set(form.FORMS)
    one, other = runs.find(blank.store(), {"kind": "train"})
    assert one.tags["spec"] == other.tags["spec"]
    for name in ("train/bpd", "valid/bpd", "bpd/sketch-general"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4)


def test_it_reaches_the_trainings_of_a_plan(blank, tiny, seen):
    outcome = blank.oodflow("main", "--seeds", "1", *tiny, "--recompute")
    assert outcome.code == 0, outcome.err
    assert len(seen) == 4 and set(seen) == {"recomputed"}
