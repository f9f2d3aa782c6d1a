"""The catalogue: facts that hold together, and where the data folder is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oodflow.data.catalog import CATALOG, agreeing, data_folder, dataset_list, lookup, slug_of
from oodflow.errors import UserError


def test_every_entry_is_under_its_own_name_and_names_only_known_datasets():
    for name, facts in CATALOG.items():
        assert facts.name == name
        assert set(facts.ood) <= set(CATALOG) - {name}
        generals = [CATALOG[general] for general in facts.generals]
        assert all(each.role == "general" for each in generals)
        assert all(each.channels == facts.channels for each in generals)
        assert all(CATALOG[ood].channels == facts.channels for ood in facts.ood)
        assert bool(generals) == (facts.role != "general")
        assert bool(facts.ood) == (facts.role == "in_distribution")


def test_flips_and_shifts_are_those_of_the_paper():
    # S4.1: CIFAR and the general set are mirrored, SVHN and the grey sets are not.
    flipped = {name for name, facts in CATALOG.items() if facts.flip}
    assert {"cifar10", "cifar100", "sketch-general"} <= flipped
    assert flipped.isdisjoint({"svhn", "mnist", "fashion-mnist", "sketch-letters", "sketch-digits"})
    assert {facts.translate for facts in CATALOG.values()} == {3}


def test_digits_come_first_among_the_outliers_of_the_shapes():
    assert lookup("sketch-shapes").ood == ("sketch-digits", "sketch-letters", "sketch-scenes")
    assert lookup("cifar10").ood[:3] == ("svhn", "cifar100", "lsun")
    assert lookup("mnist").ood == ("fashion-mnist",)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown dataset 'cifar'; available: .*cifar10"):
        lookup("cifar")


def test_a_folder_is_known_by_its_place_and_options(tmp_path, monkeypatch):
    (tmp_path / "my photos").mkdir()
    monkeypatch.chdir(tmp_path)
    facts = lookup("folder:my photos?crop=32&resize=40")
    assert facts.name == f"folder:{tmp_path / 'my photos'}?crop=32&resize=40"
    assert lookup(facts.name) == facts == lookup("folder:./my photos?resize=40&crop=32")
    assert facts.slug.startswith("my-photos-") and slug_of(facts.name) == facts.slug
    assert lookup("folder:my photos").slug != facts.slug
    assert lookup("folder:x?role=general").role == "general"
    assert lookup("folder:x?channels=1").channels == 1 and not lookup("folder:x?flip=0").flip


@pytest.mark.parametrize(
    "path",
    ["what?", "a?b/c", "comma, b", "it's \"q\"", "100% & #1", "日本", "x" * 200, "-", ".hidden?",
     "a=b", "photos? 32 of 2020", "tab\tnew\nline"],
)  # fmt: skip
@pytest.mark.parametrize("options", ["", "?crop=32&flip=0", "?channels=1"])
def test_a_folder_may_have_any_name(tmp_path, path, options):
    facts = lookup(f"folder:{tmp_path / path}{options}")
    assert facts.where == str(tmp_path / path)
    assert facts.options == dict(pair.split("=") for pair in options[1:].split("&") if pair)
    assert lookup(facts.name) == facts
    grey = lookup(agreeing(facts.name, 1))
    assert grey.where == facts.where and grey.channels == 1
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{7,99}", facts.slug)
    plain = str(tmp_path / path).replace(",", "\\,")
    assert dataset_list(f"svhn,folder:{plain}{options},cifar10") == (
        "svhn", f"folder:{tmp_path / path}{options}", "cifar10"
    )  # fmt: skip


def test_a_name_like_options_needs_options_of_its_own():
    assert lookup("folder:/a?test=1").where == "/a"
    facts = lookup("folder:/a?test=1?flip=1")
    assert facts.where == "/a?test=1" and lookup(facts.name) == facts


def test_a_folder_whose_name_is_not_utf8_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"caf\\xe9 is not UTF-8.*rename it"):
        lookup(f"folder:{tmp_path}/caf\udce9")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:", "names no folder"),
        ("folder:x?crop", "not KEY=VALUE"),
        ("folder:x?colour=1", "unknown folder option 'colour'; available: resize"),
        ("folder:x?channels=4", "unknown folder option channels '4'; available: 1, 3"),
        ("folder:x?role=outliers", "unknown folder option role 'outliers'"),
        ("mnist-grey", "unknown dataset 'mnist-grey'"),
    ],
)
def test_wrong_names_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        lookup(name)


def test_channels_are_made_to_agree_or_refused():
    assert agreeing("tiny", 1) == "tiny-grey" and agreeing("mnist", 1) == "mnist"
    assert lookup(agreeing("folder:x?crop=9", 1)).channels == 1
    with pytest.raises(UserError, match="mnist has 1 channel where 3 are needed"):
        agreeing("mnist", 3)


def test_data_folder_takes_the_given_then_the_variable_then_the_cache(monkeypatch):
    monkeypatch.setenv("OODFLOW_DATA", "/somewhere/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert data_folder("here") == Path("here")
    assert data_folder("auto") == Path("/somewhere/data")
    monkeypatch.delenv("OODFLOW_DATA")
    assert data_folder("auto") == Path("/somewhere/cache/oodflow")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_folder("auto") == Path("/home/someone/.cache/oodflow")
    assert data_folder("~/data") == Path("/home/someone/data")


def test_reading_the_catalogue_imports_nothing_heavy():
    code = "import sys, oodflow.data.catalog; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_near_outliers_are_some_of_the_outlier_datasets():
    for name in CATALOG:
        assert set(CATALOG[name].near) <= set(CATALOG[name].ood)
    assert lookup("cifar10").near == ("cifar100", "tinyimagenet")
    assert lookup("cifar10-grey").near == ("cifar100-grey", "tinyimagenet-grey")
    assert lookup("brats-t1").near == lookup("brats-t1").ood
    assert lookup("svhn").near == ()
