"""Plans: what files may say, the tasks they stand for, and what the built-in ones name."""

import pickle
import shlex
from itertools import product

import pytest

from oodflow.cli import cli
from oodflow.data.catalog import lookup
from oodflow.entry_points import ENTRY_POINTS
from oodflow.errors import UserError
from oodflow.options import (
    AnalyseOptions,
    FinetuneOptions,
    ReportOptions,
    TrainOptions,
    options_of,
)
from oodflow.plans.plan import RUN_OPTIONS, built_in, parse_plan, read_plan
from oodflow.plans.tasks import TRAINING, expand

SMALL = """
title: small
seeds: [5, 9]
values: {general: sketch-general}
with: {steps: 7, subset: 40}
steps:
  - name: general
    entry_point: train
    with: {dataset: $general, steps: 20}
    seeds: 1
  - name: scratch
    entry_point: train
    each: {dataset: [sketch-shapes, sketch-digits]}
    from: {general: general}
  - name: loss
    entry_point: finetune
    with: {temperature: 500}
    each: {dataset: [sketch-shapes, sketch-digits], outlier_loss: [none, binary]}
    from: {init: general}
  - name: own
    entry_point: finetune
    with: {dataset: sketch-digits}
    from: {init: scratch, general: general}
    seeds: 1
  - name: reversed
    entry_point: finetune
    with: {dataset: $general, outlier_loss: binary}
    each: {outlier_dataset: [sketch-digits]}
    from: {init: general, general: scratch}
  - name: scores
    entry_point: evaluate
    from: {run: [own, scratch], general: general}
    seeds: 1
  - name: analysis
    entry_point: analyse
  - name: report
    entry_point: report
"""

EXPANDED = [
    # name, entry point, seed, needs
    ("general · seed 5", "train", 5, {}),
    ("scratch · sketch-shapes · seed 5", "train", 5, {"general": "general · seed 5"}),
    ("scratch · sketch-shapes · seed 9", "train", 9, {"general": "general · seed 5"}),
    ("scratch · sketch-digits · seed 5", "train", 5, {"general": "general · seed 5"}),
    ("scratch · sketch-digits · seed 9", "train", 9, {"general": "general · seed 5"}),
    ("loss · sketch-shapes · none · seed 5", "finetune", 5, {"init": "general · seed 5"}),
    ("loss · sketch-shapes · none · seed 9", "finetune", 9, {"init": "general · seed 5"}),
    ("loss · sketch-shapes · binary · seed 5", "finetune", 5, {"init": "general · seed 5"}),
    ("loss · sketch-shapes · binary · seed 9", "finetune", 9, {"init": "general · seed 5"}),
    ("loss · sketch-digits · none · seed 5", "finetune", 5, {"init": "general · seed 5"}),
    ("loss · sketch-digits · none · seed 9", "finetune", 9, {"init": "general · seed 5"}),
    ("loss · sketch-digits · binary · seed 5", "finetune", 5, {"init": "general · seed 5"}),
    ("loss · sketch-digits · binary · seed 9", "finetune", 9, {"init": "general · seed 5"}),
    (
        "own · seed 5",
        "finetune",
        5,
        {"init": "scratch · sketch-digits · seed 5", "general": "general · seed 5"},
    ),
    (
        "reversed · sketch-digits · seed 5",
        "finetune",
        5,
        {"init": "general · seed 5", "general": "scratch · sketch-digits · seed 5"},
    ),
    (
        "reversed · sketch-digits · seed 9",
        "finetune",
        9,
        {"init": "general · seed 5", "general": "scratch · sketch-digits · seed 9"},
    ),
    (
        "scores · own · seed 5",
        "evaluate",
        5,
        {"run": "own · seed 5", "general": "general · seed 5"},
    ),
    (
        "scores · scratch · sketch-shapes · seed 5",
        "evaluate",
        5,
        {"run": "scratch · sketch-shapes · seed 5", "general": "general · seed 5"},
    ),
    (
        "scores · scratch · sketch-digits · seed 5",
        "evaluate",
        5,
        {"run": "scratch · sketch-digits · seed 5", "general": "general · seed 5"},
    ),
    ("analysis", "analyse", None, {}),
    ("report", "report", None, {}),
]


def small(**changes):
    return expand(parse_plan("small.yaml", SMALL), **changes)


def test_a_plan_is_multiplied_out_in_order_with_seeds_and_dependencies():
    tasks = small()
    assert [(t.name, t.entry_point, t.seed, dict(t.needs)) for t in tasks] == EXPANDED


