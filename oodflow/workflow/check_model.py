"""``oodflow check-model``: whether a model does what the rest of the package expects of one."""

from oodflow import console
from oodflow.models.build import build_model
from oodflow.models.contract import check
from oodflow.options import CheckModelOptions, ModelOptions
from oodflow.presets import architecture
from oodflow.registration import MODELS

__all__ = ["command"]


def command(options: CheckModelOptions) -> int:
    """Print a row for each line of the contract; 1 if one fails, else 0."""
    if options.model not in MODELS:
        raise MODELS.unknown(options.model)
    chosen = ModelOptions(model=options.model, preset=options.preset)
    spec = architecture(chosen, options.channels)
    failed = 0
    for found in check(lambda: build_model(spec)):
        console.say(f"{found.verdict:14}  {found.line:13}  {found.why}")
        failed += found.verdict == "failed"
    plugin = f" ({spec.plugin})" if spec.plugin else ""
    console.say(f"{options.model}{plugin}: " + (f"{failed} failed" if failed else "all passed"))
    return int(failed > 0)
