"""``oodflow detector build``: from registered models to a detector with a calibrated promise."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from rich.table import Table

from oodflow import console
from oodflow.data.catalog import OWN, lookup, slug_of
from oodflow.data.folder import fold_folders
from oodflow.detection.calibration import halves, refuse_training_images
from oodflow.detection.conformal import flagged_interval, smallest_alpha
from oodflow.detection.detector import Detector, DetectorModel, calibrated, roles_of
from oodflow.detection.package import ARTIFACT, packaged
from oodflow.detection.preprocessing import preprocessing_of
from oodflow.detection.sealed import FACTS_FILE, folder_digest
from oodflow.errors import UserError
from oodflow.evaluation.plots import p_value_figure, roc_figure, save_figure
from oodflow.options import AUTO, DetectorOptions, EvaluateOptions
from oodflow.registration import MODELS, SCORES
from oodflow.tracking import runs
from oodflow.tracking.registry import seed_of
from oodflow.tracking.repetitions import setting_of
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.runs import ModelCard
from oodflow.tracking.servable import downloaded, log_model, set_alias
from oodflow.tracking.store import Store, open_store
from oodflow.workflow.choose import in_distribution_runs
from oodflow.workflow.evaluate import general_models
from oodflow.workflow.evaluation_run import outlier_datasets, say_if_changed
from oodflow.workflow.session import Session, check_same_shape, dataset_use, open_session

__all__ = [
    "ALPHAS",
    "BuiltDetector",
    "build",
    "command",
    "detector_at",
    "load_detector",
]

ALPHAS = (0.01, 0.05, 0.1)
"""False-positive rates at which a new detector is measured."""

CHAMPION = "champion"

INHERITED = ("model", "dataset", "role", "setting", "outlier_loss", "init", "seed", "group")


@dataclass(frozen=True)
class BuiltDetector:
    """A detector, the run that measured it, and its version in the registry.

    The run's metrics are fractions: ``false_positive_rate/<alpha>``,
    ``detection_rate/<outliers>/<alpha>``.

    >>> [*BuiltDetector.__annotations__]
    ['detector', 'run', 'uri']
    """

    detector: Detector
    run: RunInfo
    uri: str
    """``models:/NAME/VERSION``."""


def command(options: DetectorOptions) -> None:
    """Build, calibrate, measure and register a detector; print what it promises."""
    session = open_session(options)
    built = build(session, options)
    console.show(_table(built))
    low = smallest_alpha(built.detector.calibration.size)
    console.say(
        f"{built.uri}: score {built.detector.score}, {built.detector.calibration.size} calibration "
        f"images, smallest alpha {low:.3g}"
    )
    console.say(f"use it: oodflow detect {built.uri} PATH...")
    console.say(f"serve it: mlflow models serve -m {built.uri} --env-manager local --port 5001")
    console.say(f"see it: {session.store.how_to_see(built.run.run_id)}")


def build(session: Session, options: DetectorOptions) -> BuiltDetector:
    """A detector of a registered in-distribution model, as a run and a registered MLflow model.

    A seeded half of the calibration fold calibrates, the other half measures the false-positive
    rate. No image of an outlier dataset plays a part in either, or in the choice of the score.
    Raises UserError where a model that the score needs is absent, where the images were trained
    on, and where they do not fit the model.
    """
    run = _subject(session, options.run)
    models, score = _models(session, run, options)
    dataset = run.tags["dataset"]
    name, fold = _calibration_fold(dataset, options.calibrate)
    own = models["in_distribution"]
    check_same_shape(name, own.model.image_shape[0], f"the model of run {run.run_id}")
    images = session.images(name, fold)
    first, second = halves(len(images.pixels))
    if not len(second):
        raise UserError(f"{name} has {len(images.pixels)} images; calibration needs at least 2")
    if session.present(dataset):
        say_if_changed(session, session.model(run))
        training = session.images(dataset, "train")
        refuse_training_images(images.pixels, training.pixels, f"{dataset} (run {run.run_id})")
    else:
        console.say(f"{dataset} is not here: make sure that no image of {name} was trained on")
    facts = {"dataset": name, "fold": fold, "digest": images.digest, "half": "first"}
    pixels = images.pixels.numpy()
    with console.progress("calibrating", len(first)) as advance:
        detector = calibrated(
            score, dataset, preprocessing_of(dataset), models, pixels[first], facts,
            str(session.device), advance,
        )  # fmt: skip
    tags = {tag: run.tags[tag] for tag in INHERITED if tag in run.tags}
    tags |= {"kind": "detector", "score": score, "detects": run.run_id, "registered": "false"}
    plugins = {"plugin.model": MODELS.origin(run.tags["model"]),
               f"plugin.score.{score}": SCORES.origin(score)}  # fmt: skip
    tags |= {tag: plugin for tag, plugin in plugins.items() if plugin}
    title = f"detector of {run.name} · {score}"
    with runs.recording(session.store, title, tags, project_run=session.project_run) as record:
        uses = [dataset_use(session, name, fold, "calibration")]
        runs.log_datasets(session.store, record, uses)
        _measure(session, record, detector, dataset, pixels[second])
        uri = _register(session.store, record, detector, pixels[:2], options.champion)
    return BuiltDetector(detector, runs.get(session.store, record), uri)


def detector_at(reference: str, device: str = "cpu") -> Detector:
    """The detector of a folder, or what :func:`load_detector` finds in the current store."""
    if Path(reference).is_dir():
        return _load_folder(Path(reference), device)
    if os.sep in reference and not reference.startswith("models:/"):
        raise UserError(f"no folder at {reference}; give one that holds a detector, or models:/…")
    # Opened only where it is needed: a folder is judged by without any store.
    return load_detector(open_store(), reference, device)


def load_detector(store: Store, reference: str, device: str = "cpu") -> Detector:
    """The detector of models:/NAME/VERSION, models:/NAME@ALIAS, or the run that built it.

    Only the detector's own files are fetched, and each is verified by its digest, which a
    registered version knows too. Nothing of the model's code is run. Raises UserError where there
    is no detector or anything was changed.
    """
    uri = reference
    if not reference.startswith("models:/"):
        run = runs.resolve(store, reference)
        if "detector" not in run.tags:
            raise UserError(
                f"run {reference} ({run.name}) holds no detector; build one: oodflow detector build"
            )
        uri = run.tags["detector"]
    with downloaded(store, uri, f"artifacts/{ARTIFACT}") as (local, tags):
        facts = local / FACTS_FILE
        if "digest" in tags and facts.is_file() and folder_digest(local) != tags["digest"]:
            raise UserError(f"{uri} was changed after it was registered; build the detector again")
        return Detector.from_folder(local, device)


def _load_folder(folder: Path, device: str = "cpu") -> Detector:
    """The detector of a folder: its own, or that of an MLflow model, of which no code is run.

    Raises UserError where there is none, or it was changed.
    """
    inside = folder / "artifacts" / ARTIFACT
    if not inside.is_dir():
        return Detector.from_folder(folder, device)
    if inside.is_symlink() or inside.parent.is_symlink():
        raise UserError(f"the detector at {folder} is refused: {inside} leads out of it")
    return Detector.from_folder(inside, device)


def _subject(session: Session, reference: str) -> RunInfo:
    """The in-distribution model that a reference names.

    For ``auto`` the newest setting, those with an outlier loss first, and of its seeds the lowest:
    which of them was trained last is chance.
    """
    if reference == AUTO:
        found = list(reversed(in_distribution_runs(session.store)))
        found = [run for run in found if session.model(run).model.is_density]
        found.sort(key=lambda run: run.tags["outlier_loss"] == "none")
        if not found:
            raise UserError("no registered in-distribution model; make one: oodflow finetune")
        alike = [run for run in found if setting_of(run) == setting_of(found[0])]
        return min(alike, key=seed_of)
    run = runs.resolve(session.store, reference)
    if run.tags.get("role") != "in_distribution" or run.tags.get("kind") not in (
        "train",
        "finetune",
    ):
        raise UserError(
            f"run {run.run_id} ({run.name}) holds no in-distribution model; choose one that "
            "`oodflow runs list --registered` shows"
        )
    return run


def _models(
    session: Session, run: RunInfo, options: DetectorOptions
) -> tuple[dict[str, DetectorModel], str]:
    """The models of the score, which for ``auto`` is the best that the contrasts allow."""
    own = session.model(run)
    if not own.model.is_density:
        raise UserError(
            f"run {run.run_id} holds a classifier, {run.tags['model']}, which has no likelihood; "
            "choose a run of another model"
        )
    wanted = EvaluateOptions(general=options.general, general_outlier=options.general_outlier)
    if options.score != AUTO:
        needs = roles_of(options.score)
        wanted = EvaluateOptions(
            general=options.general if "general" in needs else "none",
            general_outlier=options.general_outlier if "general_outlier" in needs else "none",
        )
    elif options.score == AUTO and options.general == AUTO and not _has_general(session, run):
        wanted = replace(wanted, general="none")
    general, general_outlier = general_models(session, run, wanted)
    known = {"general": general, "general_outlier": general_outlier}
    score = options.score
    if score == AUTO:
        scales = own.model.scales > 1
        score = "diff_outlier" if general_outlier else "diff" if general else ""
        score = score or ("last_scale" if scales else "raw")
    chosen = {"in_distribution": DetectorModel(own.model, own.experiment, own.digest)}
    for role in roles_of(score)[1:]:
        contrast = known[role]
        if contrast is None:
            raise UserError(
                f"score {score} needs a {role.replace('_', ' ')} model, and run {run.run_id} has "
                f"none; name one with --{role.replace('_', '-')}, or choose another score"
            )
        loaded = session.model(contrast)
        chosen[role] = DetectorModel(loaded.model, loaded.experiment, loaded.digest)
    return chosen, score


def _has_general(session: Session, run: RunInfo) -> bool:
    """Whether the general model that a run was contrasted with is still there."""
    try:
        return bool(runs.get(session.store, run.tags.get("general_run", "")))
    except UserError:
        return False


def _calibration_fold(dataset: str, given: str) -> tuple[str, str]:
    """Dataset and fold of the calibration images: a fold of the own dataset, or another's test."""
    if given in ("train", "test"):
        return dataset, given
    facts = lookup(given)
    if facts.source not in OWN:
        return facts.name, "test"
    folder, how = Path(facts.where), preprocessing_of(dataset)
    # Images that are resized otherwise than those of the dataset would be no inliers.
    options = {name: str(size) for name in ("resize", "crop") if (size := getattr(how, name))}
    if folder.is_dir() and not fold_folders(folder):
        # All of the folder is for this: none of it was trained on.
        options["test"] = "1"
    options |= facts.options
    end = f"?{urlencode(options)}" if options else ""
    return lookup(f"{facts.source}:{folder}{end}").name, "test"


