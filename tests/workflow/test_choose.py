"""Which run ``auto`` and ``own`` mean: one that holds a model, whatever else has its tags."""

from oodflow.tracking import runs


def test_an_evaluation_of_a_model_is_not_taken_for_it(trained, tiny):
    shapes = ["--dataset", "sketch-shapes"]
    assert trained.oodflow("train", *tiny, *shapes).code == 0
    [scratch] = runs.find(trained.store(), {"kind": "train", "role": "in_distribution"})
    # The evaluation is newer, registered, and has the model's tags.
    assert trained.oodflow("evaluate", "--run", scratch.run_id, "--limit", "64").code == 0
    assert trained.oodflow("analyse", "--run", scratch.run_id, "--what", "folds").code == 0
    outcome = trained.oodflow("finetune", *tiny, *shapes, "--init", "own")
    assert outcome.code == 0, outcome.err
    [own] = runs.find(trained.store(), {"init": "own", "kind": "finetune"})
    assert own.tags["init_run"] == scratch.run_id
