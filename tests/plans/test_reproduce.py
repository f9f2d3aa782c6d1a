"""``oodflow reproduce``: plans carried out, in part there already, failing, interrupted, gone on.

All start from the quickstart's store: what it has trained is found, not trained again.
"""

import csv
import signal
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from oodflow.data.catalog import slug_of
from oodflow.plans.costs import cost, kind_of, known_costs, measure, units
from oodflow.plans.engine import FAILED, attempt
from oodflow.plans.plan import parse_plan, read_plan
from oodflow.plans.tasks import TRAINING, expand
from oodflow.tracking import runs
from oodflow.workflow.session import Session

pytestmark = pytest.mark.long

HEAD = """
title: tiny
seeds: [1, 2]
with: {depth: 1, hidden: 8, limit: 64, batch_size: 16, steps: 6, report_every: 3}
steps:
  - name: general
    entry_point: train
    with: {dataset: sketch-general}
    seeds: 1
"""

PLAN = (
    HEAD
    + """
  - name: finetuned
    entry_point: finetune
    each: {dataset: [sketch-shapes, sketch-letters]}
    from: {init: general}
  - name: scratch
    entry_point: train
    with: {dataset: sketch-letters}
    from: {general: general}
    seeds: 1
  - name: diff-outlier
    entry_point: finetune
    with: {dataset: sketch-general, outlier_loss: binary}
    each: {outlier_dataset: [sketch-shapes, sketch-letters]}
    from: {init: general, general: finetuned}
  - name: scores
    entry_point: evaluate
    from: {run: finetuned, general_outlier: diff-outlier}
  - name: png
    entry_point: evaluate
    with: {general: png, ood: sketch-digits}
    from: {run: finetuned}
    seeds: 1
"""
)

SIZES = {"general": 1, "finetuned": 4, "scratch": 1, "diff-outlier": 4, "scores": 4, "png": 2}
THERE = {"general": 1, "finetuned": 2, "diff-outlier": 2, "scores": 2}
"""What the quickstart has made of them."""


def written(workspace, text: str) -> str:
    (workspace.folder / "plan.yaml").write_text(text)
    return "plan.yaml"


def table(out: str) -> dict[str, dict[str, str]]:
    """Step → column → cell of the printed table of steps."""
    lines = [line for line in out.splitlines() if line[:1] in "┃│" and line]
    head = next(line for line in lines if "┃ step" in line)
    columns = [cell.strip() for cell in head.strip("┃").split("┃")]
    rows = {}
    for line in lines[lines.index(head) + 1 :]:
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) == len(columns):
            rows[cells[0]] = dict(zip(columns, cells, strict=True))
    return rows


def counts(out: str, state: str) -> dict[str, int]:
    """Step → tasks in this state, without the steps that have none."""
    found = {step: row.get(state, "") for step, row in table(out).items() if step != "all"}
    return {step: int(number) for step, number in found.items() if number}


def outcomes(store) -> dict[str, dict[str, str]]:
    """Task → row of the newest call's ``tasks.csv``."""
    [record, *_] = runs.find(store, {"kind": "reproduce"})
    with runs.artifact(store, record.run_id, "tasks.csv") as file:
        return {row["task"]: row for row in csv.DictReader(file.read_text().splitlines())}


def reproduce(workspace, *words: str, **variables: str):
    """The command in this process, which does one task after the other."""
    return workspace.oodflow("reproduce", "--workers", "1", *words, **variables)


def ids(store) -> set[str]:
    return {run.run_id for run in runs.find(store, {})}


