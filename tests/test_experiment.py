"""The experiment as a value: identity, round trip, logged names, presets."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest

from oodflow.entry_points import ENTRY_POINTS
from oodflow.errors import UserError
from oodflow.experiment import (
    Data,
    Experiment,
    Loss,
    Model,
    Optimisation,
    from_dict,
    parameters,
    spec_hash,
    to_dict,
)
from oodflow.models.build import build_model
from oodflow.options import (
    BenchOptions,
    EvaluateOptions,
    FinetuneOptions,
    ReproduceOptions,
    TrainOptions,
    TuneOptions,
    carried,
    options_of,
    seed_list,
)
from oodflow.presets import architecture, build_experiment, loss_of

EXPERIMENT = Experiment(
    model=Model(channels=3, name="glow", depth=4, hidden=32),
    data=Data("sketch-shapes", 64),
    loss=Loss("binary", "sketch-general", 1000.0, 6000.0),
    optimisation=Optimisation(150, 64, 1e-3, 5e-5, 20, 50, "fp32"),
    init="0123456789abcdef",
    general="fedcba9876543210",
    seed=1,
)


def leaves(value, path=()):
    """Path → value of every field that is not itself a section."""
    if not dataclasses.is_dataclass(value):
        return {path: value}
    found = {}
    for each in dataclasses.fields(value):
        found |= leaves(getattr(value, each.name), (*path, each.name))
    return found


def with_value(value, path, new):
    """A copy in which one leaf is another."""
    if not path:
        return new
    inner = with_value(getattr(value, path[0]), path[1:], new)
    return dataclasses.replace(value, **{path[0]: inner})


def another(value):
    return value + "x" if isinstance(value, str) else value + 1


LEAVES = leaves(EXPERIMENT)
VARIANTS = {
    ".".join(path): with_value(EXPERIMENT, path, another(value)) for path, value in LEAVES.items()
}


def test_every_single_field_changes_the_hash():
    hashes = [spec_hash(EXPERIMENT), *map(spec_hash, VARIANTS.values())]
    assert len(set(hashes)) == len(hashes)


def test_runs_that_are_in_stores_keep_their_hash():
    """By it their trainings are found again: another one would train everything anew."""
    assert spec_hash(EXPERIMENT) == "fd819e7f455ea0a9"


def test_a_learning_rate_that_differs_in_its_last_digit_is_another_experiment():
    lr = math.nextafter(EXPERIMENT.optimisation.lr, 1.0)
    other = with_value(EXPERIMENT, ("optimisation", "lr"), lr)
    assert spec_hash(other) != spec_hash(EXPERIMENT)


def test_equal_values_have_equal_hashes_however_they_came_about():
    backwards = json.dumps(to_dict(EXPERIMENT), sort_keys=True)
    again = from_dict(dict(reversed(json.loads(backwards).items())))
    assert again == EXPERIMENT
    assert spec_hash(again) == spec_hash(EXPERIMENT)


def test_fields_that_were_added_later_leave_older_hashes_as_they_were():
    """The hash that this experiment had when a model had neither patches nor layers."""
    assert spec_hash(EXPERIMENT) == "fd819e7f455ea0a9"
    assert not {"patch", "layers"} & set(to_dict(EXPERIMENT)["model"])
    patched = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(EXPERIMENT.model, patch=4))
    assert to_dict(patched)["model"] == to_dict(EXPERIMENT)["model"] | {"patch": 4}


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_hash_is_the_same_in_another_process(hash_seed):
    code = (
        "import json, sys; from oodflow.experiment import *; "
        "print(spec_hash(from_dict(json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(to_dict(EXPERIMENT))],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == spec_hash(EXPERIMENT)


@pytest.mark.parametrize("experiment", VARIANTS.values(), ids=VARIANTS)
def test_an_experiment_survives_json(experiment):
    again = from_dict(json.loads(json.dumps(to_dict(experiment))))
    assert again == experiment
    assert {path: type(value) for path, value in leaves(again).items()} == {
        path: type(value) for path, value in LEAVES.items()
    }


@pytest.mark.parametrize("section", [None, "model", "data", "loss", "optimisation"])
def test_a_missing_or_unknown_field_is_refused(section):
    for change in ("drop", "add"):
        values = to_dict(EXPERIMENT)
        place = values[section] if section else values
        if change == "drop":
            place.popitem()
        else:
            place["novelty"] = 1
        with pytest.raises(UserError, match="not an experiment"):
            from_dict(values)


@pytest.mark.parametrize("values", [None, "glow", [1], {}])
def test_something_else_than_an_experiment_is_refused(values):
    with pytest.raises(UserError):
        from_dict(values)


def test_each_leaf_is_logged_under_one_dotted_name_of_its_own():
    logged = parameters(EXPERIMENT)
    assert len(logged) == len(LEAVES)
    assert all("." in name for name in logged)
    assert {name.split(".")[-1] for name in logged} == {path[-1] for path in LEAVES}


def test_no_logged_name_is_one_that_mlflow_run_logs():
    given = {each.name for entry in ENTRY_POINTS.values() for each in options_of(entry.options)}
    assert not given & set(parameters(EXPERIMENT))


def test_every_field_is_told_apart_by_the_logged_parameters():
    plain = parameters(EXPERIMENT)
    for name, variant in VARIANTS.items():
        logged = parameters(variant)
        differing = [key for key in plain if plain[key] != logged[key]]
        assert len(differing) == 1, name


# Presets


def experiment_of(given, dataset="cifar10", role="in_distribution", train_size=50_000, **changes):
    facts = {
        "dataset": dataset,
        "role": role,
        "train_size": train_size,
        "model": architecture(given, 3),
        "loss": Loss("none", "", 0.0, 0.0),
        "init": "scratch",
    }
    return build_experiment(given, **(facts | changes))


def test_the_paper_preset_has_the_published_settings():
    experiment = experiment_of(TrainOptions(preset="paper"))
    assert experiment.model == Model(channels=3, name="glow", depth=32, hidden=512)
    assert experiment.optimisation.batch_size == 64
    assert experiment.optimisation.lr == 5e-4
    assert experiment.optimisation.weight_decay == 5e-5
    assert experiment.optimisation.steps == 250 * (50_000 // 64)


def test_the_paper_preset_of_tarflow_has_the_published_settings():
    experiment = experiment_of(TrainOptions(preset="paper", model="tarflow"))
    expected = Model(channels=3, name="tarflow", depth=8, hidden=768, patch=2, layers=8)
    assert experiment.model == expected
    # An epoch of 195 batches, of which the first warms up.
    expected = Optimisation(100 * 195, 256, 1e-4, 1e-4, 195, 195, "fp32")
    assert experiment.optimisation == expected
    tiny = {"dataset": "tiny", "role": "general", "train_size": 79_302_017}
    general = experiment_of(TrainOptions(preset="paper", model="tarflow"), **tiny)
    assert general.optimisation.steps == 100 * 195 and general.optimisation.warmup == 195


def test_tarflow_has_no_supervised_form():
    model = architecture(TrainOptions(model="tarflow"), 3)
    with pytest.raises(UserError, match="tarflow has no class-conditional form"):
        build_model(dataclasses.replace(model, classes=10))


def test_the_paper_preset_trains_the_general_model_for_as_many_updates():
    paper = TrainOptions(preset="paper")
    own = experiment_of(paper)
    general = experiment_of(paper, dataset="tiny", role="general", train_size=79_302_017)
    assert general.optimisation.steps == own.optimisation.steps


def test_the_paper_preset_finetunes_for_250_epochs():
    tuned = experiment_of(FinetuneOptions(preset="paper"), init="0123456789abcdef")
    assert tuned.optimisation.steps == 250 * (50_000 // 64)


@pytest.mark.parametrize(
    ("limit", "steps"), [(0, 2 * (100 // 16)), (40, 2 * (40 // 16)), (400, 2 * (100 // 16))]
)
def test_epochs_are_whole_passes_over_the_images_in_use(limit, steps):
    given = TrainOptions(epochs=2, batch_size=16, limit=limit)
    assert experiment_of(given, train_size=100).optimisation.steps == steps


@pytest.mark.parametrize("preset", ["quick", "small", "paper"])
def test_what_is_given_wins_over_the_preset(preset):
    given = {
        "steps": 7,
        "batch_size": 3,
        "lr": 0.25,
        "weight_decay": 0.0,
        "warmup": 0,
        "report_every": 2,
        "precision": "bf16",
        "cooldown": 3,
    }
    experiment = experiment_of(TrainOptions(preset=preset, depth=2, hidden=5, **given))
    assert dataclasses.asdict(experiment.optimisation) == given
    assert (experiment.model.depth, experiment.model.hidden) == (2, 5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("steps", -3),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -1.0),
        ("weight_decay", math.nan),
        ("warmup", -1),
        ("cooldown", -1),
        ("report_every", 0),
        ("limit", -1),
        ("depth", 0),
        ("hidden", -8),
    ],
)
def test_a_number_that_makes_no_training_is_refused_by_name(option, value):
    expected = "steps" if option == "epochs" else option
    with pytest.raises(UserError, match=expected):
        experiment_of(TrainOptions(**{option: value}))


@pytest.mark.parametrize("option", ["temperature", "outlier_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_number_that_makes_no_outlier_loss_is_refused_by_name(option, value):
    with pytest.raises(UserError, match=option):
        loss_of(FinetuneOptions(outlier_loss="binary", **{option: value}), "sketch-general")


def test_the_binary_loss_has_the_published_temperature_and_weight():
    loss = loss_of(FinetuneOptions(outlier_loss="binary"), "sketch-general")
    assert loss == Loss("binary", "sketch-general", temperature=1000.0, outlier_weight=6000.0)


def test_the_binary_loss_of_grey_images_has_a_third_of_both():
    grey = loss_of(FinetuneOptions(outlier_loss="binary"), "pictures-grey", channels=1)
    assert (grey.temperature, grey.outlier_weight) == (1000 / 3, 2000.0)
    given = FinetuneOptions(outlier_loss="binary", temperature=70.0, outlier_weight=30.0)
    grey = loss_of(given, "pictures-grey", channels=1)
    assert (grey.temperature, grey.outlier_weight) == (70.0, 30.0)
    # The margin is a number of dimensions already.
    margin = FinetuneOptions(outlier_loss="margin")
    assert loss_of(margin, "x", channels=1) == loss_of(margin, "x", channels=3)


def test_a_rate_that_does_not_fall_leaves_the_hash_as_it_was():
    quick = experiment_of(TrainOptions())
    assert quick.optimisation.cooldown == 0
    assert "cooldown" not in to_dict(quick)["optimisation"]
    small = experiment_of(TrainOptions(preset="small", steps=100))
    assert small.optimisation.cooldown == 30


def test_options_that_the_loss_ignores_do_not_make_another_experiment():
    plain = loss_of(FinetuneOptions(), "sketch-general")
    given = {"outlier_dataset": "sketch-digits", "temperature": 7.0, "outlier_weight": 3.0}
    assert loss_of(FinetuneOptions(**given), "sketch-general") == plain
    margin = loss_of(FinetuneOptions(outlier_loss="margin"), "sketch-general")
    hotter = FinetuneOptions(outlier_loss="margin", temperature=7.0)
    assert loss_of(hotter, "sketch-general") == margin


def test_an_outlier_loss_without_a_known_general_set_asks_for_the_outliers():
    with pytest.raises(UserError, match="--outlier-dataset"):
        loss_of(FinetuneOptions(outlier_loss="binary"), "")


@pytest.mark.parametrize("option", ["temperature", "outlier_weight", "margin"])
def test_a_number_that_a_study_has_to_give_is_asked_for(option):
    loss = "margin" if option == "margin" else "binary"
    with pytest.raises(UserError, match=f"{option} is 'tuned'"):
        loss_of(FinetuneOptions(outlier_loss=loss, **{option: "tuned"}), "sketch-general")


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (TrainOptions, "model", "glw"),
        (TrainOptions, "preset", "huge"),
        (TrainOptions, "precision", "fp8"),
        (FinetuneOptions, "outlier_loss", "hinge"),
        (TuneOptions, "outlier_loss", "none"),
        (EvaluateOptions, "inlier_fold", "valid"),
        (ReproduceOptions, "engine", "slurm"),
        (ReproduceOptions, "preset", "huge"),
        (BenchOptions, "compare", "eagerly"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_in_python_too(kind, option, value):
    with pytest.raises(UserError, match=f"unknown {option} '{value}'; available: "):
        kind(**{option: value})


def test_options_that_another_command_shares_are_carried_over_and_own_ones_win():
    source = FinetuneOptions(steps=5, temperature=7.0, seeds=(3,), device="cpu", dataset="svhn")
    assert carried(TrainOptions, source, dataset="mnist", depth=2) == TrainOptions(
        steps=5, seeds=(3,), device="cpu", dataset="mnist", depth=2
    )
    assert carried(FinetuneOptions, TrainOptions()) == FinetuneOptions()


@pytest.mark.parametrize("text", ["x", "", "1,,2", "1.5", "1;2", "99999999999999999999"])
def test_a_list_that_is_not_of_seeds_is_refused(text):
    with pytest.raises(UserError, match="seeds"):
        seed_list(text)
