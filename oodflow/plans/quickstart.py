"""``oodflow main``: the whole method on one dataset, from a general model to the report.

It is the plan ``quickstart`` with the command's options laid over it. Every run is found by its
experiment's hash, so that a second call only rebuilds the report and an interrupted one goes on
where it was.
"""

from collections.abc import Mapping
from typing import Any

from oodflow.data.catalog import lookup
from oodflow.errors import UserError
from oodflow.experiment import AUTO
from oodflow.options import seed_list
from oodflow.plans.engine import carry_out, in_this_process
from oodflow.plans.plan import read_plan
from oodflow.plans.tasks import expand
from oodflow.workflow.session import open_session
from oodflow.workflow.train import first_present

__all__ = ["command"]


def command(given: Mapping[str, Any]) -> None:
    """General model, in-distribution models without and with outlier loss, Diff†, report."""
    session, plan = open_session(given), read_plan("quickstart")
    dataset = lookup(plan.values["dataset"] if given["dataset"] == AUTO else given["dataset"]).name
    general = first_present(session, lookup(dataset).generals)
    if not general:
        raise UserError(f"{dataset} has no general set that is there; use train and finetune")
    # Absent data are noticed before anything is trained.
    session.described(dataset)
    laid_over = {name: value for name, value in given.items() if name not in ("dataset", "seeds")}
    tasks = expand(
        plan,
        seeds=() if given["seeds"] == AUTO else seed_list(given["seeds"]),
        values={"dataset": dataset, "general": general},
        overrides=laid_over,
    )
    with in_this_process(session, keep_going=False) as workers:
        carry_out(session, tasks, workers)
