"""The public functions of :mod:`oodflow`: what the commands do, for Python and notebooks.

They take the options of the commands by name, and arrays of uint8 images where a dataset is named.
They keep runs in the same store: MLFLOW_TRACKING_URI, else ``mlflow.db`` in the working folder. A
run that a command made is used here by its id, and the other way round. Progress is shown in a
terminal and in a notebook.

The examples are run by a test in a folder where ``oodflow main`` has run with tiny models: ``tiny``
are the options that make a training of a second, ``plain`` and ``general`` are runs of the plain
finetuning and of the general model.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from oodflow.commands import resolve
from oodflow.data.catalog import data_folder
from oodflow.data.given import keep_array
from oodflow.detection.detector import Detector
from oodflow.detection.inputs import all_pixels
from oodflow.detection.preprocessing import remembered
from oodflow.errors import UserError, unknown_name
from oodflow.experiment import Experiment
from oodflow.models.device import available_device
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import (
    AUTO,
    AnalyseOptions,
    DetectorOptions,
    EvaluateOptions,
    FinetuneOptions,
    Option,
    Options,
    PlaceOptions,
    QuickstartOptions,
    ReportOptions,
    RunListOptions,
    SampleOptions,
    TrainOptions,
    TuneOptions,
    checked,
    options_of,
)
from oodflow.plans import quickstart as quickstart_plan
from oodflow.tracking import runs
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import open_store
from oodflow.workflow import analyse as analyses_of
from oodflow.workflow import detectors, evaluation_run, listing, seeds
from oodflow.workflow import evaluate as evaluations
from oodflow.workflow.detectors import BuiltDetector
from oodflow.workflow.sample import sample as drawn
from oodflow.workflow.score import score_pixels
from oodflow.workflow.session import LoadedModel, Session, open_session

__all__ = [
    "ReportFiles",
    "analyse",
    "build_detector",
    "evaluate",
    "experiment_of",
    "find_runs",
    "finetune",
    "fit_detector",
    "get_run",
    "load_detector",
    "load_images",
    "load_model",
    "quickstart",
    "report",
    "sample",
    "score",
    "score_table",
    "train",
    "tune",
]

HELD_OUT = {"dataset": "", "outlier_dataset": "", "ood": "test=1", "calibrate": "test=1"}
"""Option that takes an array as a dataset → which of its images are held out, if not a fifth."""

Given = ParamSpec("Given")
Chosen = TypeVar("Chosen", bound=Options)
Result = TypeVar("Result")


def _taking(
    section: Callable[Given, Chosen], without: tuple[str, ...] = ()
) -> Callable[[Callable[[Chosen], Result]], Callable[Given, Result]]:
    """Makes of a function on options one that takes them by name, checked as on the command line.

    ``without`` are options that mean something for a command only. The docstring gets a list of
    the others, and the signature their names, types and defaults.
    """
    every = options_of(cast(type[Options], section))
    known = {each.name: each for each in every if each.name not in without}
    made = cast(Callable[..., Chosen], section)

    def of(work: Callable[[Chosen], Result]) -> Callable[Given, Result]:
        @functools.wraps(work)
        def call(*args: Given.args, **given: Given.kwargs) -> Result:
            if args:
                raise UserError(f"give the options of {work.__name__} by name, as in steps=100")
            return work(made(**_checked(work.__name__, known, given)))

        parameters = inspect.signature(section).parameters
        by_name = [parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in known]
        returns = inspect.signature(work).return_annotation
        # Notebooks complete the names and show the defaults from this.
        vars(call)["__signature__"] = inspect.Signature(by_name, return_annotation=returns)
        call.__doc__ = f"{inspect.cleandoc(work.__doc__ or '')}\n\n{_listed(known)}"
        return call

    return of


def _checked(name: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options given to a function, in their types; UserError where one is unknown or lacks."""
    for option in given:
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    for each in known.values():
        if each.required and each.name not in given:
            raise UserError(f"{name} needs {each.name}: {each.help}")
    where = data_folder(str(given.get("data_dir", AUTO)))
    return {
        option: checked(known[option], _named(option, value, where))
        for option, value in given.items()
    }


