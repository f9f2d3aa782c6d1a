"""A detector as a value: the models that its score needs, the preprocessing, the calibration.

It is saved as a folder (:mod:`oodflow.detection.sealed`) of ``detector.json``, one
``<role>.safetensors`` per model and ``calibration.parquet``. Nothing is pickled.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray

from oodflow.commands import resolve
from oodflow.detection.calibration import Calibration
from oodflow.detection.conformal import allowed_rank
from oodflow.detection.inputs import InputImage, all_pixels, from_anything
from oodflow.detection.preprocessing import Preprocessing
from oodflow.detection.sealed import FACTS_FILE, seal, verified
from oodflow.errors import UserError
from oodflow.evaluation.scores import (
    SCORES,
    clip_non_finite,
    compute_scores,
    refuse_all_clipped,
)
from oodflow.evaluation.scoring import score_images
from oodflow.experiment import Experiment
from oodflow.models.fused import Folds, folded_once
from oodflow.models.likelihood import LikelihoodModel
from oodflow.training.checkpoint import load_model, save_model

__all__ = [
    "BATCH",
    "CALIBRATION_FILE",
    "DECISION_COLUMNS",
    "DEFAULT_ALPHA",
    "ROLES",
    "Detector",
    "DetectorModel",
    "calibrated",
    "roles_of",
]

ROLES = ("in_distribution", "general", "general_outlier")
"""The models that a detector can have; ``<role>.safetensors`` is the file of one."""

CALIBRATION_FILE = "calibration.parquet"

BATCH = 128
"""Images scored at once."""

DECISION_COLUMNS = ("score", "p_value", "anomalous", "resized", "error")
"""Columns of :meth:`Detector.judge`."""

DEFAULT_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class DetectorModel:
    """A model of a detector, with the experiment that made it and the digest of its weights.

    The weights never change, so what is computed from them alone is computed once.
    """

    model: LikelihoodModel
    experiment: Experiment
    digest: str
    folds: Folds = field(default_factory=dict, repr=False)


def roles_of(score: str) -> tuple[str, ...]:
    """The models that a score needs; raises UserError for an unknown score.

    >>> roles_of("diff")
    ('in_distribution', 'general')
    """
    if score not in SCORES:
        raise SCORES.unknown(score)
    contrasts = [need for need in SCORES[score].needs if need != "test"]
    if lacking := [need for need in contrasts if need not in ROLES]:
        raise UserError(
            f"score {score!r} needs {' and '.join(lacking)}, which a detector does not have; "
            "choose another score"
        )
    return ("in_distribution", *contrasts)


@dataclass(frozen=True, eq=False)
class Detector:
    """A score and its calibration: from images to p-values and decisions.

    ``models`` has one for each of :func:`roles_of` its score, on ``device``. Images are uint8
    N×C×32×32 where nothing else is said, prepared as ``preprocessing`` says. Raises UserError where
    the parts do not fit each other. p-values as in arXiv:2104.08279.

    >>> from oodflow.models.compressor import Compressor
    >>> png = {"in_distribution": DetectorModel(Compressor(1, "png"), None, "")}
    >>> flat = np.tile(np.arange(9, dtype=np.uint8)[:, None, None, None], (1, 1, 32, 32))
    >>> detector = calibrated("raw", "mnist", Preprocessing(1), png, flat, {})
    >>> noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    >>> detector.decide([flat[0], noise], alpha=0.1).tolist()
    [False, True]
    """

    score: str
    dataset: str
    """The in-distribution, by its name in the catalogue."""
    preprocessing: Preprocessing
    models: Mapping[str, DetectorModel]
    calibration: Calibration
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_models(self.score, self.preprocessing, self.models)
        expected = ["score", *_parts(self.models)]
        if list(self.calibration.table.columns) != expected:
            raise UserError(
                f"a detector of these models is calibrated by {', '.join(expected)}, but the "
                f"calibration holds {', '.join(self.calibration.table.columns)}"
            )

    @classmethod
    def fit(cls, images: ArrayLike, score: str = "auto", **options: Any) -> "Detector":
        """A detector of one's own images: a finetuned model, calibrated by images held out of it.

        ``images`` are uint8 N×H×W, N×H×W×C or N×C×H×W, made 32×32. A fifth of them is not trained
        on: half of it calibrates, the other half measures. ``options`` are those of
        :func:`oodflow.finetune`, which starts from the newest general model in the store. The score
        is the best that the registered contrasts allow unless another is named; p-values are
        conformal (arXiv:2104.08279). Model and detector are registered runs.

        Raises UserError for an array of another kind, and where there is no general model, with the
        command that makes one.

        >>> Detector.fit(np.zeros((9, 32, 32)))
        Traceback (most recent call last):
        oodflow.errors.UserError: the given array holds float64 of shape 9×32×32 ...
        """
        return resolve("fit detector")(images, score, **options)

    def measure(
        self, images: NDArray[np.uint8], on_progress: Callable[[int], None] | None = None
    ) -> pd.DataFrame:
        """``score`` and its parts ``scale1`` …, see :func:`measured`; one row per image."""
        return measured(self.score, self.models, images, self.device, on_progress)

    def scores(self, images: Iterable[object]) -> NDArray[np.float64]:
        """The score of each image in nats, shape N; higher is more in-distribution."""
        return self.measure(self.pixels(images))["score"].to_numpy()

    def p_values(self, images: Iterable[object]) -> NDArray[np.float64]:
        """Conformal p-values, shape N: an inlier's is at most α with probability at most α.

        See :func:`oodflow.detection.conformal.conformal_p_values`.
        """
        measured_images = self.measure(self.pixels(images))
        return self.calibration.p_values(measured_images)["p_value"].to_numpy()

    def scale_p_values(self, images: Iterable[object]) -> NDArray[np.float64]:
        """p-values of the parts of the score by scale, N×S; N×0 for a model without scales.

        A small one says at which scale an image is unusual. They are for explanation: the least of
        them is no p-value of the image.
        """
        found = self.calibration.p_values(self.measure(self.pixels(images)))
        return found.drop(columns="p_value").to_numpy()

    def decide(self, images: Iterable[object], alpha: float = DEFAULT_ALPHA) -> NDArray[np.bool_]:
        """Which images are anomalous at the false-positive rate α: p(x) ≤ α; shape N.

        Raises UserError where α is not between 0 and 1, or too small for the calibration.
        """
        allowed_rank(alpha, self.calibration.size)
        return self.p_values(images) <= alpha

    def score_samples(self, images: Iterable[object]) -> NDArray[np.float64]:
        """scikit-learn's name of :meth:`scores`; the sign is the same."""
        return self.scores(images)

    def decision_function(
        self, images: Iterable[object], alpha: float = DEFAULT_ALPHA
    ) -> NDArray[np.float64]:
        """s(x) − s_(l), below 0 exactly where p(x) ≤ α: the l-th smallest calibration score is the
        threshold, l = ⌊α(n + 1)⌋. As scikit-learn's outlier detectors have it; shape N, in nats."""
        rank = allowed_rank(alpha, self.calibration.size)
        return self.scores(images) - self.calibration.threshold(rank)

    def predict(self, images: Iterable[object], alpha: float = DEFAULT_ALPHA) -> NDArray[np.int64]:
        """+1 for an inlier, −1 for an anomalous image at the rate α, as scikit-learn has it."""
        return np.where(self.decide(images, alpha), -1, 1)

    def read(self, items: Iterable[object]) -> list[InputImage]:
        """Paths, bytes, pictures or arrays, each prepared as the training images were."""
        return [from_anything(item, self.preprocessing) for item in items]

    def pixels(self, images: Iterable[object]) -> NDArray[np.uint8]:
        """Images as :meth:`measure` takes them, from all that :meth:`read` takes.

        An array or tensor N×C×H×W or N×H×W×C is N images; uint8 N×C×32×32 stays as it is. Raises
        UserError for the first one that cannot be read; :meth:`judge` gives it a row instead.
        """
        return all_pixels(images, self.preprocessing)

    def judge(
        self,
        inputs: Sequence[InputImage],
        alpha: float | None = DEFAULT_ALPHA,
        on_progress: Callable[[int], None] | None = None,
    ) -> pd.DataFrame:
        """A row an input, in their order: :data:`DECISION_COLUMNS`, then the parts by scale.

        ``score`` and the parts ``scale1`` … (nats), ``p_value`` and ``scale1_p`` … are NaN and
        ``anomalous`` is missing in a row with an ``error``; elsewhere that is "". Without α no
        decision is made: the column is missing throughout. ``on_progress`` as in :meth:`measure`.
        Raises UserError for an α that cannot be.
        """
        if alpha is not None:
            allowed_rank(alpha, self.calibration.size)
        readable = np.array([each.pixels is not None for each in inputs], dtype=bool)
        scales = self.calibration.scales
        names = ["score", "p_value", *scales, *(f"{name}_p" for name in scales)]
        numbers = {name: np.full(len(inputs), np.nan) for name in names}
        if readable.any():
            pixels = np.stack([pixels for each in inputs if (pixels := each.pixels) is not None])
            found = self.measure(pixels, on_progress)
            for name, values in (*found.items(), *self.calibration.p_values(found).items()):
                numbers[str(name)][readable] = values
        anomalous = numbers["p_value"] <= (0.0 if alpha is None else alpha)
        undecided = ~readable if alpha is not None else np.ones(len(inputs), dtype=bool)
        columns = {
            **numbers,
            "anomalous": pd.arrays.BooleanArray(anomalous, undecided),
            "resized": np.array([each.resized for each in inputs], dtype=bool),
            "error": pd.Series([each.error for each in inputs], dtype=object),
        }
        return pd.DataFrame({name: columns[name] for name in (*DECISION_COLUMNS, *names[2:])})

    def save(self, folder: Path) -> str:
        """Write the detector into a new or empty folder; returns the folder's digest.

        Raises UserError where the folder holds anything, ResourceError where it cannot be written.
        """
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; save the detector in a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        for role, each in self.models.items():
            save_model(folder / f"{role}.safetensors", each.model, each.experiment)
        table = pa.Table.from_pandas(self.calibration.table, preserve_index=False)
        pq.write_table(table, folder / CALIBRATION_FILE, write_page_checksum=True)
        facts = {
            "score": self.score,
            "dataset": self.dataset,
            "preprocessing": asdict(self.preprocessing),
            "models": {role: each.digest for role, each in self.models.items()},
            "calibration": {**self.calibration.facts, "size": str(self.calibration.size)},
        }
        if plugin := SCORES.origin(self.score):
            facts["plugin"] = plugin
        return seal(folder, facts)

    @classmethod
    def load(cls, reference: str | Path, device: str = "auto") -> "Detector":
        """A detector by ``models:/NAME/VERSION``, ``models:/NAME@champion``, run id or folder.

        Every file is verified and nothing is unpickled. Raises UserError where there is no
        detector, or it was changed.

        >>> Detector.load("photos/detector")
        Traceback (most recent call last):
        oodflow.errors.UserError: no folder at photos/detector; give one that holds a detector, ...
        """
        return resolve("load detector")(reference, device)

    @classmethod
    def from_folder(cls, folder: Path, device: str = "cpu") -> "Detector":
        """The detector that :meth:`save` put into a folder, with its models on a device.

        Every digest is verified before a file is opened. Raises UserError for a folder that is no
        detector, was changed, or holds anything else.
        """
        files = [f"{role}.safetensors" for role in ROLES]
        facts = verified(folder, (*files, CALIBRATION_FILE))
        try:
            score, dataset = str(facts["score"]), str(facts["dataset"])
            plugin = str(facts.get("plugin", ""))
            preprocessing = Preprocessing(**facts["preprocessing"])
            origin = {str(k): str(v) for k, v in facts["calibration"].items() if k != "size"}
            digests = dict(facts["models"])
            if set(facts["files"]) != {
                *(f"{role}.safetensors" for role in digests),
                CALIBRATION_FILE,
            }:
                raise KeyError("models")
        except (KeyError, TypeError, AttributeError, ValueError, UserError) as error:
            raise UserError(
                f"{folder / FACTS_FILE} is not what this version of oodflow writes ({error}); "
                "build the detector again"
            ) from error
        if score not in SCORES:
            raise SCORES.unknown(score, plugin)
        models = {role: _model(folder, role, digest, device) for role, digest in digests.items()}
        calibration = Calibration(_calibration_table(folder / CALIBRATION_FILE), origin)
        return cls(score, dataset, preprocessing, MappingProxyType(models), calibration, device)


