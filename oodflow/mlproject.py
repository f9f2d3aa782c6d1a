"""``MLproject``, rendered from the entry points: ``python -m oodflow.mlproject > MLproject``."""

from typing import Any

import yaml

from oodflow.options import ENTRY_POINTS, EntryPoint

__all__ = ["render"]


def _entry(name: str, entry: EntryPoint) -> dict[str, Any]:
    parameters = {}
    words = [f"python -m oodflow {name}"]
    for each in entry.options():
        default = str(each.default).lower() if isinstance(each.default, bool) else each.default
        parameters[each.name] = {"type": "string", "default": str(default)}
        words.append(f"--{each.name.replace('_', '-')} {{{each.name}}}")
    return {"parameters": parameters, "command": " ".join(words)}


def render() -> str:
    """The text of the project's ``MLproject`` file."""
    project = {
        "name": "oodflow",
        "conda_env": "conda.yaml",
        "entry_points": {name: _entry(name, entry) for name, entry in ENTRY_POINTS.items()},
    }
    head = "# Made by `make mlproject` from oodflow/options.py; a test compares the two.\n"
    return head + yaml.safe_dump(project, sort_keys=False, width=10_000, allow_unicode=True)


if __name__ == "__main__":
    print(render(), end="")
