"""Which run ``auto``, ``own``, ``tuned`` and a reference mean, and what is said where none fits.

The store is a real one, its runs are made without any training.
"""

import shlex

import pytest
from registered import PARAMS, add_general, add_run

from oodflow.cli import cli
from oodflow.errors import UserError
from oodflow.experiment import Model
from oodflow.options import FinetuneOptions
from oodflow.tracking import runs
from oodflow.workflow.choose import (
    contrast_of,
    diff_outlier_general,
    general_of,
    general_sets,
    in_distribution_runs,
    newest_general,
    own_of,
    tuned,
)

GLOW = Model(channels=3, name="glow", depth=4, hidden=32)
"""What the runs of tests/registered.py are said to hold."""


@pytest.fixture
def store(blank):
    return blank.store()


def command_in(error: UserError) -> tuple[str, dict[str, object]]:
    """The command that an error names, with the options that click understands in it."""
    _, name, *words = shlex.split(str(error).partition("make one: ")[2])
    return name, cli.commands[name].make_context(name, words).params


def other_size(name: str, value: str):
    return {**PARAMS, f"model.{name}": value}


DECOYS = {
    "an evaluation of it": {"kind": "evaluate"},
    "an analysis of it": {"kind": "analyse"},
    "not registered": {"registered": "false"},
    "interrupted": {"status": "KILLED"},
    "failed": {"status": "FAILED"},
    "deeper": {"params": other_size("depth", "5")},
    "wider": {"params": other_size("hidden", "64")},
    "grey": {"params": other_size("channels", "1")},
    "another family": {"model": "glow-local"},
}
"""What is newer than the model that is meant, and differs from it in this alone."""

NO_GENERALS = {
    "of another set": {"dataset": "sketch-general-grey"},
    "in-distribution": {"role": "in_distribution"},
    "the one of Diff†": {"outlier_loss": "binary", "outlier_dataset": "sketch-shapes"},
    "finetuned": {"init": "general", "kind": "finetune"},
}


@pytest.mark.parametrize("decoy", (DECOYS | NO_GENERALS).values(), ids=DECOYS | NO_GENERALS)
def test_the_general_model_is_the_newest_that_fits(store, decoy):
    old, new = add_general(store), add_general(store)
    add_general(store, **decoy)
    for dataset in ("sketch-shapes", "sketch-general"):
        assert newest_general(store, dataset, GLOW).run_id == new != old


def test_the_papers_general_set_comes_before_newer_models_of_others(store):
    for number, general in enumerate(reversed(general_sets("cifar10"))):
        run_id = add_general(store, dataset=general)
        assert newest_general(store, "cifar10", GLOW).run_id == run_id, number
    assert general == "tiny"
    add_general(store, dataset="imagenet32")
    assert newest_general(store, "cifar10", GLOW).run_id == run_id
    # Its own set alone fits a dataset of the sketch family, and a general set has itself.
    assert newest_general(store, "sketch-shapes", GLOW).tags["dataset"] == "sketch-general"
    assert newest_general(store, "imagenet32", GLOW).tags["dataset"] == "imagenet32"


def test_a_general_folder_of_the_users_own_comes_last(store):
    assert newest_general(store, "sketch-shapes", GLOW) is None
    folder = add_general(store, dataset="folder:photos?role=general")
    assert newest_general(store, "sketch-shapes", GLOW).run_id == folder
    known = add_general(store)
    add_general(store, dataset="folder:photos?role=general")
    assert newest_general(store, "sketch-shapes", GLOW).run_id == known


def test_without_a_general_model_the_error_says_how_to_train_that_one(store):
    small = Model(channels=3, name="glow-dense", depth=2, hidden=5)
    with pytest.raises(UserError, match="no registered glow-dense of a general set") as error:
        general_of(store, "auto", "cifar10", small, "paper")
    name, given = command_in(error.value)
    assert name == "train" and given["dataset"] in general_sets("cifar10")
    wanted = {"model": "glow-dense", "preset": "paper", "depth": 2, "hidden": 5}
    assert wanted.items() <= given.items()