def test_what_looks_at_all_runs_comes_after_all_tasks_before_it_and_nothing_else_does():
    tasks = small()
    names = [task.name for task in tasks]
    assert [task.name for task in tasks if task.after] == ["analysis", "report"]
    assert tasks[-2].after == tuple(names[:-2]) and tasks[-1].after == tuple(names[:-1])


def test_options_are_defaults_then_those_of_the_plan_the_step_and_each():
    tasks = {task.name: task.options for task in small()}
    assert tasks["loss · sketch-digits · binary · seed 9"] == FinetuneOptions(
        steps=7,
        temperature=500.0,
        dataset="sketch-digits",
        outlier_loss="binary",
        seeds=(9,),
        resume=True,
    )
    # The hash of an experiment tells 500 from 500.0.
    assert type(tasks["loss · sketch-digits · binary · seed 9"].temperature) is float
    assert tasks["general · seed 5"] == TrainOptions(
        steps=20, dataset="sketch-general", seeds=(5,), resume=True
    )
    assert tasks["analysis"] == AnalyseOptions(subset=40)
    assert tasks["report"] == ReportOptions()


def test_other_seeds_stand_in_place_of_the_plans():
    tasks = small(seeds=[3])
    assert {task.seed for task in tasks} == {3, None}
    assert len(tasks) == 1 + 2 + 4 + 1 + 1 + 3 + 2
    assert dict(tasks[1].needs) == {"general": "general · seed 3"}


def test_values_and_overrides_are_laid_over_every_task_that_has_the_option():
    plain, laid = small(), small(values={"general": "tiny"}, overrides={"steps": 2, "limit": 64})
    assert [task.name for task in laid] == [task.name for task in plain]
    for task in laid:
        training = task.entry_point in TRAINING
        assert getattr(task.options, "steps", None) == (2 if training else None)
        limited = not isinstance(task.options, ReportOptions)
        assert getattr(task.options, "limit", None) == (64 if limited else None)
    assert laid[0].options.dataset == laid[14].options.dataset == "tiny"
    with pytest.raises(UserError, match="'universal'; available: general"):
        small(values={"universal": "tiny"})


def test_depth_and_hidden_are_laid_over_densities_only():
    for task in expand(read_plan("sketch"), overrides={"depth": 1, "hidden": 8}):
        if task.entry_point in TRAINING:
            sizes = task.options.depth, task.options.hidden
            assert sizes == ((None, None) if task.step == "classifier" else (1, 8))


def test_tasks_can_be_sent_to_other_processes():
    tasks = small()
    assert pickle.loads(pickle.dumps(tasks)) == tasks


def test_a_reference_that_fits_no_run_is_refused_with_those_there_are():
    text = SMALL.replace("{init: scratch, general: general}", "{init: loss, general: general}")
    with pytest.raises(UserError) as error:
        expand(parse_plan("small.yaml", text))
    there = ", ".join(
        f"loss · {dataset} · {loss} · seed 5"
        for dataset, loss in product(("sketch-shapes", "sketch-digits"), ("none", "binary"))
    )
    assert str(error.value) == (
        f"small.yaml: own · seed 5 takes its init from one run, but none fits: {there}"
    )


SEEDS = """
title: as many general models as seeds, but for one
seeds: [4, 6, 8]
steps:
  - {name: general, entry_point: train, seeds: 2}
  - {name: tuned, entry_point: finetune, from: {init: general}, seeds: 2}
"""


def test_a_run_of_several_seeds_is_taken_with_the_own_seed_alone():
    tasks = expand(parse_plan("seeds.yaml", SEEDS))
    assert [(task.seed, dict(task.needs)) for task in tasks[2:]] == [
        (4, {"init": "general · seed 4"}),
        (6, {"init": "general · seed 6"}),
    ]
    with pytest.raises(UserError, match="tuned · seed 8 takes its init from one run, but none"):
        expand(parse_plan("seeds.yaml", SEEDS.replace("general}, seeds: 2", "general}")))


# What a file may not say


def plan(step: str, head: str = "title: t\nseeds: [1]\n") -> str:
    return f"{head}steps:\n  - {step}\n"


GENERAL = "{name: general, entry_point: train}"

