"""The command line: options from the entry points, errors as one line and an exit code.

Only click is imported before a command runs, so that help comes at once.
"""

import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from oodflow.commands import resolve
from oodflow.errors import ResourceError, UserError
from oodflow.options import AUTO, ENTRY_POINTS, EntryPoint, Option, options_of, seed_list

__all__ = ["cli", "main"]

EPILOG = """\b
Examples:
  oodflow main                                   the effect of the paper, in minutes
  oodflow finetune --dataset sketch-letters      a dataset of your choice
  oodflow runs list                              what there is

Every entry point also runs as an MLflow project: mlflow run . -e finetune -P steps=20

Exit codes: 0 done, 2 wrong input, 1 anything else, 130 interrupted, 143 terminated by SIGTERM
(--resume goes on, or the same command where it has no such option)."""


class WordOr(click.ParamType):
    """A value of a type, or one of some words, of which ``auto`` stands for None."""

    def __init__(self, kind: click.ParamType, words: tuple[str, ...]) -> None:
        self.kind = kind
        self.words = words
        self.name = "|".join((kind.name, *words))

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == AUTO and AUTO in self.words:
            return None
        return value if value in self.words else self.kind.convert(value, param, ctx)


class SeedsType(click.ParamType):
    """Whole numbers with commas."""

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


def click_option(each: Option) -> click.Option:
    """The click option of one field: both spellings of its name, its type, default and choices."""
    choices = [choice for choice in each.choices if choice is not None]
    kind: click.ParamType = click.Choice(choices) if choices else KINDS[each.kind]
    if each.words:
        kind = WordOr(kind, each.words)
    flag = {"is_flag": False, "flag_value": True} if each.kind is bool else {}
    # MLflow appends what MLproject does not declare under its name with underscores.
    spellings = dict.fromkeys((f"--{each.name.replace('_', '-')}", f"--{each.name}"))
    return click.Option(
        [each.name, *spellings],
        type=kind,
        default=each.default,
        show_default=AUTO if each.default is None else True,
        help=each.help,
        **flag,
    )


def entry_point(name: str, entry: EntryPoint) -> click.Command:
    """The click command of one entry point."""

    def run(**given: Any) -> int | None:
        return resolve(name)(entry.options(**given))

    return Command(
        name,
        callback=run,
        params=[click_option(each) for each in options_of(entry.options)],
        help=entry.help,
        epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in entry.examples),
    )


class Command(click.Command):
    """A command whose help shows one spelling of each option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        both = {each: each.opts for each in self.params if isinstance(each, click.Option)}
        for each, spellings in both.items():
            each.opts = spellings[:1]
        super().format_options(ctx, formatter)
        for each, spellings in both.items():
            each.opts = spellings


class Group(click.Group):
    """A group that shows its help when it is called with nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="oodflow")
def cli() -> None:
    """Anomaly detection with deep generative models that is right, fast and tracked."""


for _name, _entry in ENTRY_POINTS.items():
    cli.add_command(entry_point(_name, _entry))


@cli.group(cls=Group)
def runs() -> None:
    """Look at the runs in the MLflow store, and deliver what is kept for it."""


@runs.command("list")
@click.option("--dataset", default="", help="Only runs on this dataset.")
@click.option("--kind", default="", help="Only train, finetune, evaluate, seeds or report runs.")
@click.option("--registered", is_flag=True, help="Only runs that reports may use.")
def runs_list(**given: Any) -> None:
    """List runs, the newest first."""
    resolve("runs list")(**given)


@runs.command("show")
@click.argument("run")
def runs_show(run: str) -> None:
    """Show one run: tags, metrics, artifacts, and how to see it in the MLflow UI."""
    resolve("runs show")(run)


data_dir = click.option("--data-dir", default=AUTO, show_default=True, help="Folder of the data.")


