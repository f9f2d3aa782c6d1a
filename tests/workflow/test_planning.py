"""Plans of trainings: what the options tell alone, and what data and store add to it.

Nothing is trained: the models are made with the library, the images are a few in a folder.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from oodflow.data.catalog import lookup, slug_of
from oodflow.errors import UserError
from oodflow.experiment import COMPRESSORS, Data, Experiment, Loss, Model, Optimisation, spec_hash
from oodflow.models.build import build_model
from oodflow.options import FinetuneOptions, QuickstartOptions, TrainOptions, TuneOptions
from oodflow.tracking import runs
from oodflow.training.checkpoint import save_model
from oodflow.workflow.planning import (
    dataset_of,
    finetune_plan,
    first_present,
    make_plan,
    outline,
    role_of,
    scratch_plan,
    untuned,
)
from oodflow.workflow.session import Session

TINY = {"depth": 1, "hidden": 4, "batch_size": 8, "steps": 5}


def fill(folder, count: int, seed: int, channels: int = 3):
    """A folder with images of noise in two classes."""
    noise = np.random.default_rng(seed)
    for number in range(count):
        place = folder / ("cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (32, 32, channels), dtype=np.uint8).squeeze()
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Names of datasets: the own one, a general one, and one of grey images."""
    place = tmp_path_factory.mktemp("images")
    return {
        "own": f"folder:{fill(place / 'own', 30, 1)}",
        "general": f"folder:{fill(place / 'general', 40, 2)}?role=general",
        "other": f"folder:{fill(place / 'other', 20, 3)}",
        "grey": f"folder:{fill(place / 'grey', 20, 4, channels=1)}?channels=1",
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def session(blank, data) -> Session:
    return Session(blank.store(), data, torch.device("cpu"), "")


@pytest.fixture
def add_model(session, tmp_path):
    """``add_model(dataset, role, …)`` registers a model that was never trained."""

    def add(dataset, role, kind="train", model=None, seed=1, **tags) -> runs.RunInfo:
        model = model or Model(channels=3, name="glow", depth=1, hidden=4)
        experiment = Experiment(
            model=model,
            data=Data(dataset, 0),
            loss=Loss("none", "", 0.0, 0.0),
            optimisation=Optimisation(5, 8, 1e-3, 0.0, 0, 1, "fp32"),
            init="scratch",
            general="",
            seed=seed,
        )
        folder = tmp_path / "weights"
        folder.mkdir(exist_ok=True)
        save_model(folder / "model.safetensors", build_model(model), experiment)
        usual = {
            "kind": kind,
            "model": model.name,
            "dataset": dataset,
            "role": role,
            "setting": "unsupervised",
            "outlier_loss": "none",
            "outlier_dataset": "",
            "init": "scratch",
            "seed": str(seed),
            "spec": spec_hash(experiment),
        }
        store = session.store
        run_id = runs.start(store, "made by a test", usual | tags)
        sizes = {"depth": model.depth, "hidden": model.hidden, "channels": model.channels}
        runs.log_parameters(store, run_id, {f"model.{k}": str(v) for k, v in sizes.items()})
        runs.log_artifacts(store, run_id, folder, "checkpoints")
        runs.register(store, run_id, "made-by-a-test")
        runs.end(store, run_id, "FINISHED")
        return runs.get(store, run_id)

    return add


def without_identities(experiment: Experiment, init: str) -> Experiment:
    """What options alone can tell of an experiment."""
    return replace(
        experiment,
        data=replace(experiment.data, digest=""),
        loss=replace(experiment.loss, outlier_digest=""),
        init=init,
        general="",
        seed=0,
    )


# Defaults


@pytest.mark.parametrize(
    ("options", "dataset"),
    [
        (TrainOptions(), "sketch-general"),
        (FinetuneOptions(), "sketch-shapes"),
        (TuneOptions(), "sketch-shapes"),
        (QuickstartOptions(), "sketch-shapes"),
        # A classifier has the general set as its other class.
        (TrainOptions(model="wide-resnet"), "sketch-shapes"),
        (TrainOptions(dataset="cifar10"), "cifar10"),
        (FinetuneOptions(dataset="sketch-general"), "sketch-general"),
    ],
)
def test_the_dataset_of_auto_follows_from_the_entry_point(options, dataset):
    assert dataset_of(options).name == dataset


def test_a_dataset_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="'nope'.*sketch-shapes"):
        dataset_of(TrainOptions(dataset="nope"))


