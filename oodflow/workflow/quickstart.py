"""``oodflow main``: the whole method on one dataset, from a general model to the report.

Every run is found by its experiment's hash, so that a second call only rebuilds the report and an
interrupted one goes on where it was.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from oodflow.data.catalog import lookup
from oodflow.errors import UserError
from oodflow.experiment import AUTO
from oodflow.options import Reporting, pick, seed_list
from oodflow.workflow.finetune import finetune_plan
from oodflow.workflow.report import write_report
from oodflow.workflow.scoring import evaluate_run
from oodflow.workflow.session import open_session
from oodflow.workflow.train import finish, first_present, scratch_plan

__all__ = ["command"]

SEEDS = "1,2,3"


def command(given: Mapping[str, Any]) -> None:
    """General model, in-distribution models without and with outlier loss, Diff†, report."""
    # A run made by `mlflow run` is for the report; each model gets one of its own.
    session = dataclasses.replace(open_session(given), claimed="")
    dataset = lookup("sketch-shapes" if given["dataset"] == AUTO else given["dataset"]).name
    general_set = first_present(session, lookup(dataset).generals)
    if not general_set:
        raise UserError(f"{dataset} has no general set that is there; use train and finetune")
    # Absent data are noticed before anything is trained.
    session.described(dataset)
    seeds = seed_list(given["seeds"], SEEDS)
    general = finish(
        session, scratch_plan(session, {**given, "dataset": general_set}, seeds[0]), resume=True
    )
    shared = {
        **given,
        "dataset": dataset,
        "init": general.run_id,
        "general": AUTO,
        "outlier_loss": "none",
        "outlier_dataset": AUTO,
        "temperature": 1000.0,
        "supervised": False,
        "outlier_weight": AUTO,
    }
    for seed in seeds:
        plain = finish(session, finetune_plan(session, shared, seed), resume=True)
        binary = {**shared, "outlier_loss": "binary"}
        with_loss = finish(session, finetune_plan(session, binary, seed), resume=True)
        reversed_roles = {
            **binary,
            "dataset": general_set,
            "outlier_dataset": dataset,
            "general": plain.run_id,
        }
        diff_outlier = finish(session, finetune_plan(session, reversed_roles, seed), resume=True)
        for run in (plain, with_loss):
            if run.tags.get("general_outlier_run") != diff_outlier.run_id:
                evaluate_run(session, run, general, diff_outlier, limit=given["limit"])
    write_report(session.store, pick(Reporting, given))
