"""The catalogue: facts that hold together, and where the data folder is."""

import subprocess
import sys
from pathlib import Path

import pytest

from oodflow.data.catalog import CATALOG, data_folder, lookup
from oodflow.errors import UserError


def test_every_entry_is_under_its_own_name_and_names_only_known_datasets():
    for name, facts in CATALOG.items():
        assert facts.name == name
        assert set(facts.ood) <= set(CATALOG) - {name}
        assert not facts.general or CATALOG[facts.general].role == "general"
        assert bool(facts.ood) == (facts.role == "in_distribution")


def test_flips_and_shifts_are_those_of_the_paper():
    # S4.1: CIFAR and the general set are mirrored, SVHN and the grey sets are not.
    flipped = {name for name, facts in CATALOG.items() if facts.flip}
    assert {"cifar10", "cifar100", "sketch-general"} <= flipped
    assert flipped.isdisjoint({"svhn", "mnist", "fashion-mnist", "sketch-letters", "sketch-digits"})
    assert {facts.translate for facts in CATALOG.values()} == {3}


def test_digits_come_first_among_the_outliers_of_the_shapes():
    assert lookup("sketch-shapes").ood == ("sketch-digits", "sketch-letters", "sketch-scenes")
    assert lookup("cifar10").ood == ("svhn", "cifar100")
    assert lookup("mnist").ood == ("fashion-mnist",)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown dataset 'cifar'; available: .*cifar10"):
        lookup("cifar")


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
