"""Folders of images: written file by file, expected pixel by pixel."""

import hashlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from oodflow.data.folder import _split, listing, read, stamp
from oodflow.data.source import Request
from oodflow.errors import UserError


def ask(path, channels=3, on_broken=None, **options):
    facts = SimpleNamespace(name=f"folder:{path}", channels=channels, classes=0, options=options)
    return Request(facts, path, *([on_broken] if on_broken else []))


def put(folder, *names):
    """One-colour images that say their place among the names; a 32×32 PNG is read unchanged."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, 100, 0)).save(folder / name)


def content(raw, fold):
    """The numbers that put gave to the images of a fold, and their labels."""
    found = list(raw.folds[fold].pieces())
    if found[0].labels is None:
        labels = None
    else:
        labels = np.concatenate([piece.labels for piece in found]).tolist()
    return np.concatenate([piece.pixels[:, 0, 0, 0] for piece in found]).tolist(), labels


def refused(path, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        read(ask(path, **options))
    assert str(path) in str(caught.value) or "folder option" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sub_folders_are_classes_and_deeper_ones_belong_to_them(tmp_path):
    put(tmp_path, "dog/b.png", "cat/z.png", "cat/a/b/c.bmp", "ant/1.PNG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    raw = read(ask(tmp_path, test="1"))
    assert raw.classes == ("ant", "cat", "dog")
    assert list(raw.folds) == ["test"] and raw.folds["test"].total == 4
    assert content(raw, "test") == ([3, 2, 1, 0], [0, 1, 1, 2])
    piece = next(raw.folds["test"].pieces())
    assert piece.pixels.shape == (4, 3, 32, 32) and piece.pixels.dtype == np.uint8
    assert piece.labels.dtype == np.int64
    assert (piece.pixels[:, 1] == 100).all() and (piece.pixels[:, 2] == 0).all()


def test_a_flat_folder_has_no_labels(tmp_path):
    put(tmp_path, *(f"{i:02}.png" for i in range(10)))
    raw = read(ask(tmp_path))
    assert raw.classes == ()
    assert list(raw.folds) == ["train", "test"]
    assert sum(fold.total for fold in raw.folds.values()) == 10
    train, labels = content(raw, "train")
    assert labels is None and train == sorted(train)


def test_the_split_follows_the_sums_of_the_paths(tmp_path):
    names = [f"{kind}/{i}.png" for kind in "ab" for i in range(10)]
    put(tmp_path, *names)
    # The first four hexadecimal digits are enough to tell these apart from the shares.
    place = [int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 16**4 for name in names]
    for share in (0.2, 0.28, 0.5, 0.9):
        raw = read(ask(tmp_path, test=str(share)))
        assert content(raw, "test")[0] == [i for i in range(20) if place[i] < share]
        assert content(raw, "train")[0] == [i for i in range(20) if place[i] >= share]
    # Of so few images none falls below: the lowest is taken.
    assert content(read(ask(tmp_path, test="0.001")), "test")[0] == [place.index(min(place))]
    assert list(read(ask(tmp_path, test="1")).folds) == ["test"]


def test_images_that_are_added_move_none_from_training_to_test(tmp_path):
    rng = np.random.default_rng(2)
    for trial in range(30):
        folder = tmp_path / str(trial)
        names = [f"{rng.integers(10**9)}.png" for _ in range(12)]
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        trained: set[str] = set()
        for count in (1, 4, 12):
            for name in names[count:]:
                (folder / name).unlink(missing_ok=True)
            for name in names[:count]:
                (folder / name).touch()
            folds = _split(tuple(sorted(name for name, *_ in listing(folder))), 0.2)
            assert not trained & set(folds["test"])
            trained |= set(folds.get("train", ()))
    # In the long run the share is what was asked for.
    many = tuple(f"{i}.png" for i in range(20_000))
    assert abs(len(_split(many, 0.2)["test"]) - 4000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5


def test_a_single_image_is_the_test_fold(tmp_path):
    put(tmp_path, "a.png")
    raw = read(ask(tmp_path))
    assert list(raw.folds) == ["test"] and content(raw, "test") == ([0], None)


def test_folders_train_and_test_are_the_folds(tmp_path):
    put(tmp_path, "test/b/1.png", "train/a/1.png", "train/b/1.png", "train/b/0.png", "val/c/1.png")
    raw = read(ask(tmp_path))
    assert raw.classes == ("a", "b")
    assert content(raw, "train") == ([1, 3, 2], [0, 1, 1])
    assert content(raw, "test") == ([0], [1])
    refused(tmp_path, "test=0.5 cannot split; leave it out", test="0.5")
    put(tmp_path, "test/c/1.png")
    refused(tmp_path, "/test/c is a class without images in .*/train; add or remove it")


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "TEST"), ("train", "val"), ("training", "Valid")]
)
def test_folds_in_any_capitals_and_val_in_place_of_test(tmp_path, train, test):
    put(tmp_path, f"{test}/b/1.png", f"{train}/a/1.png", f"{train}/b/1.png", "notes/x.png")
    request = ask(tmp_path)
    raw = read(request)
    assert raw.classes == ("a", "b")
    assert content(raw, "train") == ([1, 2], [0, 1]) and content(raw, "test") == ([0], [1])
    assert request.account.left_out == {"beside the folders of the folds": 1}


def test_with_test_and_val_the_test_fold_is_test(tmp_path):
    put(tmp_path, "test/1.png", "train/1.png", "val/1.png", "val/2.png")
    request = ask(tmp_path)
    assert content(read(request), "test") == ([0], None)
    assert request.account.left_out == {"beside the folders of the folds": 2}


def test_folders_of_folds_that_cannot_be_meant_are_refused(tmp_path):
    put(tmp_path / "a", "train/1.png", "Train/1.png", "test/1.png")
    refused(tmp_path / "a", "folders Train and train, which name the same fold")
    put(tmp_path / "b", "train/cat/1.png")
    refused(tmp_path / "b", "a folder train and none for the other fold.*give folder:.*/train")
    put(tmp_path / "c", "val/1.png", "test/1.png")
    refused(tmp_path / "c", "none for the other fold")
    # A train is a vehicle, too.
    put(tmp_path / "d", "train/1.png", "bus/1.png")
    assert read(ask(tmp_path / "d", test="1")).classes == ("bus", "train")


def test_a_folder_prepared_before_val_was_a_fold_is_made_again(tmp_path):
    """Its stamp is another one; that of a folder with the same listing and other names is not."""
    put(tmp_path, "train/1.png", "val/1.png")
    listed = hashlib.sha256(repr(listing(tmp_path)).encode()).hexdigest()[:16]
    assert stamp(tmp_path) != listed
    (tmp_path / "val").rename(tmp_path / "test")
    assert stamp(tmp_path) == hashlib.sha256(repr(listing(tmp_path)).encode()).hexdigest()[:16]


def test_folds_may_be_flat_but_alike(tmp_path):
    put(tmp_path, "test/1.png", "train/1.png", "train/0.png")
    raw = read(ask(tmp_path))
    assert content(raw, "train") == ([2, 1], None) and content(raw, "test") == ([0], None)
    (tmp_path / "test" / "x").mkdir()
    (tmp_path / "test" / "1.png").rename(tmp_path / "test" / "x" / "1.png")
    refused(tmp_path, "only one of .*/train and .*/test has sub-folders")
    (tmp_path / "test" / "x" / "1.png").unlink()
    refused(tmp_path, "no image in .*/test, which is taken for a fold")


def test_loose_images_beside_classes_are_refused(tmp_path):
    put(tmp_path, "cat/1.png", "loose.png")
    refused(tmp_path, "has images beside the folder cat, such as loose.png; put all images into")


def test_folders_without_images_and_no_folders(tmp_path):
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path, "no image in .*; give a folder with images")
    refused(tmp_path / "a.txt", "is a file; give a folder")
    refused(tmp_path / "absent", "does not exist; give a folder")
    with pytest.raises(UserError, match="absent does not exist"):
        listing(tmp_path / "absent")


@pytest.mark.parametrize(
    "options",
    [
        *(
            {key: text}
            for key in ("resize", "crop")
            for text in ("0", "-3", "3.5", "x", "", "9999")
        ),
        *({"test": text} for text in ("0", "-0.1", "1.01", "nan", "inf", "x", "")),
        {"resize": "32", "crop": "33"},
    ],
)
def test_wrong_options(tmp_path, options):
    put(tmp_path, "a.png")
    refused(tmp_path, f"folder option {list(options)[-1]}=", **options)


def test_options_shape_the_images(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cropped = next(read(ask(tmp_path, crop="32")).folds["test"].pieces()).pixels[0]
    assert np.array_equal(cropped, pixels[4:36, 14:46].transpose(2, 0, 1))
    both = next(read(ask(tmp_path, resize="36", crop="32")).folds["test"].pieces()).pixels[0]
    resized = np.asarray(Image.fromarray(pixels).resize((54, 36), Image.Resampling.BILINEAR))
    assert np.array_equal(both, resized[2:34, 11:43].transpose(2, 0, 1))
    grey = next(read(ask(tmp_path, channels=1, crop="32")).folds["test"].pieces()).pixels
    expected = np.rint(pixels[4:36, 14:46].astype(float) @ [0.2989, 0.5870, 0.1140])
    assert grey.shape == (1, 1, 32, 32)
    assert np.abs(grey[0, 0].astype(int) - expected).max() <= 1


def test_images_of_every_kind_in_one_folder(tmp_path):
    rng = np.random.default_rng(1)
    rgba, grey = (rng.integers(256, size=(32, 32, n), dtype=np.uint8) for n in (4, 1))
    rgba[..., 3] = np.where(rgba[..., 3] > 127, 255, 0)
    wide = rng.integers(1 << 16, size=(32, 32), dtype=np.uint16)
    visible = np.where(rgba[..., 3:] > 0, rgba[..., :3], 0)
    palette = rng.integers(256, size=(4, 3), dtype=np.uint8)
    indexed = Image.fromarray(grey[..., 0] % 4, "P")
    indexed.putpalette(palette.tobytes())
    indexed.save(tmp_path / "a.png")
    indexed.save(tmp_path / "b.gif", transparency=2)
    Image.fromarray(rgba).save(tmp_path / "c.png")
    Image.fromarray(grey[..., 0]).save(tmp_path / "d.bmp")
    Image.fromarray(wide).save(tmp_path / "e.png")
    Image.fromarray(grey[..., 0] > 99).save(tmp_path / "f.tif")
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "g.jpg", quality=100)
    shown = palette[grey[..., 0] % 4]
    expected = [
        shown,
        np.where(grey % 4 == 2, 0, shown),
        visible,
        grey.repeat(3, 2),
        (wide // 256)[..., None].repeat(3, 2),
        ((grey > 99) * 255).repeat(3, 2),
        np.full((32, 32, 3), (0, 255, 255)),
    ]
    (piece,) = read(ask(tmp_path, test="1")).folds["test"].pieces()
    for name, found, wanted in zip("abcdefg", piece.pixels, expected, strict=True):
        assert np.array_equal(found.transpose(1, 2, 0), wanted), name


def test_a_broken_image_is_named_or_left_out(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    broken = tmp_path / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match=r"a/2\.png cannot be read .* use --skip-broken"):
        content(read(ask(tmp_path, test="1")), "test")
    told = []
    raw = read(ask(tmp_path, test="1", on_broken=lambda name, why: told.append((name, why))))
    assert raw.folds["test"].total == 3
    assert content(raw, "test") == ([0, 2], [0, 1])
    assert [name for name, _ in told] == [str(broken)] and told[0][1]


def test_hidden_files_and_links_to_folders_are_left_out_and_links_to_files_followed(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    put(inside, "cat/1.png", "cat/.2.png", ".git/3.png")
    put(outside, "4.png")
    (inside / "dog").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "cat" / "linked.png").symlink_to(outside / "4.png")
    (inside / "cat" / "nowhere.png").symlink_to(outside / "absent.png")
    (inside / "cat" / "itself.png").symlink_to(inside / "cat" / "itself.png")
    raw = read(ask(inside, test="1"))
    assert raw.classes == ("cat",) and content(raw, "test") == ([0, 0], [0, 0])
    assert [name for name, _, _ in listing(inside)] == ["cat/1.png", "cat/linked.png"]


def test_the_listing_tells_size_and_time(tmp_path):
    put(tmp_path, "b.png", "a/c.png")
    (tmp_path / "c.txt").write_text("")
    os.utime(tmp_path / "b.png", ns=(0, 123_456_789))
    found = listing(tmp_path)
    assert [name for name, _, _ in found] == ["a/c.png", "b.png"]
    assert found[1][1:] == ((tmp_path / "b.png").stat().st_size, 123_456_789)


def test_a_csv_file_lists_paths_labels_and_splits(tmp_path):
    put(tmp_path / "pictures", "a.png", "b.png", "c.png", "d.png")
    table = tmp_path / "list.csv"
    lines = ["b,dog,train", "a,cat,test", "d,cat,train"]
    lines = [f"pictures/{line[0]}.png{line[1:]}" for line in lines]
    table.write_text("path,label,split\n" + "\n".join(lines) + "\n")
    raw = read(ask(table))
    assert raw.classes == ("cat", "dog")
    assert content(raw, "train") == ([1, 3], [1, 0]) and content(raw, "test") == ([0], [0])
    before = stamp(table)
    table.write_text(table.read_text() + "pictures/c.png,dog,test\n")
    assert stamp(table) != before
    assert content(read(ask(table)), "test") == ([0, 2], [0, 1])
    with pytest.raises(UserError, match="has a column split, which test=0.5 cannot do again"):
        read(ask(table, test="0.5"))


def test_a_csv_file_of_paths_alone_is_split_as_a_folder_is(tmp_path):
    put(tmp_path, *(f"{i}.png" for i in range(10)))
    names = [f"{i}.png" for i in range(10)]
    (tmp_path / "list.csv").write_text("\ufeffpath\n" + "\n".join(names), encoding="utf-8")
    raw, folder = read(ask(tmp_path / "list.csv")), read(ask(tmp_path))
    assert content(raw, "test") == content(folder, "test") and raw.classes == ()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "needs a first line path,label,split"),
        ("file\na.png\n", "needs a first line path,label,split"),
        ("path\na.png\nno.png\n", "line 3: 'no.png' is no file"),
        ("path\na.png\na.png\n", "line 3: 'a.png' is listed twice"),
        ("path,split\na.png,valid\n", "line 2: split is 'valid', not train or test"),
        ("path,split\na.png,train\n", "has no row of split test"),
        ("path,label,split\na.png,x,train\nb.png,y,test\n", "class 'y' has no images of split"),
    ],
)
def test_a_csv_file_that_cannot_be_right_names_the_line(tmp_path, text, match):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        read(ask(tmp_path / "list.csv"))
