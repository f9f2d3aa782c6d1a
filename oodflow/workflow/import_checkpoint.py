"""``oodflow import-checkpoint``: published weights become an ordinary registered run."""

from pathlib import Path

from oodflow import console
from oodflow.data.catalog import lookup
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation, parameters
from oodflow.foreign.formats import read_model
from oodflow.options import ImportOptions, PlaceOptions
from oodflow.tracking import runs
from oodflow.training.checkpoint import refuse_not_finite, tensor_digest
from oodflow.workflow.session import check_same_shape, open_session
from oodflow.workflow.training_plan import TrainingPlan, model_name, run_tags
from oodflow.workflow.training_run import keep_weights

__all__ = ["command"]


def command(options: ImportOptions) -> None:
    """Read the file, keep its weights as a run, and print the run's id last."""
    file, dataset = options.file, options.dataset
    model, fields = read_model(Path(file), options.format)
    refuse_not_finite(model.state_dict(), file)
    spec = Model(**fields)
    if dataset:
        check_same_shape(lookup(dataset).name, spec.channels, f"the model in {file}")
    session = open_session(PlaceOptions(device="cpu"))
    store = session.store
    # Whose training is not known is told apart by its weights.
    origin = f"imported {tensor_digest(model.state_dict())}"
    experiment = Experiment(
        spec,
        Data(dataset, 0),
        Loss("none", "", 0.0, 0.0),
        Optimisation(0, 0, 0.0, 0.0, 0, 0, "fp32"),
        origin,
        "",
        seed=0,
    )
    plan = TrainingPlan("train", experiment, options.role, "scratch")
    tags = {**run_tags(plan), "imported_from": Path(file).name, "format": options.format}
    name = f"{spec.name} · imported from {Path(file).name}"
    with runs.recording(store, name, tags) as run_id:
        runs.log_parameters(store, run_id, parameters(experiment))
        keep_weights(session, run_id, model, experiment)
        runs.register(store, run_id, model_name(plan).rstrip("-"))
    console.say(f"{spec.name}: {spec.channels} channels, depth {spec.depth}, width {spec.hidden}")
    console.say(f"see it: {store.how_to_see(run_id)}")
    console.say(run_id)
