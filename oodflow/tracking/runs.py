"""Runs: made, resumed, filled with metrics and artifacts, ended, registered, looked up."""

import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import name_utils
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_SOURCE_NAME
from mlflow.utils.uri import is_local_uri
from numpy.typing import NDArray

from oodflow.errors import ResourceError, UserError, without_secrets
from oodflow.tracking.causes import cause
from oodflow.tracking.dataset_source import CatalogueSource, schema_of
from oodflow.tracking.numbers import TABLE, decoded, encoded
from oodflow.tracking.run_info import COMMIT, PARENT, PREFIX, RunInfo
from oodflow.tracking.store import Store, failing_fast, is_missing

__all__ = [
    "DatasetUse",
    "ModelCard",
    "artifact",
    "describe_model",
    "end",
    "ended_on_error",
    "equals",
    "exists",
    "find",
    "get",
    "history",
    "list_artifacts",
    "log_artifacts",
    "log_datasets",
    "log_image",
    "log_metrics",
    "log_numbers",
    "log_parameters",
    "log_table",
    "log_text",
    "model_uri",
    "model_version",
    "nest",
    "own_commit",
    "project_run",
    "recording",
    "register",
    "reopen",
    "resolve",
    "set_tags",
    "start",
    "whole",
]

PATTERN_SIGNS = r"""['"\\%]"""
"""Characters that a pattern has ``_`` for: those that end a text, and those with a meaning."""

SHORT_ID = re.compile("[0-9a-f]{4,31}")
"""The beginning of a run's id."""

FIGURE = re.compile(r"(!\[[^\]]*\]\()(figures/[^)]+)\)")
"""A picture in Markdown, by its path among a run's artifacts."""

BATCH = 900
"""Metrics sent in one request; MLflow takes at most 1 000."""
PAGE = 1000
"""Experiments or runs that one request asks for."""


def _info(run: Run) -> RunInfo:
    tags = run.data.tags
    ended = run.info.end_time or time.time() * 1000
    return RunInfo(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=run.info.start_time / 1000,
        seconds=(ended - run.info.start_time) / 1000,
        parent=tags.get(PARENT, ""),
        tags={k.removeprefix(PREFIX): v for k, v in tags.items() if k.startswith(PREFIX)},
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        commit=tags.get(COMMIT, ""),
        experiment_id=run.info.experiment_id,
        images={
            each.dataset.name: (each.dataset.digest, _rows(each.dataset.profile))
            for each in (run.inputs.dataset_inputs if run.inputs else ())
        },
    )


def _rows(profile: str | None) -> int:
    """The number of images of :func:`log_datasets`, 0 where another program logged the input."""
    try:
        return int(json.loads(profile or "")["num_rows"])
    except (ValueError, TypeError, KeyError):
        return 0


def start(
    store: Store,
    name: str,
    tags: Mapping[str, str],
    parent: str = "",
    project_run: str = "",
    *,
    commit: str = "",
    started: int = 0,
) -> str:
    """A new run, or the ``project_run`` that ``mlflow run`` has made; returns its id.

    ``commit`` and ``started`` (ms since 1970) are given for a run that is created again; by default
    they are the own commit and now.
    """
    ours = {PREFIX + key: without_secrets(value) for key, value in tags.items()}
    if parent:
        ours[PARENT] = parent
    origin = _origin() | ({COMMIT: commit} if commit else {})
    if not project_run:
        # MLflow folds runs under a parent of the same experiment only.
        beside = store.client.get_run(parent).info.experiment_id if parent else ""
        where = beside or store.experiment_id
        return store.client.create_run(where, started or None, origin | ours, name).info.run_id
    there = store.client.get_run(project_run)
    if _is_generated(there.info.run_name or ""):
        store.client.update_run(project_run, name=name)
    # What mlflow has set of the project stays.
    ours |= {key: value for key, value in origin.items() if key not in there.data.tags}
    store.client.log_batch(project_run, tags=[RunTag(key, value) for key, value in ours.items()])
    return project_run


