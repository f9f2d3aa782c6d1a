"""Runs a task in a worker process, on this machine or another."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oodflow.errors import UserError
from oodflow.options import PlaceOptions
from oodflow.plans.engine import FAILED, Outcome, attempt
from oodflow.plans.tasks import Task
from oodflow.registration import all_origins
from oodflow.workflow.session import open_session

__all__ = ["Place", "work"]


@dataclass(frozen=True)
class Place:
    """What a worker process takes over from the process that sends it tasks."""

    folder: str
    variables: Mapping[str, str]
    options: PlaceOptions
    plugins: Mapping[str, str]
    """Models, datasets and scores of plug-ins there → package and version."""

    @staticmethod
    def of(options: PlaceOptions) -> "Place":
        """The working folder, the settings and the options of this process."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("MLFLOW_", "OODFLOW_")) and name != "MLFLOW_RUN_ID"
        }
        own = PlaceOptions(device=options.device, data_dir=options.data_dir)
        return Place(os.getcwd(), variables, own, all_origins())


def work(place: Place, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """Run a task in a worker process."""
    os.environ.update(place.variables)
    try:
        Path(place.folder).mkdir(parents=True, exist_ok=True)
        os.chdir(place.folder)
        _check_plugins(place, task)
        session = open_session(place.options)
    except (UserError, OSError) as error:
        return Outcome(task, FAILED, reason=f"on {socket.gethostname()}: {error}")
    return attempt(replace(session, project_run=""), task, outcomes)


def _check_plugins(place: Place, task: Task) -> None:
    """Raise UserError where a plug-in that the task names is absent here, or another version."""
    words = {word for value in asdict(task.options).values() for word in str(value).split(",")}
    here = all_origins()
    for name in sorted(words & set(place.plugins)):
        if here.get(name) != place.plugins[name]:
            found = f"it has {here[name]}" if name in here else "it is not installed there"
            raise UserError(f"{name!r} is of {place.plugins[name]}, but {found}; install that")
