"""``oodflow evaluate``: score tables, metrics and figures of registered models."""

from collections.abc import Mapping
from typing import Any

from oodflow import console
from oodflow.errors import UserError
from oodflow.experiment import AUTO, Model
from oodflow.options import Evaluation, pick
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.workflow import results
from oodflow.workflow.choose import diff_outlier_general, general_of, in_distribution_runs
from oodflow.workflow.scoring import evaluate_run
from oodflow.workflow.session import Session, open_session
from oodflow.workflow.training_run import ended_on_error

__all__ = ["command", "contrasts"]


def command(given: Mapping[str, Any]) -> None:
    """Evaluate one run, or for ``auto`` all registered in-distribution models."""
    session, chosen = open_session(given), pick(Evaluation, given)
    if chosen.run == AUTO:
        targets = in_distribution_runs(session.store)
        if not targets:
            raise UserError("no registered in-distribution model; make one: oodflow finetune")
    else:
        targets = [runs.resolve(session.store, chosen.run)]
    tags = {"kind": "evaluate", "registered": "false"}
    name = f"evaluation of {targets[0].name}" if len(targets) == 1 else "evaluation"
    record = runs.start(session.store, name, tags, claimed=session.claimed)
    with ended_on_error(session.store, record):
        for run in targets:
            general, general_outlier = contrasts(session, run, chosen)
            result = evaluate_run(session, run, general, general_outlier, chosen.ood, chosen.limit)
            if len(targets) == 1:
                runs.log_metrics(session.store, record, result.metrics)
        evaluated = [runs.get(session.store, run.run_id) for run in targets]
        names = ", ".join(run.run_id for run in evaluated)
        runs.set_tags(session.store, record, {"evaluated": names[:4000]})
    runs.end(session.store, record, "FINISHED")
    results.show_runs(evaluated)
    console.say(f"see it: {session.store.how_to_see(record)}")


def contrasts(
    session: Session, run: RunInfo, chosen: Evaluation
) -> tuple[RunInfo | None, RunInfo | None]:
    """The general models behind ``diff`` and ``diff_outlier`` of a run."""
    if run.tags.get("role") != "in_distribution":
        return None, None
    spec: Model = session.model(run).experiment.model
    general: RunInfo | None = None
    if chosen.general != "none":
        known = run.tags.get("general_run", "") if chosen.general == AUTO else ""
        general = general_of(
            session.store, known or chosen.general, run.tags["dataset"], spec, "quick"
        )
    if chosen.general_outlier == AUTO:
        return general, diff_outlier_general(session.store, run)
    if chosen.general_outlier == "none":
        return general, None
    return general, runs.resolve(session.store, chosen.general_outlier)
