"""A task in a process of its own, on this machine or another: where it works, and doing it."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from oodflow.errors import UserError
from oodflow.options import PlaceOptions
from oodflow.plans.engine import FAILED, Outcome, attempt
from oodflow.plans.tasks import Task
from oodflow.workflow.session import open_session

__all__ = ["Place", "work"]


@dataclass(frozen=True)
class Place:
    """What a worker's process takes over from the one that sends it tasks."""

    folder: str
    variables: Mapping[str, str]
    options: PlaceOptions

    @staticmethod
    def of(options: PlaceOptions) -> "Place":
        """The working folder, the settings and the options of this process."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("MLFLOW_", "OODFLOW_")) and name != "MLFLOW_RUN_ID"
        }
        own = PlaceOptions(device=options.device, data_dir=options.data_dir)
        return Place(os.getcwd(), variables, own)


def work(place: Place, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """Do a task in a worker's process."""
    os.environ.update(place.variables)
    try:
        Path(place.folder).mkdir(parents=True, exist_ok=True)
        os.chdir(place.folder)
        session = open_session(place.options)
    except (UserError, OSError) as error:
        return Outcome(task, FAILED, reason=f"on {socket.gethostname()}: {error}")
    return attempt(replace(session, project_run=""), task, outcomes)