@pytest.mark.parametrize(
    ("dataset", "role"),
    [
        ("sketch-general", "general"),
        ("tiny-grey", "general"),
        ("folder:photos?role=general", "general"),
        ("folder:photos", "in_distribution"),
        ("sketch-shapes", "in_distribution"),
        # What serves as outliers can be trained on as well.
        ("tinyimagenet", "in_distribution"),
    ],
)
def test_a_model_of_a_general_set_is_a_general_model(dataset, role):
    assert role_of(lookup(dataset)) == role


def outlined(options, outliers="sketch-general") -> Experiment:
    return outline(options, dataset_of(options), outliers)


def test_an_outline_knows_preset_dataset_and_start_and_no_identities():
    train, finetune = outlined(TrainOptions()), outlined(FinetuneOptions())
    for experiment, dataset, steps, init in (
        (train, "sketch-general", 1000, "scratch"),
        (finetune, "sketch-shapes", 300, "general"),
    ):
        assert experiment.data == Data(dataset, 0)
        assert experiment.model == Model(channels=3, name="glow", depth=4, hidden=32)
        assert (experiment.optimisation.steps, experiment.init) == (steps, init)
        assert experiment.loss == Loss("none", "", 0.0, 0.0)
        assert (experiment.general, experiment.seed) == ("", 0)
    assert finetune.optimisation.lr < train.optimisation.lr


def test_an_outline_has_the_channels_and_passes_of_its_dataset():
    experiment = outlined(TrainOptions(dataset="mnist", epochs=2, batch_size=100, limit=1000))
    assert experiment.model.channels == 1 and experiment.optimisation.steps == 20


def test_supervision_adds_the_classes_and_the_temperature_and_weight_of_the_loss():
    experiment = outlined(FinetuneOptions(supervised=True))
    assert experiment.model.classes == 10
    assert experiment.loss == Loss("none", "", 1000.0, 6000.0)


def test_a_classifier_has_the_outliers_as_its_other_class():
    experiment = outlined(TrainOptions(model="wide-resnet"))
    assert experiment.loss == Loss("classifier", "sketch-general", 0.0, 0.0)


def test_outliers_are_made_to_agree_in_their_channels_and_named_ones_come_first():
    binary = {"outlier_loss": "binary"}
    grey = outlined(FinetuneOptions(dataset="mnist", **binary))
    assert grey.loss.outlier_dataset == "sketch-general-grey"
    named = outlined(FinetuneOptions(outlier_dataset="sketch-digits", **binary))
    assert named.loss.outlier_dataset == "sketch-digits"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FinetuneOptions(model="wide-resnet"), "wide-resnet is not finetuned"),
        (FinetuneOptions(model="png"), "png is not finetuned"),
        (TrainOptions(steps=3, epochs=2), "one of the two"),
        (TrainOptions(limit=-1), "limit is -1"),
        (TrainOptions(depth=0), "depth is 0"),
        (FinetuneOptions(outlier_loss="binary", temperature=0.0), "temperature is 0"),
        (FinetuneOptions(outlier_loss="margin", margin=-1.0), "margin is -1"),
        (FinetuneOptions(outlier_loss="binary", temperature="tuned"), "temperature is 'tuned'"),
        (
            FinetuneOptions(outlier_loss="binary", outlier_dataset="mnist"),
            "mnist has 1 channel where 3 are needed",
        ),
        *(
            (TrainOptions(model=name), f"oodflow evaluate --general {name}")
            for name in COMPRESSORS
        ),
    ],
)  # fmt: skip
def test_options_that_make_no_training_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        outlined(options)


def test_an_outlier_loss_without_outliers_asks_for_them():
    with pytest.raises(UserError, match="--outlier-dataset"):
        outlined(FinetuneOptions(outlier_loss="binary"), outliers="")


def test_what_waits_for_a_study_is_outlined_with_the_published_values():
    waiting = FinetuneOptions(
        outlier_loss="binary", temperature="tuned", outlier_weight="tuned", lr=0.25
    )
    assert untuned(waiting) == FinetuneOptions(outlier_loss="binary", lr=0.25)
    given = FinetuneOptions(outlier_loss="margin", margin=7.0, temperature=3.0)
    assert untuned(given) == given


# Plans