BROKEN = [
    ("title: [", ["not valid YAML", "line 1"]),
    ("- a\n- b\n", ["the plan is ['a', 'b']"]),
    ("title: t\nseeds: [1]\n", ["no steps"]),
    ("seeds: [1]\nsteps: []\n", ["no title"]),
    (plan(GENERAL, "title: t\nseeds: [1]\ncolour: red\n"), ["'colour'", "seeds, values, with"]),
    (plan(GENERAL, "title: t\nseeds: 3\n"), ["seeds is 3", "[a, b]"]),
    (plan(GENERAL, "title: t\nseeds: [1, -2]\n"), ["seeds is [1, -2]"]),
    (plan(GENERAL, "title: t\nseeds: [1, 1]\n"), ["seeds has 1 twice"]),
    (plan(GENERAL, "title: t\nseeds: [1]\nwith: {stepz: 3}\n"), ["'stepz'", "steps"]),
    (plan("general"), ["step 1 is 'general'"]),
    (plan("{entry_point: train}"), ["step 1 has the name None"]),
    (plan(GENERAL + "\n  - {name: general, entry_point: report}"), ["step 2", "name 'general'"]),
    (plan("{name: a, entry_point: trian}"), ["step a", "'trian'", "train, finetune"]),
    (plan("{name: a, entry_point: train, wiht: {}}"), ["step a", "'wiht'", "with, each, from"]),
    (plan("{name: a, entry_point: train, with: {los: 1}}"), ["step a", "option of train 'los'"]),
    (plan("{name: a, entry_point: train, with: {seeds: 1}}"), ["option of train 'seeds'"]),
    (plan("{name: a, entry_point: train, with: [steps]}"), ["step a: with is ['steps']"]),
    (plan("{name: a, entry_point: train, with: {steps: few}}"), ["steps is 'few'", "a whole num"]),
    (plan("{name: a, entry_point: train, with: {steps: 1.5}}"), ["steps is 1.5", "auto"]),
    (plan("{name: a, entry_point: train, with: {steps: true}}"), ["steps is True"]),
    (plan("{name: a, entry_point: train, with: {dataset: 3}}"), ["dataset is 3", "a text"]),
    (plan("{name: a, entry_point: train, with: {dataset: nope}}"), ["step a", "'nope'", "cifar10"]),
    (plan("{name: a, entry_point: train, with: {model: glw}}"), ["'glw'", "glow-local"]),
    (plan("{name: a, entry_point: train, with: {dataset: $set}}"), ["value '$set'"]),
    (plan("{name: a, entry_point: train, each: {steps: 3}}"), ["steps is 3", "[a, b]"]),
    (plan("{name: a, entry_point: train, each: {steps: []}}"), ["steps is []"]),
    (plan("{name: a, entry_point: train, each: {steps: [3, x]}}"), ["steps is 'x'"]),
    (plan("{name: a, entry_point: train, with: {lr: 1}, each: {lr: [1]}}"), ["lr is given twice"]),
    (plan("{name: a, entry_point: train, seeds: 0}"), ["step a: seeds is 0", "how many"]),
    (plan("{name: a, entry_point: train, seeds: [1]}"), ["step a: seeds is [1]", "how many"]),
    (plan("{name: a, entry_point: finetune, from: {init: a}}"), ["init is 'a'", "not an earlier"]),
    (plan("{name: a, entry_point: finetune, from: {steps: a}}"), ["'steps'", "init, general"]),
    (
        plan(GENERAL + "\n  - {name: b, entry_point: finetune, from: {init: [general, b]}}"),
        ["step b: init takes a run of one step, not of 2"],
    ),
    (plan("{name: a, entry_point: evaluate, with: {ood: 'mnist, x'}}"), ["step a", "'x'"]),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_a_broken_plan_is_refused_naming_file_and_place(text, said):
    with pytest.raises(UserError) as error:
        parse_plan("mine.yaml", text)
    line = str(error.value)
    assert line.startswith("mine.yaml")
    assert [words for words in said if words not in line] == [], line


def test_a_plan_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="no plan 'skech'.*paper, quickstart, real, sketch"):
        read_plan("skech")
    with pytest.raises(UserError, match="path of a YAML file"):
        read_plan(str(tmp_path))


# The built-in plans


@pytest.mark.parametrize("name", built_in())
def test_a_built_in_plan_sets_options_that_its_entry_points_take(name):
    """Each task's options are given to click as words, and come back as they were."""
    tasks = expand(read_plan(name))
    assert {task.entry_point for task in tasks} <= set(RUN_OPTIONS)
    for task in tasks:
        kind = ENTRY_POINTS[task.entry_point].options
        given = {each.name: getattr(task.options, each.name) for each in options_of(kind)}
        words = [f"--{key.replace('_', '-')}={word(value)}" for key, value in given.items()]
        parsed = cli.commands[task.entry_point].make_context(task.entry_point, words).params
        assert kind(**parsed) == task.options, task.name
        for key, value in given.items():
            assert type(parsed[key]) is type(value), (task.name, key)


