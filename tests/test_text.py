"""Words stand on the colours of their values, readably, whatever they are."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import jaxattn as ja

RED, BLUE, WHITE = "#67001f", "#053061", "#ffffff"  # RdBu_r's ends, and zero
# RdBu_r(0.75), (228.1, 128.5, 101.9), and half of what its middle, (247.1, 246.5, 246.1), lacks of
# white: (3.9, 4.3, 4.5).
HALF = "#e8856a"


class Words(HTMLParser):
    """Collects the lines of a text: each word with its ground, ink and title."""

    def __init__(self, page):
        super().__init__()
        self.lines, self.labels, self.tags = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.lines.append([])
        if tag == "span":
            found = dict(attrs)
            ground, ink = re.search(r"background: (\S+); color: (\S+)$", found["style"]).groups()
            self.lines[-1].append(["", ground, ink, found["title"]])

    def handle_endtag(self, tag):
        self.tags.append(None)

    def handle_data(self, data):
        if self.tags[-1] == "span":
            self.lines[-1][-1][0] += data
        elif self.tags[-1] == "td":
            self.labels.append(data)


def grounds(*args, **options):
    return [[word[1] for word in line] for line in Words(ja.plot.text(*args, **options).html).lines]


def test_known_values_have_known_colours():
    words = "a not good film".split()
    [line] = Words(ja.plot.text(words, np.array([0.0, -2, 1, 2])).html).lines
    assert [word for word, *_ in line] == words
    assert [float(title) for *_, title in line] == [0, -2, 1, 2]
    assert [ground for _, ground, *_ in line] == [WHITE, BLUE, HALF, RED]


def test_each_line_has_its_own_scale_unless_a_limit_is_given():
    values = {"small": [0.1, -0.1], "large": [10.0, 5.0]}
    assert grounds(["x", "y"], values)[0] == [RED, BLUE]
    assert grounds(["x", "y"], values)[1][0] == RED
    small, large = grounds(["x", "y"], values, limit=5.0)
    assert large == [RED, RED]  # beyond the limit is at the limit
    assert not {RED, BLUE} & set(small)
    assert grounds(["x", "y"], {"zero": [0.0, 0.0]}) == [[WHITE, WHITE]]


def test_lines_are_labelled():
    page = Words(ja.plot.text(["x"], {"one & two": [1.0], "<b>": [2.0]}).html)
    assert page.labels == ["one & two", "<b>"]
    assert Words(ja.plot.text(["x"], [1.0]).html).labels == []


def test_words_are_escaped():
    words = ["<script>alert(1)</script>", "&amp;", '"', "it's"]
    page = ja.plot.text(words, np.ones(4)).html
    assert "<script" not in page
    assert [word for word, *_ in Words(page).lines[0]] == words


@pytest.mark.parametrize("cmap", ["RdBu_r", "PuOr", "bwr", "coolwarm"])
def test_every_word_can_be_read(cmap):
    values = np.linspace(-1, 1, 401)
    [line] = Words(ja.plot.text(["w"] * 401, values, cmap=cmap).html).lines

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    for _, ground, ink, _ in line:
        dark, light = sorted(map(luminance, (ground, ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA
    assert line[200][1] == WHITE


def test_colours_do_not_jump_around_zero():
    [line] = grounds(["w"] * 401, np.linspace(-1, 1, 401))
    channels = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in line])
    assert np.abs(np.diff(channels, axis=0)).max() <= 6


def test_it_shows_in_a_notebook_and_as_a_page(tmp_path):
    found = ja.plot.text(["café", "☃"], [1.0, -1.0])
    assert found._repr_html_() == found.html
    found.save(tmp_path / "words.html")
    page = (tmp_path / "words.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert '<meta charset="utf-8">' in page
    assert found.html in page
    assert not re.search(r"src=|href=|url\(", page)


def test_an_attribution_gives_its_values():
    found = ja.explain(ja.gradient, lambda x: (x**2).sum(), np.array([[1.0, -2.0]], np.float32))[0]
    assert grounds(["x", "y"], found) == grounds(["x", "y"], [2.0, -4.0])


@pytest.mark.parametrize(
    ("words", "values", "error", "message"),
    [
        (["x", "y"], [1.0], ValueError, "values must have one value for each of 2 words, got (1,)"),
        (["x"], {"IG": [[1.0]]}, ValueError, "IG must have one value for each of 1 words"),
        (["x"], {"IG": [np.nan]}, ValueError, "IG must be finite"),
        (["x"], {}, ValueError, "values must hold at least one line, got none"),
        ([], [], ValueError, "values must not be empty"),
        ([3], [1.0], TypeError, "words must be strings, got 3"),
    ],
)
def test_bad_input_is_refused(words, values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ja.plot.text(words, values)


@pytest.mark.parametrize("limit", [0.0, -1.0, np.inf])
def test_a_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match="limit must be a positive number"):
        ja.plot.text(["x"], [1.0], limit=limit)
