"""From options to the plan of a training: its experiment, and the runs that it builds on.

:func:`outline` is the first step of every plan: the experiment as far as the options determine it.
A dry run stops there; :func:`scratch_plan` and :func:`finetune_plan` add what is read from data and
store.
"""

from collections.abc import Mapping
from dataclasses import replace

from oodflow.data.catalog import Dataset, agreeing, lookup, plugin_of
from oodflow.errors import UserError
from oodflow.experiment import CLASSIFIER, COMPRESSORS, Experiment, Loss, Model
from oodflow.options import (
    AUTO,
    TUNED,
    FinetuneOptions,
    LossOptions,
    TrainingOptions,
    TrainOptions,
)
from oodflow.presets import architecture, build_experiment, classifier_loss, loss_of
from oodflow.registration import MODELS
from oodflow.tracking.run_info import RunInfo
from oodflow.training.distributed import world
from oodflow.workflow.choose import contrast_of, general_of, newest_general, own_of, tuned
from oodflow.workflow.session import Session, check_same_shape
from oodflow.workflow.training_plan import TrainingPlan

__all__ = [
    "dataset_of",
    "finetune_plan",
    "first_present",
    "make_plan",
    "outline",
    "scratch_plan",
    "untuned",
]

DEFAULT_DATASETS: Mapping[type, str] = {TrainOptions: "sketch-general"}
"""Options of an entry point → the dataset that ``auto`` means; for others sketch-shapes."""


def dataset_of(options: TrainingOptions) -> Dataset:
    """The catalogue's facts of the dataset that a training is of; UserError for an unknown name."""
    if options.model == CLASSIFIER:
        default = "sketch-shapes"
    else:
        default = DEFAULT_DATASETS.get(type(options), "sketch-shapes")
    return lookup(default if options.dataset == AUTO else options.dataset)


def outline(options: TrainOptions | FinetuneOptions, facts: Dataset, outliers: str) -> Experiment:
    """The experiment as far as the options determine it, without hashes, digests and seed.

    ``facts`` are the dataset's, as the catalogue or its prepared form has them; ``outliers`` is
    the dataset of outliers where the options name none. Raises UserError where the options
    contradict each other or are out of range.
    """
    classes, loss = 0, Loss("none", "", 0.0, 0.0)
    if isinstance(options, FinetuneOptions):
        if options.model == CLASSIFIER or options.model in COMPRESSORS:
            raise UserError(f"{options.model} is not finetuned; see oodflow train --help")
        if options.supervised:
            classes = facts.classes
        loss = loss_of(options, outliers, facts.channels, options.supervised)
    elif options.model in COMPRESSORS:
        raise UserError(
            f"{options.model} has nothing to train; use it as the general model: "
            f"oodflow evaluate --general {options.model}"
        )
    elif options.model == CLASSIFIER:
        loss = classifier_loss(outliers)
    if loss.outlier_dataset:
        loss = replace(loss, outlier_dataset=agreeing(loss.outlier_dataset, facts.channels))
    return build_experiment(
        options,
        dataset=facts.name,
        role=role_of(facts),
        train_size=facts.train_size,
        model=replace(architecture(options, facts.channels), classes=classes),
        loss=loss,
        init="scratch" if isinstance(options, TrainOptions) else "general",
    )


def role_of(facts: Dataset) -> str:
    """What a model of a dataset is for: ``general`` or ``in_distribution``."""
    return "general" if facts.role == "general" else "in_distribution"


def make_plan(session: Session, options: TrainOptions | FinetuneOptions, seed: int) -> TrainingPlan:
    """The plan of one training; UserError where data or a run that it builds on is absent."""
    if isinstance(options, TrainOptions):
        return scratch_plan(session, options, seed)
    return finetune_plan(session, options, seed)


def scratch_plan(session: Session, options: TrainOptions, seed: int) -> TrainingPlan:
    """The plan of one run from scratch."""
    classifier = options.model == CLASSIFIER
    if classifier and (world() > 1 or session.parts > 1):
        raise UserError(
            "wide-resnet is trained in one process and one part, since its batch normalisation is "
            "over the whole batch; leave torchrun and accumulate out"
        )
    facts = dataset_of(options)
    role = role_of(facts)
    outliers = first_present(session, facts.generals)
    experiment = _identified(
        session, outline(options, session.described(facts.name).facts, outliers), seed
    )
    general = None
    if role == "in_distribution" and not classifier:
        general = newest_general(session.store, facts.name, experiment.model)
    return TrainingPlan("train", experiment, role, "scratch", general=general)


