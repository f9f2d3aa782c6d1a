"""``oodflow report``: tables and the picture of the effect, from registered runs."""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from oodflow import console
from oodflow.errors import UserError
from oodflow.evaluation.figures import effect_figure, save_figure
from oodflow.evaluation.scores import clip_non_finite, compute_scores
from oodflow.evaluation.tables import read_table
from oodflow.experiment import MODELS
from oodflow.options import Reporting, pick
from oodflow.reports.collect import auroc_frame, bpd_frame, comparison_frame, registered_runs
from oodflow.reports.provenance import provenance, runs_behind
from oodflow.reports.published import PAPER, beside
from oodflow.reports.render import to_csv, to_latex, to_markdown, to_rich
from oodflow.reports.tables import (
    Table,
    bpd_table,
    comparison_table,
    correlation_table,
    detection_table,
)
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.tracking.store import Store, open_store
from oodflow.workflow.session import claimed_run
from oodflow.workflow.training_run import ended_on_error

__all__ = ["command", "write_report"]

FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}


def command(given: Mapping[str, Any]) -> None:
    """Write the report of everything that is registered."""
    chosen = pick(Reporting, given)
    write_report(open_store(), Path(chosen.out), chosen.published)


def write_report(store: Store, out: Path, published: bool = False) -> None:
    """Tables as Markdown, LaTeX and CSV and the effect's figure, in a folder and as a run.

    With them goes ``provenance.json``, which says for every cell where it is from. ``published``
    puts the paper's numbers beside ours.
    """
    chosen, older = registered_runs(store)
    tables = _tables(store, chosen, published)
    if not runs_behind(tables.values()):
        raise UserError("no registered run to report; make some: oodflow main")
    record = runs.start(
        store, "report", {"kind": "report", "registered": "false"}, claimed=claimed_run()
    )
    with ended_on_error(store, record):
        files = _write(store, chosen, tables, out)
        for folder in ("tables", "figures"):
            if any(file.parent.name == folder for file in files):
                runs.log_artifacts(store, record, out / folder, folder)
        origin = (out / "provenance.json").read_text()
        runs.log_text(store, record, origin, "provenance.json")
        text = (out / "report.md").read_text()
        runs.set_tags(store, record, {}, description=text)
    runs.end(store, record, "FINISHED")
    for table in tables.values():
        for part in to_rich(table):
            console.show(part)
    if older:
        console.say(f"{older} older run{'s' * (older > 1)} of the same seeds not counted")
    console.say(f"{len(chosen)} runs; written: {', '.join(map(str, files))}")
    console.say(f"see it: {store.how_to_see(record)}")


def _tables(store: Store, chosen: Sequence[RunInfo], published: bool) -> dict[str, Table]:
    """Every table that the registered runs fill, by its file's name; Glow's come first.

    Where ``published``, also those that only the paper fills.
    """
    tables: dict[str, Table] = {}
    for model in MODELS:
        suffix, title = ("", "") if model == "glow" else (f"-{model}", model)
        for name, collect, make in (
            ("detection", auroc_frame, detection_table),
            ("bpd", bpd_frame, bpd_table),
        ):
            frame = collect(chosen, model)
            paper = PAPER.get((name, model), ()) if published else ()
            if paper:
                tables[name + suffix] = beside(make(frame, title), paper)
            elif len(frame):
                tables[name + suffix] = make(frame, title)
    if len(frame := comparison_frame(store)):
        tables["general-distributions"] = comparison_table(frame)
    if len(frame := _correlations(store, chosen)):
        tables["model-correlation"] = correlation_table(frame)
    return tables


def _correlations(store: Store, chosen: Sequence[RunInfo]) -> pd.DataFrame:
    """Spearman correlations of raw log p between families trained alike, for each dataset scored.

    From in-distribution models finetuned without outlier loss, those of a seed and dataset.
    """
    groups: dict[tuple[str, str], dict[str, RunInfo]] = {}
    for run in chosen:
        tags = run.tags
        alike = (tags["role"], tags["setting"], tags["outlier_loss"], tags["init"])
        if alike == ("in_distribution", "unsupervised", "none", "general"):
            groups.setdefault((tags["dataset"], tags["seed"]), {})[tags["model"]] = run
    rows = []
    for (_, seed), by_model in groups.items():
        if len(by_model) < 2:
            continue
        tables = {name: _score_tables(store, run.run_id) for name, run in by_model.items()}
        for first, second in combinations([name for name in MODELS if name in by_model], 2):
            for dataset in sorted(tables[first].keys() & tables[second].keys()):
                (left, images), (right, others) = tables[first][dataset], tables[second][dataset]
                if images == others:
                    value = float(spearmanr(left, right).statistic)
                    ids = f"{by_model[first].run_id} {by_model[second].run_id}"
                    rows.append((ids, int(seed), first, second, dataset, value))
    columns = ["run_id", "seed", "first", "second", "dataset", "correlation"]
    return pd.DataFrame(rows, columns=columns)