def _named(option: str, value: Any, data_dir: Path) -> Any:
    """The name of a dataset in place of its array, and one text in place of a list of outliers."""
    if option == "ood" and isinstance(value, list | tuple):
        return ",".join(str(_named(option, each, data_dir)) for each in value)
    if option not in HELD_OUT or not hasattr(value, "__array__"):
        return value
    return keep_array(value, data_dir, HELD_OUT[option])


def _listed(known: Mapping[str, Option]) -> str:
    """The options of a function for its docstring."""
    lines = ["Options:"]
    for each in known.values():
        default = AUTO if each.default is None else repr(each.default)
        facts = ["needed" if each.required else f"default {default}"]
        facts += [f"one of {', '.join(filter(None, each.choices))}"] if each.choices else []
        lines.append(f"    {each.name}: {each.help} ({', '.join(facts)})")
    return "\n".join(lines)


def _session(options: Options) -> Session:
    """Like that of a command, but a run that ``mlflow run`` made is left to the caller's script."""
    place = options if isinstance(options, PlaceOptions) else PlaceOptions()
    return dataclasses.replace(open_session(place), project_run="")


@_taking(TrainOptions)
def train(options: TrainOptions) -> tuple[RunInfo, ...]:
    """Train a model from scratch (S4.1); on a general dataset it becomes a general model.

    Returns a registered run per seed, with its metrics: ``bpd/<dataset>`` in bits per dimension,
    AUROCs as fractions. Raises UserError for options that contradict each other and for data that
    are absent.

    >>> [run] = oodflow.train(dataset="sketch-general", seeds=[3], **tiny)
    >>> run.registered, run.tags["seed"], 0 < run.metrics["bpd/sketch-general"]
    (True, '3', True)
    """
    return seeds.train(_session(options), options)


@_taking(FinetuneOptions)
def finetune(options: FinetuneOptions) -> tuple[RunInfo, ...]:
    """Train on a dataset from the general model's weights, with or without an outlier loss (S4.4).

    Returns a registered run per seed. T and margin are in nats. Raises UserError where a run that
    the training builds on is absent, with the command that would make it.

    >>> [run] = oodflow.finetune(outlier_loss="margin", init=general, **tiny)
    >>> run.tags["outlier_loss"], run.tags["dataset"]
    ('margin', 'sketch-shapes')
    """
    return seeds.train(_session(options), options)


