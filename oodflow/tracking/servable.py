"""Models that MLflow itself can load and serve: detectors, and the weights of a run."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path, PurePosixPath
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.types import ColSpec, DataType, Schema

from oodflow.errors import UserError
from oodflow.tracking.run_info import PREFIX
from oodflow.tracking.runs import model_version
from oodflow.tracking.store import Store, answering

__all__ = ["downloaded", "log_model", "make_loadable", "set_alias"]

TRACKING_URI = "MLFLOW_TRACKING_URI"


def log_model(store: Store, run_id: str, registered_name: str, **package: Any) -> str:
    """Log a model from code on a run and register it; returns the version.

    ``package`` are arguments of ``mlflow.pyfunc.log_model``. Raises ResourceError where the store
    fails.
    """
    import mlflow.pyfunc

    before, variable = mlflow.get_tracking_uri(), os.environ.get(TRACKING_URI)
    mlflow.set_tracking_uri(store.uri)
    try:
        # What mlflow says of it, the command says in its own words.
        with (
            answering(store),
            redirect_stderr(io.StringIO()),
            mlflow.start_run(run_id=run_id),
        ):
            info = mlflow.pyfunc.log_model(
                name="model", registered_model_name=registered_name, **package
            )
    finally:
        mlflow.set_tracking_uri(before)
        # mlflow writes the variable as well, by which this process would find another store later.
        os.environ.pop(TRACKING_URI, None)
        if variable is not None:
            os.environ[TRACKING_URI] = variable
    return str(info.registered_model_version)


def set_alias(store: Store, name: str, alias: str, version: str) -> None:
    """Let an alias, such as ``champion``, name a version of a registered model."""
    store.client.set_registered_model_alias(name, alias, version)


def make_loadable(folder: Path, loader_module: str, requirements: list[str]) -> None:
    """Write ``MLmodel`` beside ``model.safetensors``, so that mlflow loads the folder as a model.

    ``loader_module`` makes the model from the file; it takes a column ``image`` of base64 files.
    """
    import mlflow.pyfunc

    text, number = DataType.string, DataType.double
    signature = ModelSignature(
        inputs=Schema([ColSpec(text, "image")]),
        outputs=Schema(
            [
                ColSpec(number, "log_prob"),
                ColSpec(number, "bpd"),
                ColSpec(DataType.boolean, "resized"),
                ColSpec(text, "error"),
            ]
        ),
    )
    model = Model(signature=signature)
    mlflow.pyfunc.add_to_model(
        model,
        loader_module=loader_module,
        data="model.safetensors",
        python_env="python_env.yaml",
    )
    model.save(str(folder / "MLmodel"))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
    (folder / "python_env.yaml").write_text(
        f"python: {python_version()}\nbuild_dependencies: []\n"
        "dependencies:\n- -r requirements.txt\n"
    )


@contextmanager
def downloaded(store: Store, reference: str, part: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """A part of a registered model as files on this machine, and the tags of the version.

    ``reference`` is models:/NAME/VERSION or models:/NAME@ALIAS. Where the model lies on this
    machine, that is where it lies, links and all. The rest of the model is not fetched and nothing
    of it is run. Raises UserError where there is none, ResourceError where it cannot be fetched.
    """
    with answering(store), TemporaryDirectory(prefix="oodflow-") as folder:
        version = model_version(store, reference)
        tags = {k.removeprefix(PREFIX): v for k, v in version.tags.items()}
        # By the store's own client: mlflow would look the name up in the store of the process.
        place = store.client.get_model_version_download_uri(version.name, version.version)
        files = get_artifact_repository(place, tracking_uri=store.uri, registry_uri=store.uri)
        inside = files.list_artifacts(str(PurePosixPath(part).parent))
        if part not in {each.path for each in inside}:
            name = PurePosixPath(part).name
            raise UserError(f"{reference} holds no {name}; choose a version that was made with one")
        if isinstance(files, LocalArtifactRepository):
            local = Path(files.artifact_dir, part)
        else:
            local = Path(files.download_artifacts(part, folder))
        yield local, tags
