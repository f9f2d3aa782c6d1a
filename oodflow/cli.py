"""The command line: options from the entry points, errors as one line and an exit code.

Only click is imported before a command runs, so that help comes at once.
"""

import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from oodflow.commands import resolve
from oodflow.entry_points import ENTRY_POINTS, EntryPoint
from oodflow.errors import UserError, without_secrets
from oodflow.files import caller_of_mlflow_run
from oodflow.options import AUTO, Option, options_of, seed_list

__all__ = ["cli", "main"]

EPILOG = """\b
Examples:
  oodflow main                                   the effect of the paper, in minutes
  oodflow finetune --dataset sketch-letters      a dataset of your choice
  oodflow runs list                              the runs in the MLflow store

Every entry point also runs as an MLflow project: mlflow run . -e finetune -P steps=20

Exit codes: 0 done, 2 wrong input, 1 anything else, 130 interrupted, 143 terminated by SIGTERM
(--resume continues, or the same command where it has no such option)."""


class WordOr(click.ParamType):
    """A value of a type, or one of the option's words; ``auto`` stands for None."""

    def __init__(self, kind: click.ParamType, words: tuple[str, ...]) -> None:
        self.kind = kind
        self.words = words
        self.name = "|".join((kind.name, *words))

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == AUTO and AUTO in self.words:
            return None
        return value if value in self.words else self.kind.convert(value, param, ctx)


class SeedsType(click.ParamType):
    """Whole numbers separated by commas."""

    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return seed_list(value) if isinstance(value, str) else value


KINDS: dict[type, click.ParamType] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    bool: click.BOOL,
    tuple: SeedsType(),
}