def test_a_reference_is_taken_as_it_is(store):
    chosen, newer = add_general(store, model="pixelcnn"), add_general(store)
    version = runs.register(store, chosen, "some-model")
    store.client.set_registered_model_alias("some-model", "best", version)
    for reference in (chosen, f"models:/some-model/{version}", "models:/some-model@best"):
        assert general_of(store, reference, "sketch-shapes", GLOW, "quick").run_id == chosen
        assert contrast_of(store, reference, "sketch-shapes", GLOW, 1).run_id == chosen
    assert general_of(store, "auto", "sketch-shapes", GLOW, "quick").run_id == newer


@pytest.mark.parametrize(
    "reference", ["0" * 32, "models:/some-model/1", "models:/none@best", "models:/", "models:/a/b"]
)
def test_a_reference_to_nothing_is_refused_by_its_name(store, reference):
    with pytest.raises(UserError, match=reference):
        general_of(store, reference, "sketch-shapes", GLOW, "quick")
    with pytest.raises(UserError, match=reference):
        contrast_of(store, reference, "sketch-shapes", GLOW, 1)


SCRATCH = {"kind": "train", "init": "scratch"}
NO_OWN = {
    "of another seed": {"seed": "2"},
    "of another dataset": {"dataset": "sketch-digits"},
    "finetuned": {"kind": "finetune", "init": "general"},
}


@pytest.mark.parametrize("decoy", (DECOYS | NO_OWN).values(), ids=DECOYS | NO_OWN)
def test_own_is_the_newest_from_scratch_of_that_dataset_and_seed(store, decoy):
    add_run(store, {}, **SCRATCH)
    new = add_run(store, {}, **SCRATCH)
    add_run(store, {}, **SCRATCH | decoy)
    assert own_of(store, "sketch-shapes", GLOW, "quick", 1).run_id == new


def test_without_an_own_model_the_error_says_how_to_train_it(store):
    add_run(store, {}, **SCRATCH)
    with pytest.raises(UserError, match="from scratch on sketch-shapes with seed 3") as error:
        own_of(store, "sketch-shapes", GLOW, "quick", 3)
    name, given = command_in(error.value)
    wanted = {"dataset": "sketch-shapes", "seeds": (3,), "depth": 4, "hidden": 32, "model": "glow"}
    assert name == "train" and wanted.items() <= given.items()


NO_CONTRAST = {
    "of another seed": {"seed": "2"},
    "of another dataset": {"dataset": "sketch-digits"},
    "with an outlier loss": {"outlier_loss": "margin"},
    "supervised": {"setting": "supervised"},
}


@pytest.mark.parametrize("decoy", (DECOYS | NO_CONTRAST).values(), ids=DECOYS | NO_CONTRAST)
def test_diff_outlier_contrasts_with_the_newest_plain_model_of_its_seed(store, decoy):
    add_run(store, {})
    new = add_run(store, {})
    add_run(store, {}, **decoy)
    assert contrast_of(store, "auto", "sketch-shapes", GLOW, 1).run_id == new


def test_without_a_plain_model_the_error_says_how_to_finetune_it(store):
    with pytest.raises(UserError, match="on sketch-shapes with seed 4 to contrast with") as error:
        contrast_of(store, "auto", "sketch-shapes", GLOW, 4)
    name, given = command_in(error.value)
    wanted = {"dataset": "sketch-shapes", "seeds": (4,), "outlier_loss": "none", "depth": 4}
    assert name == "finetune" and wanted.items() <= given.items()


def add_diff_outlier(store, **changes) -> str:
    """A general model that has shapes as its outliers."""
    usual = {
        "dataset": "sketch-general",
        "role": "general",
        "outlier_loss": "binary",
        "outlier_dataset": "sketch-shapes",
    }
    return add_run(store, {}, **usual | changes)