def test_the_first_general_set_that_is_there_counts(session, data):
    sets = ("tiny", "tiny300k", "sketch-general")
    folder = data / lookup("tiny300k").where
    folder.mkdir(parents=True)
    try:
        # An empty folder is no dataset.
        assert first_present(session, sets) == "sketch-general"
        np.save(folder / "images.npy", np.zeros((640, 32, 32, 3), np.uint8))
        assert first_present(session, sets) == "tiny300k"
    finally:
        shutil.rmtree(folder)
    assert first_present(session, ("tiny",)) == ""


@pytest.mark.parametrize("seed", [1, 5])
def test_a_plan_from_scratch_is_its_outline_with_identities(session, folders, seed):
    options = TrainOptions(dataset=folders["general"], **TINY)
    plan = scratch_plan(session, options, seed)
    facts = session.described(folders["general"]).facts
    assert without_identities(plan.experiment, "scratch") == outline(options, facts, "")
    assert plan.experiment.data.digest == session.train_digest(folders["general"])
    assert (plan.kind, plan.role, plan.start) == ("train", "general", "scratch")
    assert (plan.experiment.seed, plan.experiment.init) == (seed, "scratch")
    assert plan.init is plan.contrast is plan.general is None
    assert make_plan(session, options, seed) == plan


def test_what_is_in_distribution_is_compared_with_the_general_model_there_is(
    session, folders, add_model
):
    options = TrainOptions(dataset=folders["own"], **TINY)
    assert scratch_plan(session, options, 1).general is None
    general = add_model(folders["general"], "general")
    plan = scratch_plan(session, options, 1)
    # It is no part of the experiment, which has no outlier loss.
    assert (plan.general, plan.experiment.general) == (general, "")
    assert plan.role == "in_distribution"


def test_a_finetuning_is_its_outline_with_identities_start_and_contrast(
    session, folders, add_model
):
    general = add_model(folders["general"], "general")
    options = FinetuneOptions(dataset=folders["own"], outlier_loss="binary", **TINY)
    plan = finetune_plan(session, options, 2)
    facts = session.described(folders["own"]).facts
    # The outliers are those that the start knows as the general distribution.
    expected = outline(options, facts, folders["general"])
    assert without_identities(plan.experiment, "general") == expected
    assert plan.experiment.loss.outlier_digest == session.train_digest(folders["general"])
    assert plan.experiment.data.digest == session.train_digest(folders["own"])
    assert plan.experiment.init == plan.experiment.general == general.tags["spec"]
    assert plan.experiment.seed == 2
    assert plan.init == plan.contrast == plan.general == general
    assert (plan.kind, plan.role, plan.start) == ("finetune", "in_distribution", "general")
    assert slug_of(folders["own"]) in plan.name and plan.name.endswith("s2")
    assert make_plan(session, options, 2) == plan


def test_without_an_outlier_loss_the_general_model_is_no_part_of_the_experiment(
    session, folders, add_model
):
    general = add_model(folders["general"], "general")
    plan = finetune_plan(session, FinetuneOptions(dataset=folders["own"], **TINY), 1)
    assert (plan.general, plan.contrast, plan.experiment.general) == (general, None, "")


def test_a_start_of_ones_own_is_that_of_the_seed_and_compared_with_the_general_model(
    session, folders, add_model
):
    general = add_model(folders["general"], "general")
    own = {seed: add_model(folders["own"], "in_distribution", seed=seed) for seed in (1, 2)}
    options = FinetuneOptions(
        dataset=folders["own"], init="own", outlier_loss="binary",
        outlier_dataset=folders["other"], **TINY,
    )  # fmt: skip
    for seed in own:
        plan = finetune_plan(session, options, seed)
        assert (plan.init, plan.start, plan.general) == (own[seed], "own", general)
        assert plan.experiment.init == own[seed].tags["spec"]
        assert plan.experiment.loss.outlier_dataset == folders["other"]
    with pytest.raises(UserError, match="from scratch on .* with seed 3"):
        finetune_plan(session, options, 3)


def test_start_and_contrast_are_the_runs_that_are_named(session, folders, add_model):
    start, contrast = (add_model(folders["general"], "general", seed=seed) for seed in (3, 4))
    add_model(folders["general"], "general", seed=5)
    options = FinetuneOptions(
        dataset=folders["own"], init=start.run_id, general=contrast.run_id,
        outlier_loss="binary", **TINY,
    )  # fmt: skip
    plan = finetune_plan(session, options, 1)
    assert (plan.init, plan.contrast, plan.general) == (start, contrast, contrast)
    assert plan.experiment.init == start.tags["spec"]
    assert plan.experiment.general == contrast.tags["spec"]


