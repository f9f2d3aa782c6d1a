"""The highest of many scores against a full sort, in whatever batches, reading no more than one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.evaluation.extremes import NOTHING, highest, keep_highest, random_subset

COUNT = 500


class Source:
    """Stands for more images than memory holds: image i is made when it is read.

    Fails where more than ``most`` images are asked for at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.read: list[int] = []

    def __getitem__(self, positions: Tensor) -> Tensor:
        assert len(positions) <= self.most, f"{len(positions)} images read at once"
        self.read += positions.tolist()
        return brightness(positions).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def brightness(positions: Tensor) -> Tensor:
    """Of image i, 0 to 250, the same for many."""
    return (positions * 7919) % 251


def full_sort(values: np.ndarray, positions: np.ndarray, k: int) -> list[tuple[float, int]]:
    pairs = zip(values.tolist(), positions.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:k]


@pytest.mark.parametrize("k", [1, 12, COUNT - 1, COUNT, COUNT + 300])
@pytest.mark.parametrize("levels", [3, 40, 10**9])
def test_the_ranking_is_that_of_a_full_sort_in_any_batches(k, levels):
    """With three levels nearly all are ties; above the count all are kept."""
    random = np.random.default_rng(k + levels)
    values = random.integers(-levels, levels, COUNT).astype(float)
    positions = np.sort(random.choice(10**6, COUNT, replace=False))
    expected = full_sort(values, positions, k)
    assert len(expected) == min(k, COUNT)
    for parts in (1, 2, 7, 100, COUNT):
        cuts = np.sort(random.choice(COUNT, parts - 1, replace=False))
        batches = np.split(np.arange(COUNT), cuts)
        for order in (batches, batches[::-1]):
            kept = NOTHING
            for batch in order:
                kept = keep_highest(kept, values[batch], positions[batch], k)
            assert list(zip(*(part.tolist() for part in kept), strict=True)) == expected


def test_nothing_is_not_filled_by_what_is_kept():
    keep_highest(NOTHING, [1.0], [0], 1)
    assert len(NOTHING[0]) == len(NOTHING[1]) == 0


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_images_are_read_in_batches_once_and_ranked_by_every_score(batch_size):
    source, sizes, done = Source(batch_size), [], []

    def score(images: Tensor) -> dict[str, np.ndarray]:
        sizes.append(len(images))
        level = images[:, 0, 0, 0].double().numpy()
        return {"bright": level, "dark": -level}

    positions = random_subset(10**6, 3333, torch.Generator().manual_seed(1))
    found = highest(source, positions, score, 9, batch_size=batch_size, on_progress=done.append)
    assert source.read == positions.tolist()
    assert max(sizes) == batch_size and sum(sizes) == done[-1] == 3333
    values = brightness(positions).double().numpy()
    assert list(found) == ["bright", "dark"]
    for name, sign in (("bright", 1), ("dark", -1)):
        got = [part.tolist() for part in found[name]]
        expected = full_sort(sign * values, positions.numpy(), 9)
        assert list(zip(*got, strict=True)) == expected
        # The ninth shares its score with others: which of them counts is defined.
        assert np.count_nonzero(sign * values >= expected[-1][0]) > 9


@pytest.mark.parametrize(("count", "k"), [(5, 0), (0, 5)])
def test_there_must_be_something_to_rank(count, k):
    with pytest.raises(UserError, match="at least 1"):
        highest(Source(250), torch.arange(count), lambda images: {}, k)


def test_a_random_subset_has_different_positions_in_order_and_each_as_often():
    hits = torch.zeros(20)
    for seed in range(2000):
        subset = random_subset(20, 5, torch.Generator().manual_seed(seed))
        assert len(subset) == 5 and (subset.diff() > 0).all()
        hits[subset] += 1
    # 500 on average, standard deviation 19.4.
    assert (hits - 500).abs().max() < 90


@pytest.mark.parametrize("size", [20, 21, 10**6])
def test_a_subset_of_all_images_is_all_of_them(size):
    assert random_subset(20, size, torch.Generator()).tolist() == list(range(20))
