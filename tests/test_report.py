"""The page of a report: its numbers, colours, escaping, failures and size."""

import base64
import functools
import io
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib import colormaps, pyplot
from matplotlib.image import imread
from rich.table import Table

import jaxattn as ja
from jaxattn.reporting import contents, curve_drawing, panels

WEIGHTS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
VOID = {"meta", "img", "input", "link", "br"}


def network(x):
    return jnp.tanh(x).ravel() @ WEIGHTS


def attribution_of(values):
    """Return an attribution with these values, as a method returns it."""
    return ja.Attribution(jax.tree.map(jnp.asarray, values), jnp.zeros(1))


def broken(fn, x, target=None, **options):
    raise ValueError("no <em>layer</em>")


class Page(HTMLParser):
    """The elements of a page in order, each as its tag, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        matches = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            e
            for e in self.found
            if e["tag"] == tag and all(e.get(n) == v for n, v in matches.items())
        ]


def written(tmp_path, *inputs, **options):
    path = ja.report(*inputs, path=tmp_path / "report.html", **options)
    return Page(path.read_text(encoding="utf-8"))


def pixels(element):
    data = base64.b64decode(element["src"].removeprefix("data:image/png;base64,"))
    return np.rint(255 * imread(io.BytesIO(data), format="png")[..., :3]).astype(int)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    given = IMAGES.copy()
    given[0, 2, 3] = np.nan
    methods = {
        "gradient": ja.gradient,
        "saliency": ja.saliency,
        "occlusion": ja.occlusion,
        "broken": broken,
        "<b>given</b>": attribution_of(given),
    }
    options = {"metrics": [ja.metrics.sparseness], "jacobian": True}
    return written(
        tmp_path_factory.mktemp("report"), network, IMAGES, None, methods,
        title="<script>x</script>", class_names=["a", "<i>b", "c"], **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "place", "cmap"), [(ja.gradient, 1, "RdBu_r"), (ja.saliency, 2, "Purples")]
)
def test_pixels_are_the_colours_of_the_values(page, method, place, cmap):
    targets = np.stack([network(x) for x in IMAGES]).argmax(1)
    values = np.asarray(ja.explain(method, network, IMAGES, targets).values)
    per_example = 4 + 3  # the input, three methods with values and three derivatives; one failed
    images = page.all("img", class_="pixels")
    assert len(images) == 3 * (per_example + 1)
    for i, value in enumerate(values):
        drawn = pixels(images[i * (per_example + 1) + place])
        assert drawn.shape == (8, 8, 3)
        limit = abs(value).max()
        positions = (value / limit + 1) / 2 if cmap == "RdBu_r" else value / limit
        expected = 255 * colormaps[cmap](positions)[..., :3]
        np.testing.assert_allclose(drawn, expected, atol=6)


def test_nan_is_black_and_counted(page):
    (given, *_) = page.all("figure")[2 + 5 :]
    assert "1 NaN" in given["text"]
    image = next(e for e in page.all("img") if "1 NaN" in e["alt"])
    np.testing.assert_array_equal(np.argwhere(pixels(image).sum(-1) == 0), [[2, 3]])


def test_a_failed_method_gives_its_reason(page):
    failures = page.all("p", class_="failed")
    assert len(failures) == 3
    assert all("ValueError: no <em>layer</em>" in each["text"] for each in failures)
    assert not page.all("em")
    costs = [e["text"] for e in page.all("tr") if e["text"].startswith(("broken", "<b>given"))]
    assert len(costs) == 1 and "failed: ValueError" in costs[0]


def test_markup_of_the_user_is_escaped(page):
    assert page.all("h1")[0]["text"] == "<script>x</script>"
    assert len(page.all("script")) == 1
    assert not page.all("i")
    assert "<b>given</b>" in [e["text"] for e in page.all("h4")]


def test_predictions_are_those_of_the_function(page):
    outputs = np.stack([network(x) for x in IMAGES])
    names = np.array(["a", "<i>b", "c"])
    cells = [e["text"] for e in page.all("td")][: 3 * 6]
    rows = np.reshape(cells, (3, 6))
    assert list(rows[:, 1]) == list(names[outputs.argmax(1)])
    np.testing.assert_allclose(rows[:, 3].astype(float), outputs.max(1), rtol=1e-3)


def test_the_switch_holds_one_panel_per_class(page):
    radios = page.all("input", type="radio")
    assert [r["value"] for r in radios] == ["predicted", "0", "1", "2"]
    panels = [e for e in page.all("figure") if "data-class" in e]
    best = [int(np.argmax(network(x))) for x in IMAGES]
    visible = [int(e["data-class"]) for e in panels if "hidden" not in e]
    assert len(panels) == 9 and visible == best


def test_costs_and_curves_name_every_method(page):
    evaluations = next(e for e in page.all("tr") if e["text"].startswith("occlusion"))
    assert "done" in evaluations["text"]
    assert len(page.all("polyline")) == 3  # the NaN has none, and a note that says so
    assert "Deletion curve of <b>given</b>" in "".join(e["text"] for e in page.all("li"))


def test_the_page_needs_nothing_else(page):
    for element in page.found:
        for name in ("src", "href"):
            assert element.get(name, "#").startswith(("data:", "#"))
    assert all(e["loading"] == "lazy" for e in page.all("img"))
    assert "url(" not in page.all("style")[0]["text"]


def test_series_have_gaps_at_nan(tmp_path):
    xs = np.random.default_rng(2).normal(size=(2, 12, 2)).astype(np.float32)
    given = xs.copy()
    given[:, 4:6, 0] = np.nan
    page = written(
        tmp_path, lambda x: (x**2).sum(), xs, None, {"given": attribution_of(given)},
        metrics=[],
    )  # fmt: skip
    paths = page.all("path")
    assert [path["d"].count("M") for path in paths[:4]] == [1, 1, 2, 1]
    assert pixels(page.all("img", class_="strip")[0]).shape == (2, 12, 3)


def test_text_shows_each_token_with_its_sum(tmp_path):
    xs = np.random.default_rng(3).normal(size=(1, 3, 4)).astype(np.float32)
    given = xs.copy()
    given[0, 1] = np.nan
    page = written(
        tmp_path, lambda x: x.sum(), xs, None, {"given": attribution_of(given)},
        tokens=[["one", "<u>", "&"]], metrics=[],
    )  # fmt: skip
    words = [e for e in page.all("span") if "title" in e]
    assert [w["text"] for w in words] == ["one", "<u> [NaN]", "&"]
    assert float(words[2]["title"]) == pytest.approx(xs[0, 2].sum(), rel=1e-2)


def test_attention_of_the_network_is_shown(tmp_path):
    def attending(x):
        return (jax.nn.softmax(x @ x.T) @ x).sum()

    xs = np.random.default_rng(4).normal(size=(1, 5, 2)).astype(np.float32)
    page = written(tmp_path, attending, xs, None, [ja.gradient], kind="series", metrics=[])
    assert pixels(page.all("img", class_="pixels")[-1]).shape == (5, 5, 3)
    assert page.all("details")


def test_attention_that_fails_is_a_warning(tmp_path, monkeypatch):
    def broken_attention(fn, x, target=None, **options):
        raise ValueError("no weights")

    monkeypatch.setattr(contents, "attention", broken_attention)
    page = written(tmp_path, lambda x: x.sum(), IMAGES, None, [ja.gradient], metrics=[])
    assert any("no weights" in e["text"] for e in page.all("li"))


def translated(x):
    """Return scores (4, 3) of an output sequence, whose symbol at p is that of input p + 1."""
    return x[1:5, :3]


def svg_pixels(element):
    return pixels({"src": element["href"]})


def test_an_output_sequence_is_a_matrix_of_outputs_and_tokens(tmp_path):
    xs = np.zeros((1, 6, 3), np.float32)
    xs[0, range(1, 5), [2, 0, 1, 0]] = -1.0
    xs[0, range(1, 5), [0, 1, 2, 1]] = 2.0
    page = written(
        tmp_path, translated, xs, None, {"values": ja.input_x_gradient},
        tokens=[["a", "b", "<i>", "d", "e", "f"]], class_names=["X", "Y", "Z"],
    )  # fmt: skip
    labels = [e["text"] for e in page.all("text") if e.get("text-anchor") != "middle"]
    assert labels[:4] == ["X", "Y", "Z", "Y"]
    drawn = svg_pixels(page.all("image", class_="")[0])
    expected = np.zeros((4, 6))
    expected[range(4), range(1, 5)] = 1.0
    np.testing.assert_allclose(drawn, 255 * colormaps["Purples"](expected)[..., :3], atol=6)
    assert [e["text"] for e in page.all("td")][1] == "XYZY"
    assert "several targets" in page.all("li")[0]["text"]


def test_output_tokens_name_the_rows(tmp_path):
    xs = np.random.default_rng(6).normal(size=(2, 6, 3)).astype(np.float32)
    words = [["one", "two", "three", "four"], ["un", "deux", "trois", "quatre"]]
    page = written(tmp_path, translated, xs, None, [ja.saliency], output_tokens=words)
    assert [e["text"] for e in page.all("h3")][1] == "Example 1: un deux trois quatre"
    assert "quatre" in [e["text"] for e in page.all("text")]


def test_several_targets_of_an_image_are_images(tmp_path):
    page = written(tmp_path, network, IMAGES, ja.each([0, 2]), [ja.gradient], class_names="abc")
    titles = [e["text"] for e in page.all("h4")]
    assert titles[-2:] == ["gradient: a", "gradient: c"]
    gradients = np.asarray(jax.jacobian(network)(jnp.asarray(IMAGES[2])))
    drawn = pixels(page.all("img", class_="pixels")[-1])
    positions = (gradients[2] / abs(gradients[2]).max() + 1) / 2
    np.testing.assert_allclose(drawn, 255 * colormaps["RdBu_r"](positions)[..., :3], atol=6)


def test_negative_values_have_marks():
    values = np.array([[1.0, -1.0], [-0.02, -0.5]])
    marks = panels.sign_marks(values)
    np.testing.assert_array_equal(marks[1::3, 1::3, 3], [[0, 255], [0, 255]])
    assert marks[..., 3].sum() == 2 * 255
    assert marks[1, 4, 0] == 255 and marks[4, 4, 0] == 0  # white on dark, black on light
    assert panels.sign_marks(np.abs(values)) is None


def test_recurrent_layers_are_shown(tmp_path):
    lstm = ja.nn.LSTM(2, 3, rngs=nnx.Rngs(0))
    xs = np.random.default_rng(7).normal(size=(2, 5, 2)).astype(np.float32)
    call = {"metrics": [], "kind": "series"}

    def model(x):
        return lstm(x)[-1]

    page = written(tmp_path, model, xs, None, [ja.gradient], **call)
    assert "Recurrent layers" in [e["text"] for e in page.all("h2")]
    assert len(page.all("img", class_="figure")) == 3
    assert "forget" in [e["text"] for e in page.all("td")]
    without = written(tmp_path, model, xs, None, [ja.gradient], recurrent=False, **call)
    assert not without.all("img", class_="figure")


def test_sections_hold_texts_tables_figures_and_html(tmp_path):
    table = Table("name", "time", title="<b>Times</b>")
    table.add_row("one", "3.5 ms")
    table.add_row("two", "1,200 ms")
    axes = ja.plot.curve([0.0, 1.0], {"a": np.ones((2, 2))})
    axes.figure.set_label('a "curve"')
    page = written(
        tmp_path, network, IMAGES, None, [ja.gradient], metrics=[], about="First.\n\n<Second>.",
        sections={"<Own>": ["One.\n\nTwo.", table, axes], "Text": ja.plot.text(["x"], [1.0])},
    )  # fmt: skip
    paragraphs = [e["text"] for e in page.all("p")]
    assert paragraphs[:2] == ["First.", "<Second>."] and {"One.", "Two."} <= set(paragraphs)
    assert [e["text"] for e in page.all("h2")][:2] == ["<Own>", "Text"]
    assert [e.get("data-number") for e in page.all("td")[:4]] == [None, "3.5", None, "1200.0"]
    (figure,) = page.all("img", class_="figure")
    assert figure["alt"] == 'a "curve"' and pixels(figure).shape[1] > 2 * int(figure["width"]) - 2
    assert not pyplot.fignum_exists(axes.figure.number)
    assert next(e["text"] for e in page.all("span") if e.get("title")) == "x"


def test_evaluations_are_counted_with_the_defaults_of_options(tmp_path):
    def plain(fn, x, target=None, **options):
        return ja.gradient(fn, x, target)

    methods = {"steps": functools.partial(ja.integrated_gradients, num_steps=7), "plain": plain,
               "default": ja.integrated_gradients, "gradient": ja.gradient}  # fmt: skip
    page = written(tmp_path, network, IMAGES, None, methods, metrics=[], curves=False)
    cost = [e["text"] for e in page.all("td")][-5 * 4 :]
    one = cost[3::5]
    assert one[1] == "not declared" and int(one[0]) < int(one[2]) and one[3] == "1"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": []}, ValueError, "`methods` must hold at least one"),
        ({"methods": [3]}, TypeError, "`methods` must be methods"),
        ({"path": "/nowhere/at/all.html"}, FileNotFoundError, "cannot be written"),
        ({"path": "/"}, IsADirectoryError, "`path` must be a file"),
        ({"path": 3}, TypeError, "`path` must be the path of a file, got 3"),
        ({"xs": IMAGES[0, 0]}, ValueError, "leading axis of examples"),
        ({"xs": {"a": IMAGES, "b": IMAGES}}, TypeError, "`xs` must be one array"),
        ({"tokens": [["a"] * 8] * 2}, ValueError, "one list for each of 3"),
        ({"tokens": [["a"] * 8, ["a"] * 7, ["a"] * 8]}, ValueError, "got 7 for example 1"),
        ({"kind": "sound"}, ValueError, "`kind` must be one of"),
        ({"kind": "text"}, ValueError, "`tokens` must be given"),
        ({"class_names": ["a"]}, ValueError, "`class_names` must be 3 names"),
        ({"jacobian": "no"}, TypeError, "`jacobian` must be a bool"),
        ({"curves": 1}, TypeError, "`curves` must be a bool"),
        ({"output_tokens": [["a"]] * 3}, ValueError, "`output_tokens` must be None unless"),
        ({"sections": ["text"]}, TypeError, "`sections` must be a dict"),
        ({"sections": {"a": 3}}, TypeError, "`sections` must hold strings"),
    ],
)
def test_errors_name_the_argument(tmp_path, change, error, message):
    call = {"xs": IMAGES, "methods": [ja.gradient], "path": tmp_path / "r.html", "metrics": []}
    call |= change
    with pytest.raises(error, match=message):
        ja.report(network, call.pop("xs"), None, call.pop("methods"), **call)
    assert not (tmp_path / "r.html").exists()


def test_64_digits_with_6_methods_stay_below_5_mb(tmp_path):
    values = np.random.default_rng(5).normal(size=(64, 28, 28)).astype(np.float32)
    methods = {f"m{i}": attribution_of(values) for i in range(6)}
    path = tmp_path / "r.html"
    ja.report(lambda x: x.sum(), values, None, methods, path=path, metrics=[])
    assert 64 * 7 * 28 * 28 < path.stat().st_size < 5e6


def test_labels_do_not_overlap():
    placed = curve_drawing.spread([10.0, 9.0, 9.5, 60.0], 15, 0, 60)
    assert np.diff(sorted(placed)).min() >= 15
    assert np.argsort(placed).tolist() == [1, 2, 0, 3]


def test_a_notebook_shows_small_results_only():
    shown = Page(attribution_of(IMAGES[0])._repr_html_())
    assert pixels(shown.all("img")[0]).shape == (8, 8, 3)
    assert attribution_of(np.zeros((400, 400)))._repr_html_() is None
    assert attribution_of({"a": IMAGES, "b": IMAGES})._repr_html_() is None
    assert jax.jit(lambda x: x if ja.Attribution(x, x)._repr_html_() is None else -x)(1.0) == 1
    assert callable(ja.report)
