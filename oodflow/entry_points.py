"""The entry points: their help, their options, their examples.

The command line and ``MLproject`` are made from this table; :mod:`oodflow.commands` names the
function behind each entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from oodflow.options import (
    AnalyseOptions,
    BenchOptions,
    CheckModelOptions,
    CheckOptions,
    DatasetListOptions,
    DetectOptions,
    DetectorOptions,
    EvaluateOptions,
    FinetuneOptions,
    ImportOptions,
    Options,
    PrepareOptions,
    QuickstartOptions,
    ReportOptions,
    ReproduceOptions,
    RunListOptions,
    SampleOptions,
    ScoreOptions,
    ShowOptions,
    SyncOptions,
    TrainOptions,
    TuneOptions,
)

__all__ = ["ENTRY_POINTS", "EntryPoint"]


@dataclass(frozen=True)
class EntryPoint:
    """A command: one line of help, its options, examples, and what ``MLproject`` shows of it."""

    help: str
    options: type[Options]
    examples: tuple[str, ...]
    project: tuple[str, ...] = ()
    """Options that people set most, which ``MLproject`` lists; it accepts all others as well."""
    details: str = ""
    """More help, in paragraphs."""
    interrupted: str = ""
    """How to go on after an interruption, where something was kept."""


AGAIN = "the same command continues where it was"
RESUME = "progress is saved: the same command with --resume continues"


ENTRY_POINTS: Mapping[str, EntryPoint] = {
    "main": EntryPoint(
        "Quickstart: train, finetune and evaluate on the embedded data, then report.",
        QuickstartOptions,
        ("oodflow main", "oodflow main --seeds 1,2 --steps 20"),
        ("dataset", "seeds", "steps", "workers", "device", "out"),
        interrupted=AGAIN,
    ),
    "train": EntryPoint(
        "Train a model from scratch; on a general dataset it becomes a general model.",
        TrainOptions,
        ("oodflow train", "oodflow train --dataset cifar10 --preset paper --seeds 1,2,3"),
        ("model", "preset", "dataset", "seeds", "epochs", "steps", "batch_size", "lr", "device",
         "precision"),
        interrupted=RESUME,
    ),
    "finetune": EntryPoint(
        "Train on a dataset from the general model's weights, with or without an outlier loss.",
        FinetuneOptions,
        (
            "oodflow finetune --dataset sketch-letters",
            "oodflow finetune --outlier-loss binary --temperature 1000 --outlier-weight 6000",
            "oodflow finetune --dataset sketch-general --outlier-loss binary "
            "--outlier-dataset sketch-shapes   # Diff†",
        ),
        ("model", "preset", "dataset", "seeds", "init", "supervised", "outlier_loss",
         "outlier_dataset", "general", "temperature", "outlier_weight", "margin", "epochs",
         "steps", "batch_size", "lr", "device", "precision"),
        interrupted=RESUME,
    ),
    "evaluate": EntryPoint(
        "Score test images under registered models: BPD, AUROC, AUPR, FPR95, figures.",
        EvaluateOptions,
        ("oodflow evaluate", "oodflow evaluate --run RUN_ID --ood sketch-digits,sketch-scenes"),
        ("run", "general", "general_outlier", "ood", "limit", "device"),
    ),
    "tune": EntryPoint(
        "Search the outlier loss's parameters for the best train-set anomaly detection (S4.4).",
        TuneOptions,
        (
            "oodflow tune",
            "oodflow tune --trials 50 --dataset cifar10 --preset paper --steps 2000",
            "oodflow tune --outlier-loss margin --objective auroc,bpd",
            "oodflow finetune --outlier-loss binary --temperature tuned --outlier-weight tuned",
        ),
        ("trials", "dataset", "outlier_loss", "objective", "study", "storage", "preset", "seeds",
         "steps", "device"),
        interrupted=AGAIN,
    ),
    "analyse": EntryPoint(
        "Analyse registered models: Fourier mixes, correlations, extreme images, inlier folds.",
        AnalyseOptions,
        (
            "oodflow analyse",
            "oodflow analyse --what extremes --run RUN_ID --top 20",
            "oodflow analyse --what fourier --images cifar10,svhn",
        ),
        ("what", "run", "images", "top", "subset", "device"),
    ),
    "report": EntryPoint(
        "Write the report of all registered runs: an HTML page, tables, figures, claims.",
        ReportOptions,
        ("oodflow report", "oodflow report --out paper/tables"),
        ("out", "published", "bootstrap", "missing"),
    ),
    "reproduce": EntryPoint(
        "Make every run behind the tables and figures of a plan; the same command continues.",
        ReproduceOptions,
        (
            "oodflow reproduce --dry-run",
            "oodflow reproduce --only general,finetuned --seeds 1",
            "oodflow reproduce --plan paper --general-set imagenet32",
            "oodflow reproduce --plan paper --engine ray --gpus 0.5",
        ),
        ("plan", "dry_run", "only", "seeds", "general_set", "workers", "engine", "device", "out"),
        interrupted=AGAIN,
    ),
    "bench": EntryPoint(
        "Measure a training update: its parts, its memory, and this device's lower bound for it.",
        BenchOptions,
        (
            "oodflow bench --compare eager",
            "oodflow bench --preset paper --batch-size 8 --steps 3 --loss binary",
        ),
    ),
    "detector build": EntryPoint(
        "Build a detector: models, a score, and a calibration that makes its decisions a promise.",
        DetectorOptions,
        (
            "oodflow detector build",
            "oodflow detector build RUN_ID --score diff --calibrate folder:new-photos --champion",
        ),
        ("run", "score", "calibrate", "champion", "device"),
        details="Half of the calibration images calibrate, the other half measures the "
        "false-positive rate. The detector becomes a version of the registered model "
        "oodflow-detector-DATASET, which MLflow loads and serves.",
    ),
    "detect": EntryPoint(
        "Decide which image files are anomalous, at a false-positive rate of your choice.",
        DetectOptions,
        (
            "oodflow detect models:/oodflow-detector-sketch-shapes@champion photos/",
            "oodflow detect RUN_ID photos/ --alpha 0.01 --out found.csv --html found.html",
        ),
        details="An inlier is called anomalous with probability at most alpha, whatever the model. "
        "The last lines test whether a whole folder has more anomalies than inliers would give.",
    ),
    "runs list": EntryPoint(
        "List runs, the newest first.", RunListOptions, ("oodflow runs list --registered",)
    ),
    "runs show": EntryPoint(
        "Show one run: tags, metrics, artifacts, and how to see it in the MLflow UI.",
        ShowOptions,
        ("oodflow runs show RUN_ID",),
    ),
    "runs sync": EntryPoint(
        "Deliver to the MLflow store what .oodflow/ keeps of one run, or of all runs.",
        SyncOptions,
        ("oodflow runs sync",),
        details="Reports and weights are kept there while the store is away. The store may be "
        "another one (MLFLOW_TRACKING_URI): a run that it does not know is created there. A run "
        "whose training has ended is then evaluated and registered.",
    ),
    "datasets list": EntryPoint(
        "List all datasets: role, sizes, present or not, where expected, how to get them.",
        DatasetListOptions,
        ("oodflow datasets list",),
    ),
    "datasets prepare": EntryPoint(
        "Convert a dataset's raw files into a compact form that opens at once.",
        PrepareOptions,
        (
            "oodflow datasets prepare cifar10 --download",
            "oodflow datasets prepare tiny300k --from 300K_random_images.npy",
            'oodflow datasets prepare "folder:photos?resize=32&crop=32" --skip-broken',
        ),
        details="NAME is a name that `oodflow datasets list` shows, the name of an RGB dataset "
        "followed by -grey, folder:PATH, or array:FILE. "
        "PATH may be a CSV file that lists images: columns path, label, split. FILE is .npy or "
        ".npz, uint8. Append options after `?`, joined by &: "
        "resize=N (shorter side to N), crop=N (central N×N), channels=1 (grey), flip=0, "
        "role=general, test=SHARE (size of the test fold). Images of another size than 32×32 are "
        "then resized to it.",
    ),
    "datasets check": EntryPoint(
        "Read a whole dataset: counts, shapes, digest, mean and std, and a contact sheet.",
        CheckOptions,
        ("oodflow datasets check sketch-shapes",),
    ),
    "check-model": EntryPoint(
        "Try on a model, built-in or of a plug-in, what is expected of every model.",
        CheckModelOptions,
        ("oodflow check-model glow", "oodflow check-model my-flow --channels 3"),
        details="One row per line of the contract: passed, failed, or does not apply, and why. The "
        "exit code is 1 if a line fails. The log-determinant is compared with autograd in float64, "
        "which takes seconds.",
    ),
    "score": EntryPoint(
        "Score image files, or folders of them, under a run's model: one row per image.",
        ScoreOptions,
        ("oodflow score RUN_ID photos/ one.png --out scores.csv",),
        details="Columns: file, log_prob (noise-free, nats over the 256 levels), scale1 …, "
        "last_scale, bpd. Images are prepared as those of the training. Files that cannot be "
        "read are listed at the end and make the exit code 1.",
    ),
    "sample": EntryPoint(
        "Draw images from a run's model, as one picture.",
        SampleOptions,
        ("oodflow sample RUN_ID --count 64 --out grid.png",),
    ),
    "import-checkpoint": EntryPoint(
        "Turn a published checkpoint into a registered run; nothing in the file is executed.",
        ImportOptions,
        ("oodflow import-checkpoint cifar10_glow.th --format authors --dataset cifar10",),
        details="The last line printed is the run's id.",
    ),
}  # fmt: skip
"""By name. An entry point that lists no options for ``MLproject`` makes no run: it exists on the
command line only."""
