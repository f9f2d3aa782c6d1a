"""Generated grey images of stripes, horizontal or vertical: two classes."""

from collections.abc import Iterator

import numpy as np

from oodflow import Dataset, Fold, Piece, Raw, register_dataset

FACTS = Dataset(
    name="stripes",
    role="in_distribution",
    channels=1,
    classes=2,
    train_size=2_000,
    test_size=500,
    flip=True,
    generals=("sketch-general-grey",),
    ood=("sketch-digits-grey", "sketch-scenes-grey"),
    where="",
    obtain="It is generated when it is first used.",
    family="stripes",
)


def _fold(count: int, seed: int) -> Fold:
    def pieces() -> Iterator[Piece]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, count)
        width, phase = rng.uniform(3, 9, (count, 1, 1)), rng.uniform(0, 6.28, (count, 1, 1))
        waves = 128 + 90 * np.sin(2 * np.pi * np.arange(32) / width + phase) + np.zeros((32, 1))
        waves += rng.normal(0, 8, waves.shape)
        turned = np.where(labels[:, None, None], waves.transpose(0, 2, 1), waves)
        yield Piece(turned.round().clip(0, 255).astype(np.uint8)[:, None], labels)

    return Fold(count, pieces)


def read(request: object) -> Raw:
    """Both folds; nothing is read."""
    folds = {"train": _fold(FACTS.train_size, 1), "test": _fold(FACTS.test_size, 2)}
    return Raw(folds, ("horizontal", "vertical"))


register_dataset(FACTS, read)