NO_DIFF_OUTLIER = {
    "of another seed": {"seed": "2"},
    "with other outliers": {"outlier_dataset": "sketch-digits"},
    "an in-distribution model": {"role": "in_distribution"},
    "without outliers": {"outlier_loss": "none"},
    "grey": {"params": other_size("channels", "1")},
    "not registered": {"registered": "false"},
    "an evaluation of it": {"kind": "evaluate"},
    "another family": {"model": "glow-local"},
}


@pytest.mark.parametrize("decoy", NO_DIFF_OUTLIER.values(), ids=NO_DIFF_OUTLIER)
def test_the_general_model_of_diff_outlier_is_the_newest_of_dataset_and_seed(store, decoy):
    run = runs.get(store, add_run(store, {}))
    assert diff_outlier_general(store, run) is None
    add_diff_outlier(store)
    # Its architecture may be another one: what counts are likelihoods of the same images.
    new = add_diff_outlier(store, params=other_size("depth", "2"))
    add_diff_outlier(store, **decoy)
    assert diff_outlier_general(store, run).run_id == new


def test_of_each_experiment_the_newest_run_is_evaluated_the_oldest_experiment_first(store):
    add_run(store, {}, spec="a")
    other = add_run(store, {}, spec="b")
    again = add_run(store, {}, spec="a")
    add_run(store, {}, spec="b", kind="evaluate")
    add_run(store, {}, spec="c", registered="false")
    add_general(store, spec="d")
    assert [run.run_id for run in in_distribution_runs(store)] == [other, again]


# Numbers from studies

STUDY = {"kind": "tune", "outlier_loss": "binary", "study": "s", "best_trial": "3"}
BEST = {"best_temperature": "12.5", "best_outlier_weight": "700.0"}


def test_tuned_numbers_are_those_of_the_newest_study_and_name_it(store):
    add_run(store, {}, **STUDY | BEST | {"best_temperature": "1.0"})
    newest = add_run(store, {}, **STUDY | BEST)
    for decoy in (
        {"dataset": "sketch-digits"},
        {"model": "pixelcnn"},
        {"outlier_loss": "margin"},
        {"registered": "false"},
        {"status": "FAILED"},
    ):
        add_run(store, {}, **STUDY | BEST | {"best_temperature": "2.0"} | decoy)
    given = FinetuneOptions(outlier_loss="binary", temperature="tuned", outlier_weight="tuned")
    found, origins = tuned(store, given, "sketch-shapes")
    expected = FinetuneOptions(outlier_loss="binary", temperature=12.5, outlier_weight=700.0)
    assert found == expected
    assert origins == {"tuned_study": "s", "tuned_trial": "3", "tuned_run": newest}


def test_numbers_that_are_given_need_no_study(store):
    given = FinetuneOptions(outlier_loss="binary", temperature=7.0)
    assert tuned(store, given, "sketch-shapes") == (given, {})


def test_only_what_is_tuned_comes_from_the_study(store):
    add_run(store, {}, **STUDY | BEST)
    given = FinetuneOptions(outlier_loss="binary", temperature="tuned", outlier_weight=3.0)
    found, _ = tuned(store, given, "sketch-shapes")
    assert (found.temperature, found.outlier_weight) == (12.5, 3.0)


def test_a_number_that_the_study_did_not_search_is_asked_for(store):
    add_run(store, {}, **STUDY | BEST)
    given = FinetuneOptions(outlier_loss="binary", temperature="tuned", margin="tuned")
    with pytest.raises(UserError, match="study s did not search margin"):
        tuned(store, given, "sketch-shapes")


@pytest.mark.parametrize(("loss", "searched"), [("margin", "margin"), ("none", "binary")])
def test_without_a_study_the_error_says_how_to_make_it(store, loss, searched):
    add_run(store, {}, **STUDY | BEST)
    with pytest.raises(UserError, match=f"no registered study of the {loss} loss") as error:
        tuned(store, FinetuneOptions(outlier_loss=loss, margin="tuned"), "sketch-shapes")
    name, given = command_in(error.value)
    wanted = {"dataset": "sketch-shapes", "model": "glow", "outlier_loss": searched}
    assert name == "tune" and wanted.items() <= given.items()


# Through the command line


@pytest.mark.long
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
