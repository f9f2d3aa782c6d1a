"""``oodflow runs``: the runs in the store, as tables."""

import dataclasses
from datetime import datetime, timezone
from typing import Any

from rich.table import Table

from oodflow import console
from oodflow.errors import without_secrets
from oodflow.options import RunListOptions, ShowOptions
from oodflow.tracking.database import find_locally
from oodflow.tracking.run_info import SHOWN, RunInfo, tracking_uri

__all__ = ["list_command", "listed", "show_command"]


LESS = ("time", "started", "kind")
"""Columns that a narrow terminal does without, the first of them first."""


def list_command(options: RunListOptions) -> None:
    """All runs that match the filters, the newest first."""
    found = listed(options)
    if options.json:
        console.say_json([as_values(run) for run in found])
        return
    if not found:
        console.say("no runs; make some: oodflow main")
        return
    digits = SHOWN
    # More of them where these do not tell the runs apart.
    while len({run.run_id[:digits] for run in found}) < len(found):
        digits += 1
    rows = [_row(run, digits) for run in found]
    console.show_rows(rows, "name", LESS)
    many = "s" * (len(found) != 1)
    console.say(f"{len(found)} run{many} at\n{tracking_uri()}")


def _row(run: RunInfo, digits: int) -> dict[str, str]:
    """A run as people see it in the list, by column."""
    # The parent of several seeds has the means of their metrics.
    numbers = {name.removesuffix("/mean"): value for name, value in run.metrics.items()}
    own = numbers.get(f"bpd/{run.tags.get('dataset')}")
    means = {
        name.split("/")[2]: value
        for name, value in numbers.items()
        if name.startswith("auroc/mean/") and not name.endswith("/std")
    }
    best = max(means, key=lambda score: means[score], default="")
    return {
        "id": run.run_id[:digits],
        "name": run.name,
        "kind": run.tags.get("kind", ""),
        "status": "registered" if run.registered else run.status.lower(),
        "started": f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}",
        "time": console.duration(run.seconds),
        "bpd": "" if own is None else f"{own:.3f}",
        "best AUROC": f"{100 * means[best]:.1f} {best}" if best else "",
    }


def as_values(run: RunInfo) -> dict[str, Any]:
    """A run as JSON has it; the start is in ISO 8601."""
    started = datetime.fromtimestamp(run.started, timezone.utc).isoformat(timespec="seconds")
    return dataclasses.asdict(run) | {"started": started, "registered": run.registered}


def listed(options: RunListOptions) -> list[RunInfo]:
    """The runs that match the filters, the newest first."""
    wanted = {"dataset": options.dataset, "kind": options.kind}
    wanted["registered"] = "true" if options.registered else ""
    tags = {name: value for name, value in wanted.items() if value}
    found = find_locally(tracking_uri(), tags)
    if found is None:
        # Imported where they are needed: mlflow takes longer than all the rest.
        from oodflow.tracking import runs
        from oodflow.tracking.store import open_store

        found = runs.find(open_store(), tags)
    return found


def show_command(options: ShowOptions) -> None:
    """One run: what it was, its numbers, its files."""
    from oodflow.tracking import runs
    from oodflow.tracking.store import open_store
    from oodflow.workflow import results

    store = open_store()
    run = runs.resolve(store, options.run)
    files = [
        path
        for folder in ("checkpoints", "scores", "figures", "tables", "seeds")
        for path in runs.list_artifacts(store, run.run_id, folder)
    ]
    if options.json:
        console.say_json(as_values(run) | {"artifacts": files})
        return
    facts = Table("", "", show_header=False, title=run.name)
    facts.add_row("id", run.run_id)
    facts.add_row("status", run.status.lower())
    for name, value in sorted(run.tags.items()):
        facts.add_row(name, value)
    for name, value in sorted(run.params.items()):
        # `mlflow run` records all that it is given.
        facts.add_row(name, without_secrets(value))
    console.show(facts)
    if results.auroc_rows(run):
        results.show_runs([run])
    numbers = Table("metric", "value")
    for name, number in sorted(run.metrics.items()):
        if not name.startswith(("auroc/", "valid/auroc/")):
            numbers.add_row(name, f"{number:.6g}")
    console.show(numbers)
    console.say(f"artifacts: {', '.join(files) or 'none'}")
    console.say(f"see it: {store.how_to_see(run.run_id)}")