@pytest.fixture(scope="module")
def made(quickstart, tmp_path_factory):
    """The plan carried out: the outcomes of a dry run, the call, and a dry run after it."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("reproduce") / "workspace")
    plan = written(workspace, PLAN)
    before = ids(workspace.store())
    dry = reproduce(workspace, "--plan", plan, "--dry-run")
    assert ids(workspace.store()) == before
    done = reproduce(workspace, "--plan", plan)
    after = reproduce(workspace, "--plan", plan, "--dry-run")
    return workspace, before, dry, done, after


def test_a_dry_run_tells_what_is_there_missing_and_waiting(made):
    dry = made[2]
    assert dry.code == 0 and dry.err == ""
    assert {s: int(row["tasks"]) for s, row in table(dry.out).items() if s != "all"} == SIZES
    assert counts(dry.out, "there") == THERE
    assert counts(dry.out, "missing") == {"finetuned": 2, "scratch": 1, "png": 1}
    assert counts(dry.out, "waiting") == {"diff-outlier": 2, "scores": 2, "png": 1}
    assert table(dry.out)["all"]["there"] == "7"


def test_a_dry_run_estimates_what_is_missing_from_runs_of_the_same_kind(made):
    """The quickstart's trainings are of the same kinds: nothing had to be measured."""
    workspace, before, dry, *_ = made
    store = workspace.store()
    known = [runs.get(store, run_id) for run_id in before]
    known = [run for run in known if run.tags["kind"] != "seeds"]
    speeds = {}
    for loss in ("none", "binary"):
        of_loss = [r for r in known if r.params.get("loss.outlier_loss") == loss]
        speeds[loss] = statistics.median(r.seconds / 6 for r in of_loss)
    assert "measur" not in dry.out and "from registered runs" in dry.out
    shown = table(dry.out)
    for step, tasks, loss in (("finetuned", 2, "none"), ("diff-outlier", 2, "binary")):
        value, unit = shown[step]["training time"].split()
        seconds = float(value) * {"ms": 1e-3, "s": 1.0, "min": 60.0}[unit]
        assert seconds == pytest.approx(tasks * 6 * speeds[loss], rel=0.06)
    assert shown["general"]["training time"] == ""


def test_a_call_makes_what_is_missing_and_keeps_what_is_there(made):
    workspace, before, _, done, after = made
    assert done.code == 0, done.err
    store = workspace.store()
    rows = outcomes(store)
    assert [row["state"] for row in rows.values()] == ["there"] * sum(SIZES.values())
    assert {s: row["there"] for s, row in table(done.out).items() if s != "all"} == {
        step: str(size) for step, size in SIZES.items()
    }
    for name, row in rows.items():
        run = runs.get(store, row["run_id"])
        assert run.registered, name
        known = row["step"] in THERE and ("shapes" in name or row["step"] == "general")
        assert (run.run_id in before) == (known or row["step"] == "scores" and "shapes" in name)
        if "seed" in name and row["step"] != "general":
            assert run.tags["seed"] == name[-1]
    assert counts(after.out, "there") == SIZES
    assert "missing" not in table(after.out)["all"]


def test_what_a_task_builds_on_is_the_run_that_the_plan_names(made):
    store = made[0].store()
    rows = {name: runs.get(store, row["run_id"]) for name, row in outcomes(store).items()}
    general = rows["general · seed 1"]
    for dataset in ("sketch-shapes", "sketch-letters"):
        for seed in (1, 2):
            plain = rows[f"finetuned · {dataset} · seed {seed}"]
            diff = rows[f"diff-outlier · {dataset} · seed {seed}"]
            assert plain.tags["init_run"] == diff.tags["init_run"] == general.run_id
            assert diff.tags["contrast_run"] == plain.run_id
            # The plain model was finished before it, and then got its score.
            assert plain.tags["general_run"] == general.run_id
            assert plain.tags["general_outlier_run"] == diff.run_id
            assert "auroc/sketch-digits/diff_outlier" in plain.metrics
            scored = rows[f"scores · finetuned · {dataset} · seed {seed}"]
            assert scored.run_id == plain.run_id
        record = rows[f"png · finetuned · {dataset} · seed 1"]
        plain = rows[f"finetuned · {dataset} · seed 1"]
        assert (record.tags["kind"], record.tags["general_model"]) == ("evaluate", "png")
        assert record.tags["evaluated"] == plain.run_id
        assert {name.split("/")[1] for name in record.metrics} - {"mean"} == {"sketch-digits"}
    assert rows["scratch · seed 1"].tags["general_run"] == general.run_id


def parents(store) -> dict[tuple[str, str], tuple[str, set[str]]]:
    """Dataset, outliers → parent of the seeds that were trained so, and its children."""
    children: dict[str, set[str]] = {}
    for run in runs.find(store, {}):
        children.setdefault(run.parent, set()).add(run.run_id)
    return {
        (run.tags["dataset"], run.tags["outlier_dataset"]): (run.run_id, children[run.run_id])
        for run in runs.find(store, {"kind": "seeds"})
        if run.run_id in children
    }