def _measure(
    session: Session, record: str, detector: Detector, dataset: str, inliers: np.ndarray
) -> None:
    """False-positive and detection rates at each of :data:`ALPHAS`, and figures, on the run."""
    size, name = detector.calibration.size, slug_of(dataset)
    sets = {name: inliers}
    if lookup(dataset).ood:
        for ood in outlier_datasets(session, dataset, AUTO):
            sets[slug_of(ood)] = session.images(ood, "test").pixels.numpy()
    tables: dict[str, pd.DataFrame] = {}
    for slug, pixels in sets.items():
        with console.progress(f"measuring {slug}", len(pixels)) as advance:
            table = detector.measure(pixels, advance)
        tables[slug] = table.assign(p_value=detector.calibration.p_values(table)["p_value"])
    metrics: dict[str, float] = {}
    for alpha in (each for each in ALPHAS if each >= smallest_alpha(size)):
        for slug, table in tables.items():
            rate = float((table["p_value"] <= alpha).mean())
            what = "false_positive_rate" if slug == name else f"detection_rate/{slug}"
            metrics[f"{what}/{alpha:g}"] = rate
        low, high = flagged_interval(alpha, size, len(inliers))
        metrics |= {
            f"false_positive_rate_low/{alpha:g}": low,
            f"false_positive_rate_high/{alpha:g}": high,
        }
    metrics |= {"calibration_images": float(size), "smallest_alpha": smallest_alpha(size)}
    runs.log_metrics(session.store, record, metrics)
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        p_values = {slug: table["p_value"].to_numpy() for slug, table in tables.items()}
        save_figure(p_value_figure(name, p_values), Path(folder) / "p-values.png")
        if len(tables) > 1:
            own = tables[name]["score"].to_numpy()
            curves = {
                slug: (own, table["score"].to_numpy())
                for slug, table in tables.items()
                if slug != name
            }
            title = f"{name}, score {detector.score}"
            save_figure(roc_figure(curves, title), Path(folder) / "roc.png")
        runs.log_artifacts(session.store, record, Path(folder), "figures")


