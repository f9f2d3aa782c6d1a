"""The Optuna study: search space, storage, trials shared among workers, the best feasible one.

Workers that share the study take trials one after the other: those of a working folder under a lock
in it, and those of other folders and machines under a lease in the MLflow store. A worker holds a
lock of its trial while it trains. The system frees it when the worker dies, and another worker of
that machine then retries that trial.
"""

import hashlib
import math
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from oodflow.errors import UserError
from oodflow.files import exclusively, is_locked
from oodflow.options import AUTO
from oodflow.tracking.causes import cause, cure_of

__all__ = [
    "Range",
    "best_trial",
    "counted",
    "feasible",
    "new_pruner",
    "open_study",
    "propose",
    "requeue",
    "run_trials",
    "sampler_of",
]

optuna.logging.set_verbosity(optuna.logging.ERROR)
# The help of the option says so.
warnings.filterwarnings("ignore", "Constraints have been set, but CmaEsSampler")

MOST_OF_GP = 200
"""Trials from which on a Gaussian process takes too long for a proposal."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Range:
    """Bounds of a parameter that is searched on a logarithmic scale."""

    low: float
    high: float

    def checked(self, name: str) -> "Range":
        """The range itself; UserError where its bounds are wrong."""
        if not 0 < self.low <= self.high < math.inf:
            raise UserError(
                f"{name} is searched from {self.low:g} to {self.high:g}; give two numbers above 0, "
                "the lower one first"
            )
        return self


def _storage(address: str) -> BaseStorage:
    """SQLite or any other database by its URL; ``journal:PATH`` for network file systems."""
    try:
        if address.startswith("journal:"):
            return JournalStorage(JournalFileBackend(address.removeprefix("journal:")))
        return RDBStorage(address)
    # SQLAlchemy's errors differ by database.
    except Exception as error:
        cure = cure_of(error) or "write sqlite:///FILE, another database's URL, or journal:FILE"
        raise UserError(
            f"no Optuna storage at {address} ({cause(error, address)}); {cure}"
        ) from error


def open_study(
    address: str,
    name: str,
    start: Mapping[str, float],
    multi_objective: bool,
    settings: str = "",
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """The study of that name, made where it is not there yet with ``start`` as its first trial.

    One worker at a time. ``settings`` stands for all that makes values comparable. Raises UserError
    for a study of another one, and for a storage that does not answer.
    """
    maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [maximize, minimize] if multi_objective else [maximize]
    study = optuna.create_study(
        storage=_storage(address),
        study_name=name,
        directions=directions,
        pruner=pruner or new_pruner("median", 1, 1),
        load_if_exists=True,
    )
    if len(study.directions) != len(directions):
        raise UserError(f"study {name} has another objective; name another study")
    if study.user_attrs.setdefault("settings", settings) != settings:
        raise UserError(
            f"study {name} was made with other settings, whose values do not compare with "
            "these; name another study, or leave its name out"
        )
    study.set_user_attr("settings", settings)
    if start and not study.get_trials(deepcopy=False):
        study.enqueue_trial(dict(start))
    return study


def propose(trial: Trial, space: Mapping[str, Range]) -> dict[str, float]:
    """A value of each parameter, log-uniform in its range."""
    return {
        name: trial.suggest_float(name, bounds.low, bounds.high, log=True)
        for name, bounds in space.items()
    }


def new_pruner(name: str, every: int, updates: int) -> optuna.pruners.BasePruner:
    """The pruner of a study whose trials report every so many updates of all."""
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=every, max_resource=updates)
    if name == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=5)


SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
}


def sampler_of(name: str, multi_objective: bool, trials: int) -> str:
    """The sampler that a name stands for; UserError for one that cannot be used here.

    >>> sampler_of("auto", False, 20), sampler_of("auto", True, 20)
    ('gp', 'tpe')
    """
    if name == AUTO:
        return "tpe" if multi_objective or trials > MOST_OF_GP else "gp"
    if name == "cmaes":
        if multi_objective:
            raise UserError("sampler cmaes takes one objective; choose tpe or gp, or leave bpd out")
        if find_spec("cmaes") is None:
            raise UserError("sampler cmaes needs a package that is not here: pip install cmaes")
    return name


def _sampler(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial: its randomness is a function of the seed and of the number.

    So a resumed study continues as it would have, and two workers never draw the same point.
    """
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return SAMPLERS[name](int.from_bytes(digest[:4], "big"))


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended: complete or pruned, not failed."""
    return study.get_trials(deepcopy=False, states=ENDED)


def run_trials(
    study: optuna.Study,
    seed: int,
    wanted: int,
    folder: Path,
    objective: Callable[[Trial], float | Sequence[float]],
    on_wait: Callable[[], None],
    in_turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    sampler: str = "tpe",
) -> None:
    """Run trials until ``wanted`` have ended, counted over all workers.

    ``on_wait`` is called while other workers run the last ones. ``folder`` holds the locks.
    ``in_turn()`` lasts while no worker of another folder is in its own.
    """
    held = ExitStack()
    while True:
        with exclusively(folder / "lock"):
            done, running, _ = _look(study)
            if done >= wanted:
                return
            trial = None
            # Most looks of a worker that waits find nothing to do, and need no turn.
            if done + running < wanted or any(map(_without_worker, _running(study))):
                with in_turn():
                    _retry_abandoned(study)
                    done, running, number = _look(study)
                    if done + running < wanted:
                        study.sampler = _sampler(sampler, seed, number)
                        trial = study.ask()
                        lock = (folder / f"trial-{trial.number}").absolute()
                        held.enter_context(exclusively(lock))
                        trial.set_user_attr("lock", f"{socket.gethostname()}:{lock}")
        if trial is None:
            on_wait()
            continue
        try:
            study.tell(trial, objective(trial))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        finally:
            held.close()


def _look(study: optuna.Study) -> tuple[int, int, int]:
    """How many trials have ended, how many are running, and the number of the next one."""
    # One look at all of them: a trial that ends between two looks would be in neither.
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    done = sum(state in ENDED for state in states)
    # The next one is the first that waits, if any does: its number is its own.
    waits = TrialState.WAITING in states
    number = states.index(TrialState.WAITING) if waits else len(states)
    return done, states.count(TrialState.RUNNING), number


def _retry_abandoned(study: optuna.Study) -> None:
    """Fail the trials whose worker on this machine is dead, and put them in the queue again."""
    # A living worker tells how its trial ended before it frees the trial's lock, and may do both
    # during this look. So a trial is abandoned if it is still running after its lock was free.
    unheld = {trial.number for trial in _running(study) if _without_worker(trial)}
    for trial in [each for each in _running(study) if each.number in unheld]:
        study.tell(trial.number, state=TrialState.FAIL)
        # Before its worker has drawn a point, a trial may have had one given.
        point = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        requeue(study, point, f"trial {trial.number} was abandoned")


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _without_worker(trial: FrozenTrial) -> bool:
    """Whether a trial of this machine has no living worker: its lock is free, or it has none."""
    # In a worker's turn, every trial of a living worker has a lock of its own.
    host, _, path = trial.user_attrs.get("lock", f"{socket.gethostname()}:").partition(":")
    return host == socket.gethostname() and (not path or _free(Path(path)))


def _free(file: Path) -> bool:
    try:
        return not is_locked(file)
    except FileNotFoundError:
        return True


def requeue(study: optuna.Study, params: Mapping[str, float], why: str) -> None:
    """Have a trial with these parameters done again, by whichever worker is next."""
    study.enqueue_trial(dict(params), user_attrs={"retry": why})


def feasible(trial: FrozenTrial) -> bool:
    """Whether the trial was judged and passes none of its bounds."""
    return bool(trial.constraints) and max(trial.constraints.values()) <= 0


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The feasible trial with the highest AUROC, of equal ones the first; None without any."""
    candidates = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if feasible(trial)
    ]
    return max(candidates, key=lambda trial: (trial.values[0], -trial.number), default=None)