@runs.command("sync")
@click.argument("run", default="")
@click.option("--device", default=AUTO, show_default=True, help="cpu, cuda, …")
@data_dir
def runs_sync(**given: Any) -> int:
    """Deliver what is kept in .oodflow/ of runs whose store was away: of one, or of all.

    The store may be another one (MLFLOW_TRACKING_URI): what it does not know is made anew there.
    A run whose training is over is then evaluated and registered.

    \b
    Example:
      oodflow runs sync
    """
    return resolve("runs sync")(**given)


@cli.group(cls=Group)
def datasets() -> None:
    """Look at the datasets, and prepare them."""


@datasets.command("list")
@data_dir
def datasets_list(data_dir: str) -> None:
    """List all datasets: role, sizes, present or not, where expected, how to get them."""
    resolve("datasets list")(data_dir)


@datasets.command("prepare")
@click.argument("name")
@click.option("--from", "source", default="", help="Where the raw files are; else the data folder.")
@click.option("--download", "may_download", is_flag=True, help="Fetch the files from their makers.")
@click.option("--skip-broken", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--exclude", multiple=True, help="tiny: file with numbers of images to leave out.")
@data_dir
def datasets_prepare(**given: Any) -> None:
    """Read a dataset's raw files into a compact form that opens at once, in place of the old one.

    NAME is one of `oodflow datasets list`, any RGB one of these with -grey, or folder:PATH with
    options: ?resize=N (shorter side to N), crop=N (central N×N), channels=1, flip=0, role=general,
    test=SHARE of the test fold. What is not 32×32 then is resized to it.

    \b
    Examples:
      oodflow datasets prepare cifar10 --download
      oodflow datasets prepare tiny300k --from 300K_random_images.npy
      oodflow datasets prepare "folder:photos?resize=32&crop=32" --skip-broken
    """
    resolve("datasets prepare")(**given)


@datasets.command("check")
@click.argument("name")
@click.option("--out", default="", help="File of the contact sheet; else NAME-contact-sheet.png.")
@data_dir
def datasets_check(**given: Any) -> None:
    """Read a dataset through: counts, shapes, digest, mean and std, and a contact sheet."""
    resolve("datasets check")(**given)


@cli.command()
@click.argument("run")
@click.argument("paths", nargs=-1, required=True)
@click.option("--out", required=True, help="File to write, .csv or .parquet.")
@click.option("--resize", is_flag=True, help="Resize images of another size than the model's.")
@click.option("--device", default=AUTO, show_default=True, help="cpu, cuda, …")
def score(**given: Any) -> int:
    """Score image files, or folders of them, under a run's model: one row an image.

    Columns: file, log_prob (noise-free, nats over the 256 levels), scale1 …, last_scale, bpd.
    Files that cannot be read are listed at the end and make the exit code 1.

    \b
    Example:
      oodflow score RUN_ID photos/ one.png --out scores.csv --resize
    """
    return resolve("score")(**given)


@cli.command("import-checkpoint")
@click.argument("file")
@click.option("--format", required=True, help="authors, glow-pytorch or pixelcnn-pp.")
@click.option("--dataset", default="", help="Dataset that the model was trained on.")
@click.option(
    "--role",
    type=click.Choice(["in_distribution", "general"]),
    default="in_distribution",
    show_default=True,
    help="What the model is for.",
)
def import_checkpoint(**given: Any) -> None:
    """Make other people's weights a registered run; nothing of the file is executed.

    The last line printed is the run's id.

    \b
    Example:
      oodflow import-checkpoint cifar10_glow.th --format authors --dataset cifar10
    """
    resolve("import-checkpoint")(**given)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, exit with the contract's codes; SIGTERM interrupts as Ctrl-C does."""
    terminated = []

    def interrupt(*_: Any) -> None:
        terminated.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
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
        return 1 if isinstance(problem, ResourceError) else 2
    except click.UsageError as problem:
        command = problem.ctx.command_path if problem.ctx else "oodflow"
        error(f"{' '.join(problem.format_message().split())} (see {command} --help)")
        return 2
    except (KeyboardInterrupt, click.Abort):
        error("interrupted; the same command with --resume goes on from the last checkpoint")
        return 130
    except Exception:
        traceback.print_exc()
        return 1
