"""``oodflow main``: the whole method on one dataset, from a general model to the report.

It is the plan ``quickstart``, in which the command's options replace those of the steps. Every run
is found by its experiment's hash: a second call only rebuilds the report, and an interrupted one
continues.
"""

from oodflow.data.catalog import lookup
from oodflow.errors import UserError
from oodflow.options import AUTO, QuickstartOptions, options_of
from oodflow.plans.engine import Outcome, carry_out
from oodflow.plans.local_workers import on_this_machine
from oodflow.plans.plan import read_plan
from oodflow.plans.tasks import expand
from oodflow.plans.worker import Place
from oodflow.workflow.planning import first_present
from oodflow.workflow.session import Session, open_session

__all__ = ["command", "quickstart"]


def command(options: QuickstartOptions) -> None:
    """General model, in-distribution models without and with outlier loss, Diff†, report."""
    quickstart(open_session(options), options)


def quickstart(session: Session, options: QuickstartOptions) -> dict[str, Outcome]:
    """Run the plan ``quickstart``; returns the outcome of each task, by its name."""
    plan = read_plan("quickstart")
    dataset = lookup(plan.values["dataset"] if options.dataset == AUTO else options.dataset).name
    general = first_present(session, lookup(dataset).generals)
    if not general:
        raise UserError(f"{dataset} has no general set that is present; use train and finetune")
    # Absent data are noticed before anything is trained.
    session.described(dataset)
    laid_over = {
        each.name: value
        for each in options_of(QuickstartOptions)
        if (value := getattr(options, each.name)) != each.default
        and each.name not in ("dataset", "seeds")
    }
    if {"epochs", "model", "preset"} & laid_over.keys():
        # The plan's numbers of updates are for the quick Glow.
        laid_over = {"steps": None, "report_every": None} | laid_over
    tasks = expand(
        plan,
        seeds=options.seeds or (),
        values={"dataset": dataset, "general": general},
        overrides=laid_over,
    )
    with on_this_machine(session, Place.of(options), options.workers) as workers:
        return carry_out(session, tasks, workers, keep_going=False)