def test_a_general_model_of_diff_outlier_contrasts_with_the_plain_model_of_its_seed(
    session, folders, add_model
):
    general = add_model(folders["general"], "general")
    plain = {
        seed: add_model(
            folders["own"], "in_distribution", "finetune", seed=seed, init="general"
        )
        for seed in (1, 2)
    }  # fmt: skip
    options = FinetuneOptions(
        dataset=folders["general"], init=general.run_id, outlier_loss="binary",
        outlier_dataset=folders["own"], **TINY,
    )  # fmt: skip
    for seed in plain:
        plan = finetune_plan(session, options, seed)
        assert (plan.role, plan.start, plan.init) == ("general", "general", general)
        assert (plan.contrast, plan.general) == (plain[seed], None)
        assert plan.experiment.general == plain[seed].tags["spec"]


def test_a_folder_has_the_classes_that_are_found_in_it(session, folders, add_model):
    add_model(folders["general"], "general")
    assert lookup(folders["own"]).classes == 0
    options = FinetuneOptions(dataset=folders["own"], supervised=True, **TINY)
    plan = finetune_plan(session, options, 1)
    assert plan.experiment.model.classes == 2
    # Other classes are told apart by the general model too.
    assert plan.contrast == plan.general


def test_numbers_of_a_study_are_in_the_experiment_and_traced(session, folders, add_model):
    add_model(folders["general"], "general")
    own = folders["own"]
    tags = {"kind": "tune", "dataset": own, "model": "glow", "outlier_loss": "binary"}
    tags |= {"study": "s", "best_trial": "3", "best_temperature": "12.5", "registered": "true"}
    study = runs.start(session.store, "study", tags)
    runs.end(session.store, study, "FINISHED")
    options = FinetuneOptions(dataset=own, outlier_loss="binary", temperature="tuned", **TINY)
    plan = finetune_plan(session, options, 1)
    assert plan.experiment.loss.temperature == 12.5
    assert plan.origins == {"tuned_study": "s", "tuned_trial": "3", "tuned_run": study}


def test_the_architecture_is_that_of_the_start_where_none_is_asked_for(session, folders, add_model):
    wide = Model(channels=3, name="glow", depth=2, hidden=6)
    start = add_model(folders["general"], "general", model=wide)
    options = FinetuneOptions(dataset=folders["own"], init=start.run_id, steps=5, batch_size=8)
    assert finetune_plan(session, options, 1).experiment.model == wide
    for option, value in (("depth", 1), ("hidden", 4)):
        with pytest.raises(UserError, match=f"{start.run_id} holds a glow with {option}"):
            finetune_plan(session, replace(options, **{option: value}), 1)
    with pytest.raises(UserError, match="holds a glow with model glow, but model glow-dense"):
        finetune_plan(session, replace(options, model="glow-dense"), 1)


def test_a_start_or_contrast_of_other_channels_is_refused(session, folders, add_model):
    general = add_model(folders["general"], "general")
    one = Model(channels=1, name="glow", depth=1, hidden=4)
    grey = add_model("sketch-general-grey", "general", model=one)
    options = FinetuneOptions(dataset=folders["own"], outlier_loss="binary", **TINY)
    with pytest.raises(UserError, match=f"3 channels, but the model of run {grey.run_id} has 1"):
        finetune_plan(session, replace(options, init=grey.run_id), 1)
    both = replace(options, init=general.run_id, general=grey.run_id)
    with pytest.raises(UserError, match=f"the contrast model of run {grey.run_id} has 1"):
        finetune_plan(session, both, 1)


def test_what_is_wrong_with_the_options_is_said_before_a_run_is_looked_for(session, folders):
    options = FinetuneOptions(dataset=folders["own"], outlier_loss="binary", lr=-1.0)
    with pytest.raises(UserError, match="lr is -1"):
        finetune_plan(session, options, 1)
    with pytest.raises(UserError, match="no registered glow of a general set"):
        finetune_plan(session, replace(options, lr=0.1), 1)


def test_supervision_needs_labels(session, folders, add_model):
    add_model(folders["general"], "general")
    options = FinetuneOptions(dataset="sketch-general", supervised=True)
    with pytest.raises(UserError, match="sketch-general has no labels"):
        finetune_plan(session, options, 1)


def test_a_classifier_is_not_trained_in_parts(session):
    with pytest.raises(UserError, match="one process and one part"):
        scratch_plan(replace(session, parts=2), TrainOptions(model="wide-resnet"), 1)
