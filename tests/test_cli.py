"""The command line and MLproject: one set of options, help at once, exit codes, plain output."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from mlflow.projects._project_spec import load_project

from oodflow import console, mlproject
from oodflow.cli import cli, guarded
from oodflow.commands import COMMANDS, resolve
from oodflow.detection.detector import roles_of
from oodflow.entry_points import ENTRY_POINTS
from oodflow.errors import UserError
from oodflow.options import FinetuneOptions, Option, options_of

ROOT = Path(__file__).parents[1]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRIES = PROJECT["entry_points"]
CONTRACT = ["main", "train", "finetune", "evaluate", "report"]
HEAVY = ["torch", "mlflow", "pandas", "sklearn", "rich", "numpy", "matplotlib"]


PROJECT_COMMANDS = {name.split()[0]: name for name, entry in ENTRY_POINTS.items() if entry.project}
"""Entry point of MLproject → the command behind it."""


def command_of(name: str) -> click.Command:
    """The command of a name, which may be in a group, as ``runs list``."""
    found = cli
    for word in name.split():
        found = found.commands[word]
    return found


def shown_options(name: str) -> dict[str, click.Option]:
    """The options of a command as click has them, by name."""
    return {each.name: each for each in command_of(name).params if isinstance(each, click.Option)}


def options_named(name: str) -> list[Option]:
    """The options of an entry point that have a name on the command line."""
    return [each for each in options_of(ENTRY_POINTS[name].options) if not each.argument]


def required(name: str) -> list[str]:
    """Words that a command cannot do without."""
    needed = [each for each in options_of(ENTRY_POINTS[name].options) if each.required]
    named = [word for each in needed if not each.argument for word in (f"--{each.flag}", "needed")]
    return [*named, *("needed" for each in needed if each.argument)]


def parsed(name: str, words: list[str]) -> dict[str, object]:
    return command_of(name).make_context(name, [*required(name), *words]).params


def another(option: Option) -> tuple[str, object]:
    """A value that is not the option's default, as a word and as it is in Python."""
    if option.choices:
        value: object = next(each for each in option.choices if each not in (option.default, None))
    elif option.kind is bool:
        value = not option.default
    elif option.kind is tuple:
        return ("7,5", (7, 5)) if option.words else ("some word", ("some word",))
    else:
        value = {int: 17, float: 0.125, str: "some word"}[option.kind]
    return str(value), value


def test_the_checked_in_mlproject_is_what_the_options_render():
    assert (ROOT / "MLproject").read_text() == mlproject.render()


@pytest.mark.parametrize("name", CONTRACT)
def test_the_entry_points_of_the_contract_are_in_both(name):
    assert name in ENTRIES
    assert name in cli.commands


def test_mlproject_has_every_command_that_makes_runs_and_what_people_set_most_of_each():
    assert set(ENTRIES) == set(PROJECT_COMMANDS)
    for name, entry in ENTRIES.items():
        command = PROJECT_COMMANDS[name]
        assert tuple(entry["parameters"]) == ENTRY_POINTS[command].project
        known = {each.name for each in options_of(ENTRY_POINTS[command].options)}
        assert set(entry["parameters"]) <= known


@pytest.mark.parametrize("name", ENTRIES)
def test_mlproject_and_command_line_have_the_same_defaults(name):
    command = command_of(PROJECT_COMMANDS[name])
    context, options = click.Context(command), {each.name: each for each in command.params}
    for key, facts in ENTRIES[name]["parameters"].items():
        option = options[key]
        assert isinstance(facts["default"], str | float), key
        given = option.type_cast_value(context, str(facts["default"]))
        assert given == option.get_default(context), key


@pytest.mark.parametrize("name", ENTRIES)
def test_mlproject_hands_every_parameter_to_its_own_option(name):
    given, command = ENTRIES[name]["parameters"], PROJECT_COMMANDS[name]
    words = shlex.split(ENTRIES[name]["command"])
    start = ["python", "-m", "oodflow", *command.split()]
    arguments = [each.name for each in options_of(ENTRY_POINTS[command].options) if each.argument]
    start += [f"{{{key}}}" for key in given if key in arguments]
    assert words[: len(start)] == start
    rest = words[len(start) :]
    pairs = dict(zip(rest[::2], rest[1::2], strict=True))
    named = [key for key in given if key not in arguments]
    assert pairs == {f"--{key.replace('_', '-')}": f"{{{key}}}" for key in named}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_bare_mlflow_run_means_what_the_bare_command_means(name):
    defaults = {key: facts["default"] for key, facts in ENTRIES[name]["parameters"].items()}
    command = PROJECT_COMMANDS[name]
    words = shlex.split(ENTRIES[name]["command"].format(**defaults))
    assert parsed(command, words[3 + len(command.split()) :]) == parsed(command, [])