def _score_tables(store: Store, run_id: str) -> dict[str, tuple[np.ndarray, str]]:
    """Dataset → raw log p of its test fold under a run's model, and the digest of the images."""
    found = {}
    for path in runs.list_artifacts(store, run_id, "scores"):
        if path.endswith("-test.parquet"):
            table, digest = _score_table(store, run_id, path)
            dataset = Path(path).name.removesuffix("-test.parquet")
            found[dataset] = (clip_non_finite(table["log_prob"].to_numpy()), digest)
    return found


def _score_table(store: Store, run_id: str, path: str) -> tuple[pd.DataFrame, str]:
    """A score table of a run, and the digest of the images it is of."""
    with runs.artifact(store, run_id, path) as local:
        table, facts = read_table(local)
    return table, facts["images"]


def _write(
    store: Store, chosen: Sequence[RunInfo], tables: Mapping[str, Table], out: Path
) -> list[Path]:
    """The report's files; its own folders are made anew."""
    try:
        for folder in ("tables", "figures"):
            shutil.rmtree(out / folder, ignore_errors=True)
            (out / folder).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another out") from error
    files = []
    facts = {run_id: _facts(store, run_id) for run_id in runs_behind(tables.values())}
    origin = json.dumps(provenance(tables, facts), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "provenance.json").write_text(origin + "\n")
    for name, table in tables.items():
        for extension, render in FORMATS.items():
            file = out / "tables" / f"{name}.{extension}"
            file.write_text(render(table))
            files.append(file)
    parts = [to_markdown(table) for table in tables.values()]
    picture = _draw_effect(store, chosen, out / "figures" / "effect.png")
    if picture:
        parts.append("![The raw likelihood beside the likelihood ratio](figures/effect.png)\n")
        files.append(out / "figures" / "effect.png")
    (out / "report.md").write_text("# oodflow report\n\n" + "\n".join(parts))
    return [*files, out / "provenance.json", out / "report.md"]


def _facts(store: Store, run_id: str) -> dict[str, str]:
    """A run's git commit, and the digest of the weights that its scores are of; "" if unknown."""
    model = ""
    for path in runs.list_artifacts(store, run_id, "scores")[:1]:
        # A damaged score table costs the digest, not the report.
        with contextlib.suppress(UserError), runs.artifact(store, run_id, path) as local:
            model = read_table(local)[1].get("model", "")
    return {"git_commit": runs.git_commit(store, run_id), "weights_digest": model}


def _draw_effect(store: Store, chosen: Sequence[RunInfo], file: Path) -> bool:
    """Raw likelihood and ratio of the first in-distribution model that has both."""
    for run in chosen:
        oods = [
            name.split("/")[1]
            for name in run.metrics
            if name.startswith("auroc/") and name.endswith("/diff") and "/mean/" not in name
        ]
        general = run.tags.get("general_run", "")
        if run.tags["role"] != "in_distribution" or run.tags["outlier_loss"] != "none":
            continue
        if not oods or not general:
            continue
        names = [run.tags["dataset"], *sorted(oods)]
        scores = {name: _scores(store, run.run_id, general, name) for name in names}
        if not all(scores.values()):
            continue
        shape = (int(run.params["model.channels"]), 32, 32)
        own = scores.pop(names[0])
        save_figure(effect_figure(names[0], own, scores, shape), file)
        return True
    return False


def _scores(store: Store, run_id: str, general: str, dataset: str) -> dict[str, np.ndarray]:
    """Scores of a run against its general model; none where their tables are of other images."""
    tables, images = [], set()
    for each in (run_id, general):
        table, digest = _score_table(store, each, f"scores/{dataset}-test.parquet")
        tables.append(table)
        images.add(digest)
    return compute_scores(*tables) if len(images) == 1 else {}
