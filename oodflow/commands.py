"""Entry point → the function that carries it out, by name: nothing is imported until it is called.

The command line and the plans reach a command by this mapping alone. So `tuning` and `reports`,
which are built on this package, are not imported by it.
"""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from oodflow.errors import unknown_name

__all__ = ["COMMANDS", "resolve"]

COMMANDS: Mapping[str, str] = {
    "main": "oodflow.plans.quickstart:command",
    "train": "oodflow.workflow.seeds:command",
    "finetune": "oodflow.workflow.seeds:command",
    "evaluate": "oodflow.workflow.evaluate:command",
    "tune": "tuning.command:command",
    "run study": "tuning.command:tune",
    "analyse": "oodflow.workflow.analyse:command",
    "report": "reports.command:command",
    "write report": "reports.command:write_report",
    "fit detector": "oodflow.api:fit_detector",
    "load detector": "oodflow.api:load_detector",
    "reproduce": "oodflow.plans.reproduce:command",
    "bench": "oodflow.bench.command:command",
    "detector build": "oodflow.workflow.detectors:command",
    "detect": "oodflow.workflow.detect:command",
    "runs list": "oodflow.workflow.listing:list_command",
    "runs show": "oodflow.workflow.listing:show_command",
    "runs sync": "oodflow.workflow.sync:command",
    "datasets list": "oodflow.workflow.datasets:list_command",
    "datasets prepare": "oodflow.workflow.datasets:prepare_command",
    "datasets check": "oodflow.workflow.datasets:check_command",
    "check-model": "oodflow.workflow.check_model:command",
    "score": "oodflow.workflow.score:command",
    "sample": "oodflow.workflow.sample:command",
    "import-checkpoint": "oodflow.workflow.import_checkpoint:command",
}
"""Name on the command line → ``module:function``. What it returns is the exit code, None for 0."""


def resolve(name: str) -> Any:
    """The function behind a command; UserError for an unknown name.

    >>> resolve("train").__module__
    'oodflow.workflow.seeds'
    """
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    return resolve_name(COMMANDS[name])