@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if not required(name)])
def test_the_bare_command_means_the_defaults_in_python(name):
    kind = ENTRY_POINTS[name].options
    assert kind(**parsed(name, [])) == kind()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_option_is_understood_as_people_and_as_mlflow_write_it(name):
    """MLflow puts what MLproject does not declare behind the command, with its underscores."""
    for option in options_named(name):
        word, value = another(option)
        for written in (option.flag, option.flag.replace("_", "-")):
            found = parsed(name, [f"--{written}", word])
            assert found == {**parsed(name, []), option.name: value}, written
            assert type(found[option.name]) is type(value), written


@pytest.mark.parametrize("name", ENTRIES)
def test_mlflow_passes_on_what_mlproject_does_not_declare(name):
    entry = load_project(str(ROOT)).get_entry_point(name)
    command_name = PROJECT_COMMANDS[name]
    options = list(options_of(ENTRY_POINTS[command_name].options))
    given = {option.name: another(option) for option in options}
    command = entry.compute_command({key: word for key, (word, _) in given.items()}, None)
    expected = {key: value for key, (_, value) in given.items()}
    words = shlex.split(command)[3 + len(command_name.split()) :]
    assert parsed(command_name, words) == expected


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_option_has_a_default_and_a_help_text(name):
    """A default that is not a value is the word ``auto``, which means the same."""
    own = {each.name: each for each in options_named(name)}
    assert set(own) == set(shown_options(name))
    for key, option in shown_options(name).items():
        default = option.get_default(click.Context(command_of(name)))
        assert option.required or default == own[key].default
        assert option.help, key
        if default is None and not option.required:
            assert parsed(name, [f"--{key}", "auto"])[key] is None


def test_tuned_is_a_word_of_the_numbers_that_a_study_searches():
    words = {each.name: each.words for each in options_of(FinetuneOptions)}
    tunable = {key for key, known in words.items() if "tuned" in known}
    assert tunable == {"temperature", "outlier_weight", "margin"}
    for key in tunable:
        assert parsed("finetune", [f"--{key}", "tuned"])[key] == "tuned"
    with pytest.raises(click.UsageError, match="tuned"):
        parsed("finetune", ["--lr", "tuned"])


def test_a_flag_needs_no_value_and_takes_one():
    written = ([], ["--resume"], ["--resume", "true"], ["--resume", "false"], ["--resume=0"])
    found = [parsed("train", words)["resume"] for words in written]
    assert found == [False, True, True, False, False]
    assert parsed("train", ["--resume", "--steps", "3"])["steps"] == 3
    # As people write it, as MLflow does, and what does the same twice over.
    negated = (["--no-resume"], ["--no-resume", "true"], ["--resume", "NO"])
    assert not any(parsed("train", words)["resume"] for words in negated)
    assert parsed("train", ["--no-resume=false"])["resume"]
    # The words behind a flag that are no values of it are the command's own.
    found = parsed("detect", ["--fail-on-anomaly", "a", "b"])
    assert found["fail_on_anomaly"] and found["paths"] == ("needed", "a", "b")
    for words in (["--resume=perhaps"], ["--resume", "perhaps"]):
        with pytest.raises(click.UsageError):
            parsed("train", words)


def test_help_has_the_options_in_groups(helps):
    text = helps["pages"]["finetune"][1]
    groups = re.findall(r"^([A-Z][\w ]*):$", text, re.MULTILINE)
    assert groups == ["Data", "Model", "Start", "Outlier loss", "Optimisation", "Resources", "Run",
                      "Help"]  # fmt: skip
    assert text.index("\nOutlier loss:") < text.index("--margin") < text.index("\nOptimisation:")
    assert text.index("\nRun:") < text.index("--resume / --no-resume") < text.index("\nHelp:")
    for name in ENTRY_POINTS:
        assert all(len(line) <= 80 for line in helps["pages"][name][1].splitlines()), name


