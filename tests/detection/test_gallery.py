"""The page: escaped, self-contained, the most anomalous first, and which scale found it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from oodflow.detection.detections import detect
from oodflow.detection.gallery import gallery

EVIL = '<img src=x onerror="alert(1)">&.png'


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def found(detector, shapes, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("page")
    lowest = np.argsort(detector.scores(shapes[250:]))[0]
    Image.fromarray(shapes[250:][lowest].transpose(1, 2, 0)).save(path / EVIL)
    for i, image in enumerate(shapes[480:]):
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{i}.png")
    (path / "broken.png").write_text("")
    return detect(detector, [path], alpha=0.05, keep=10)


@pytest.fixture(scope="module")
def page(detector, found):
    reader = Reader()
    html = gallery(detector, found)
    reader.feed(html)
    return html, reader


def test_names_are_escaped_and_nothing_is_asked_for(page):
    html, reader = page
    assert EVIL not in html and EVIL in "".join(reader.text)
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    addresses = [attrs[key] for _, attrs in reader.tags for key in ("src", "href") if key in attrs]
    assert addresses and all(each.startswith(("data:image/png;base64,", "#")) for each in addresses)
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)
    assert any("default-src 'none'" in attrs.get("content", "") for _, attrs in reader.tags)


def test_the_images_are_those_that_the_models_saw_the_lowest_first(page, found):
    html, reader = page
    sources = [attrs["src"] for tag, attrs in reader.tags if tag == "img"]
    assert len(sources) == 10
    for source, finding in zip(sources, found.most_anomalous, strict=True):
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1), finding.pixels)
    scores = [float(each) for each in re.findall(r"score (-?[\d.]+) nats", html)]
    assert scores == sorted(scores) and len(scores) == 10


def test_the_scale_that_finds_it_most_unusual_is_marked(page, found):
    html, _ = page
    for card, finding in zip(re.split("<li(?=[ >])", html)[1:], found.most_anomalous, strict=True):
        p_values = {scale: finding.row[f"scale{scale}_p"] for scale in (1, 2, 3)}
        [marked] = re.findall(r'class="least"><th>scale(\d)', card)
        assert p_values[int(marked)] == min(p_values.values())
        assert all(f"p = {value:.2g}<" in card for value in p_values.values())
        assert ('class="anomalous"' in card) == finding.row["anomalous"]


def test_the_summary_counts_everything(page, found):
    text = " ".join(page[1].text)
    assert "22, of which 1 could not be read" in text
    assert f"{found.anomalous} of 21 images; false-positive rate at most 0.05" in text
    assert f"with probability {found.folder_p:.2g}" in text


def test_without_a_readable_image_there_is_still_a_page(detector, tmp_path):
    (tmp_path / "a.png").write_text("")
    html = gallery(detector, detect(detector, [tmp_path], keep=3))
    assert "1, of which 1 could not be read" in html and "<li>" not in html and "<li " not in html