def calibrated(
    score: str,
    dataset: str,
    preprocessing: Preprocessing,
    models: Mapping[str, DetectorModel],
    images: NDArray[np.uint8],
    facts: Mapping[str, str],
    device: str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> Detector:
    """A detector calibrated by in-distribution images, uint8 N×C×32×32, that were not trained on.

    ``facts`` says what they are, see :class:`Calibration`. Raises UserError where the models are
    not those that the score needs, or the images not of their shape.
    """
    check_models(score, preprocessing, models)
    tables = _tables(models, images, device, on_progress)
    for role, each in tables.items():
        # A general model that was trained against these images may exclude them all.
        if role != "general_outlier":
            refuse_all_clipped(f"the {role.replace('_', '-')} model", each)
    calibration = Calibration(_combined(score, models, tables), dict(facts))
    return Detector(score, dataset, preprocessing, dict(models), calibration, device)


def check_models(
    score: str, preprocessing: Preprocessing, models: Mapping[str, DetectorModel]
) -> None:
    """Raise UserError where these models do not make this score of images so prepared."""
    needed = roles_of(score)
    if set(models) != set(needed):
        raise UserError(
            f"score {score!r} needs the models {', '.join(needed)}, "
            f"but got {', '.join(models) or 'none'}"
        )
    shape = (preprocessing.channels, 32, 32)
    for role, each in models.items():
        if tuple(each.model.image_shape) != shape:
            raise UserError(
                f"the {role} model scores images of {each.model.image_shape[0]} channels, but they "
                f"are prepared with {preprocessing.channels}; use one of the same channels"
            )
    scales = models["in_distribution"].model.scales
    allowed = SCORES[score].scales
    if scales not in allowed:
        least = f"{allowed.start}{'' if len(allowed) == 1 else ' or more'}"
        raise UserError(f"score {score!r} needs a model of {least} scales; this one has {scales}")


def measured(
    score: str,
    models: Mapping[str, DetectorModel],
    images: NDArray[np.uint8],
    device: str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """``score`` and its parts by scale, float64 in nats; one row per image of uint8 N×C×32×32.

    The parts ``scale1`` … ``scaleS`` of a model with S > 1 scales are its contributions c_i(x)
    (Eq. 3 of the paper), and for a difference of two such models c_i,in(x) − c_i,g(x), so that they
    add up to the score. Noise-free; non-finite values are clipped (S4.5).
    """
    return _combined(score, models, _tables(models, images, device, on_progress))


def _tables(
    models: Mapping[str, DetectorModel],
    images: NDArray[np.uint8],
    device: str,
    on_progress: Callable[[int], None] | None,
) -> dict[str, pd.DataFrame]:
    """Role → score table of the images; nothing without images."""
    if len(images) == 0:
        return {}
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    tables = {}
    for number, (role, each) in enumerate(models.items()):

        def advance(done: int, before: int = number * len(pixels)) -> None:
            if on_progress is not None:
                on_progress((before + done) // len(models))

        with folded_once(each.folds):
            tables[role] = score_images(
                each.model,
                pixels,
                None,
                device=device,
                batch_size=BATCH,
                dequantised=False,
                on_progress=advance,
            )
    return tables


def _combined(
    score: str, models: Mapping[str, DetectorModel], tables: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The columns of :func:`measured` from the models' tables."""
    if not tables:
        return pd.DataFrame({name: np.zeros(0) for name in ("score", *_parts(models))})
    own = tables["in_distribution"]
    general, general_outlier = tables.get("general"), tables.get("general_outlier")
    scores = compute_scores(own, general, general_outlier, names=[score])
    columns = {"score": scores[score]}
    for name in _parts(models):
        columns[name] = clip_non_finite(own[name].to_numpy())
        for role in models:
            if role != "in_distribution" and _contrasts_by_scale(models):
                columns[name] = columns[name] - clip_non_finite(tables[role][name].to_numpy())
    return pd.DataFrame(columns)


def _parts(models: Mapping[str, DetectorModel]) -> list[str]:
    scales = models["in_distribution"].model.scales
    return [f"scale{i + 1}" for i in range(scales)] if scales > 1 else []


def _contrasts_by_scale(models: Mapping[str, DetectorModel]) -> bool:
    return len({each.model.scales for each in models.values()}) == 1


def _model(folder: Path, role: str, digest: Any, device: str) -> DetectorModel:
    path = folder / f"{role}.safetensors"
    model, experiment, found = load_model(path)
    if found != digest:
        raise UserError(f"{path} holds other weights than {FACTS_FILE} says; get it again")
    return DetectorModel(model.to(device).eval(), experiment, found)


def _calibration_table(path: Path) -> pd.DataFrame:
    try:
        # A plain open file: pyarrow would read a folder or a glob of that name as a data set.
        with path.open("rb") as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
        if set(map(str, table.schema.types)) != {"double"}:
            raise ValueError("its columns are not numbers")
        # Column by column: what else the file says of its columns is not listened to.
        return pd.DataFrame({name: table[name].to_numpy() for name in table.column_names})
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} holds no calibration scores ({type(error).__name__}); get it again"
        ) from error