def test_no_model_or_score_is_offered_that_is_then_refused(blank):
    refused = {
        "train": ("png", "webp", "jpeg2000"),
        "finetune": ("png", "webp", "jpeg2000", "wide-resnet"),
        "main": ("png", "wide-resnet"),
        "tune": ("png", "wide-resnet"),
        "bench": ("png",),
    }
    for name, models in refused.items():
        [model] = [each for each in options_named(name) if each.name == "model"]
        assert {"glow", "pixelcnn"} <= set(model.choices)
        assert not set(models) & set(model.choices)
        # Still they are told from a misspelled one: the command says why.
        assert parsed(name, ["--model", models[-1]])["model"] == models[-1]
        with pytest.raises(click.UsageError, match="not one of"):
            parsed(name, ["--model", "glwo"])
    outcome = blank.oodflow("finetune", "--model", "png")
    assert outcome.code == 2 and "png is not finetuned" in outcome.err
    [score] = [each for each in options_named("detector build") if each.name == "score"]
    for name in (*score.choices, *score.unfit):
        if name in score.unfit:
            with pytest.raises(UserError, match="which a detector does not have"):
                roles_of(name)
        else:
            assert name == "auto" or roles_of(name)


def test_every_command_has_a_function_that_is_found_by_its_name():
    def leaves(command, words):
        if not isinstance(command, click.Group):
            return {" ".join(words)}
        return set().union(*(leaves(each, [*words, n]) for n, each in command.commands.items()))

    # Not commands: what lower layers call.
    called = {"write report", "run study", "fit detector", "load detector"}
    assert leaves(cli, []) | called == set(COMMANDS)
    assert all(callable(resolve(name)) for name in COMMANDS)
    with pytest.raises(UserError, match="unknown command 'trian'; available: main, train"):
        resolve("trian")


def test_mlproject_names_an_environment_that_is_there():
    environment = yaml.safe_load((ROOT / PROJECT["conda_env"]).read_text())
    pip = next(each["pip"] for each in environment["dependencies"] if isinstance(each, dict))
    assert "-e ." in pip
    constraints = [each.removeprefix("-c ") for each in pip if each.startswith("-c ")]
    assert all((ROOT / name).is_file() for name in constraints)