@cache
def _origin() -> dict[str, str]:
    """MLflow's own tags of who runs what: user, source, and the commit of this package."""
    found = resolve_tags().items()
    # Of git mlflow finds the repository that the started program lies in, which may be another.
    tags = {key: without_secrets(value) for key, value in found if ".git." not in key}
    if Path(sys.argv[0]).name in ("oodflow", "__main__.py"):
        tags[MLFLOW_SOURCE_NAME] = "oodflow"
    return tags | ({COMMIT: own_commit()} if own_commit() else {})


def _is_generated(name: str) -> bool:
    """Whether mlflow has made up a run's name, such as ``nosy-owl-42``; a person's name stays."""
    *words, number = name.split("-")
    known = (*name_utils._GENERATOR_PREDICATES, *name_utils._GENERATOR_NOUNS)
    return not name or (number.isdigit() and {*words} <= {each.lower() for each in known})


@contextmanager
def recording(
    store: Store,
    name: str,
    tags: Mapping[str, str],
    parent: str = "",
    project_run: str = "",
) -> Iterator[str]:
    """A run that lasts as long as the context; yields its id.

    It ends FINISHED, KILLED on an interruption, FAILED on any other error, which is passed on.
    """
    run_id = start(store, name, tags, parent, project_run)
    with ended_on_error(store, run_id):
        yield run_id
    end(store, run_id, "FINISHED")


@contextmanager
def ended_on_error(store: Store, run_id: str) -> Iterator[None]:
    """Mark a run KILLED on an interruption and FAILED on an error, then pass it on."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        # What was interrupted in the midst of a query would keep SQLite from writing.
        traceback.clear_frames(error.__traceback__)
        # If the store itself failed, the run stays RUNNING in it, and the error is still seen.
        with failing_fast(), suppress(Exception):
            end(store, run_id, status)
        raise


def project_run(store: Store) -> str:
    """The run that ``mlflow run`` made for this command, or "".

    Raises UserError where MLFLOW_RUN_ID is left over: it names no run of the store, one that was
    deleted, or one that another command has ended.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID", "")
    if not run_id:
        return ""
    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error):
            raise
        what = f"names no run at {store.uri}"
    else:
        over = run.info.status in ("FINISHED", "FAILED", "KILLED")
        if run.info.lifecycle_stage == "active" and not (over and PREFIX + "kind" in run.data.tags):
            return run_id
        what = "names a run that was deleted or has ended"
    raise UserError(f"MLFLOW_RUN_ID={run_id} {what}; it is left over from elsewhere, unset it")


@cache
def own_commit() -> str:
    """The commit of the repository that this package is in, or ""."""
    return get_git_commit(str(Path(__file__).parent)) or ""


def end(store: Store, run_id: str, status: str) -> None:
    """Set the final status: FINISHED, FAILED or KILLED."""
    store.client.set_terminated(run_id, status)


def reopen(store: Store, run_id: str) -> None:
    """Mark an interrupted run as running again."""
    store.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))


def nest(store: Store, run_id: str, parent: str) -> None:
    """Make a run a child of another one, under which the MLflow UI folds it."""
    store.client.set_tag(run_id, PARENT, parent)


def set_tags(store: Store, run_id: str, tags: Mapping[str, str], description: str = "") -> None:
    """Set our tags, and the run's description in Markdown where one is given.

    The run's own ``figures/`` are shown in it.
    """
    entities = [RunTag(PREFIX + key, without_secrets(value)) for key, value in tags.items()]
    if description:
        # By the address at which the MLflow UI fetches artifacts itself.
        note = FIGURE.sub(rf"\1get-artifact?path=\2&run_uuid={run_id})", description)
        entities.append(RunTag("mlflow.note.content", without_secrets(note)))
    store.client.log_batch(run_id, tags=entities)


def log_parameters(store: Store, run_id: str, parameters: Mapping[str, str]) -> None:
    """Log parameters; those already there keep their value."""
    there = store.client.get_run(run_id).data.params
    new = [
        Param(key, without_secrets(value)) for key, value in parameters.items() if key not in there
    ]
    store.client.log_batch(run_id, params=new)


