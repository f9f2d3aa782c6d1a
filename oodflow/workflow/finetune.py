"""``oodflow finetune``: from the general model, or an own one, with or without an outlier loss."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from oodflow.data.catalog import lookup
from oodflow.errors import UserError
from oodflow.experiment import AUTO, COMPRESSORS, Model
from oodflow.presets import architecture, build_experiment, loss_of
from oodflow.tracking.runs import RunInfo
from oodflow.workflow.choose import contrast_of, general_of, own_of, tuned
from oodflow.workflow.session import Session, check_same_shape
from oodflow.workflow.train import first_present, train_seeds, with_outliers
from oodflow.workflow.training_plan import TrainingPlan

__all__ = ["command", "finetune_plan"]


def command(given: Mapping[str, Any]) -> None:
    """Finetune as the options say, once a seed."""
    train_seeds(given, finetune_plan)


def finetune_plan(session: Session, given: Mapping[str, Any], seed: int) -> TrainingPlan:
    """The plan of one finetuning, with its start and its contrast found in the registry.

    On a general dataset it makes the general model of Diff†: the outliers are in-distribution
    images and the contrast is the in-distribution model.
    """
    facts = lookup("sketch-shapes" if given["dataset"] == AUTO else given["dataset"])
    dataset = facts.name
    given, origins = tuned(session.store, given, dataset)
    if given["model"] == "wide-resnet" or given["model"] in COMPRESSORS:
        raise UserError(f"{given['model']} is not finetuned; see oodflow train --help")
    supervised = given["supervised"]
    classes = session.described(dataset).facts.classes if supervised else 0
    if supervised and not classes:
        raise UserError(f"{dataset} has no labels, which supervised training needs")
    role = "general" if facts.role == "general" else "in_distribution"
    wanted = architecture(given, facts.channels)
    preset = given["preset"]
    if given["init"] == "own":
        init = own_of(session.store, dataset, wanted, preset, seed)
    else:
        init = general_of(session.store, given["init"], dataset, wanted, preset)
    loaded = session.model(init)
    check_same_shape(dataset, loaded.experiment.model.channels, f"the model of run {init.run_id}")
    _check_architecture(given, loaded.experiment.model, init)
    # Outliers are those that the start knows as the general distribution, else the first there.
    from_general = role == "in_distribution" and init.tags.get("role") == "general"
    outliers = init.tags["dataset"] if from_general else first_present(session, facts.generals)
    loss = with_outliers(session, loss_of(given, outliers), facts.channels)
    needs_contrast = loss.outlier_loss == "binary" or supervised
    general = contrast = None
    if role == "in_distribution":
        reference = given["general"]
        if reference == AUTO and given["init"] != "own" and init.tags.get("role") == "general":
            general = init
        elif reference != AUTO or needs_contrast:
            general = general_of(session.store, reference, dataset, wanted, preset)
        contrast = general if needs_contrast else None
    elif needs_contrast:
        contrast = contrast_of(
            session.store, given["general"], loss.outlier_dataset, loaded.experiment.model, seed
        )
    if contrast:
        channels = session.model(contrast).experiment.model.channels
        check_same_shape(dataset, channels, f"the contrast model of run {contrast.run_id}")
    experiment = build_experiment(
        given,
        dataset=dataset,
        digest=session.train_digest(dataset),
        role=role,
        train_size=session.described(dataset).facts.train_size,
        model=replace(loaded.experiment.model, classes=classes)
        if supervised
        else loaded.experiment.model,
        loss=loss,
        init=_spec(init),
        general=_spec(contrast) if contrast else "",
        seed=seed,
    )
    start = "own" if init.tags.get("role") == "in_distribution" else "general"
    return TrainingPlan("finetune", experiment, role, start, init, contrast, general, origins)


def _spec(run: RunInfo) -> str:
    return run.tags.get("spec", run.run_id)


def _check_architecture(given: Mapping[str, Any], model: Model, init: RunInfo) -> None:
    """An architecture asked for in so many words must be that of the start."""
    for option, own in (("depth", model.depth), ("hidden", model.hidden), ("model", model.name)):
        if given[option] not in (AUTO, own):
            raise UserError(
                f"run {init.run_id} holds a {model.name} with {option} {own}, but {option} "
                f"{given[option]} was asked for; leave it out, or start from another run"
            )