def test_a_setting_with_several_seeds_has_a_parent_and_one_with_a_single_seed_has_none(made):
    """Trained are both seeds of four settings, of which the quickstart made two already."""
    store = made[0].store()
    rows = {name: runs.get(store, row["run_id"]) for name, row in outcomes(store).items()}
    expected = {
        (dataset, outliers): {rows[f"{step} · seed {seed}"].run_id for seed in (1, 2)}
        for step, dataset, outliers in (
            ("finetuned · sketch-shapes", "sketch-shapes", ""),
            ("finetuned · sketch-letters", "sketch-letters", ""),
            ("diff-outlier · sketch-shapes", "sketch-general", "sketch-shapes"),
            ("diff-outlier · sketch-letters", "sketch-general", "sketch-letters"),
        )
    }
    found = parents(store)
    # The quickstart's outlier loss is not in this plan.
    assert {key: found[key][1] for key in expected} == expected
    assert set(found) - set(expected) == {("sketch-shapes", "sketch-general")}
    assert not rows["general · seed 1"].parent and not rows["scratch · seed 1"].parent
    for parent, children in found.values():
        run = runs.get(store, parent)
        assert (run.status, run.tags["seeds"], run.registered) == ("FINISHED", "1,2", False)
        one, other = (runs.get(store, child).metrics for child in children)
        # The scores that were added to a finished run are in it.
        for name in one.keys() & other.keys():
            values = one[name], other[name]
            assert run.metrics[f"{name}/mean"] == pytest.approx(np.mean(values), abs=1e-12)
            assert run.metrics[f"{name}/std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert any("auroc" in name for name in one) == (run.tags["role"] == "in_distribution")


def test_a_second_call_makes_nothing_and_takes_the_run_that_mlflow_has_made(made):
    workspace = made[0]
    store = workspace.store()
    before, grouped = ids(store), parents(store)
    claimed = store.client.create_run(store.experiment_id).info.run_id
    outcome = reproduce(workspace, "--plan", "plan.yaml", MLFLOW_RUN_ID=claimed)
    assert outcome.code == 0 and outcome.err == ""
    assert "16 of 16 tasks are done already" in outcome.out and "/16]" not in outcome.out
    assert ids(store) == before | {claimed}
    assert parents(store) == grouped
    record = runs.get(store, claimed)
    assert (record.tags["kind"], record.tags["registered"]) == ("reproduce", "false")
    assert record.status == "FINISHED"
    with runs.artifact(store, claimed, "plan.yaml") as file:
        assert file.read_text() == PLAN


def test_the_quickstart_is_a_plan_of_which_everything_is_there(quickstart, tiny):
    words = ("--plan", "quickstart", "--seeds", "1,2", *tiny, "--dry-run")
    outcome = reproduce(quickstart[0], *words)
    assert outcome.code == 0, outcome.err
    everything = {s: int(row["tasks"]) for s, row in table(outcome.out).items() if s != "all"}
    assert counts(outcome.out, "each time") == {"analysis": 1, "report": 1}
    assert counts(outcome.out, "there") | {"analysis": 1, "report": 1} == everything


def test_a_dry_run_of_the_sketch_plan_measures_what_no_run_tells(blank, quickstart, tiny):
    """``quickstart`` has filled the data folder."""
    outcome = reproduce(blank, *tiny, "--dry-run")
    assert outcome.code == 0, outcome.err
    tasks = expand(read_plan("sketch"))
    assert table(outcome.out)["all"]["tasks"] == str(len(tasks))
    kinds = {kind_of(task) for task in tasks if task.entry_point in TRAINING}
    assert outcome.out.count("measuring an update of") == len(kinds) == 8
    assert "measured now" in outcome.out and "from registered runs" not in outcome.out
    assert ids(blank.store()) == set()


# Failures


def fill(folder, count: int) -> None:
    """Images of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def failed(quickstart, tmp_path_factory):
    """A plan with a broken folder and one that is not there: workspace, both folders, outcome."""
    folder = tmp_path_factory.mktemp("failed")
    workspace = quickstart[0].clone(folder / "workspace")
    broken, absent = folder / "broken", folder / "absent"
    fill(broken, 30)
    (broken / "torn.png").write_bytes(b"no image")
    plan = written(workspace, f"""{HEAD}
  - name: finetuned
    entry_point: finetune
    each: {{dataset: ["folder:{broken}", "folder:{absent}", sketch-letters]}}
    from: {{init: general}}
    seeds: 1
  - name: png
    entry_point: evaluate
    with: {{general: png, ood: sketch-digits}}
    from: {{run: finetuned}}
""")  # fmt: skip
    return workspace, broken, absent, reproduce(workspace, "--plan", plan)


def by_state(store) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, row in outcomes(store).items():
        found.setdefault(row["state"], set()).add(name)
    return found


def test_a_failure_stops_what_builds_on_it_and_nothing_else(failed):
    workspace, broken, absent, outcome = failed
    assert outcome.code == 1
    of_broken = f"finetuned · {slug_of(f'folder:{broken}')} · seed 1"
    of_absent = f"finetuned · {slug_of(f'folder:{absent}')} · seed 1"
    of_letters = "finetuned · sketch-letters · seed 1"
    assert by_state(workspace.store()) == {
        "there": {"general · seed 1", of_letters, f"png · {of_letters}"},
        "failed": {of_broken},
        "absent": {of_absent},
        "waiting": {f"png · {of_broken}", f"png · {of_absent}"},
    }
    assert counts(outcome.out, "waiting") == {"png": 2}


def test_each_failure_is_one_line_that_says_why(failed):
    workspace, _, _, outcome = failed
    assert "Traceback" not in outcome.out + outcome.err
    line, last = outcome.err.splitlines()
    assert line.startswith("error: finetuned · broken-") and "torn.png" in line
    assert "2 waiting, 1 absent, 1 failed of 7 tasks" in last
    said = {row["state"]: row["reason"] for row in outcomes(workspace.store()).values()}
    assert "torn.png" in said["failed"] and "torn.png" in outcome.out
    assert said["absent"].endswith(
        "Give the path of a folder with images, or of a CSV file that lists them."
    )
    assert said["waiting"].startswith("builds on finetuned · ")
    [record, *_] = runs.find(workspace.store(), {"kind": "reproduce"})
    assert record.status == "FAILED"


def test_once_it_is_mended_the_same_command_does_the_rest(failed):
    workspace, broken, absent, _ = failed
    before = outcomes(workspace.store())
    (broken / "torn.png").unlink()
    fill(absent, 40)
    outcome = reproduce(workspace, "--plan", "plan.yaml")
    assert outcome.code == 0, outcome.err
    after = outcomes(workspace.store())
    assert {row["state"] for row in after.values()} == {"there"}
    for name, row in before.items():
        assert row["run_id"] in ("", after[name]["run_id"])
    datasets = runs.find(workspace.store(), {"kind": "finetune"})
    assert {f"folder:{broken}", f"folder:{absent}"} <= {run.tags["dataset"] for run in datasets}


UNTUNED = """
  - name: tuned
    entry_point: finetune
    with: {outlier_loss: binary, temperature: tuned}
    from: {init: general}
    seeds: 1
  - name: cifar
    entry_point: finetune
    with: {dataset: cifar10}
    from: {init: general}
    seeds: 1
"""


def test_what_fails_at_once_is_known_in_a_dry_run(trained):
    plan = written(trained, HEAD + UNTUNED)
    dry = reproduce(trained, "--plan", plan, "--dry-run")
    assert dry.code == 0
    assert "tuned · seed 1 cannot be done yet: no registered study" in dry.out
    assert "absent: cifar10: Run `oodflow datasets prepare cifar10 --download`" in dry.out
    outcome = reproduce(trained, "--plan", plan)
    assert outcome.code == 1 and "tuned · seed 1: no registered study" in outcome.err


def test_steps_that_are_named_are_done_and_no_others(blank):
    words = ("--plan", written(blank, PLAN), "--only", "finetuned, png")
    outcome = reproduce(blank, *words)
    assert outcome.code == 1
    assert set(table(outcome.out)) == {"finetuned", "png", "all"}
    found = outcomes(blank.store())
    assert {row["state"] for row in found.values()} == {"waiting"}
    assert found["finetuned · sketch-shapes · seed 2"]["reason"] == "builds on general · seed 1"


def test_a_bug_in_a_task_is_a_failure_with_its_traceback(quickstart, monkeypatch):
    def with_a_bug(*_):
        return {}["model"]

    monkeypatch.setattr("oodflow.plans.task_runs.make_plan", with_a_bug)
    workspace = quickstart[0]
    session = Session(workspace.store(), workspace.data, torch.device("cpu"), "")
    [task, *_] = expand(parse_plan("plan.yaml", PLAN))
    outcome = attempt(session, task, {})
    assert outcome.state == FAILED and outcome.run_id == "" and not outcome.mendable
    assert outcome.reason == "KeyError: 'model'"
    assert "Traceback" in outcome.details and "with_a_bug" in outcome.details


def test_an_interruption_is_exit_code_130_and_the_same_command_goes_on(trained):
    longer = "entry_point: finetune\n    with: {steps: 40, report_every: 8}\n    each"
    plan = written(trained, PLAN.replace("entry_point: finetune\n    each", longer))
    words = ("--plan", plan, "--only", "finetuned", "--seeds", "1")
    process = trained.process("reproduce", "--workers", "1", *words)
    try:
        deadline = time.monotonic() + 120
        while not list((trained.folder / ".oodflow").glob("*/training.safetensors")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    # Before it click ends the terminal's line with the ^C.
    [line] = err.strip().splitlines()
    assert line.startswith("error: interrupted") and "--resume" not in line
    store = trained.store()
    killed = {run.tags["kind"]: run for run in runs.find(store, {}, status="KILLED")}
    assert set(killed) == {"reproduce", "finetune"}
    dry = reproduce(trained, *words, "--dry-run")
    assert counts(dry.out, "interrupted") == counts(dry.out, "missing") == {"finetuned": 1}
    outcome = reproduce(trained, *words)
    assert outcome.code == 0, outcome.err
    assert "continues at update" in outcome.out
    made = [runs.get(store, row["run_id"]) for row in outcomes(store).values()]
    assert [run.registered for run in made] == [True, True]
    assert killed["finetune"].run_id in {run.run_id for run in made}


# Bad input


@pytest.mark.parametrize(("words", "said"), [
    ("--plan nope", ["no plan 'nope'", "paper", "sketch"]),
    ("--plan broken.yaml", ["broken.yaml, step general", "steps is 'many'"]),
    ("--plan plan.yaml --steps 0", ["plan.yaml, step general", "steps is 0"]),
    ("--plan plan.yaml --only finetund", ["'finetund'", "plan.yaml", "diff-outlier"]),
    ("--plan plan.yaml --seeds x", ["seeds", "'x'"]),
    ("--plan plan.yaml --general-set tiny", ["plan.yaml", "general_set"]),
    ("--general-set cifar10", ["cifar10", "role=general"]),
    ("--general-set nope", ["'nope'", "sketch-general"]),
    ("--device quantum", ["'quantum'"]),
    ("--preset huge", ["'huge'", "paper"]),
    ("--plan plan.yaml --workers 0", ["workers is 0", "at least 1"]),
    ("--plan plan.yaml --workers -2", ["workers is -2", "at least 1"]),
    ("--plan plan.yaml --workers many", ["--workers", "'many'"]),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line_before_any_run_is_made(blank, words, said):
    written(blank, PLAN)
    broken = PLAN.replace("{dataset: sketch-general}", "{dataset: sketch-general, steps: many}", 1)
    (blank.folder / "broken.yaml").write_text(broken)
    outcome = reproduce(blank, *words.split())
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert [word for word in said if word not in outcome.err] == [], outcome.err
    assert ids(blank.store()) == set()


# Costs


def task(text: str):
    return expand(parse_plan("plan.yaml", HEAD + text))[-1]


def test_costs_are_medians_of_runs_made_in_one_go_on_this_device(made):
    store = made[0].store()
    by_loss: dict[str, list[float]] = {}
    for run in runs.find(store, {"registered": "true"}):
        if run.tags["kind"] in ("train", "finetune") and run.params.get("model.depth") == "1":
            by_loss.setdefault(run.tags["outlier_loss"], []).append(run.seconds / 6)
    known = known_costs(store, "cpu")
    assert known_costs(store, "another device") == {}
    general, binary = expand(parse_plan("plan.yaml", PLAN))[0], task(BINARY)
    assert known[kind_of(general)] == pytest.approx(statistics.median(by_loss["none"]))
    assert known[kind_of(binary)] == pytest.approx(statistics.median(by_loss["binary"]))
    assert cost([general, general, binary], {kind_of(general): 0.5}) == (2 * 6 * 0.5, 1)


BINARY = """
  - name: binary
    entry_point: finetune
    with: {outlier_loss: binary}
    from: {init: general}
    seeds: 1
"""


def test_a_measurement_tells_a_large_model_from_a_small_one():
    small = task(BINARY)
    large = replace(small, options=replace(small.options, depth=4, hidden=128))
    seconds = [measure(each, torch.device("cpu")) for each in (small, large)]
    assert 0 < 3 * seconds[0] < seconds[1]


def test_updates_of_a_task_are_those_of_its_preset_and_data():
    sketch = {t.name: t for t in expand(read_plan("sketch"))}
    assert units(sketch["general · seed 1"]) == 1000
    assert units(sketch["finetuned · sketch-shapes · seed 1"]) == 300
    assert units(sketch["report"]) == 1
    paper = {t.name: t for t in expand(read_plan("paper"))}
    assert units(paper["general · seed 1"]) == 250 * 781
    assert units(paper["finetuned · svhn · seed 1"]) == 250 * (73_257 // 64)
    assert units(paper["pixelcnn-finetuned · cifar10 · none · seed 1"]) == 120 * (50_000 // 16)
