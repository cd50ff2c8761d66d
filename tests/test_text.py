"""Tests of coloured text in HTML, terminals and figures."""

import re
import unicodedata
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxattn as ja

RED, BLUE, WHITE = "#67001f", "#053061", "#ffffff"  # RdBu_r's ends, and zero
# RdBu_r(0.75) is (228.1, 128.5, 101.9); its middle, (247.1, 246.5, 246.1), is shifted to white, and
# this colour by half as much: (3.9, 4.3, 4.5).
HALF = "#e8856a"


class Words(HTMLParser):
    """Collect the lines of a text: each word with its background, text colour and title."""

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


def test_lines_have_separate_scales_without_limit():
    values = {"small": [0.1, -0.1], "large": [10.0, 5.0]}
    assert grounds(["x", "y"], values)[0] == [RED, BLUE]
    assert grounds(["x", "y"], values)[1][0] == RED
    small, large = grounds(["x", "y"], values, limit=5.0)
    assert large == [RED, RED]  # values beyond the limit are clipped
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
def test_words_have_sufficient_contrast(cmap):
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


def test_colours_are_continuous_around_zero():
    [line] = grounds(["w"] * 401, np.linspace(-1, 1, 401))
    channels = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in line])
    assert np.abs(np.diff(channels, axis=0)).max() <= 6


