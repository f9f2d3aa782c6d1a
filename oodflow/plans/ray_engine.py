"""Tasks on a Ray cluster: each in a worker process, wherever a machine has room for it.

Ray is optional, imported here alone and only when a plan is carried out with it. Its part is to
find room and to say when a worker has died; the order of the tasks is that of
:func:`oodflow.plans.engine.carry_out`. A task whose worker died begins again, and its training
goes on where the last checkpoint was.

Every machine needs this package, the data, and the same path as working folder: on a file system
that they share, an interrupted training goes on anywhere. The store is a server that all reach.
"""

import math
import os
import signal
import socket
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from oodflow import console
from oodflow.errors import UserError
from oodflow.options import AUTO, ReproduceOptions
from oodflow.plans.engine import FAILED, Outcome, Workers, attempt
from oodflow.plans.tasks import Task
from oodflow.plans.worker import Place, work
from oodflow.workflow.session import Session

__all__ = ["on_ray"]

REQUIREMENT = "ray>=2.40"
"""As in the optional dependencies of pyproject.toml."""

MOMENT = 1.0
"""Seconds that :meth:`_RayWorkers.over` waits at most."""
PATIENCE = 60.0
"""Seconds that interrupted workers have to mark their runs and end."""

QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "error"}
"""Of Ray: what workers print stays in its logs, since many would print at once."""
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0"}
"""Variables that Ray reads: it tells nobody of its use."""
ALONE: Mapping[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
"""Of a local Ray: tasks and outcomes are small."""


@contextmanager
def on_ray(session: Session, chosen: ReproduceOptions) -> Iterator[Workers]:
    """Workers on the cluster that the options name, or on this machine for as long as it lasts.

    Raises UserError where Ray, the cluster or room for a task is absent, and where the machines
    of the cluster cannot reach the store.
    """
    _check_options(chosen)
    with _connected(chosen.ray_address) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        check_store(session.store.uri, {node["NodeManagerHostname"] for node in nodes})
        workers = _RayWorkers(
            ray,
            session,
            Place.of(chosen),
            chosen.cpus,
            _gpus(chosen, nodes),
            chosen.retries,
        )
        if not workers.size:
            raise UserError(
                f"no machine of the Ray cluster has {workers.cpus} CPUs and {workers.gpus:g} GPUs "
                f"for a task; they have {_resources(nodes)}; ask for less with cpus and gpus"
            )
        try:
            yield workers
        except BaseException:
            workers.stop()
            raise


def _check_options(chosen: ReproduceOptions) -> None:
    if chosen.cpus < 1 or chosen.retries < 0:
        raise UserError("cpus must be at least 1 and retries at least 0")
    if chosen.gpus is not None and (chosen.gpus < 0 or chosen.gpus > 1 and chosen.gpus % 1):
        raise UserError(f"gpus is {chosen.gpus:g}; write a part of one, as 0.5, or a whole number")


def check_store(uri: str, hosts: Iterable[str]) -> None:
    """Refuse a store in a file of this machine for workers on others."""
    others = sorted(set(hosts) - {socket.gethostname()})
    if uri.startswith("sqlite:") and others:
        raise UserError(
            f"the store {uri} is a file, which workers on {', '.join(others)} cannot share; start "
            "an `mlflow server` that all machines reach and set MLFLOW_TRACKING_URI to its address"
        )


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster; a local one ends with the context."""
    address = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    if address:
        _check_answers(address)
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    if not address:
        # Read when ray is imported: a Ray without other machines listens on 127.0.0.1 alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f'engine ray needs Ray; pip install "{REQUIREMENT}"') from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", **QUIET, **({} if address else ALONE))
    except Exception as error:
        said = textwrap.shorten(str(error), 160, placeholder=" …")
        where = f"connects to {address}" if address else "starts here"
        raise UserError(
            f"no Ray {where} ({said}); a cluster that asks for a token needs RAY_AUTH_MODE=token, "
            "and without ray_address and RAY_ADDRESS this machine is used alone"
        ) from error
    try:
        # Ray ends the process on SIGTERM; here it interrupts as Ctrl-C does.
        signal.signal(signal.SIGTERM, handler)
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); `ray start --head` "
            "starts one, and ray_address or RAY_ADDRESS names it"
        ) from error


def _gpus(chosen: ReproduceOptions, nodes: Iterable[Mapping[str, Any]]) -> float:
    """GPUs a task: for ``auto`` one where the cluster has some and the device is not the CPU."""
    if chosen.gpus is not None:
        return chosen.gpus
    return float(chosen.device != "cpu" and any(node["Resources"].get("GPU") for node in nodes))


def _resources(nodes: Iterable[Mapping[str, Any]]) -> str:
    """What the machines have, as ``8 CPUs and 1 GPUs, 4 CPUs and 0 GPUs``."""
    pairs = [[node["Resources"].get(name, 0) for name in ("CPU", "GPU")] for node in nodes]
    return ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in pairs)


def room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many tasks fit on a machine at once; none is spread over parts of several GPUs.

    >>> room({"CPU": 16, "GPU": 2}, 4, 0), room({"CPU": 16, "GPU": 2}, 1, 0.4)
    (4, 4)
    """
    fits = [resources.get("CPU", 0) // cpus]
    if gpus:
        on_one = math.floor(1 / gpus) if gpus <= 1 else 1 / gpus
        fits.append(resources.get("GPU", 0) * on_one)
    return math.floor(min(fits))


@dataclass(frozen=True)
class _Sent:
    """A task under way."""

    task: Task
    outcomes: Mapping[str, Outcome]
    deaths: int
    """How many workers have died of it."""


@dataclass
class _RayWorkers:
    ray: Any
    session: Session
    place: Place
    cpus: int
    gpus: float
    retries: int
    _remote: Any = field(init=False)
    _sent: dict[Any, _Sent] = field(default_factory=dict)
    _done: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Ray would begin again in silence.
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0}
        self._remote = self.ray.remote(**options)(work)

    @property
    def size(self) -> int:
        """Machines may come and go."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(room(resources, self.cpus, self.gpus) for resources in nodes)

    def begin(self, task: Task, outcomes: Mapping[str, Outcome]) -> None:
        if task.entry_point == "report":
            # Its folder is wanted here.
            self._done.append(attempt(self.session, task, outcomes))
            return
        needed = {name: outcomes[name] for name in task.needs.values()}
        self._send(_Sent(task, needed, 0))

    def over(self) -> list[Outcome]:
        done, self._done = self._done, []
        if not done and self._sent:
            ended, _ = self.ray.wait(list(self._sent), timeout=MOMENT)
            done = [outcome for each in ended if (outcome := self._outcome(each))]
        return done

    def stop(self) -> None:
        """Interrupt the workers, as Ctrl-C would, and wait until they have ended."""
        for each in self._sent:
            self.ray.cancel(each)
        if self._sent:
            console.say("stopping the workers")
            self.ray.wait(list(self._sent), num_returns=len(self._sent), timeout=PATIENCE)

    def _send(self, sent: _Sent) -> None:
        self._sent[self._remote.remote(self.place, sent.task, sent.outcomes)] = sent

    def _outcome(self, reference: Any) -> Outcome | None:
        """What has become of a task; None where its worker died and it begins again."""
        sent = self._sent.pop(reference)
        name = sent.task.name
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}"
            return Outcome(sent.task, FAILED, "", reason, traceback.format_exc())
        except self.ray.exceptions.RayError as error:
            # Such as WorkerCrashedError, NodeDiedError, OutOfMemoryError.
            deaths, why = sent.deaths + 1, type(error).__name__
            if deaths > self.retries:
                reason = f"its worker died, {deaths} in all ({why})"
                return Outcome(sent.task, FAILED, reason=reason)
            console.say(f"{name}: its worker died ({why}); retry {deaths} of {self.retries}")
            self._send(replace(sent, deaths=deaths))
            return None
