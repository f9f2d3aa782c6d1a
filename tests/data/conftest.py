"""Sketch folds that are small enough to be generated in a test."""

import dataclasses

import pytest

from oodflow.data import catalog, images, sketch


@pytest.fixture
def small(monkeypatch):
    """Training folds of 60 and test folds of 40 images in the sketch family."""

    def lookup(name):
        return dataclasses.replace(catalog.lookup(name), train_size=60, test_size=40)

    monkeypatch.setattr(sketch, "lookup", lookup)
    monkeypatch.setattr(images, "lookup", lookup)
