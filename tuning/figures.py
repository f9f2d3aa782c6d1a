"""Optuna's own plots of a study, as files."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

__all__ = ["ARTIFACTS", "save_figures", "show_figures"]

ARTIFACTS = "optuna-artifacts"
"""Folder of the studies' images, which ``optuna-dashboard --artifact-dir`` shows."""


def show_figures(study: optuna.Study, files: Sequence[Path]) -> None:
    """Make figures the study's artifacts in Optuna, in place of those of the same names."""
    Path(ARTIFACTS).mkdir(exist_ok=True)
    store = FileSystemArtifactStore(ARTIFACTS)
    known = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(study)}
    for file in files:
        if file.name in known:
            with file.open("rb") as content:
                store.write(known[file.name], content)
        else:
            upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=study)


def save_figures(study: optuna.Study, folder: Path) -> list[Path]:
    """History, importance, contour, slice and intermediate values, or the Pareto front, as PNG.

    Only those for which the study has enough complete trials that differ.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {tuple(trial.values) for trial in complete}
    if not values:
        return []
    makers: dict[str, Callable[[], Any]] = {}
    if len(study.directions) > 1:
        makers["pareto-front"] = lambda: plots.plot_pareto_front(
            study, target_names=["AUROC", "BPD"]
        )
    else:
        makers["history"] = lambda: plots.plot_optimization_history(study)
        makers["slice"] = lambda: plots.plot_slice(study)
        makers["intermediate"] = lambda: plots.plot_intermediate_values(study)
        if len(values) > 1:
            makers["importance"] = lambda: plots.plot_param_importances(study)
        if len(values) > 2 and len(complete[0].params) > 1:
            makers["contour"] = lambda: plots.plot_contour(study)
    files = []
    for name, make in makers.items():
        with warnings.catch_warnings():
            # Optuna calls its matplotlib plots experimental; layouts of few points warn as well.
            warnings.simplefilter("ignore")
            axes = np.ravel(make())
            figure = axes[0].figure
            figure.set_size_inches(max(8, 5 * len(axes)) if name == "slice" else 8, 5)
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        files.append(folder / f"{name}.png")
    return files
