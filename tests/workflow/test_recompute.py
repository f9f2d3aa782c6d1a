"""``--recompute`` reaches the training, and leaves its numbers and its experiment as they are."""

import pytest

from oodflow.models import form
from oodflow.tracking import runs
from oodflow.training.loop import Trainer


def test_recomputed_training_is_the_same_experiment_with_the_same_numbers(blank, tiny, monkeypatch):
    seen, run = [], Trainer.run

    def watched(trainer, on_step=None):
        seen.append(trainer.form)
        return run(trainer, on_step)

    # The real training goes on; what is watched is the form that it was given.
    monkeypatch.setattr(Trainer, "run", watched)
    for words in ((), ("--recompute",)):
        outcome = blank.oodflow("train", *tiny, *words)
        assert outcome.code == 0, outcome.err
    assert seen == ["fused", "recomputed"] and set(seen) <= set(form.FORMS)
    one, other = runs.find(blank.store(), {"kind": "train"})
    assert one.tags["spec"] == other.tags["spec"]
    for name in ("train/bpd", "valid/bpd", "bpd/sketch-general"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4)
