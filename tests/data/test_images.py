"""Loading by name: folds, limits, digests and the user's errors."""

import hashlib

import pytest
import torch

from oodflow.data import sketch
from oodflow.data.images import digest_of, download, load
from oodflow.errors import UserError


def test_the_digest_is_of_the_content_and_of_all_of_it():
    pixels = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(torch.uint8)
    labels = torch.tensor([3, 4])
    whole = digest_of(pixels, labels)
    assert whole == digest_of(pixels.clone(), labels.clone())
    changed = pixels.clone()
    changed[1, 2, 31, 31] += 1
    others = {
        digest_of(changed, labels),
        digest_of(pixels, torch.tensor([3, 5])),
        digest_of(pixels, None),
        digest_of(pixels[:1], labels[:1]),
        digest_of(pixels.reshape(2, 3, 64, 16), labels),
    }
    assert len(others) == 5 and whole not in others
    assert len(whole) == 16 and int(whole, 16)


def test_the_digest_is_plain_sha256_of_header_and_bytes():
    pixels = torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)
    header = b'{"shape": [1, 1, 2, 2], "labels": true}'
    content = header + bytes([7] * 4) + (5).to_bytes(8, "little")
    assert digest_of(pixels, torch.tensor([5])) == hashlib.sha256(content).hexdigest()[:16]


def test_a_transposed_view_has_the_digest_of_its_values():
    pixels = torch.arange(3 * 32 * 32).reshape(1, 32, 32, 3).to(torch.uint8).permute(0, 3, 1, 2)
    assert digest_of(pixels, None) == digest_of(pixels.contiguous(), None)


def test_a_limit_takes_the_first_images_and_their_digest(tmp_path):
    some = load("sketch-scenes", "test", tmp_path, limit=5)
    whole = load("sketch-scenes", "test", tmp_path)
    assert (whole.name, whole.fold) == ("sketch-scenes", "test")
    assert len(whole.pixels) == 1000 and len(some.pixels) == 5
    assert torch.equal(some.pixels, whole.pixels[:5])
    assert some.digest == digest_of(whole.pixels[:5], None) != whole.digest
    assert len(load("sketch-scenes", "test", tmp_path, limit=5000).pixels) == 1000


@pytest.mark.parametrize(
    ("name", "fold", "limit", "message"),
    [
        ("sketch-shape", "test", 0, "unknown dataset 'sketch-shape'; available: sketch-shapes"),
        ("sketch-shapes", "valid", 0, "unknown fold 'valid' of sketch-shapes; available: train"),
        ("sketch-shapes", "test", -1, "limit is -1"),
    ],
)
def test_wrong_requests_are_the_users_errors(tmp_path, name, fold, limit, message):
    with pytest.raises(UserError, match=message):
        load(name, fold, tmp_path, limit)
    assert list(tmp_path.iterdir()) == []


def test_preparing_a_generated_set_fills_its_cache(small, tmp_path):
    download("sketch-scenes", tmp_path)
    for fold in ("train", "test"):
        assert sketch.cache_file("sketch-scenes", fold, tmp_path).is_file()
    with pytest.raises(UserError, match="unknown dataset 'sketch-unknown'"):
        download("sketch-unknown", tmp_path)
