"""Tests of the example of character sentiment: data, and a run on a small budget."""

import contextlib
import io
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxattn as ja
from examples import character_sentiment as example, checkpoints, training
from examples.characters import PAD, UNKNOWN, Labelled, encode, keras, load, vocabulary_of

WIDTH, UNITS, EMBEDDING, EXAMPLES = 60, 8, 6, 12
BUDGET = {
    "audience": 200, "epochs": 300, "rate": 2e-2, "units": UNITS, "embedding": EMBEDDING,
    "width": WIDTH, "examples": EXAMPLES, "methods": ("LRP", "occlusion"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    """Load short sentences only, so that some fit the width."""
    found = []
    for part, step in zip(load(), (2, 400), strict=True):
        kept = [i for i in range(0, len(part.texts), step) if len(part.texts[i]) <= WIDTH]
        found.append(Labelled([part.texts[i] for i in kept], part.labels[kept]))
    return tuple(found)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Return the folder of the page, the printed text, the sentences and the attention."""
    folder, printed = tmp_path_factory.mktemp("characters"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "100")
        patch.setenv("FORCE_COLOR", "1")
        patch.setattr(example, "load", lambda: data)
        patch.setattr(training, "stratified_split", lambda *_, **options: split(data))
        # The example runs with JAX's default promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            path = example.main(folder, min_accuracy=0.9, **BUDGET)
            assert path == folder / "index.html"
            networks = {
                "jaxattn": checkpoints.restore(
                    ja.models.CharacterClassifier(
                        len(vocabulary(data)) + 2, embedding_features=EMBEDDING,
                        hidden_features=UNITS, rngs=nnx.Rngs(1),
                    ),
                    folder / "checkpoint",
                ),
                "Keras, loaded": keras.models.load_model(folder / "characters.keras"),
            }  # fmt: skip
            sentences = [data[0].texts[i] for i in split(data)[1]][:EXAMPLES]
            ids = encode(sentences, vocabulary(data), WIDTH)
            read = {
                name: example.predict_with_attention(net, ids) for name, net in networks.items()
            }
    return folder, printed.getvalue(), sentences, read


def split(data):
    """Return training rows, which are the test rows too: so small a network learns only these."""
    rows = np.flatnonzero(np.arange(len(data[0].labels)) % 20 == 0)
    return rows, rows


def vocabulary(data):
    critics, viewers = data
    return vocabulary_of([critics.texts[i] for i in split(data)[0]] + viewers.texts, min_count=50)


def own_sections(path):
    """Return the part of a page before its table of predictions."""
    return path.read_text(encoding="utf-8").partition('<section id="predictions">')[0]


class Cells(HTMLParser):
    """Collect the lines of characters on a page: a label, and each cell with its background."""

    def __init__(self, page):
        super().__init__()
        self.lines, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.label = ""
        if tag == "td" and self.label:
            self.lines.append((self.label, []))
        if tag == "span":
            ground = re.search(r"background: (#\w+)", dict(attrs)["style"])[1]
            self.lines[-1][1].append(["", ground])

    def handle_endtag(self, tag):
        self.tags.append(None)

    def handle_data(self, text):
        if self.tags[-1:] == ["td"]:
            self.label = text
        elif self.tags[-1:] == ["span"]:
            self.lines[-1][1][-1][0] += text


@pytest.mark.slow
def test_page_has_one_cell_per_character_with_exact_colour(run):
    folder, _, sentences, read = run
    lines = [
        (label, cells) for label, cells in Cells(own_sections(folder / "index.html")).lines if cells
    ]
    shown = example.SHOWN
    kinds = ["attention", "raw attention", "LRP", "occlusion"]
    assert [label for label, _ in lines] == kinds * shown * 2
    for n, (_, weights) in enumerate(read.values()):
        for i in range(shown):
            attention, raw, *_ = lines[4 * (shown * n + i) :]
            for label, cells in lines[4 * (shown * n + i) :][:4]:
                assert "".join(text for text, _ in cells) == sentences[i], label
            real = weights[i, -len(sentences[i]) :].astype(float)
            for (_, cells), limit in ((attention, real.max()), (raw, 1.0)):
                reds = [255 - int(255 * (value / limit)) for value in real]
                assert [ground for _, ground in cells] == [f"#ff{r:02x}{r:02x}" for r in reds]
            assert len({ground for _, ground in attention[1]}) > 3


@pytest.mark.slow
def test_weights_sum_to_one_and_probabilities_are_returned(run):
    _, _, _, read = run
    for positive, weights in read.values():
        assert weights.shape == (EXAMPLES, WIDTH)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
        assert ((positive > 0) & (positive < 1)).all()


@pytest.mark.slow
def test_prints_tables_and_coloured_sentence(run):
    _, printed, sentences, _ = run
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in plain.splitlines()]
    networks = {row[0]: row[1:] for row in cells if len(row) == 6}
    assert set(networks) == {"jaxattn", "Keras, loaded"}
    for accuracy, _, off, padding, _ in networks.values():
        assert float(accuracy.rstrip("%")) >= 90
        assert float(off) < 1e-6
        assert 0 < float(padding.rstrip("%")) < 100
    methods = [row for row in cells if len(row) == 7]
    assert sorted(row[0] for row in methods) == sorted(
        ["attention", "LRP", "|LRP|", "occlusion", "random"] * 2
    )
    first = {row[0]: float(row[1]) for row in methods[:5]}
    assert first["occlusion"] == min(first.values())  # no other single character matters more
    assert f"attention      {sentences[0]}" in plain
    assert printed.count("\x1b[48;2;255;0;0") >= 1
    assert str(run[0]) in plain.replace("\n", "")


@pytest.mark.slow
def test_figure_is_saved_and_embedded_in_page(run):
    folder, *_ = run
    [picture] = folder.glob("*.png")
    with Image.open(picture) as image:
        assert min(image.size) > 35
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img class="figure"[^>]* alt="[^"]{20,}"', page)) >= 1
    assert not re.search(r'(src|href)="(?!data:|#)|url\(', page)


@pytest.mark.slow
def test_inaccurate_network_raises(data, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "load", lambda: data)
    monkeypatch.setattr(example, "fit", lambda *args: None)
    monkeypatch.setattr(example, "fit_keras", lambda *args: None)
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        pytest.raises(SystemExit, match=r"test accuracy \d+\.\d% of .* is below 90%"),
    ):
        example.main(tmp_path, min_accuracy=0.9, **BUDGET)


def test_notebook_output():
    values = {"attention": np.full((1, 4), 0.25), "LRP": np.array([[9.0, 1, -1, 0]])}
    found = example.Explained(np.array([[PAD, 2, 3, 4]]), np.array([0.4]), values)
    shown = example.coloured("abc", found, 0)
    lines = Cells(shown._repr_html_()).lines
    assert [label for label, _ in lines] == ["attention", "raw attention", "LRP"]
    assert [ground for _, ground in lines[0][1]] == ["#ff0000"] * 3
    assert [ground for _, ground in lines[1][1]] == ["#ffc0c0"] * 3  # 255 - int(255 / 4)
    # Evidence for the predicted class, here negative, is blue.
    assert [ground for _, ground in lines[2][1]] == ["#053061", "#67001f", "#ffffff"]


def test_texts_are_right_aligned():
    vocabulary = vocabulary_of(["abba", "ab", "c"], min_count=2)
    assert vocabulary == {"a": 2, "b": 3}
    found = encode(["ab", "", "caé", "aabba"], vocabulary, 4)
    a, b = 2, 3
    assert found.tolist() == [
        [PAD, PAD, a, b],
        [PAD] * 4,
        [PAD, UNKNOWN, a, UNKNOWN],
        [a, b, b, a],  # the last characters of a text that is too long
    ]


@pytest.mark.slow
def test_deletion_order_excludes_padding():
    model = ja.models.CharacterClassifier(
        9, embedding_features=4, hidden_features=3, rngs=nnx.Rngs(0)
    )
    ids = np.array([[PAD, 2, 3, 4, 5, 6, 7, 8]], np.int32)
    values = np.array([[9.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]])
    positive, _ = example.predict_with_attention(model, ids)
    found = example.Explained(ids, positive, {"other": -values, "this": values})
    left = example.deletion(model, found)
    assert left["other"][0, 0] == left["this"][0, 0]
    for k, chance in zip(example.DELETED, left["this"][0], strict=True):
        fewer = ids.copy()
        fewer[0, [2, 4, 6, 7, 5, 3, 1][:k]] = UNKNOWN
        expected = float(model(fewer)[0, 0])
        np.testing.assert_allclose(chance, expected if positive > 0.5 else 1 - expected, rtol=1e-5)


def test_aggregation_by_word():
    ids = np.array([[PAD, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]])
    attention = np.array([[9, 1, 1, 1, 2, 0], [1, 1, 1, 1, 1, 7]]) / 12
    relevance = np.array([[9, 1, 2, 0, 4, 0], [2, 1, -1, 1, 0, 0.0]])
    found = example.Explained(ids, np.array([0.9, 0.1]), {"attention": attention, "LRP": relevance})
    words = example.by_word(["ab cd", "ab, ab"], found, min_count=1)
    assert set(words) == {"ab", "cd"}
    assert words["cd"] == (1, 1.0, 0.5)
    count, weight, relevance = words["ab"]
    assert count == 3
    np.testing.assert_allclose(weight, (1 + 0.5 + 2) / 3)
    np.testing.assert_allclose(relevance, (0.375 - 0.75 + 0) / 3)
    assert not example.by_word(["ab cd", "ab, ab"], found, min_count=4)