def word(value) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "auto" if value is None else str(value)


@pytest.mark.parametrize("name", built_in())
def test_a_built_in_plan_names_each_task_once_and_after_its_needs(name):
    seen: set[str] = set()
    for task in expand(read_plan(name)):
        assert task.name not in seen
        assert set(task.needs.values()) | set(task.after) <= seen
        seen.add(task.name)
    assert read_plan(name).steps[-1].entry_point == "report"


def trainings(name: str) -> dict[tuple, set]:
    """(model, dataset, init, loss, outliers, setting) → seeds, as reports tell trainings apart."""
    tasks = {task.name: task for task in expand(read_plan(name))}
    found: dict[tuple, set] = {}
    for task in tasks.values():
        if task.entry_point in TRAINING:
            given, init = task.options, "scratch"
            if "init" in task.needs:
                start = tasks[task.needs["init"]].options
                assert start.model == given.model
                init = START[lookup(start.dataset).role]
            key = (
                given.model,
                given.dataset,
                init,
                getattr(given, "outlier_loss", "none"),
                getattr(given, "outlier_dataset", "auto"),
                "supervised" if getattr(given, "supervised", False) else "unsupervised",
            )
            assert task.seed not in found.setdefault(key, set()), key
            found[key].add(task.seed)
    return found


START = {"general": "general", "in_distribution": "own"}

SETTINGS = [
    ("glow", "scratch", "none", "unsupervised"),
    ("glow", "general", "none", "unsupervised"),
    ("glow", "own", "none", "unsupervised"),
    ("glow", "general", "binary", "unsupervised"),
    ("glow", "general", "binary", "supervised"),
    ("glow", "general", "margin", "unsupervised"),
    ("wide-resnet", "scratch", "none", "unsupervised"),
]
"""What every in-distribution dataset of the tables has; by Diff† each has a general model too."""

EVERY, FIRST = {1, 2, 3}, {1}


def needed(general: str, inliers, others) -> dict[tuple, set]:
    """Trainings behind the tables; ``others`` are finetuned ones as (model, dataset, loss)."""
    found = {
        (model, dataset, init, loss, "auto", setting): EVERY
        for dataset in inliers
        for model, init, loss, setting in SETTINGS
    }
    for dataset in inliers:
        found["glow", general, "general", "binary", dataset, "unsupervised"] = EVERY
    for model in ("glow", "glow-local", "glow-dense", "pixelcnn"):
        found[model, general, "scratch", "none", "auto", "unsupervised"] = FIRST
    for model, dataset, loss in others:
        found[model, dataset, "general", loss, "auto", "unsupervised"] = EVERY
    return found


def test_the_sketch_plan_trains_what_the_tables_need_and_nothing_else():
    models = ("glow-local", "glow-dense", "pixelcnn")
    others = [(model, "sketch-shapes", "none") for model in models]
    inliers = ("sketch-shapes", "sketch-letters", "sketch-digits")
    assert trainings("sketch") == needed("sketch-general", inliers, others)


def test_the_paper_plan_trains_what_the_tables_need_and_nothing_else():
    inliers, both = ("cifar10", "cifar100", "svhn"), ("none", "binary")
    others = [
        *product(("glow-local", "glow-dense"), inliers, ("none",)),
        *product(("pixelcnn",), inliers, both),
        *product(("glow",), ("mnist", "fashion-mnist"), both),
        *(("glow", f"brats-{modality}", "none") for modality in ("t1", "t1ce", "t2", "flair")),
    ]
    expected = needed("tiny", inliers, others)
    expected["glow", "tiny-grey", "scratch", "none", "auto", "unsupervised"] = FIRST
    assert trainings("paper") == expected


def test_the_real_plan_has_every_method_for_three_seeds_and_one_general_model():
    data, general = "fashion-mnist", "pictures-grey"
    assert trainings("real") == {
        ("glow", general, "scratch", "none", "auto", "unsupervised"): FIRST,
        ("glow", data, "general", "none", "auto", "unsupervised"): EVERY,
        ("glow", data, "general", "binary", "auto", "unsupervised"): EVERY,
        ("glow", data, "general", "none", "auto", "supervised"): EVERY,
        ("glow", general, "general", "binary", data, "unsupervised"): EVERY,
    }
    tasks = expand(read_plan("real"))
    assert {task.options.preset for task in tasks if task.entry_point in TRAINING} == {"small"}


