"""Installed packages that register things, for the tests: files as an installer writes them."""

from collections.abc import Mapping
from pathlib import Path

MODEL = """
import oodflow.models.build as build
from oodflow.models.glow import Glow
from oodflow.presets import Preset
QUICK = Preset(depth=1, hidden=8, batch_size=16, lr=1e-3, finetune_lr=1e-3,
               report_every=3, scratch_steps=6, general_steps=6, finetune_steps=6)
build.register_model(NAME, lambda spec: Glow(spec.channels, spec.depth, spec.hidden),
                     {"quick": QUICK})
"""
"""A module that registers a model under NAME, which is to be replaced."""

SCORE = """
from oodflow.evaluation.scores import register_score
register_score(NAME, ("general",), lambda tables:
               tables.test["log_prob"].to_numpy() - 2 * tables.general["log_prob"].to_numpy())
"""


def install(
    folder: Path,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> Path:
    """Install a package in a folder for PYTHONPATH; ``entry_points`` are group → name → value."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    return folder
