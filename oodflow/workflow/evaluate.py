"""``oodflow evaluate``: score tables, metrics and figures of registered models."""

from oodflow import console
from oodflow.errors import UserError
from oodflow.experiment import COMPRESSORS, Model
from oodflow.options import AUTO, EvaluateOptions
from oodflow.registration import MODELS
from oodflow.tracking import runs
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow import results
from oodflow.workflow.choose import diff_outlier_general, general_of, in_distribution_runs
from oodflow.workflow.compressors import compressor_run
from oodflow.workflow.evaluation_run import compare_run, evaluate_run
from oodflow.workflow.session import Session, open_session

__all__ = ["command", "contrasts", "evaluate"]


def command(options: EvaluateOptions) -> None:
    """Evaluate one run, or for ``auto`` all registered in-distribution models."""
    session = open_session(options)
    made = evaluate(session, options)
    shown = made[0].run_id if len(made) == 1 else made[0].parent
    console.say(f"see it: {session.store.how_to_see(shown)}")


def evaluate(session: Session, options: EvaluateOptions) -> tuple[RunInfo, ...]:
    """The evaluations as runs: of one model, or for ``auto`` of all of the in-distribution.

    Those of several models are nested in one run.
    """
    if options.run == AUTO:
        targets = in_distribution_runs(session.store)
        if not targets:
            raise UserError("no registered in-distribution model; make one: oodflow finetune")
    else:
        targets = [runs.resolve(session.store, options.run)]
    if len(targets) == 1:
        return (_evaluate(session, targets[0], options, project_run=session.project_run),)
    tags = {"kind": "evaluate", "registered": "false"}
    with runs.recording(
        session.store, "evaluation", tags, project_run=session.project_run
    ) as parent:
        return tuple(_evaluate(session, run, options, parent=parent) for run in targets)


def _evaluate(
    session: Session,
    run: RunInfo,
    options: EvaluateOptions,
    parent: str = "",
    project_run: str = "",
) -> RunInfo:
    """One evaluation as a run of its own.

    Against a general model of the run's own family the numbers go to the run as well.
    """
    inherited = ("model", "dataset", "setting", "outlier_loss", "init", "seed")
    tags = {name: run.tags[name] for name in inherited if name in run.tags}
    tags |= {"kind": "evaluate", "evaluated": run.run_id, "registered": "false"}
    if plugin := MODELS.origin(run.tags.get("model", "")):
        tags["plugin.model"] = plugin
    name = f"evaluation of {run.name}"
    with runs.recording(session.store, name, tags, parent, project_run) as record:
        general, general_outlier = contrasts(session, run, options)
        own_family = general is None or general.tags["model"] == run.tags["model"]
        if own_family and options.inlier_fold == "test":
            result = evaluate_run(
                session, run, general, general_outlier, options.ood, options.limit
            )
        elif general is None:
            raise UserError("training-fold inliers are compared by a ratio; name a general model")
        else:
            result = compare_run(
                session, run, general, options.ood, options.limit, options.inlier_fold
            )
        runs.log_metrics(session.store, record, result.metrics)
        facts = {**result.plugins, "inlier_fold": options.inlier_fold, "registered": "true"}
        facts["general_model"] = general.tags["model"] if general else "none"
        facts |= {"general_run": general.run_id} if general else {}
        runs.set_tags(session.store, record, facts)
    made = runs.get(session.store, record)
    console.say(f"{run.name}, against {facts['general_model']}")
    results.show_runs([made])
    return made


def contrasts(
    session: Session, run: RunInfo, options: EvaluateOptions
) -> tuple[RunInfo | None, RunInfo | None]:
    """The general models behind ``diff`` and ``diff_outlier`` of a run."""
    spec: Model = session.model(run).experiment.model
    if run.tags.get("role") != "in_distribution" or not session.model(run).model.is_density:
        return None, None
    general: RunInfo | None = None
    if options.general in COMPRESSORS:
        general = compressor_run(session, options.general, spec.channels)
    elif options.general != "none":
        known = run.tags.get("general_run", "") if options.general == AUTO else ""
        general = general_of(
            session.store, known or options.general, run.tags["dataset"], spec, "quick"
        )
    if options.general_outlier == AUTO:
        return general, diff_outlier_general(session.store, run)
    if options.general_outlier == "none":
        return general, None
    return general, runs.resolve(session.store, options.general_outlier)
