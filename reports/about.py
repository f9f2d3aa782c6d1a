"""What a report says beside its numbers: the paper, its words, and what was run."""

import re
from collections.abc import Sequence
from datetime import datetime, timezone

from oodflow.console import duration
from oodflow.data.catalog import slug_of
from oodflow.tracking.registry import Registry, seed_of
from oodflow.tracking.run_info import RunInfo
from reports.document import Listing

__all__ = ["GLOSSARY", "PUBLICATION", "what_was_run"]

PUBLICATION = (
    "Schirrmeister, Zhou, Ball, Zhang: Understanding Anomaly Detection with Deep Invertible "
    "Networks through Hierarchies of Distributions and Features (NeurIPS 2020, arXiv:2006.10848)",
    "https://arxiv.org/abs/2006.10848",
)

GLOSSARY = {
    "Raw": "The log-likelihood log p(x) of an image under the in-distribution model.",
    "4×4": "The contribution of the last scale of a flow, whose latents are 4×4, to log p(x).",
    "Diff": "The log-likelihood ratio log p(x) − log p_g(x) to a general model p_g.",
    "Diff†": "Diff to a general model that has in-distribution images as its outliers in training.",
    "General": "A broad mixture of images, or the model p_g that was trained on it.",
    "Outlier loss": "A part of the training loss that lowers the likelihood of general images.",
    "AUROC": "The probability that an in-distribution image scores higher than an outlier; "
    "50 % is chance.",
    "BPD": "Bits per dimension, −log p(x) / (D ln 2) with D numbers in an image; lower means more "
    "likely.",
}

STARTS = {"scratch": "from scratch", "general": "from general", "own": "from own"}

GROUPS = ("model.", "data.", "loss.", "optimisation.")
"""Parameters that are settings."""
NAMED_BEFORE = ("name", "dataset", "outlier_loss", "outlier_dataset", "digest", "outlier_digest")
"""Of these, what the report says elsewhere."""
WORDS = {"lr": "learning rate", "temperature": "T", "outlier_weight": "λ"}

NUMBER = re.compile(r"\d+\.\d+")
"""Such as 333.3333333333333."""

SEEDS_NAMED = 5
"""Of more seeds only the first and the last are named."""


def what_was_run(registry: Registry) -> tuple[Listing, Listing]:
    """The trainings that count, a line for all seeds of each; the images that they used.

    Only what the runs themselves recorded; a dash stands for what they did not.
    """
    groups: dict[tuple[str, ...], list[RunInfo]] = {}
    for run in registry.training:
        groups.setdefault(_training(run), []).append(run)
    uses = [item for run in registry.training for item in run.images.items()]
    return (
        Listing(
            "Trainings",
            "Run time is the mean of a run, with its evaluation. Dates are in UTC.",
            ("Training", "Seeds", "Settings", "Run time", "Date", "Device, versions and commit"),
            tuple((" · ".join(words), *_facts(members)) for words, members in groups.items()),
        ),
        Listing(
            "Images",
            "The size of each fold that was trained on or scored, and the digest of its images. "
            "Where the settings name a limit, only so many of its first images were used.",
            ("Dataset and fold", "Images", "Digest"),
            tuple(
                (name, f"{count:,}".replace(",", " ") if count else "–", digest)
                for name, (digest, count) in sorted(dict.fromkeys(uses))
            ),
        ),
    )


def _training(run: RunInfo) -> tuple[str, ...]:
    """The words that tell a training from others, without its seed."""
    tags = run.tags
    loss = f"{tags['outlier_loss']} against {slug_of(tags.get('outlier_dataset', ''))}"
    words = (
        tags["model"],
        tags["dataset"],
        STARTS.get(tags["init"], tags["init"]),
        "supervised" if tags["setting"] == "supervised" else "",
        loss.removesuffix(" against ") if tags["outlier_loss"] != "none" else "",
    )
    return tuple(filter(None, words))


def _facts(members: Sequence[RunInfo]) -> tuple[str, ...]:
    """Seeds, settings, run time, date, and with what, of one training's runs."""
    seeds = sorted(map(seed_of, members))
    few = len(seeds) <= SEEDS_NAMED
    days = sorted(datetime.fromtimestamp(run.started, timezone.utc).date() for run in members)
    return (
        ", ".join(map(str, seeds)) if few else f"{len(seeds)}, from {seeds[0]} to {seeds[-1]}",
        _settings(members[0]),
        duration(sum(run.seconds for run in members) / len(members)),
        " to ".join(dict.fromkeys(map(str, (days[0], days[-1])))),
        "; ".join(dict.fromkeys(map(_made_with, members))),
    )


def _made_with(run: RunInfo) -> str:
    commit = f"commit {run.commit[:8]}" if run.commit else ""
    device = run.tags.get("device", run.tags.get("timed_on", ""))
    return ", ".join(filter(None, (device, run.tags.get("versions", ""), commit))) or "–"


def _settings(run: RunInfo) -> str:
    """The parameters that are not zero or empty, by their names in options."""
    shown = []
    for name, value in run.params.items():
        word = name.rpartition(".")[2]
        if name.startswith(GROUPS) and word not in NAMED_BEFORE and value not in ("", "0", "0.0"):
            number = f"{float(value):g}" if NUMBER.fullmatch(value) else value
            shown.append(f"{WORDS.get(word, word.replace('_', ' '))} {number}")
    return ", ".join(shown)
