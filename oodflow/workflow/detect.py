"""``oodflow detect``: decisions of a detector over image files and folders."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from oodflow import console
from oodflow.detection.detections import Detections, detect
from oodflow.detection.gallery import gallery
from oodflow.errors import ResourceError
from oodflow.models.device import available_device
from oodflow.options import DetectOptions
from oodflow.workflow.detectors import detector_at

__all__ = ["command"]

SHOWN = 10
"""Most anomalous images in the terminal."""
PICTURES = 100
"""Most anomalous images on the page."""
LEVEL = 0.05
"""Of the test whether there are more anomalies than inliers alone would give, whatever α is."""


def command(options: DetectOptions) -> int:
    """Decide, write, and say whether there are more anomalies than inliers would give.

    The exit code is 1 with ``fail_on_anomaly`` where an image is anomalous, and 2 where no file
    could be read.
    """
    device = str(available_device(options.device))
    detector = detector_at(options.detector, device)
    with console.progress("detecting", 0) as advance:
        found = detect(
            detector,
            [Path(path) for path in options.paths],
            alpha=options.alpha,
            fdr=options.fdr,
            out=Path(options.out) if options.out else None,
            keep=PICTURES if options.html else SHOWN,
            on_progress=advance,
        )
    if options.html:
        _write(Path(options.html), gallery(detector, found))
    _show(found, "see column error" if options.out else "--out FILE names them")
    for path in filter(None, (options.out, options.html)):
        console.say(f"written: {path}")
    if not found.tally.images:
        return 2
    return int(options.fail_on_anomaly and found.anomalous > 0)


def _write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def _show(found: Detections, which: str) -> None:
    tally = found.tally
    if found.anomalous:
        table = Table("file", "score", "p-value", title="Most anomalous")
        for finding in found.most_anomalous[:SHOWN]:
            if finding.row["anomalous"]:
                row = finding.row
                table.add_row(_plain(row["file"]), f"{row['score']:.1f}", f"{row['p_value']:.4f}")
        console.show(table)
    rule = (
        f"false-positive rate {found.alpha:g}"
        if found.fdr is None
        else f"false discovery rate {found.fdr:g}"
    )
    console.say(f"{found.anomalous} of {tally.images} images are anomalous at a {rule}")
    if tally.images:
        verdict = "more than" if found.folder_p <= LEVEL else "no more than"
        console.say(
            f"{found.flagged} have p ≤ {found.alpha:g}: {verdict} inliers alone would give "
            f"(exact test, p = {found.folder_p:.3g})"
        )
    if tally.resized:
        console.say(f"{tally.resized} images were resized to 32×32, which can itself be anomalous")
    for line in found.account.lines():
        console.say(line)
    if tally.errors:
        console.error(f"{tally.errors} of {tally.files} files could not be read; {which}")


def _plain(name: str) -> Text:
    """A file's name as it is, without markup; what would steer a terminal is spelled out."""
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in name))
