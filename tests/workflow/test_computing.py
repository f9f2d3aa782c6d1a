"""``--recompute`` and ``--accumulate`` reach the training, and leave its numbers as they are."""

import pytest

from oodflow.tracking import runs
from oodflow.training.loop import Trainer


@pytest.fixture
def seen(monkeypatch) -> list[tuple[str, int]]:
    """Form and parts of each training that is begun; the training itself goes on."""
    begun, run = [], Trainer.run

    def watched(trainer, on_step=None):
        begun.append((trainer.form, trainer.parts))
        return run(trainer, on_step)

    monkeypatch.setattr(Trainer, "run", watched)
    return begun


@pytest.mark.parametrize(
    ("words", "how"),
    [(("--recompute",), ("recomputed", 1)), (("--accumulate", "4"), ("fused", 4))],
)
def test_it_is_the_same_experiment_with_the_same_numbers(blank, tiny, seen, words, how):
    for each in ((), words):
        outcome = blank.oodflow("train", *tiny, *each)
        assert outcome.code == 0, outcome.err
    assert seen == [("fused", 1), how]
    one, other = runs.find(blank.store(), {"kind": "train"})
    assert one.tags["spec"] == other.tags["spec"]
    for name in ("train/bpd", "valid/bpd", "bpd/sketch-general"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4)


@pytest.mark.long
def test_both_reach_the_trainings_of_a_plan(blank, tiny, seen):
    words = ("--recompute", "--accumulate", "2", "--workers", "1")
    outcome = blank.oodflow("main", "--seeds", "1", *tiny, *words)
    assert outcome.code == 0, outcome.err
    assert len(seen) == 4 and set(seen) == {("recomputed", 2)}


@pytest.mark.parametrize("parts", ["0", "3", "32"])
def test_parts_that_do_not_divide_the_batch_are_refused(blank, tiny, parts):
    outcome = blank.oodflow("train", *tiny, "--accumulate", parts)
    assert outcome.code == 2
    assert f"batch of 16 does not divide into {parts} equal parts" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_classifier_is_not_trained_in_parts(blank, tiny):
    outcome = blank.oodflow("train", "--model", "wide-resnet", *tiny, "--accumulate", "2")
    assert outcome.code == 2 and "accumulate" in outcome.err
