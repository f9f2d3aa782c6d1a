"""Lossless compressors as general models (S6): runs without weights that hold their scores."""

from PIL import features

from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.build import build_model
from oodflow.models.compressor import CODECS
from oodflow.tracking import runs
from oodflow.tracking.leases import leased_in_turn
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow.session import Session
from oodflow.workflow.training_plan import TrainingPlan, model_name, run_tags
from oodflow.workflow.training_run import keep_weights

__all__ = ["compressor_run", "compressor_runs"]


def compressor_runs(session: Session, channels: int) -> tuple[RunInfo, ...]:
    """The runs of all codecs that the installed Pillow has."""
    present = [name for name, codec in CODECS.items() if features.check(codec.feature)]
    return tuple(compressor_run(session, name, channels) for name in present)


def compressor_run(session: Session, codec: str, channels: int) -> RunInfo:
    """The registered run of a codec for images of so many channels, made at its first use."""
    model = Model(channels, codec, 0, 0)
    optimisation = Optimisation(0, 0, 0.0, 0.0, 0, 0, "fp32")
    experiment = Experiment(
        model, Data("", 0), Loss("none", "", 0.0, 0.0), optimisation, "scratch", "", seed=0
    )
    plan = TrainingPlan("train", experiment, "general", "scratch")
    tags = run_tags(plan)
    wanted = {"spec": tags["spec"], "registered": "true"}
    if known := runs.find(session.store, wanted):
        return known[0]
    name = f"{codec} · {channels} channels"
    with leased_in_turn(session.store, tags["spec"], name):
        # The process that held the lease before has made it.
        if known := runs.find(session.store, wanted):
            return known[0]
        with runs.recording(session.store, name, tags) as run_id:
            keep_weights(session, run_id, build_model(model), experiment)
            runs.register(session.store, run_id, model_name(plan).rstrip("-"))
    return runs.get(session.store, run_id)
