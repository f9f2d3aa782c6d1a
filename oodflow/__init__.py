"""oodflow: anomaly detection with deep generative models, from training to report.

The method is that of Schirrmeister, Zhou, Ball and Zhang, "Understanding Anomaly Detection with
Deep Invertible Networks through Hierarchies of Distributions and Features", NeurIPS 2020,
arXiv:2006.10848. Docstrings cite its equations, and sections of its supplement such as S4.3.
"Authors' code" is the implementation that its authors published.

The names in ``__all__`` are the public ones, and each is imported when it is first used. All others
may change.
"""

from pkgutil import resolve_name as _resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodflow.api import ReportFiles as ReportFiles
    from oodflow.api import analyse as analyse
    from oodflow.api import build_detector as build_detector
    from oodflow.api import evaluate as evaluate
    from oodflow.api import experiment_of as experiment_of
    from oodflow.api import find_runs as find_runs
    from oodflow.api import finetune as finetune
    from oodflow.api import get_run as get_run
    from oodflow.api import load_images as load_images
    from oodflow.api import load_model as load_model
    from oodflow.api import quickstart as quickstart
    from oodflow.api import report as report
    from oodflow.api import sample as sample
    from oodflow.api import score as score
    from oodflow.api import score_table as score_table
    from oodflow.api import train as train
    from oodflow.api import tune as tune
    from oodflow.data.catalog import Dataset as Dataset
    from oodflow.data.catalog import register_dataset as register_dataset
    from oodflow.data.source import Fold as Fold
    from oodflow.data.source import Piece as Piece
    from oodflow.data.source import Raw as Raw
    from oodflow.detection.conformal import conformal_p_values as conformal_p_values
    from oodflow.detection.detector import Detector as Detector
    from oodflow.errors import UserError as UserError
    from oodflow.evaluation.metrics import aupr as aupr
    from oodflow.evaluation.metrics import auroc as auroc
    from oodflow.evaluation.metrics import fpr95 as fpr95
    from oodflow.evaluation.scores import compute_scores as scores  # noqa: F401
    from oodflow.evaluation.scores import register_score as register_score
    from oodflow.experiment import Data as Data
    from oodflow.experiment import Experiment as Experiment
    from oodflow.experiment import Loss as Loss
    from oodflow.experiment import Model as Model
    from oodflow.experiment import Optimisation as Optimisation
    from oodflow.experiment import spec_hash as spec_hash
    from oodflow.models.build import register_model as register_model
    from oodflow.models.likelihood import LikelihoodModel as LikelihoodModel
    from oodflow.models.likelihood import bits_per_dimension as bits_per_dimension
    from oodflow.presets import Preset as Preset
    from oodflow.tracking.run_info import RunInfo as RunInfo
    from oodflow.workflow.detectors import BuiltDetector as BuiltDetector

_PLACES = {
    "BuiltDetector": "oodflow.workflow.detectors:BuiltDetector",
    "Data": "oodflow.experiment:Data",
    "Dataset": "oodflow.data.catalog:Dataset",
    "Detector": "oodflow.detection.detector:Detector",
    "Experiment": "oodflow.experiment:Experiment",
    "Fold": "oodflow.data.source:Fold",
    "LikelihoodModel": "oodflow.models.likelihood:LikelihoodModel",
    "Loss": "oodflow.experiment:Loss",
    "Model": "oodflow.experiment:Model",
    "Optimisation": "oodflow.experiment:Optimisation",
    "Piece": "oodflow.data.source:Piece",
    "Preset": "oodflow.presets:Preset",
    "Raw": "oodflow.data.source:Raw",
    "ReportFiles": "oodflow.api:ReportFiles",
    "RunInfo": "oodflow.tracking.run_info:RunInfo",
    "UserError": "oodflow.errors:UserError",
    "analyse": "oodflow.api:analyse",
    "aupr": "oodflow.evaluation.metrics:aupr",
    "auroc": "oodflow.evaluation.metrics:auroc",
    "bits_per_dimension": "oodflow.models.likelihood:bits_per_dimension",
    "build_detector": "oodflow.api:build_detector",
    "conformal_p_values": "oodflow.detection.conformal:conformal_p_values",
    "evaluate": "oodflow.api:evaluate",
    "experiment_of": "oodflow.api:experiment_of",
    "find_runs": "oodflow.api:find_runs",
    "finetune": "oodflow.api:finetune",
    "fpr95": "oodflow.evaluation.metrics:fpr95",
    "get_run": "oodflow.api:get_run",
    "load_images": "oodflow.api:load_images",
    "load_model": "oodflow.api:load_model",
    "quickstart": "oodflow.api:quickstart",
    "register_dataset": "oodflow.data.catalog:register_dataset",
    "register_model": "oodflow.models.build:register_model",
    "register_score": "oodflow.evaluation.scores:register_score",
    "report": "oodflow.api:report",
    "sample": "oodflow.api:sample",
    "score": "oodflow.api:score",
    "score_table": "oodflow.api:score_table",
    "scores": "oodflow.evaluation.scores:compute_scores",
    "spec_hash": "oodflow.experiment:spec_hash",
    "train": "oodflow.api:train",
    "tune": "oodflow.api:tune",
}
"""Public name → ``module:name``; the imports above say the same to type checkers."""

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'oodflow' has no public name {name!r}")
    value = globals()[name] = _resolve_name(_PLACES[name])
    return value


def __dir__() -> list[str]:
    return [*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__"]
