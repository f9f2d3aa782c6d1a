"""A detector's results for many files: counts, the test of the whole set, a file of rows.

Which images are anomalous at a false discovery rate is known when all have been scored. Rows are
therefore spooled to disk without a decision, and decided when they are written.
"""

import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oodflow.data.account import Account
from oodflow.data.archives import find_images
from oodflow.data.image_files import printable
from oodflow.detection.conformal import (
    allowed_rank,
    folder_p_value,
    rank_allowed_by_fdr,
    smallest_alpha,
)
from oodflow.detection.detector import DEFAULT_ALPHA, Detector
from oodflow.detection.stream import JudgedFiles, judged_files
from oodflow.errors import ResourceError, UserError
from oodflow.files import replaced

__all__ = ["Detections", "Finding", "Tally", "check_out", "detect", "empty_tally"]

ROWS_AT_ONCE = 8192
"""Rows that are kept before they are written."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts over files; all that is kept of them, however many they are."""

    counts: NDArray[np.int64]
    """``counts[k]`` images have the p-value k/(n + 1), k = 0 … n + 1."""
    errors: int = 0
    resized: int = 0

    @property
    def calibration_size(self) -> int:
        """n, the number of calibration images."""
        return len(self.counts) - 2

    @property
    def images(self) -> int:
        """Files that could be read."""
        return int(self.counts.sum())

    @property
    def files(self) -> int:
        """All files."""
        return self.images + self.errors

    def plus(self, rows: pd.DataFrame) -> "Tally":
        """With more rows of :meth:`oodflow.detection.detector.Detector.judge`."""
        p_values = rows["p_value"].dropna().to_numpy()
        ranks = np.rint(p_values * (self.calibration_size + 1)).astype(np.int64)
        return replace(
            self,
            counts=self.counts + np.bincount(ranks, minlength=len(self.counts)),
            errors=self.errors + len(rows) - len(p_values),
            resized=self.resized + int(rows["resized"].sum()),
        )

    def anomalous(self, rank: int) -> int:
        """The number of images with p ≤ rank/(n + 1)."""
        return int(self.counts[: rank + 1].sum())


