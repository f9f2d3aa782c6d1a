"""``oodflow runs``: the runs in the store, as tables."""

from datetime import datetime

from rich.table import Column, Table

from oodflow import console
from oodflow.errors import without_secrets
from oodflow.options import RunListOptions, ShowOptions
from oodflow.tracking.database import find_locally
from oodflow.tracking.run_info import RunInfo, tracking_uri

__all__ = ["list_command", "listed", "show_command"]


SHOWN = 8
"""Digits of a run's id in the table, more where they do not tell the runs apart."""


def list_command(options: RunListOptions) -> None:
    """All runs that match the filters, the newest first."""
    found = listed(options)
    if not found:
        console.say("no runs; make some: oodflow main")
        return
    digits = SHOWN
    while len({run.run_id[:digits] for run in found}) < len(found):
        digits += 1
    table = Table(Column("id", no_wrap=True, min_width=digits))
    for name in ("name", "kind", "status", "registered", "started", "time", "bpd", "AUROC"):
        table.add_column(name)
    for run in found:
        own = run.metrics.get(f"bpd/{run.tags.get('dataset')}")
        best = [v for k, v in run.metrics.items() if k.startswith("auroc/mean/")]
        table.add_row(
            run.run_id[:digits],
            run.name,
            run.tags.get("kind", ""),
            run.status.lower(),
            "yes" if run.registered else "",
            f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}",
            f"{run.seconds:.0f} s",
            "" if own is None else f"{own:.3f}",
            f"{100 * max(best):.1f}" if best else "",
        )
    console.show(table)
    console.say(f"{len(found)} runs at {tracking_uri()}")


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
    files = [
        path
        for folder in ("checkpoints", "scores", "figures", "tables", "seeds")
        for path in runs.list_artifacts(store, run.run_id, folder)
    ]
    console.say(f"artifacts: {', '.join(files) or 'none'}")
    console.say(f"see it: {store.how_to_see(run.run_id)}")