def log_metrics(
    store: Store, run_id: str, metrics: Mapping[str, float], step: int = 0, at: int = 0
) -> None:
    """Log metrics in their order, in one request for each 900; ``at`` is ms since 1970, 0: now."""
    at = at or int(time.time() * 1000)
    entities = [Metric(key, value, at, step) for key, value in metrics.items()]
    for first in range(0, len(entities), BATCH):
        store.client.log_batch(run_id, metrics=entities[first : first + BATCH])


def log_numbers(
    store: Store, run_id: str, numbers: Mapping[str, float], metrics: Mapping[str, float]
) -> None:
    """Log those numbers of a run that are ``metrics``, and all of them as its table.

    :func:`get` reads them from there.
    """
    log_metrics(store, run_id, metrics)
    log_table(store, run_id, ("metric", "value"), sorted(numbers.items()), TABLE)
    set_tags(store, run_id, {"table": TABLE})


def whole(store: Store, run: RunInfo) -> RunInfo:
    """The run with all its numbers as ``metrics``, also those that are in its table alone."""
    if "table" not in run.tags:
        return run
    # Without it there are still the metrics.
    with suppress(UserError), artifact(store, run.run_id, TABLE) as file:
        return replace(run, metrics={**run.metrics, **decoded(file.read_text())})
    return run


def history(store: Store, run_id: str, name: str) -> dict[int, float]:
    """Step → value of one metric of a run, in the order of the steps."""
    found = store.client.get_metric_history(run_id, name)
    return {each.step: each.value for each in sorted(found, key=lambda each: each.step)}


ATTEMPTS = 10
"""Times that datasets are logged which other processes log at the same moment."""
COLLISION = re.compile("unique|duplicate", re.IGNORECASE)
"""How databases say that a row is there already."""


@dataclass(frozen=True)
class DatasetUse:
    """A fold of a dataset that a run read, and what for."""

    name: str
    fold: str
    size: int
    digest: str
    context: str
    source: str
    """The name under which the catalogue finds it."""
    channels: int = 0
    """Of its images; 0 where a journal does not say it, which an older version wrote."""


def log_datasets(store: Store, run_id: str, uses: Iterable[DatasetUse]) -> None:
    """Log the datasets of a run as its inputs, where the MLflow UI shows them."""
    inputs = [
        DatasetInput(
            Dataset(
                name=f"{use.name}-{use.fold}",
                digest=use.digest,
                source_type=CatalogueSource.SOURCE_TYPE,
                source=CatalogueSource(use.source, use.fold).to_json(),
                schema=schema_of(use.channels),
                profile=json.dumps({"num_rows": use.size}),
            ),
            [InputTag("mlflow.data.context", use.context)],
        )
        for use in uses
    ]
    # mlflow looks whether a dataset is there before it adds it. Of processes that do so at the same
    # moment all but one fail; what they have added is taken back, and they find it the next time.
    for left in reversed(range(ATTEMPTS)):
        try:
            store.client.log_inputs(run_id, inputs)
            return
        except MlflowException as error:
            if not left or not COLLISION.search(str(error)):
                raise


def log_artifacts(store: Store, run_id: str, folder: Path, where: str) -> None:
    """Put the files of a folder under an artifact path of the run."""
    try:
        store.client.log_artifacts(run_id, str(folder), where)
    except OSError as error:
        raise ResourceError(f"cannot write artifacts of run {run_id}: {cause(error)}") from error


def log_text(store: Store, run_id: str, text: str, path: str) -> None:
    """Put a text as the artifact ``path`` of the run."""
    try:
        store.client.log_text(run_id, text, path)
    except OSError as error:
        raise ResourceError(f"cannot write artifacts of run {run_id}: {cause(error)}") from error