def empty_tally(calibration_size: int) -> Tally:
    """The tally of no files."""
    return Tally(np.zeros(calibration_size + 2, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Finding:
    """One of the most anomalous images: its row, and the C×32×32 that the models saw."""

    row: Mapping[str, Any]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in a number of files."""

    tally: Tally
    rank: int
    """Anomalous are the images with p ≤ rank/(n + 1)."""
    alpha: float
    """The false-positive rate of the decisions, or at a false discovery rate of the test alone."""
    fdr: float | None
    most_anomalous: tuple[Finding, ...]
    """The images of the lowest scores, the lowest first."""
    account: Account
    """What was left out, and what is odd."""

    @property
    def anomalous(self) -> int:
        """How many images are anomalous."""
        return self.tally.anomalous(self.rank)

    @property
    def flagged(self) -> int:
        """How many images have p ≤ α, which is what the test of the whole counts."""
        return self.tally.anomalous(allowed_rank(self.alpha, self.tally.calibration_size))

    @property
    def folder_p(self) -> float:
        """P(so many or more of so many inliers have p ≤ α): small where not all are inliers.

        See :func:`oodflow.detection.conformal.folder_p_value`.
        """
        return folder_p_value(
            self.flagged, self.tally.images, self.alpha, self.tally.calibration_size
        )


def detect(
    detector: Detector,
    paths: Iterable[Path],
    *,
    alpha: float = DEFAULT_ALPHA,
    fdr: float | None = None,
    out: Path | None = None,
    keep: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Detections:
    """Decide over all files among and image files below the paths, a row a file into ``out``.

    At the false-positive rate ``alpha``; or at the false discovery rate ``fdr`` by
    Benjamini–Hochberg, where α is that of the test of the whole alone, raised to the smallest
    possible if need be. ``out`` ends in .csv or .parquet, and is there whole or not at all.
    ``keep`` is the number of most anomalous images that are kept for a page.

    Raises UserError where a path does not exist, there is no image at all, α or the rate cannot
    be, or ``out`` has another ending; ResourceError where it cannot be written.
    """
    size = detector.calibration.size
    if fdr is not None:
        alpha = max(alpha, smallest_alpha(size))
        rank_allowed_by_fdr([0], fdr)
    allowed_rank(alpha, size)
    if out is not None:
        check_out(out)
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise UserError(f"no file or folder at {printable(path)}")
    tally, lowest, account = empty_tally(size), _Lowest(keep), Account()
    with _spool(out) as spool:
        for judged in judged_files(detector, find_images(paths, account), None, on_progress):
            judged.count_remarks(account)
            tally = tally.plus(judged.rows)
            lowest.add(judged)
            spool.add(judged.rows)
        rank = allowed_rank(alpha, size) if fdr is None else rank_allowed_by_fdr(tally.counts, fdr)
        spool.deliver(rank / (size + 1))
    return Detections(tally, rank, alpha, fdr, lowest.findings(rank / (size + 1)), account)


def check_out(out: Path) -> None:
    """Raise UserError where a file of rows has an ending that is not known."""
    if out.suffix not in WRITERS:
        raise UserError(f"--out {out} must end in {' or '.join(WRITERS)}")


class _Lowest:
    """The images of the lowest scores so far."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._heap: list[tuple[float, int, dict[str, Any], NDArray[np.uint8]]] = []
        self._order = itertools.count(0, -1)

    def add(self, judged: JudgedFiles) -> None:
        if not self._keep:
            return
        columns = {str(name): values.tolist() for name, values in judged.rows.items()}
        for i, score in enumerate(columns["score"]):
            pixels = judged.inputs[i].pixels
            # The heap begins with the highest of the lowest scores, the newest of equal ones.
            full = len(self._heap) == self._keep
            if pixels is None or full and -score <= self._heap[0][0]:
                continue
            row = {name: values[i] for name, values in columns.items()}
            # A copy: a row of the batch's array would keep the whole batch.
            entry = (-score, next(self._order), row, pixels.copy())
            (heapq.heappushpop if full else heapq.heappush)(self._heap, entry)

    def findings(self, threshold: float) -> tuple[Finding, ...]:
        ordered = sorted(self._heap, key=lambda entry: entry[:2], reverse=True)
        return tuple(
            Finding({**row, "anomalous": row["p_value"] <= threshold}, pixels)
            for _, _, row, pixels in ordered
        )


class _Spool:
    """Rows on disk without decisions, then ``out`` with them; nothing where there is no ``out``."""

    def __init__(self, out: Path | None, folder: Path) -> None:
        self._out, self._path = out, folder / "rows.parquet"
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[pd.DataFrame] = []
        self._count = 0

    def add(self, rows: pd.DataFrame) -> None:
        if self._out is None:
            return
        self._rows.append(rows)
        self._count += len(rows)
        if self._count >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = _arrow(pd.concat(self._rows, ignore_index=True))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)
        self._rows, self._count = [], 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def deliver(self, threshold: float) -> None:
        """Write ``out``: anomalous are the rows with p ≤ threshold, one of the p-values."""
        if self._out is None:
            return
        self._flush()
        self.close()
        with replaced(self._out) as partial:
            WRITERS[self._out.suffix](self._decided(threshold), partial)

    def _decided(self, threshold: float) -> Iterator[pa.Table]:
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                rows = batch.to_pandas()
                known = rows["p_value"].notna()
                decision = pd.array(rows["p_value"] <= threshold, dtype="boolean")
                rows["anomalous"] = pd.Series(decision).where(known)
                yield _arrow(rows)


@contextmanager
def _spool(out: Path | None) -> Iterator[_Spool]:
    try:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target where there is one: that is where there has to be room.
        place = None if out is None else out.parent
        with tempfile.TemporaryDirectory(prefix=".oodflow-", dir=place) as folder:
            spool = _Spool(out, Path(folder))
            try:
                yield spool
            finally:
                spool.close()
    except OSError as error:
        raise ResourceError(f"cannot write {out}: {error.strerror or error}") from error


def _arrow(rows: pd.DataFrame) -> pa.Table:
    texts, flags = {"file", "error"}, {"anomalous", "resized"}
    kinds = [
        (name, pa.string() if name in texts else pa.bool_() if name in flags else pa.float64())
        for name in map(str, rows.columns)
    ]
    return pa.Table.from_pandas(rows, pa.schema(kinds), preserve_index=False)


def _write_csv(tables: Iterable[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for i, table in enumerate(tables):
            table.to_pandas().to_csv(file, index=False, header=i == 0)


def _write_parquet(tables: Iterable[pa.Table], path: Path) -> None:
    tables = iter(tables)
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


WRITERS: Mapping[str, Callable[[Iterable[pa.Table], Path], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