@pytest.mark.parametrize("name", ["sketch", "paper"])
def test_curves_compare_equal_numbers_of_updates_and_scores_with_the_general_model(name):
    tasks = {task.name: task for task in expand(read_plan(name))}
    for task in tasks.values():
        if task.step in ("scratch", "finetuned", "own-finetuned"):
            assert task.options.steps == (300 if name == "sketch" else None)
        if task.step in ("scratch", "own-finetuned"):
            assert task.needs["general"] == "general · seed 1"
        if task.step == "own-finetuned":
            own = tasks[task.needs["init"]]
            assert (own.options.dataset, own.seed) == (task.options.dataset, task.seed)


@pytest.mark.parametrize("name", ["sketch", "paper"])
def test_diff_outlier_contrasts_with_the_plain_model_of_its_dataset_and_seed(name):
    tasks = {task.name: task for task in expand(read_plan(name))}
    scored = set()
    for task in tasks.values():
        if task.step == "diff-outlier":
            plain = tasks[task.needs["general"]]
            assert plain.step == "finetuned" and plain.seed == task.seed
            assert plain.options.dataset == task.options.outlier_dataset
        if task.step == "diff-outlier-scores":
            plain, general = tasks[task.needs["run"]], tasks[task.needs["general_outlier"]]
            assert general.needs["general"] == plain.name
            scored.add(plain.name)
    assert scored == {task.name for task in tasks.values() if task.step == "finetuned"}


@pytest.mark.parametrize("name", ["sketch", "paper"])
def test_plain_models_are_compared_with_every_general_distribution_and_fold(name):
    tasks = {task.name: task for task in expand(read_plan(name))}
    compared: dict[tuple, set] = {}
    for task in tasks.values():
        if task.entry_point == "evaluate" and task.step != "diff-outlier-scores":
            general = tasks.get(task.needs.get("general", ""))
            model = general.options.model if general else task.options.general
            key = model, task.options.inlier_fold
            compared.setdefault(key, set()).add(task.needs["run"])
    plain = {task.name for task in tasks.values() if task.step == "finetuned"}
    keys = [("png", "test"), ("pixelcnn", "test"), ("glow", "train"), ("png", "train")]
    assert compared == dict.fromkeys(keys, plain)


def test_the_examples_of_the_command_name_steps_that_are_there():
    for example in ENTRY_POINTS["reproduce"].examples:
        command = cli.commands["reproduce"]
        given = command.make_context("reproduce", shlex.split(example)[2:]).params
        names = {step.name for step in read_plan(given["plan"]).steps}
        assert set(given["only"].split(",")) <= names | {"all"}


def one_step(options: str) -> str:
    """A plan of one training with these options."""
    return f"title: t\nseeds: [1]\nsteps: [{{name: a, entry_point: train, with: {options}}}]"


@pytest.mark.parametrize(
    ("written", "lr"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), (".001", 1e-3), ("1.e-3", 1e-3), ("+2", 2.0)],
)
def test_numbers_are_those_of_yaml_1_2(written, lr):
    [step] = parse_plan("mine.yaml", one_step(f"{{lr: {written}, steps: 1e4}}")).steps
    assert step.options["lr"] == lr and type(step.options["lr"]) is float
    assert step.options["steps"] == 10_000 and type(step.options["steps"]) is int


@pytest.mark.parametrize("written", ["1_000", "1:30", "0x10", "yes", "2020-01-01", "'1'"])
def test_what_is_a_text_in_yaml_1_2_is_no_number(written):
    text = one_step(f"{{steps: {written}}}")
    with pytest.raises(UserError, match="steps is '.*'; it takes a whole number"):
        parse_plan("mine.yaml", text)


@pytest.mark.parametrize("text", ["title: a\ntitle: b", "title: t\nsteps: [{name: a, 'name': b}]"])
def test_a_key_that_is_given_twice_is_refused_with_its_line(text):
    with pytest.raises(UserError, match="key (title|name) is given twice.*line 2") as error:
        parse_plan("mine.yaml", text)
    assert "\n" not in str(error.value)


def test_a_dataset_of_a_plan_may_have_a_comma_in_its_name():
    [step] = parse_plan("mine.yaml", one_step("{dataset: 'folder:/a,b'}")).steps
    assert step.options["dataset"] == "folder:/a,b"