@pytest.fixture(scope="module")
def helps() -> dict:
    """Help of every command from one fresh process: code, text, heavy modules imported by then."""
    code = """
import contextlib, io, json, sys
from oodflow.cli import cli, guarded
def walk(command, words):
    yield words
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, [*words, name])
pages = {}
for words in walk(cli, []):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = guarded(lambda: cli.main([*words, "--help"], "oodflow", standalone_mode=False))
    pages[" ".join(words)] = code, out.getvalue()
print(json.dumps({"pages": pages, "modules": sorted(sys.modules)}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_of_every_command_comes_without_heavy_imports(helps):
    assert {*CONTRACT, "", "runs list", "runs show", "bench"} <= set(helps["pages"])
    assert all(code == 0 and "Usage:" in text for code, text in helps["pages"].values())
    assert not set(HEAVY) & set(helps["modules"])


@pytest.mark.parametrize("name", ["", *CONTRACT])
def test_help_shows_examples_that_are_valid_commands(helps, name):
    text = helps["pages"][name][1]
    # Long ones are in several lines, as a shell takes them.
    lines = re.sub(r" \\\n +", " ", text.partition("Examples:")[2]).splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("oodflow ")]
    assert examples
    for example in examples:
        words = shlex.split(example.split("   ")[0], comments=True)[1:]
        command, rest = cli, words
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)


def test_help_names_every_option_with_its_default(helps):
    for name in ENTRY_POINTS:
        text = " ".join(helps["pages"][name][1].partition("Examples:")[0].split())
        # Each option from its name on, up to the next one.
        parts = {part.split()[0]: part for part in text.split(" --")[1:]}
        for option in options_named(name):
            shown = parts[option.flag.replace("_", "-")]
            default = "(auto)" if option.default is None else option.default
            if option.kind is bool:
                default = f"no-{option.flag.replace('_', '-')}"
                shown = shown.removeprefix(f"{option.flag.replace('_', '-')} / ")
                shown += parts[default]
            if option.required:
                assert "[required]" in shown
            elif default not in ("", ()):
                # A line may be broken behind a hyphen.
                assert f"[default:{default}]" in "".join(shown.split())
            assert "".join(option.help.split()) in "".join(shown.split())


def test_help_shows_one_spelling_of_an_option(helps):
    for name in ENTRY_POINTS:
        assert not re.search(r"--\w+_", helps["pages"][name][1]), name
    # Showing it takes none of them away.
    with pytest.raises(click.exceptions.Exit):
        parsed("train", ["--help"])
    assert parsed("train", ["--batch_size", "3"]) == parsed("train", ["--batch-size", "3"])


def test_help_takes_less_than_half_a_second():
    def seconds() -> float:
        """Processor time of one call: another process on this machine does not count."""
        with subprocess.Popen(
            [sys.executable, "-m", "oodflow", "--help"], stdout=subprocess.DEVNULL
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [[], ["runs"]])
def test_a_bare_command_group_shows_its_help_in_lines(words, capsys):
    guarded(lambda: cli.main(words, "oodflow", standalone_mode=False))
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "Commands:" in [line.strip() for line in text.splitlines()]
    assert "error:" not in text


def raising(error):
    def run():
        raise error

    return run


def test_wrong_input_is_exit_code_2_and_one_line(capsys):
    assert guarded(raising(UserError("first\n  second"))) == 2
    assert capsys.readouterr() == ("", "error: first second\n")


def test_a_bug_is_exit_code_1_and_a_traceback(capsys):
    assert guarded(raising(KeyError("oops"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_before_any_command_is_exit_code_130(capsys):
    assert guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_command_that_ends_well_is_exit_code_0():
    assert guarded(lambda: None) == 0
    assert guarded(lambda: cli.main(["--version"], "oodflow", standalone_mode=False)) == 0


@pytest.mark.parametrize("line", ["[bold]a[/bold]", "path/:smile:/x", "x" * 500, "50 % [n=2]"])
def test_lines_are_printed_as_they_are(line, capsys):
    console.say(line)
    console.error(line)
    assert capsys.readouterr() == (f"{line}\n", f"error: {line}\n")


def test_without_a_terminal_a_table_is_not_cut_at_80_columns(capsys, monkeypatch):
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "80")
    table = Table("id", "name")
    table.add_row(
        "0123456789abcdef" * 2, "glow · sketch-shapes · from general · binary against " * 2
    )
    console.show(table)
    out = capsys.readouterr().out
    assert "0123456789abcdef" * 2 in out
    assert "…" not in out


PRINTING = """
import sys
from oodflow.console import error, say, show
from rich.table import Table
table = Table("glow · 4×4 λ", "日本")
table.add_row("caf\\udce9", "😀")
for _ in range(3):
    say("T = 1000 · λ × 4 – caf\\udce9 😀")
    show(table)
    error("what · λ caf\\udce9")
sys.exit(7)
"""


@pytest.fixture
def printing(tmp_path) -> str:
    """A script that prints what a narrow or old terminal cannot show, and ends with code 7."""
    file = tmp_path / "printing.py"
    file.write_text(PRINTING, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "1"},
        {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"},
    ],
)
def test_no_terminal_ends_a_command(variables, printing):
    done = subprocess.run(
        [sys.executable, printing], capture_output=True, env={**os.environ, **variables}
    )
    assert done.returncode == 7 and b"Traceback" not in done.stderr
    assert done.stdout.count(b"T = 1000") == 3


@pytest.mark.parametrize("where", ["/dev/full", "closed", "nobody reads"])
def test_output_that_goes_nowhere_ends_no_command(where, printing):
    end = {"/dev/full": ">/dev/full 2>/dev/full", "closed": ">&- 2>&-", "nobody reads": "| true"}
    command = f'"$0" "$1" {end[where]}; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, printing], capture_output=True, text=True
    )
    assert done.stdout == "7\n", done.stderr


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (["train"], "; progress is saved: the same command with --resume continues"),
        (["tune"], "; the same command continues where it was"),
        (["detect", "detector", "photos"], ""),
    ],
)
def test_an_interruption_promises_what_is_there(monkeypatch, capsys, words, how):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("oodflow.cli.resolve", lambda name: interrupted)
    assert guarded(lambda: cli.main(words, "oodflow", standalone_mode=False)) == 130
    assert capsys.readouterr().err == f"error: interrupted{how}\n"
