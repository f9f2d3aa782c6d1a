"""``oodflow evaluate``: score tables, metrics and figures of registered models."""

from collections.abc import Mapping
from typing import Any

from oodflow import console
from oodflow.errors import UserError
from oodflow.experiment import AUTO, COMPRESSORS, Model
from oodflow.options import Evaluation, pick
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.workflow import results
from oodflow.workflow.choose import diff_outlier_general, general_of, in_distribution_runs
from oodflow.workflow.compressors import compressor_run
from oodflow.workflow.evaluation_run import compare_run, evaluate_run
from oodflow.workflow.own_run import ended_on_error
from oodflow.workflow.session import Session, open_session

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
    if len(targets) == 1:
        record = _evaluate(session, targets[0], chosen, claimed=session.claimed)
    else:
        tags = {"kind": "evaluate", "registered": "false"}
        record = runs.start(session.store, "evaluation", tags, claimed=session.claimed)
        with ended_on_error(session.store, record):
            for run in targets:
                _evaluate(session, run, chosen, parent=record)
        runs.end(session.store, record, "FINISHED")
    console.say(f"see it: {session.store.how_to_see(record)}")


def _evaluate(
    session: Session, run: RunInfo, chosen: Evaluation, parent: str = "", claimed: str = ""
) -> str:
    """One evaluation as a run of its own; returns that run's id.

    Against a general model of the run's own family the numbers go to the run as well.
    """
    inherited = ("model", "dataset", "setting", "outlier_loss", "init", "seed")
    tags = {name: run.tags[name] for name in inherited if name in run.tags}
    tags |= {"kind": "evaluate", "evaluated": run.run_id, "registered": "false"}
    record = runs.start(session.store, f"evaluation of {run.name}", tags, parent, claimed)
    with ended_on_error(session.store, record):
        general, general_outlier = contrasts(session, run, chosen)
        own_family = general is None or general.tags["model"] == run.tags["model"]
        if own_family and chosen.inlier_fold == "test":
            result = evaluate_run(session, run, general, general_outlier, chosen.ood, chosen.limit)
        elif general is None:
            raise UserError("training-fold inliers are compared by a ratio; name a general model")
        else:
            result = compare_run(
                session, run, general, chosen.ood, chosen.limit, chosen.inlier_fold
            )
        runs.log_metrics(session.store, record, result.metrics)
        facts = {"inlier_fold": chosen.inlier_fold, "registered": "true"}
        facts["general_model"] = general.tags["model"] if general else "none"
        facts |= {"general_run": general.run_id} if general else {}
        runs.set_tags(session.store, record, facts)
    runs.end(session.store, record, "FINISHED")
    console.say(f"{run.name}, against {facts['general_model']}")
    results.show_runs([runs.get(session.store, record)])
    return record


def contrasts(
    session: Session, run: RunInfo, chosen: Evaluation
) -> tuple[RunInfo | None, RunInfo | None]:
    """The general models behind ``diff`` and ``diff_outlier`` of a run."""
    spec: Model = session.model(run).experiment.model
    if run.tags.get("role") != "in_distribution" or not session.model(run).model.is_density:
        return None, None
    general: RunInfo | None = None
    if chosen.general in COMPRESSORS:
        general = compressor_run(session, chosen.general, spec.channels)
    elif chosen.general != "none":
        known = run.tags.get("general_run", "") if chosen.general == AUTO else ""
        general = general_of(
            session.store, known or chosen.general, run.tags["dataset"], spec, "quick"
        )
    if chosen.general_outlier == AUTO:
        return general, diff_outlier_general(session.store, run)
    if chosen.general_outlier == "none":
        return general, None
    return general, runs.resolve(session.store, chosen.general_outlier)
