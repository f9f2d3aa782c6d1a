"""``oodflow evaluate``: score tables, metrics and figures of registered models."""

from oodflow import console
from oodflow.data.catalog import slug_of
from oodflow.errors import UserError
from oodflow.experiment import COMPRESSORS, Model
from oodflow.options import AUTO, EvaluateOptions, FittedOptions
from oodflow.registration import MODELS
from oodflow.tracking import runs
from oodflow.tracking.numbers import headline
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.views import AUROC
from oodflow.workflow import results
from oodflow.workflow.choose import (
    diff_outlier_general,
    general_of,
    in_distribution_runs,
    other_seeds,
)
from oodflow.workflow.compressors import compressor_run, compressor_runs
from oodflow.workflow.evaluation_run import Contrasts, compare_run, describe_run, evaluate_run
from oodflow.workflow.session import Session, open_session

__all__ = ["command", "contrasts", "evaluate", "general_models"]


def command(options: EvaluateOptions) -> None:
    """Evaluate one run, or for ``auto`` all registered in-distribution models."""
    session = open_session(options)
    made = evaluate(session, options)
    see = session.store.how_to_see(made[0].run_id, AUROC if len(made) > 1 else None)
    console.say(f"see it: {see}")


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
    inherited = ("model", "dataset", "setting", "outlier_loss", "init", "seed", "group")
    tags = {name: run.tags[name] for name in inherited if name in run.tags}
    tags |= {"kind": "evaluate", "evaluated": run.run_id, "registered": "false"}
    if plugin := MODELS.origin(run.tags.get("model", "")):
        tags["plugin.model"] = plugin
    name = f"evaluation of {run.name}"
    with runs.recording(session.store, name, tags, parent, project_run) as record:
        general, general_outlier = general_models(session, run, options)
        own_family = general is None or general.tags["model"] == run.tags["model"]
        if own_family and options.inlier_fold == "test":
            beside = contrasts(session, run, options, general, general_outlier)
            result = evaluate_run(session, run, beside, options.ood, options.limit)
            describe_run(session, result.run)
        elif general is None:
            raise UserError("training-fold inliers are compared by a ratio; name a general model")
        else:
            result = compare_run(
                session, run, general, options.ood, options.limit, options.inlier_fold
            )
        shown = headline(result.metrics, slug_of(run.tags["dataset"]))
        runs.log_numbers(session.store, record, result.metrics, shown)
        facts = {**result.plugins, "inlier_fold": options.inlier_fold, "registered": "true"}
        facts["general_model"] = general.tags["model"] if general else "none"
        facts |= {"general_run": general.run_id} if general else {}
        runs.set_tags(session.store, record, facts)
    made = runs.get(session.store, record)
    console.say(f"{run.name}, against {facts['general_model']}")
    results.show_runs([made])
    return made


def contrasts(
    session: Session,
    run: RunInfo,
    options: FittedOptions,
    general: RunInfo | None,
    general_outlier: RunInfo | None,
    seeds: bool = False,
) -> Contrasts:
    """Whose tables the scores of a run need, beside general models: other seeds, compressors.

    Other seeds only where asked for: a run's own numbers do not depend on which of them are done.
    """
    model = session.model(run).model
    if not _has_scores(session, run):
        return Contrasts(general, general_outlier)
    return Contrasts(
        general,
        general_outlier,
        tuple(other_seeds(session.store, run)) if seeds else (),
        compressor_runs(session, model.image_shape[0]),
        options.train_images,
        options.gradient,
    )


def _has_scores(session: Session, run: RunInfo) -> bool:
    """Whether a run's model is an in-distribution density."""
    return run.tags.get("role") == "in_distribution" and session.model(run).model.is_density


def general_models(
    session: Session, run: RunInfo, options: EvaluateOptions
) -> tuple[RunInfo | None, RunInfo | None]:
    """The general models behind ``diff`` and ``diff_outlier`` of a run."""
    spec: Model = session.model(run).experiment.model
    if not _has_scores(session, run):
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
