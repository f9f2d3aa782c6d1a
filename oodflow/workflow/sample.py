"""``oodflow sample``: images that a run's model draws, as one picture."""

import math
from pathlib import Path

from PIL import Image
from torch import Tensor

from oodflow import console
from oodflow.errors import UserError
from oodflow.evaluation.sampling import draw_images, grid
from oodflow.options import PlaceOptions, SampleOptions
from oodflow.tracking import runs
from oodflow.workflow.session import Session, open_session

__all__ = ["command", "sample"]


def command(options: SampleOptions) -> None:
    """Draw images, write their picture, and log it on the run."""
    out = Path(options.out)
    session = open_session(PlaceOptions(device=options.device))
    columns = min(8, math.ceil(math.sqrt(max(options.count, 1))))
    picture = grid(sample(session, options), columns).numpy()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out} ({error}); choose another with --out") from error
    run = runs.resolve(session.store, options.run)
    runs.log_image(session.store, run.run_id, picture, "samples")
    console.say(f"{options.count} samples of {run.name}: {out}")
    console.say(f"see it: {session.store.how_to_see(run.run_id)}")


def sample(session: Session, options: SampleOptions) -> Tensor:
    """Images that a function of model and seed draws, uint8 N×C×32×32.

    Raises UserError for a model that draws none.
    """
    loaded = session.model(runs.resolve(session.store, options.run))
    with console.progress("drawing", options.count) as advance:
        return draw_images(
            loaded.model,
            options.count,
            options.seed,
            options.temperature,
            lambda done, total: advance(done),
        )
