"""Real pictures: the same for ever, split by source, without numbers, made as the inliers are."""

import dataclasses
import shutil
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from oodflow.data import catalog, collage, images, picture_sources
from oodflow.data.catalog import CATALOG, agreeing, lookup
from oodflow.data.collage import KINDS, SIDES, Painter
from oodflow.data.images import load, prepare, present
from oodflow.data.picture_sources import EMOJI, gather, in_test, is_number, shows_numbers
from oodflow.data.torchvision_sets import enlarge
from oodflow.errors import UserError

SYSTEM = Path("/usr/share")
INSTALLED = all((SYSTEM / need).exists() for need in lookup("pictures").needs)
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def share(tmp_path_factory) -> Path:
    """A folder as the packages fill it, with 40 drawings and one font in the places of theirs."""
    folder = tmp_path_factory.mktemp("share")
    clips, fonts = folder / "openclipart" / "png", folder / "fonts" / "truetype" / "noto"
    (clips / "clocks").mkdir(parents=True)
    fonts.mkdir(parents=True)
    for at in range(40):
        image = Image.new("RGBA", (60 + 5 * at, 120))
        ImageDraw.Draw(image).ellipse((10, 20, 50 + 3 * at, 100), (6 * at, 200 - 4 * at, 90, 255))
        image.save(clips / f"drawing{'abcdefghij'[at // 4]}{'wxyz'[at % 4]}_{at}.png")
    image.save(clips / "clocks" / "face.png")
    shutil.copy(FONTS / "DejaVuSans.ttf", fonts / "NotoSans-Regular.ttf")
    shutil.copy(FONTS / "DejaVuSans.ttf", fonts / EMOJI)
    for other in ("NotoSans-Light", "NotoSansMono-Regular", "NotoSansLaoUI-Bold"):
        (fonts / f"{other}.ttf").write_bytes(b"of another package")
    (clips / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module", params=[1, 3])
def painted(request, share):
    """Channels, and sources by fold."""
    return request.param, gather(share, "RGB" if request.param == 3 else "L")


def chunk(painted, fold="train", at=0):
    channels, sources = painted
    return collage.generate(sources[fold], fold, channels, at)


def test_pictures_are_the_same_again_and_others_in_each_chunk_and_fold(painted):
    first = chunk(painted)
    assert first.shape == (collage.CHUNK, painted[0], 32, 32) and first.dtype == np.uint8
    assert first.tobytes() == chunk(painted).tobytes()
    both = np.concatenate([first, chunk(painted, at=1), chunk(painted, "test")])
    assert len({each.tobytes() for each in both}) > 0.99 * len(both)


def test_no_picture_is_in_a_fold_twice(share, monkeypatch):
    """Of chunks that repeat each other each picture is taken once, in order, for one fold."""

    def few(sources, fold, channels, at):
        levels = (np.arange(300 * at, 300 * at + collage.CHUNK) % 1900).astype("<u2")
        return np.broadcast_to(
            levels.view(np.uint8).reshape(-1, 1, 2, 1), (len(levels), 1, 2, 512)
        ).reshape(-1, 1, 32, 32)

    monkeypatch.setattr(collage, "generate", few)
    facts = dataclasses.replace(lookup("pictures-grey"), train_size=1700, test_size=200)
    raw = collage.read(images.Request(facts, share))
    made = np.concatenate([piece.pixels for fold in raw.folds.values() for piece in fold.pieces()])
    assert (made[:, 0, 0, 0] + 256 * made[:, 0, -1, 0].astype(int)).tolist() == list(range(1900))


def test_every_kind_of_picture_shows_something_at_its_size(painted):
    channels, sources = painted
    painter = Painter(sources["train"], channels, np.random.default_rng(1))
    for kind in KINDS[channels]:
        drawn = [getattr(painter, kind)() for _ in range(10)]
        assert {each.size for each in drawn} == {(4 * SIDES[channels],) * 2}
        assert {each.mode for each in drawn} == {"RGB" if channels == 3 else "L"}
        assert np.mean([np.asarray(each).std() for each in drawn]) > 10, kind
    assert all(sum(shares.values()) == pytest.approx(1) for shares in KINDS.values())


def test_an_object_in_its_frame_is_whole_and_on_black(painted):
    channels, sources = painted
    painter = Painter(sources["train"], channels, np.random.default_rng(1))
    for _ in range(20):
        levels = np.asarray(painter.framed().convert("L"))
        rows, columns = np.nonzero(levels > 8)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.7 * painter.fine <= extent <= painter.fine
        assert (levels == 0).mean() > 0.15
        assert abs(rows.min() + rows.max() + 1 - painter.fine) <= 12


def test_grey_pictures_take_the_path_of_28_by_28_images(share, monkeypatch):
    """Their pixels are those of the enlarged 28×28 pictures, and nothing finer is in them."""
    small = []
    monkeypatch.setattr(collage, "enlarge", lambda given: small.append(given) or enlarge(given))
    made = collage.generate(gather(share, "L")["test"], "test", 1, 0)
    assert small[0].shape == (collage.CHUNK, 1, 28, 28)
    assert torch.equal(enlarge(small[0]), torch.from_numpy(made))


@pytest.mark.parametrize("character", [*"0123456789٣३๔𝟘①⑴½Ⅷ一²₃㉈㏠", *"ƽЗǯ", "\N{KEYCAP TEN}"])
def test_numbers_of_all_scripts_are_known(character):
    assert is_number(character)


def test_letters_are_no_numbers():
    assert not any(map(is_number, "AzßДظあ한+→♞"))


def test_no_character_of_any_font_is_a_number(share):
    folders = [share] + [SYSTEM] * INSTALLED
    for folder in folders:
        for font in sorted((folder / "fonts/truetype/noto").glob("*.ttf")):
            if not picture_sources.CORE.fullmatch(font.name) and font.name != EMOJI:
                continue
            known = picture_sources._characters(font)
            for each in known:
                assert unicodedata.category(each) not in ("Nd", "Nl", "No"), (font, each)
                assert unicodedata.digit(each, None) is None, (font, each)
                assert unicodedata.numeric(each, None) is None, (font, each)
                assert "DIGIT" not in unicodedata.name(each, ""), (font, each)


def test_every_source_is_in_one_fold(share):
    sources = gather(share, "L")
    train, test = sources["train"], sources["test"]
    assert {each.tobytes() for each in train.clips}.isdisjoint(
        each.tobytes() for each in test.clips
    )
    # The broken file and the face of the clock are left out.
    assert len(train.clips) + len(test.clips) == 40
    assert {path.name for path, _ in train.fonts} == {"NotoSans-Regular.ttf"}
    letters = [set("".join(each for _, each in fold.fonts)) for fold in (train, test)]
    assert not letters[0] & letters[1] and len(letters[0]) > 8 * len(letters[1]) > 0
    assert not set(train.emoji) & set(test.emoji)
    for accented in "ÀÁÂÃÄÅåà":
        assert in_test(picture_sources._root(accented)) == in_test("a")


def test_files_that_show_numbers_are_known_by_their_names():
    assert all(map(shows_numbers, ("games/cards/x.png", "a/calculator.png", "DIGIT_1.png")))
    assert not any(map(shows_numbers, ("phone.png", "food/cone_01.png", "a/microphone_2.png")))


def test_prepared_from_another_place_and_there_afterwards(share, tmp_path, monkeypatch):
    def smaller(name):
        return dataclasses.replace(catalog.lookup(name), train_size=600, test_size=30)

    monkeypatch.setattr(images, "lookup", smaller)
    assert not present("pictures-grey", tmp_path)
    with pytest.raises(UserError, match="apt-get install openclipart-png fonts-noto-core"):
        prepare("pictures-grey", tmp_path)
    prepare("pictures-grey", tmp_path, share)
    assert present("pictures-grey", tmp_path) and not present("pictures", tmp_path)
    loaded = load("pictures-grey", "train", tmp_path)
    assert loaded.pixels.shape == (600, 1, 32, 32) and loaded.labels is None
    monkeypatch.setenv("XDG_DATA_DIRS", f"/nonexistent:{share}")
    assert present("pictures", tmp_path)


def test_an_absent_package_is_named(share, tmp_path):
    part = tmp_path / "share"
    shutil.copytree(share / "openclipart", part / "openclipart")
    with pytest.raises(UserError, match="has no fonts/truetype/noto/NotoSans-Regular.ttf and no"):
        prepare("pictures", tmp_path, part)


def test_pictures_come_before_the_sketches_and_after_the_papers_sets():
    for name in ("cifar10", "fashion-mnist", "mnist", "mnist-5k", "brats-t1"):
        assert lookup(name).generals[-2:] == (
            agreeing("pictures", lookup(name).channels),
            agreeing("sketch-general", lookup(name).channels),
        )
    assert lookup("sketch-shapes").generals[0] == "sketch-general"
    # These are made 32×32 from larger images.
    for name in ("cifar10-grey", "folder:x?channels=1"):
        assert "pictures-grey" not in lookup(name).generals
    assert CATALOG["pictures-grey"].source == "collage"


@pytest.mark.long
@pytest.mark.skipif(not INSTALLED, reason="the packages of pictures are not installed")
def test_the_real_set_has_100_000_distinct_training_pictures(tmp_path):
    prepare("pictures-grey", tmp_path, SYSTEM)
    pixels = {fold: load("pictures-grey", fold, tmp_path).pixels.numpy() for fold in catalog.FOLDS}
    digests = {each.tobytes() for each in pixels["train"]}
    assert len(digests) == len(pixels["train"]) >= 100_000
    assert digests.isdisjoint(each.tobytes() for each in pixels["test"])
