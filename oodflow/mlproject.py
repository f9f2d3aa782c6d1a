"""``MLproject``, rendered from the entry points: ``python -m oodflow.mlproject > MLproject``.

It declares the options that people set most; MLflow passes any other one on as it was given.
"""

from collections.abc import Iterator

from oodflow.options import AUTO, ENTRY_POINTS, EntryPoint, Option, options_of

__all__ = ["render"]

HEAD = """\
# The entry points of the project, with the options that people set most.
# Any other option of `oodflow NAME --help` is taken as well: mlflow run . -e NAME -P option=value
# Made by `make mlproject` from oodflow/options.py; a test compares the two.
name: oodflow
conda_env: conda.yaml

entry_points:
"""


def _parameter(each: Option) -> str:
    kind = "float" if isinstance(each.default, float) else "string"
    default = AUTO if each.default is None else str(each.default)
    if kind == "string" and each.default is not None and each.kind is not str:
        # YAML would read a number or a truth value.
        default = f'"{default.lower()}"'
    return f"{each.name}: {{type: {kind}, default: {default}}}"


def _entry(name: str, entry: EntryPoint) -> Iterator[str]:
    options = {each.name: each for each in options_of(entry.options)}
    shown = [options[option] for option in entry.project]
    yield f"  # {entry.help}"
    yield f"  {name}:"
    yield "    parameters:"
    for each in shown:
        choices = ", ".join(choice for choice in each.choices if choice)
        yield f"      # {each.help}{f' ({choices})' if choices else ''}"
        yield f"      {_parameter(each)}"
    words = [f"--{each.name.replace('_', '-')} {{{each.name}}}" for each in shown]
    lines = [" ".join(words[first : first + 3]) for first in range(0, len(words), 3)]
    yield "    command: >-"
    yield f"      python -m oodflow {name}"
    yield from (f"      {line}" for line in lines)
    yield ""


def render() -> str:
    """The text of the project's ``MLproject`` file."""
    entries = {name: entry for name, entry in ENTRY_POINTS.items() if entry.project}
    lines = [line for name, entry in entries.items() for line in _entry(name, entry)]
    return HEAD + "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(render(), end="")