def _register(
    store: Store, record: str, detector: Detector, example: np.ndarray, champion: bool
) -> str:
    """Log the detector as an MLflow model from code and register it; returns its URI."""
    from oodflow.detection.served import signature

    name = f"oodflow-detector-{slug_of(detector.dataset)}"
    with tempfile.TemporaryDirectory(prefix="oodflow-") as temporary:
        folder = Path(temporary) / ARTIFACT
        digest = detector.save(folder)
        tags = {"digest": digest, "score": detector.score, "dataset": detector.dataset}
        package = vars(packaged(folder, example))
        version = log_model(store, record, name, signature=signature(), **package)
    uri = f"models:/{name}/{version}"
    about = f"Detectors of images unlike those of {detector.dataset}; each version is one."
    size = detector.calibration.size
    note = (
        f"Score {detector.score}, calibrated with {size} images, smallest alpha "
        f"{smallest_alpha(size):.3g}.\n\n```\noodflow detect {uri} PATH...\n```\n"
    )
    runs.describe_model(store, uri, ModelCard(about, note, tags))
    if champion:
        set_alias(store, name, CHAMPION, version)
    runs.set_tags(store, record, {"detector": uri, "digest": digest, "registered": "true"})
    return uri


def _table(built: BuiltDetector) -> Table:
    """The measured rates in per cent, a row an α."""
    metrics: Mapping[str, float] = built.run.metrics
    oods = sorted({name.split("/")[1] for name in metrics if name.startswith("detection_rate/")})
    table = Table("alpha", "false positives", "95 % of chance", *oods, title="Flagged, in %")
    for alpha in ALPHAS:
        key = f"{alpha:g}"
        if f"false_positive_rate/{key}" not in metrics:
            continue
        low, high = (metrics[f"false_positive_rate_{end}/{key}"] for end in ("low", "high"))
        table.add_row(
            key,
            f"{100 * metrics[f'false_positive_rate/{key}']:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            *(f"{100 * metrics[f'detection_rate/{ood}/{key}']:.1f}" for ood in oods),
        )
    return table
