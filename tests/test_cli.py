"""The command line and MLproject: one set of options, help at once, exit codes, plain output."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from oodflow import console, mlproject
from oodflow.cli import cli, guarded
from oodflow.errors import UserError

ROOT = Path(__file__).parents[1]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRIES = PROJECT["entry_points"]
CONTRACT = ["main", "train", "finetune", "evaluate", "report"]
HEAVY = ["torch", "mlflow", "pandas", "sklearn", "rich", "numpy", "matplotlib"]


def options_of(name: str) -> dict[str, click.Option]:
    return {each.name: each for each in cli.commands[name].params}


def parsed(name: str, words: list[str]) -> dict[str, object]:
    return cli.commands[name].make_context(name, list(words)).params


def test_the_checked_in_mlproject_is_what_the_options_render():
    assert (ROOT / "MLproject").read_text() == mlproject.render()


@pytest.mark.parametrize("name", CONTRACT)
def test_the_entry_points_of_the_contract_are_in_both(name):
    assert name in ENTRIES
    assert name in cli.commands


@pytest.mark.parametrize("name", ENTRIES)
def test_mlproject_and_command_line_have_the_same_options(name):
    assert set(ENTRIES[name]["parameters"]) == set(options_of(name))


@pytest.mark.parametrize("name", ENTRIES)
def test_mlproject_and_command_line_have_the_same_defaults(name):
    context = click.Context(cli.commands[name])
    for key, option in options_of(name).items():
        text = ENTRIES[name]["parameters"][key]["default"]
        assert option.type_cast_value(context, text) == option.get_default(context), key


@pytest.mark.parametrize("name", ENTRIES)
def test_mlproject_hands_every_parameter_to_its_own_option(name):
    given = ENTRIES[name]["parameters"]
    words = shlex.split(ENTRIES[name]["command"])
    assert words[:4] == ["python", "-m", "oodflow", name]
    pairs = dict(zip(words[4::2], words[5::2], strict=True))
    assert pairs == {f"--{key.replace('_', '-')}": f"{{{key}}}" for key in given}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_bare_mlflow_run_means_what_the_bare_command_means(name):
    defaults = {key: facts["default"] for key, facts in ENTRIES[name]["parameters"].items()}
    words = shlex.split(ENTRIES[name]["command"].format(**defaults))
    assert parsed(name, words[4:]) == parsed(name, [])


def test_every_option_has_a_default_and_a_help_text():
    for name in ENTRIES:
        for key, option in options_of(name).items():
            assert option.get_default(click.Context(cli.commands[name])) is not None, key
            assert option.help, key


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
    lines = text.partition("Examples:")[2].splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("oodflow ")]
    assert examples
    for example in examples:
        words = shlex.split(example.split("   ")[0], comments=True)[1:]
        command, rest = cli, words
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)


def test_help_names_every_option_with_its_default(helps):
    for name in CONTRACT:
        text = " ".join(helps["pages"][name][1].split())
        for key, option in options_of(name).items():
            assert f"--{key.replace('_', '-')} " in text
            assert f"[default: {option.default}]" in text


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


def test_an_interruption_is_exit_code_130_and_says_how_to_go_on(capsys):
    assert guarded(raising(KeyboardInterrupt())) == 130
    err = capsys.readouterr().err
    assert "--resume" in err and err.count("\n") == 1


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