def test_notebook_and_page_output(tmp_path):
    found = ja.plot.text(["café", "☃"], [1.0, -1.0])
    assert found._repr_html_() == found.html
    found.save(tmp_path / "words.html")
    page = (tmp_path / "words.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert '<meta charset="utf-8">' in page
    assert found.html in page
    assert not re.search(r"src=|href=|url\(", page)


def test_accepts_attributions():
    found = ja.explain(ja.gradient, lambda x: (x**2).sum(), np.array([[1.0, -2.0]], np.float32))[0]
    assert grounds(["x", "y"], found) == grounds(["x", "y"], [2.0, -4.0])


@pytest.mark.parametrize(
    ("words", "values", "error", "message"),
    [
        (
            ["x", "y"],
            [1.0],
            ValueError,
            "`values` must have one value for each of 2 words, got (1,)",
        ),
        (["x"], {"IG": [[1.0]]}, ValueError, "`IG` must have one value for each of 1 words"),
        (["x"], {"IG": [np.nan]}, ValueError, "`IG` must be finite"),
        (["x"], {}, ValueError, "`values` must hold at least one line, got none"),
        ([], [], ValueError, "`values` must not be empty"),
        ([3], [1.0], TypeError, "`words` must be strings, got 3"),
    ],
)
def test_invalid_inputs_raise(words, values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ja.plot.text(words, values)


@pytest.mark.parametrize("limit", [0.0, -1.0, np.inf])
def test_non_positive_limit_raises(limit):
    with pytest.raises(ValueError, match="`limit` must be a positive number"):
        ja.plot.text(["x"], [1.0], limit=limit)


def whites_to_reds(values, limit):
    """Compute the colours RGB (255, r, r) with r = 255 - int(255 a)."""
    return ["#ff{0:02x}{0:02x}".format(255 - int(255 * min(a / limit, 1))) for a in values]


def test_attention_colours_are_white_to_red():
    values = [0.0, 0.05, 0.2, 0.1]
    [line] = grounds("abcd", values, kind="attention")
    assert line == ["#ffffff", "#ffc0c0", "#ff0000", "#ff8080"] == whites_to_reds(values, 0.2)
    [raw] = grounds("abcd", values, kind="attention", limit=1.0)
    assert raw == ["#ffffff", "#fff3f3", "#ffcccc", "#ffe6e6"] == whites_to_reds(values, 1)
    [beyond] = grounds("abcd", values, kind="attention", limit=0.1)
    assert beyond[2] == "#ff0000"
    assert grounds("ab", [0.0, 0.0], kind="attention") == [["#ffffff", "#ffffff"]]
    assert grounds("ab", [0.0, 1.0], kind="attention", cmap="Reds") == [["#fff5f0", "#67000d"]]
    every = np.random.default_rng(0).dirichlet(np.ones(400)).astype(np.float32)
    assert grounds("x" * 400, every, kind="attention")[0] == whites_to_reds(
        every.astype(float), float(every.max())
    )


def test_characters_have_no_gaps_and_texts_concatenate():
    found = ja.plot.text("a bc", {"attention": [0.1, 0.2, 0.3, 0.4]}, kind="attention")
    found += ja.plot.text("a bc", {"LRP": [1.0, -1.0, 0.5, 0.0]})
    page = Words(found.html)
    assert page.labels == ["attention", "LRP"]
    assert [[word for word, *_ in line] for line in page.lines] == [list("a bc")] * 2
    assert [line[1][1] for line in page.lines] == ["#ff8080", BLUE]
    assert "</span><span" in found.html
    assert "</span> <span" not in found.html
    # Letters of Arabic join over the border of a span only if it has no padding.
    assert "padding: 1px" not in found.html
    pieces = ja.plot.text(["un", "read", "able"], np.ones(3), gap="")
    assert "</span><span" in pieces.html


def test_grapheme_clusters_are_single_cells():
    parts = [
        "n",
        "e\u0301",
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "🇨🇦",
        "🇩🇪",
        "शि",
        "\u1112\u1161\u11ab",
        "❤\ufe0f",
        "é",
    ]
    whole = "".join(parts)
    values = np.arange(1.0, len(whole) + 1)
    [line] = Words(ja.plot.text(whole, values).html).lines
    assert [word for word, *_ in line] == parts
    ends = np.cumsum([len(part) for part in parts])
    sums = np.diff(np.cumsum(values)[ends - 1], prepend=0)
    assert [float(title) for *_, title in line] == list(sums)
    assert ja.plot.text(whole, values).lines[0].values.sum() == values.sum()


def test_invisible_characters_are_shown_as_symbols():
    found = ja.plot.text("a\tb\nc\x1b[0m\u202e\ud800\x85", np.ones(12))
    [line] = Words(found.html).lines
    assert "".join(word for word, *_ in line) == "a⇥b↵c\ufffd[0m\ufffd\ufffd↵"
    assert found.html.count("<br>") == 2  # line breaks are kept
    found.html.encode()
    # Spaces are kept, each in its own cell.
    [line] = Words(ja.plot.text("a  b", np.ones(4)).html).lines
    assert [word for word, *_ in line] == ["a", " ", " ", "b"]
    assert "pre-wrap" in ja.plot.text("a  b", np.ones(4)).html


def test_terminal_output_has_only_colour_codes():
    found = ja.plot.text("a\x1b\nb", {"one": [0.0, 0.5, 0.25, 1.0]}, kind="attention")
    cells = [(255, "a"), (128, "\ufffd"), (192, "↵"), (0, "b")]
    coded = [f"\x1b[48;2;255;{r};{r};38;2;0;0;0m{word}\x1b[0m" for r, word in cells]
    assert found.ansi == "one  " + "".join(coded[:3]) + "\n" + coded[3]
    words = ja.plot.text(["x", "y"], {"a": [1.0, -1.0], "long": [1.0, 0.0]}).ansi
    first, second = words.splitlines()
    white = "38;2;255;255;255m"
    x, y = f"\x1b[48;2;103;0;31;{white}x\x1b[0m", f"\x1b[48;2;5;48;97;{white}y\x1b[0m"
    assert first == f"a     {x} {y}"
    assert second.startswith("long  \x1b")
    assert "\x1b[48;2;255;255;255;38;2;0;0;0my" in second


def seen(ax):
    """Return the rows of a drawn text from top to bottom, each read from left to right."""
    rows = {}
    for text in ax.texts:
        if text.get_text():
            x, y = text.get_position()
            rows.setdefault(y, []).append((x, text.get_text()))
    return ["".join(word for _, word in sorted(rows[y])) for y in sorted(rows)]


def drawn(words, columns=40, **options):
    ax = ja.plot.text(words, np.ones(len(words)), **options).draw(columns=columns)
    plt.close(ax.figure)
    return ax


def test_figure_has_one_coloured_box_per_cell():
    values = np.array([0.1, 0.2, 0.3, 0.4])
    found = ja.plot.text("a bc", {"attention": values}, kind="attention")
    found += ja.plot.text(["good", "film"], {"LRP": [1.0, -1.0]})
    _, ax = plt.subplots()
    assert found.draw(ax, columns=20) is ax
    [boxes] = ax.collections
    colours = np.rint(255 * boxes.get_facecolors()[:, :3]).astype(int)
    attention, relevance = found.lines
    expected = [*attention.colours, *np.repeat(relevance.colours, 4, axis=0)]
    np.testing.assert_array_equal(colours, expected)
    left = [path.vertices[:, 0].min() for path in boxes.get_paths()]
    start = len("attention") + 2
    np.testing.assert_array_equal(left, start + np.array([0, 1, 2, 3, 0, 1, 2, 3, 5, 6, 7, 8]))
    assert seen(ax) == ["attentionabc", "LRPgoodfilm"]
    inks = {text.get_text(): text.get_color() for text in ax.texts}
    np.testing.assert_array_equal(inks["g"], [1, 1, 1])
    np.testing.assert_array_equal(inks["c"], [0, 0, 0])
    plt.close(ax.figure)


def test_figure_letters_fit_into_cells():
    ax = drawn("mmmm", columns=50)
    width = np.ptp(ax.transData.transform([(0, 0), (1, 0)])[:, 0])
    size = ax.texts[0].get_window_extent()
    assert 0.75 * width < size.width <= width * 1.01
    assert size.height <= 2 * width


def test_long_lines_are_wrapped_between_words():
    ax = drawn("one two three", columns=8)
    assert seen(ax) == ["onetwo", "three"]
    assert ax.get_ylim() == (4, 0)
    assert seen(drawn(["one", "two", "three"], columns=7)) == ["onetwo", "three"]
    assert seen(drawn("abcdefgh", columns=3)) == ["abc", "def", "gh"]
    assert seen(drawn("ab\ncd")) == ["ab↵", "cd"]
    assert [box.vertices[:, 1].min() for box in drawn("ab\nc").collections[0].get_paths()] == [
        0, 0, 0, 2,
    ]  # fmt: skip
    assert seen(drawn("日本語", columns=4)) == ["日本", "語"]  # wide characters take two cells


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("שלום", "םולש"),
        ("שלום (עולם)", "(םלוע)םולש"),  # brackets are mirrored
        ("ב 3.5% או 1,250 abc 12!", "!abc121,250וא3.5%ב"),
        ("the (שלום עולם) end", "the(םלועםולש)end"),
        ("a שלום 12 b", "a12םולשb"),
        ("سلام", "".join(unicodedata.lookup(f"ARABIC LETTER {name} FORM") for name in (
            "MEEM ISOLATED", "ALEF FINAL", "LAM MEDIAL", "SEEN INITIAL"))),
        ("پگ", "\ufb93\ufb58"),
        ("ب\u064eت", "\ufe96\ufe91\u064e"),  # a mark stays with its letter
        ("$x$ & a_1", "$x$&a_1"),
    ],
)  # fmt: skip
def test_figure_script_order(written, shown):
    assert seen(drawn(written)) == [shown]


def test_right_to_left_words_are_right_aligned():
    ax = drawn(["שלום", "עולם"], columns=20)
    assert seen(ax) == ["םלועםולש"]
    left = [path.vertices[:, 0].min() for path in ax.collections[0].get_paths()]
    assert max(left) == 19
    assert min(left) == 11
    page = ja.plot.text(["שלום", "עולם"], np.ones(2)).html
    assert 'dir="auto"' in page
    assert page.index("שלום") < page.index("עולם")  # HTML keeps the logical order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "heat"}, '`kind` must be "relevance" or "attention", got \'heat\''),
        ({"kind": "attention"}, "`values` must not be negative to be attention, got -0.5"),
    ],
)
def test_invalid_kind_raises(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ja.plot.text("ab", [1.0, -0.5], **options)


def test_empty_text_and_invalid_columns_raise():
    with pytest.raises(ValueError, match="`values` must not be empty"):
        ja.plot.text("", [])
    with pytest.raises(ValueError, match="`values` must have one value for each of 2 words"):
        ja.plot.text("ab", [1.0])
    with pytest.raises(ValueError, match="`columns` must be at least 1, got 0"):
        ja.plot.text("ab", [1.0, 2.0]).draw(columns=0)