def finetune_plan(session: Session, options: FinetuneOptions, seed: int) -> TrainingPlan:
    """The plan of one finetuning, with its start and its contrast found in the registry.

    On a general dataset it makes the general model of Diff†: the outliers are in-distribution
    images and the contrast is the in-distribution model.
    """
    facts = dataset_of(options)
    dataset, store, role = facts.name, session.store, role_of(facts)
    options, origins = tuned(store, options, dataset)
    wanted = architecture(options, facts.channels)
    if options.supervised and not session.described(dataset).facts.classes:
        raise UserError(f"{dataset} has no labels, which supervised training needs")
    # Wrong options are reported before a run is looked for.
    outline(options, facts, facts.generals[-1] if facts.generals else facts.name)
    if options.init == "own":
        init = own_of(store, dataset, wanted, options.preset, seed)
    else:
        init = general_of(store, options.init, dataset, wanted, options.preset)
    start = session.model(init).experiment.model
    # Its weights are another version's, perhaps; what is trained now is of this one.
    start = replace(start, plugin=MODELS.origin(start.name))
    check_same_shape(dataset, start.channels, f"the model of run {init.run_id}")
    _check_architecture(options, start, init)
    # Outliers are those that the start knows as the general distribution, else the first there.
    from_general = init.tags.get("role") == "general"
    if role == "in_distribution" and from_general:
        outliers = init.tags["dataset"]
    else:
        outliers = first_present(session, facts.generals)
    experiment = outline(options, session.described(dataset).facts, outliers)
    if options.supervised:
        start = replace(start, classes=experiment.model.classes)
    experiment = _identified(session, replace(experiment, model=start), seed)
    needs_contrast = experiment.loss.outlier_loss == "binary" or options.supervised
    general = contrast = None
    if role == "in_distribution":
        if options.general == AUTO and options.init != "own" and from_general:
            general = init
        elif options.general != AUTO or needs_contrast:
            general = general_of(store, options.general, dataset, wanted, options.preset)
        contrast = general if needs_contrast else None
    elif needs_contrast:
        contrast = contrast_of(store, options.general, experiment.loss.outlier_dataset, start, seed)
    if contrast:
        channels = session.model(contrast).experiment.model.channels
        check_same_shape(dataset, channels, f"the contrast model of run {contrast.run_id}")
    experiment = replace(experiment, init=_spec(init), general=_spec(contrast) if contrast else "")
    origin = "own" if init.tags.get("role") == "in_distribution" else "general"
    return TrainingPlan("finetune", experiment, role, origin, init, contrast, general, origins)


def first_present(session: Session, datasets: tuple[str, ...]) -> str:
    """The first of the datasets that is there, or ""."""
    return next((name for name in datasets if session.present(name)), "")


def untuned(options: FinetuneOptions) -> FinetuneOptions:
    """The options with published values in place of ``tuned``, for an outline."""
    published = LossOptions()
    values = {
        name: getattr(published, name)
        for name in ("temperature", "outlier_weight", "margin")
        if getattr(options, name) == TUNED
    }
    return replace(options, **values)


def _identified(session: Session, experiment: Experiment, seed: int) -> Experiment:
    """The experiment of a seed with the digests of its images."""
    dataset, loss = experiment.data.dataset, experiment.loss
    data = replace(experiment.data, digest=session.train_digest(dataset), plugin=plugin_of(dataset))
    if outliers := loss.outlier_dataset:
        loss = replace(
            loss,
            outlier_digest=session.train_digest(outliers),
            outlier_plugin=plugin_of(outliers),
        )
    return replace(experiment, data=data, loss=loss, seed=seed)


def _spec(run: RunInfo) -> str:
    return run.tags.get("spec", run.run_id)


def _check_architecture(options: FinetuneOptions, model: Model, init: RunInfo) -> None:
    """Depth and width that were given must be those of the start."""
    for name, given, own in (
        ("depth", options.depth, model.depth),
        ("hidden", options.hidden, model.hidden),
        ("model", options.model, model.name),
    ):
        if given not in (None, own):
            raise UserError(
                f"run {init.run_id} holds a {model.name} with {name} {own}, but {name} "
                f"{given} was asked for; leave it out, or start from another run"
            )
