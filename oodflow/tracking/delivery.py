"""Delivers reports from a journal to a store: in the background, in order, each once.

A thread sends them, so that a training goes on while the store is away, locked or slow. After a
failure it is not clear what has arrived: a request may have been carried out whose answer was lost.
Before anything is sent again, the store is therefore asked which steps it has. A request that it
carries out even later, such as one in the queue of a stopped server, does no harm: a report keeps
its time, and MLflow's databases hold a metric of the same step, time and value once.
"""

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

from oodflow import console
from oodflow.errors import ResourceError, UserError
from oodflow.tracking import runs
from oodflow.tracking.causes import cause
from oodflow.tracking.journal import Report
from oodflow.tracking.numbers import CURVES, curves
from oodflow.tracking.store import Store, failing_fast

__all__ = ["Delivery", "delivering", "log_curves", "log_reports", "monitored"]

PAUSE = 1.0
"""Seconds between a failure and the next attempt."""
SHORT_WAIT = 1.0
"""Seconds for pending reports when a training is interrupted or fails."""
LAST_WAIT = 60.0
"""Seconds that the end of a training waits for a store that is away."""


def log_reports(store: Store, run_id: str, reports: Sequence[Report], unclear: bool) -> None:
    """Log reports in their order, each in one request; where it is ``unclear``, each missing one.

    A report's metrics are one batch, or several where they are very many. They are sent in their
    order, so that where the last of them is, all are.
    """
    logged: dict[str, set[int]] = {}
    for report in reports:
        metrics = curves(report.metrics)
        *_, last = metrics
        if unclear and last not in logged:
            logged[last] = set(runs.history(store, run_id, last))
        if report.step not in logged.get(last, ()):
            runs.log_metrics(store, run_id, metrics, report.step, report.time)


def log_curves(store: Store, run_id: str, reports: Sequence[Report]) -> None:
    """All that the reports of a training hold, as a table of its run; a row for each report."""
    names = [*dict.fromkeys(name for report in reports for name in report.metrics)]
    rows = ((report.step, *map(report.metrics.get, names)) for report in reports)
    runs.log_table(store, run_id, ("step", *names), rows, CURVES)


class Delivery:
    """Sends reports in a thread of its own; what fails is tried again until it is closed."""

    def __init__(
        self,
        send: Callable[[Sequence[Report], bool], None],
        waiting: Sequence[Report] = (),
        unclear: bool = False,
    ) -> None:
        """``send(reports, unclear)`` delivers all of them, or raises.

        ``waiting`` are sent first. With ``unclear`` any report may have arrived before the run was
        interrupted, even one that is still to come, where the run's state was lost.
        """
        self.failure = ""
        """The message of the last failed attempt."""
        self._send = send
        self._waiting = list(waiting)
        self._always_unclear = self._unclear = unclear
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a request that hangs must not keep the program from ending.
        threading.Thread(target=self._work, name="delivery", daemon=True).start()

    def add(self, report: Report) -> None:
        """Queue a report; returns at once."""
        with self._changed:
            self._waiting.append(report)
            self._changed.notify_all()

    def wait(self, seconds: float) -> int:
        """Wait at most so long for pending reports; returns how many have not arrived."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)
            return len(self._waiting)

    def close(self) -> None:
        """Stop delivering."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                batch = tuple(self._waiting)
            try:
                self._send(batch, self._unclear)
            except Exception as error:
                self.failure = cause(error)
                self._unclear = True
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, PAUSE)
            else:
                with self._changed:
                    del self._waiting[: len(batch)]
                    self._unclear = self._always_unclear
                    self._changed.notify_all()


@contextmanager
def delivering(
    store: Store, run_id: str, waiting: Sequence[Report], unclear: bool
) -> Iterator[Callable[[Report], None]]:
    """Deliver reports to a run while the context lasts; yields a function that queues the next one.

    At the end the store has a minute for reports that have not arrived. Raises ResourceError where
    that is not enough.
    """
    with failing_fast():
        delivery = Delivery(partial(log_reports, store, run_id), waiting, unclear)
        try:
            try:
                yield delivery.add
            finally:
                lacking = delivery.wait(SHORT_WAIT)
            if lacking:
                console.say(f"{lacking} reports are not delivered, waiting for {store.uri}")
                lacking = delivery.wait(LAST_WAIT)
        finally:
            delivery.close()
    if lacking:
        why = delivery.failure or "it is too slow"
        raise ResourceError(
            f"{lacking} reports could not be delivered to the MLflow store at {store.uri} ({why})"
        )


@contextmanager
def monitored(store: Store, run_id: str) -> Iterator[None]:
    """Log what the machine does as ``system/…`` of a run, where MLflow's own variable asks for it.

    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true; MLflow does so itself for the runs that it starts.
    Raises UserError without psutil, which measures.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    if importlib.util.find_spec("psutil") is None:
        name = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.name
        raise UserError(f"{name} is set, but psutil is not there: pip install psutil, or unset it")
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=store.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