def _in_lines(example: str) -> str:
    """An example in lines that a terminal of 80 columns does not break."""
    lines = textwrap.wrap(example, 74, initial_indent="  ", subsequent_indent="      ",
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return " \\\n".join(lines)


class Offered(click.Choice):
    """One of some words; others are let through, since the command says why it refuses them."""

    def __init__(self, choices: list[str], refused: tuple[str, ...]) -> None:
        super().__init__(choices)
        self.refused = refused

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value in self.refused else super().convert(value, param, ctx)


def click_parameter(each: Option) -> click.Parameter:
    """The click parameter of one field: both spellings of its name, type, default and choices."""
    choices = [choice for choice in each.choices + each.plugins if choice is not None]
    # Seeds are one word with commas; other tuples are given value by value.
    many = each.kind is tuple and not each.words
    kind: click.ParamType = KINDS[str if many else each.kind]
    if choices:
        kind = Offered(choices, each.unfit)
    if each.words:
        kind = WordOr(kind, each.words)
    if each.argument:
        count = -1 if many else 1
        name, required = each.name, each.required
        metavar = each.flag.upper() + "..." * many
        metavar = metavar if required else f"[{metavar}]"
        default = {} if required else {"default": each.default}
        return click.Argument([name], type=kind, nargs=count, required=required, metavar=metavar,
                              **default)  # fmt: skip
    # MLflow appends what MLproject does not declare under its name with underscores.
    names = dict.fromkeys((each.flag.replace("_", "-"), each.flag))
    spelled = "--{0}/--no-{0}" if each.kind is bool else "--{0}"
    # Many names would make a line that a terminal breaks.
    many_names = len("|".join(choices)) > 60
    return GroupedOption(
        [each.name, *map(spelled.format, names)],
        group=each.group,
        type=kind,
        default=each.default,
        multiple=many,
        required=each.required,
        show_default=AUTO if each.default is None else each.default not in ("", ()),
        metavar="NAME" if many_names else None,
        help=each.help + f"; one of {', '.join(choices)}" * many_names,
    )


class GroupedOption(click.Option):
    """An option that help shows in a group, such as Data."""

    def __init__(self, *given: Any, group: str, **more: Any) -> None:
        super().__init__(*given, **more)
        self.group = group


class Interrupted(Exception):
    """A command was interrupted; says how to go on, or nothing."""


def entry_point(name: str, entry: EntryPoint) -> click.Command:
    """The click command of one entry point."""

    def run(**given: Any) -> int | None:
        try:
            return resolve(name)(entry.options(**given))
        except KeyboardInterrupt:
            raise Interrupted(entry.interrupted) from None

    return Command(
        name.split()[-1],
        callback=run,
        params=[click_parameter(each) for each in options_of(entry.options)],
        help="\n\n".join(filter(None, (entry.help, entry.details))),
        epilog="\b\nExamples:\n" + "\n".join(map(_in_lines, entry.examples)),
        short_help=entry.help,
    )


class Command(click.Command):
    """A command whose help shows its options in groups, and one spelling of each.

    A flag may have a value, as ``--resume true``, which is how MLflow writes it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags: dict[str, dict[str, str]] = {}
        for each in self.params:
            if isinstance(each, GroupedOption) and each.is_flag:
                yes, no = each.opts[0], each.secondary_opts[0]
                flags |= dict.fromkeys(each.opts, {"true": yes, "false": no})
                flags |= dict.fromkeys(each.secondary_opts, {"true": no, "false": yes})
        arguments = any(isinstance(each, click.Argument) for each in self.params)
        return super().parse_args(ctx, list(_plain_flags(args, flags, arguments)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            if isinstance(each, click.Option):
                group = each.group if isinstance(each, GroupedOption) else "Help"
                opts, secondary = each.opts, each.secondary_opts
                if group != "Help":
                    each.opts, each.secondary_opts = opts[:1], secondary[:1]
                if record := each.get_help_record(ctx):
                    groups.setdefault(group, []).append(record)
                each.opts, each.secondary_opts = opts, secondary
        # What the command alone has comes first.
        own = [group for group in groups if group not in ORDER]
        for group in (*own, *ORDER):
            if group in groups:
                with formatter.section(group):
                    formatter.write_dl(groups[group])


TRUTH = dict.fromkeys(("true", "1", "t", "yes", "y", "on"), "true")
TRUTH |= dict.fromkeys(("false", "0", "f", "no", "n", "off"), "false")
"""Words for a flag's value."""

ORDER = ("Data", "Model", "Start", "Outlier loss", "Optimisation", "Resources", "Run", "Help")
"""In which order help shows the groups of options that several commands share."""


def _plain_flags(
    args: list[str], flags: Mapping[str, Mapping[str, str]], arguments: bool
) -> Iterator[str]:
    """The words of a command line without the values of its flags: ``--no-x`` for ``--x false``.

    Where a command has ``arguments``, what follows a flag and is no value of it is one of these.
    """
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            yield from (word, *words)
            return
        if name not in flags:
            yield word
            continue
        if not equals:
            following = words[0].lower() if words else "-"
            alone = following.startswith("-") or arguments and following not in TRUTH
            value = "true" if alone else words.pop(0)
        if value.lower() not in TRUTH:
            raise click.BadParameter(f"{value!r} is not true or false", param_hint=repr(name))
        yield flags[name][TRUTH[value.lower()]]


class Group(click.Group):
    """A group that shows its help when it is called with nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="oodflow")
def cli() -> None:
    """Anomaly detection with deep generative models, tracked in MLflow."""


GROUPS = {
    "detector": "Make detectors that can be loaded, served and decided with.",
    "runs": "List and show the runs in the MLflow store; deliver runs that are kept here.",
    "datasets": "List, prepare and check datasets.",
}
for _name, _help in GROUPS.items():
    cli.add_command(Group(_name, help=_help))
for _name, _entry in ENTRY_POINTS.items():
    _group = cli.commands.get(_name.split()[0])
    (_group if isinstance(_group, Group) else cli).add_command(entry_point(_name, _entry))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, exit with the contract's codes; SIGTERM interrupts as Ctrl-C does."""
    from oodflow.console import any_text

    any_text()
    terminated = []

    def interrupt(*_: Any) -> None:
        terminated.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if folder := caller_of_mlflow_run():
        os.chdir(folder)
    code = guarded(lambda: cli.main(arguments, prog_name="oodflow", standalone_mode=False))
    sys.exit(143 if code == 130 and terminated else code)


def guarded(run: Callable[[], Any]) -> int:
    """The exit code of a call: 0 done, 2 wrong input, 1 anything else, 130 interrupted."""
    from oodflow.console import error

    try:
        result = run()
        return result if isinstance(result, int) else 0
    except UserError as problem:
        error(" ".join(str(problem).split()))
        return problem.exit_code
    except click.UsageError as problem:
        command = problem.ctx.command_path if problem.ctx else "oodflow"
        error(f"{' '.join(problem.format_message().split())} (see {command} --help)")
        return 2
    except (Interrupted, KeyboardInterrupt, click.Abort) as stop:
        error("; ".join(filter(None, ("interrupted", *map(str, stop.args)))))
        return 130
    except Exception as problem:
        line = _explained(problem)
        if line:
            error(line)
        else:
            sys.stderr.write(without_secrets(traceback.format_exc()))
        return 1


def _explained(problem: Exception) -> str:
    """One line for a failure of the system or the store, which is no bug; else ""."""
    if isinstance(problem, OSError) and problem.strerror:
        file = f"{problem.filename}: " if problem.filename else ""
        denied = (
            "; give this user the right to read or write it"
            if isinstance(problem, PermissionError)
            else ""
        )
        return f"{file}{problem.strerror}{denied}"
    # Without it no store was opened.
    if "oodflow.tracking.store" not in sys.modules:
        return ""
    from oodflow.tracking.causes import explained

    return explained(problem)
