"""Sketch folds that are small enough to be generated in a test."""

import dataclasses

import pytest

from oodflow.data import sketch
from oodflow.data.catalog import CATALOG


@pytest.fixture
def small(monkeypatch):
    """Training folds of 60 and test folds of 40 images in the sketch family."""
    facts = {
        name: dataclasses.replace(each, train_size=60, test_size=40)
        for name, each in CATALOG.items()
    }
    monkeypatch.setattr(sketch, "lookup", facts.__getitem__)