def log_table(
    store: Store, run_id: str, columns: Sequence[str], rows: Iterable[Sequence[object]], path: str
) -> None:
    """Put a table as the artifact ``path``, in the form that the MLflow UI shows and compares.

    It takes the place of an earlier one, which ``mlflow.log_table`` would append to.
    """
    log_text(store, run_id, encoded(columns, rows), path)
    listed = store.client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]")
    tables = [*json.loads(listed), {"path": path, "type": "table"}]
    if len({each["path"] for each in tables}) == len(tables):
        store.client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(tables))


def log_image(store: Store, run_id: str, image: NDArray[np.uint8], key: str) -> None:
    """Log a picture, uint8 H×W×3, where the MLflow UI shows the images of a run."""
    store.client.log_image(run_id, image, key=key, step=0)


def list_artifacts(store: Store, run_id: str, where: str) -> list[str]:
    """Paths of the artifacts in one folder of a run."""
    return [each.path for each in store.client.list_artifacts(run_id, where)]


@contextmanager
def artifact(store: Store, run_id: str, path: str) -> Iterator[Path]:
    """A local copy of an artifact, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        try:
            local = Path(store.client.download_artifacts(run_id, path, folder))
        except PermissionError:
            raise
        except (MlflowException, OSError) as error:
            # A store that does not answer says so here itself: nothing was deleted then.
            list_artifacts(store, run_id, str(Path(path).parent))
            _check_right(store, run_id, path)
            raise UserError(
                f"run {run_id} has no artifact {path}; it was moved or deleted"
            ) from error
        yield local


def _check_right(store: Store, run_id: str, path: str) -> None:
    """PermissionError where an artifact on this machine is there and may not be read."""
    place = store.client.get_run(run_id).info.artifact_uri
    if is_local_uri(place):
        with (
            suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            open(Path(local_file_uri_to_path(place), path), "rb"),
        ):
            pass


def exists(store: Store, run_id: str) -> bool:
    """Whether the store knows a run, deleted or not."""
    try:
        store.client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error):
            raise
        return False
    return True


def get(store: Store, run_id: str) -> RunInfo:
    """One run by its id, with all its numbers; UserError where it is not there or was deleted."""
    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error):
            raise
        raise UserError(
            f"no run {run_id!r} at {store.uri}; `oodflow runs list` shows those there are"
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"run {run_id!r} was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
        )
    return whole(store, _info(run))


def resolve(store: Store, reference: str) -> RunInfo:
    """The run that a reference names; UserError where it names none or several.

    A run id or the beginning of one, a registry URI (``models:/NAME/VERSION``, ``@ALIAS``), or a
    run's name.
    """
    if not reference.startswith("models:/"):
        return _named(store, reference)
    try:
        version = model_version(store, reference)
    except MlflowException as error:
        raise _no_version(reference) from error
    if not version.run_id:
        raise UserError(f"{reference} was registered without a run; choose a version that has one")
    return get(store, version.run_id)


def _named(store: Store, reference: str) -> RunInfo:
    try:
        return get(store, reference)
    except UserError:
        ours = f"tags.`{PREFIX}kind` LIKE '%'"
        found = []
        if SHORT_ID.fullmatch(reference):
            found = _search(store, [ours, f"attributes.run_id LIKE '{reference}%'"])
        if not found and reference:
            named = _search(store, [ours, equals("attributes.run_name", reference)])
            found = [run for run in named if run.name == reference]
        if len(found) == 1:
            return whole(store, found[0])
        if not found:
            raise
    raise UserError(
        f"{reference!r} names {len(found)} runs, such as {found[0].run_id} and {found[1].run_id}; "
        "give more digits of the id"
    )


def model_version(store: Store, reference: str) -> ModelVersion:
    """The version that ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` names; else UserError."""
    name = reference.removeprefix("models:/").rstrip("/")
    try:
        if "@" in name:
            return store.client.get_model_version_by_alias(*name.split("@", 1))
        return store.client.get_model_version(*name.rsplit("/", 1))
    except (MlflowException, TypeError) as error:
        if isinstance(error, MlflowException) and not is_missing(error):
            raise
        raise _no_version(reference) from error


def _no_version(reference: str) -> UserError:
    return UserError(
        f"no model version {reference!r} in the registry; write models:/NAME/VERSION or "
        "models:/NAME@ALIAS with names from `oodflow runs list`"
    )


def find(store: Store, tags: Mapping[str, str], status: str = "") -> list[RunInfo]:
    """All runs with these tags that were not deleted, the newest first; their MLflow metrics alone.

    In every experiment: ``mlflow run`` puts the run of a command into its own default one.
    """
    parts = [f"tags.`{PREFIX}kind` LIKE '%'"]
    for key, value in tags.items():
        parts.append(equals(f"tags.`{PREFIX}{key}`", value))
    if status:
        parts.append(equals("attributes.status", status))
    found = _search(store, parts)
    # A pattern may stand for a value, so what is found is compared as well.
    return [run for run in found if tags.items() <= run.tags.items()]


def equals(field: str, value: str) -> str:
    """A clause of an MLflow filter for a text of any characters.

    MLflow has no escape for quotes within quotes: a value with both kinds becomes a pattern that
    other values may fit as well.

    >>> print(equals("tags.a", "it's"), "|", equals("tags.a", chr(39) + chr(34)))
    tags.a = "it's" | tags.a LIKE '__'
    """
    if "'" in value and '"' in value:
        return f"{field} LIKE '{re.sub(PATTERN_SIGNS, '_', value)}'"
    quote = '"' if "'" in value else "'"
    return f"{field} = {quote}{value}{quote}"


def _search(store: Store, parts: Iterable[str]) -> list[RunInfo]:
    """The runs of every experiment that a filter's clauses fit, the newest first."""
    known = _all(lambda token: store.client.search_experiments(max_results=PAGE, page_token=token))
    experiments = [each.experiment_id for each in known]
    found = _all(
        lambda token: store.client.search_runs(
            experiments,
            " and ".join(parts),
            max_results=PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
    )
    return [_info(run) for run in found]


def _all(page: Callable[[str | None], PagedList[Any]]) -> Iterator[Any]:
    """Everything that a search finds; ``page(token)`` is a page of it."""
    token = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return


def model_uri(store: Store, run_id: str) -> str:
    """``models:/NAME/VERSION`` of a run's newest version in the registry, or ""."""
    found = store.client.search_model_versions(equals("run_id", run_id))
    return f"models:/{found[0].name}/{found[0].version}" if found else ""


@dataclass(frozen=True)
class ModelCard:
    """What the registry says of a version of a model."""

    about: str = ""
    """A line on all versions of its name."""
    description: str = ""
    """Of the version, in Markdown."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Ours, without their prefix."""


BLANK = ModelCard()


def register(store: Store, run_id: str, name: str, card: ModelCard = BLANK, alias: str = "") -> str:
    """Give the run's checkpoint a version under ``name`` in the model registry, and its tag.

    ``alias`` names a new version from then on. A run that has a version keeps it. Returns the
    version.
    """
    client, about = store.client, without_secrets(card.about)
    try:
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    clauses = f"{equals('name', name)} and {equals('run_id', run_id)}"
    known = client.search_model_versions(clauses)
    if known:
        version = known[0].version
    else:
        source, note = f"runs:/{run_id}/checkpoints", without_secrets(card.description)
        tags = {PREFIX + key: value for key, value in card.tags.items()}
        made = client.create_model_version(name, source, run_id, tags, description=note)
        version = made.version
        if alias:
            client.set_registered_model_alias(name, alias, version)
    set_tags(store, run_id, {"registered": "true"})
    return str(version)


def describe_model(store: Store, uri: str, card: ModelCard) -> None:
    """Let the registry say of ``models:/NAME/VERSION`` what a card says."""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    if card.about and not store.client.get_registered_model(name).description:
        store.client.update_registered_model(name, without_secrets(card.about))
    store.client.update_model_version(name, version, without_secrets(card.description))
    for key, value in card.tags.items():
        store.client.set_model_version_tag(name, version, PREFIX + key, value)