@_taking(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> tuple[RunInfo, ...]:
    """Score test images under registered models (S5, S6), as a run for each model.

    Metrics are ``auroc/<outliers>/<score>``, ``aupr/…`` and ``fpr95/…`` as fractions, and
    ``bpd/<dataset>``. They go to the evaluated run as well. Raises UserError where a model or a
    dataset is absent.

    >>> [run] = oodflow.evaluate(run=plain, ood="sketch-digits", limit=64)
    >>> 0 <= run.metrics["auroc/sketch-digits/diff"] <= 1
    True
    >>> black = np.zeros((8, 32, 32, 3), np.uint8)
    >>> [run] = oodflow.evaluate(run=plain, ood=["sketch-scenes", black], limit=64)
    >>> len([name for name in run.metrics if name.startswith("auroc/") and name.endswith("/raw")])
    3
    """
    return evaluations.evaluate(_session(options), options)


@_taking(AnalyseOptions)
def analyse(options: AnalyseOptions) -> tuple[RunInfo, ...]:
    """What likelihoods depend on, and which images they rank highest (S3, S6, S8), as runs.

    Correlations are Spearman's, in [−1, 1]; likelihoods are in nats. Raises UserError for a run
    without a likelihood.

    >>> [run] = oodflow.analyse(run=plain, what="fourier", limit=64)
    >>> run.tags["analysis"], all(-1 <= value <= 1 for value in run.metrics.values())
    ('fourier', True)
    """
    return analyses_of.analyse(_session(options), options)


@_taking(TuneOptions)
def tune(options: TuneOptions) -> RunInfo:
    """An Optuna study of the outlier loss (S4.4): its run, with the best values as tags.

    ``tune/best_auroc`` is a fraction; T and margin are in nats. The same call continues the study.
    Raises UserError for a search space that is none.

    >>> oodflow.tune(trials=0)
    Traceback (most recent call last):
    oodflow.errors.UserError: trials must be at least 1 and images at least 2
    """
    return resolve("run study")(_session(options), options)


@dataclass(frozen=True)
class ReportFiles:
    """A report: its run, and the folder with its files.

    Tables have a row per in-distribution and outlier dataset and AUROCs in percent, as the page
    shows them. Raises UserError where the folder is gone.

    >>> [run, *_] = oodflow.find_runs(kind="report")
    >>> written = oodflow.ReportFiles(run, Path("report"))
    >>> written.page.name, "detection-sketch" in written.tables
    ('report.html', True)
    """

    run: RunInfo
    folder: Path

    @property
    def page(self) -> Path:
        """The report as one HTML file."""
        return self._part("report.html")

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by its name."""
        files = sorted(self._part("tables").glob("*.csv"))
        return {file.stem: pd.read_csv(file) for file in files}

    @property
    def figures(self) -> dict[str, Path]:
        """The PNG file of every figure by its name; PDFs are beside them."""
        return {file.stem: file for file in sorted(self._part("figures").glob("*.png"))}

    def _part(self, name: str) -> Path:
        if not (self.folder / name).exists():
            raise UserError(f"{self.folder} holds no report any more; make it again")
        return self.folder / name


@_taking(ReportOptions, without=("missing",))
def report(options: ReportOptions) -> ReportFiles:
    """Tables, figures and claims of everything that is registered, as a run and as files.

    Raises UserError where nothing is registered or the folder cannot be written.

    >>> sorted(oodflow.report(out="made-for-python").figures)[0]
    'effect-sketch-shapes'
    """
    run = resolve("write report")(open_store(), options)
    return ReportFiles(run, Path(options.out))


@_taking(QuickstartOptions, without=("missing",))
def quickstart(options: QuickstartOptions) -> ReportFiles:
    """The whole method on one dataset, from a general model to the report (``oodflow main``).

    Runs that are there are not made again. Here ``workers`` is 1 unless it is given: a script that
    asks for more has the call behind ``if __name__ == "__main__":``, since each worker imports it.
    Raises UserError where no general set fits the dataset.

    >>> oodflow.quickstart(seeds=[1, 2], out="again", **tiny).run.tags["kind"]
    'report'
    """
    if options.workers is None:
        options = dataclasses.replace(options, workers=1)
    outcomes = quickstart_plan.quickstart(_session(options), options)
    return ReportFiles(get_run(outcomes["report"].run_id), Path(options.out))


@_taking(DetectorOptions)
def build_detector(options: DetectorOptions) -> BuiltDetector:
    """A detector of a registered model: calibrated, measured, registered.

    Returns the :class:`Detector`, the run with its measured false-positive and detection rates
    (fractions), and its URI in the registry. Half of the test fold calibrates, the other half
    measures. Raises UserError where a model that the score needs is absent, and where calibration
    images were trained on.

    >>> built = oodflow.build_detector(run=plain, score="diff")
    >>> built.detector.score, built.detector.calibration.size, built.uri
    ('diff', 500, 'models:/oodflow-detector-sketch-shapes/1')
    >>> oodflow.Detector.load(built.uri).score
    'diff'
    """
    return detectors.build(_session(options), options)


@_taking(SampleOptions, without=("out",))
def sample(options: SampleOptions) -> NDArray[np.uint8]:
    """Images that a run's model draws, uint8 N×C×32×32, a function of model and seed.

    ``temperature`` is the standard deviation of a flow's latents. Raises UserError for a model
    that draws none.

    >>> oodflow.sample(run=plain, count=2).shape
    (2, 3, 32, 32)
    """
    return drawn(_session(PlaceOptions(options.device)), options).numpy()


@_taking(RunListOptions)
def find_runs(options: RunListOptions) -> tuple[RunInfo, ...]:
    """The runs in the store that match the filters, the newest first; ``seconds`` is how long.

    Of their numbers those that are MLflow metrics; :func:`get_run` has all of a run. Raises
    UserError where no store answers.

    >>> {run.tags["kind"] for run in oodflow.find_runs(kind="train", registered=True)}
    {'train'}
    """
    return tuple(listing.listed(options))


def fit_detector(images: ArrayLike, score: str = AUTO, **options: Any) -> Detector:
    """What :meth:`Detector.fit` does."""
    finetuned = finetune(**{**options, "dataset": images})
    if len(finetuned) > 1:
        raise UserError("a detector is of one model; give one seed")
    place = {name: options[name] for name in ("device", "data_dir") if name in options}
    return build_detector(run=finetuned[0].run_id, score=score, **place).detector


def get_run(run: str) -> RunInfo:
    """A run by its id or ``models:/NAME/VERSION``, with the metrics that it has now.

    Raises UserError where there is none.

    >>> oodflow.get_run(plain).tags["dataset"]
    'sketch-shapes'
    """
    return runs.resolve(open_store(), run)


def load_model(run: str, device: str = AUTO) -> LikelihoodModel:
    """The model of a run on a device, in evaluation mode; its digests are verified.

    It scores uint8 images N×C×32×32 and gives log p(x) in nats. Raises UserError for a run that
    holds no model.

    >>> import torch
    >>> model = oodflow.load_model(plain)
    >>> model.log_prob(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2])
    """
    return _loaded(run, device)[1].model


def experiment_of(run: str) -> Experiment:
    """The experiment of a run: all that decided its numbers, as a value.

    Raises UserError for a run that holds no model.

    >>> oodflow.experiment_of(plain).data.dataset
    'sketch-shapes'
    """
    return _loaded(run, "cpu")[1].experiment


def load_detector(reference: str | Path, device: str = AUTO) -> Detector:
    """What :meth:`Detector.load` does.

    >>> oodflow.Detector.load(plain)
    Traceback (most recent call last):
    oodflow.errors.UserError: run ... holds no detector; build one: oodflow detector build
    """
    return detectors.detector_at(str(reference), str(available_device(device)))


def load_images(dataset: str, fold: str = "test", limit: int = 0) -> NDArray[np.uint8]:
    """The images of a dataset's fold, uint8 N×C×32×32; the first ``limit`` of them unless it is 0.

    A memory map where all are taken. Raises UserError for an unknown dataset or fold, and for one
    whose files are absent.

    >>> oodflow.load_images("sketch-digits", limit=10).shape
    (10, 3, 32, 32)
    """
    return _session(PlaceOptions("cpu")).images(dataset, fold, limit).pixels.numpy()


def score(
    run: str, images: NDArray[np.uint8] | Iterable[object], device: str = AUTO
) -> pd.DataFrame:
    """Log-likelihoods of images under a run's model, a row an image.

    ``images`` are uint8 N×C×32×32, or paths, bytes, pictures or arrays of any size, prepared as the
    training images were. Columns: ``log_prob`` and its parts by scale ``scale1`` …, ``last_scale``
    in nats over the 256 levels, noise-free (S4.5), and ``bpd``. Raises UserError for an image that
    cannot be read.

    >>> table = oodflow.score(plain, np.zeros((2, 32, 32, 3), np.uint8))
    >>> table.columns.tolist(), len(table)
    (['log_prob', 'scale1', 'scale2', 'scale3', 'last_scale', 'bpd'], 2)
    """
    session, loaded = _loaded(run, device)
    pixels = all_pixels(images, remembered(loaded.experiment))
    return score_pixels(loaded.model, pixels, session.device)


def score_table(run: str, dataset: str, fold: str = "test", limit: int = 0) -> pd.DataFrame:
    """Log-likelihoods of a dataset's fold under a run's model, kept with the run.

    A row an image: ``index``, ``label`` (−1: none), ``log_prob`` and its parts ``scale1`` … in
    nats, noise-free, and ``log_prob_dequantised``, from which BPD is computed (S4.5, S7.1). These
    are the tables that :func:`oodflow.scores` takes. Raises UserError for images that the model
    cannot score.

    >>> own = oodflow.score_table(plain, "sketch-digits", limit=8)
    >>> other = oodflow.score_table(general, "sketch-digits", limit=8)
    >>> sorted(oodflow.scores(own, general=other))
    ['diff', 'last_scale', 'raw', 'scale1', 'scale2']
    """
    session = _session(PlaceOptions())
    return evaluation_run.score_table(
        session, runs.resolve(session.store, run), dataset, limit, fold
    )


def _loaded(run: str, device: str) -> tuple[Session, LoadedModel]:
    session = _session(PlaceOptions(device))
    return session, session.model(runs.resolve(session.store, run))
