"""The page of a report: its numbers, colours, escaping, failures and size."""

import base64
import io
import shutil
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

import jaxattn as ja
from jaxattn.reporting import curve_drawing

WEIGHTS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
CHROMIUM = shutil.which("chromium")
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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": []}, ValueError, "`methods` must hold at least one"),
        ({"methods": [3]}, TypeError, "`methods` must be methods"),
        ({"path": "/nowhere/at/all.html"}, FileNotFoundError, "cannot be written"),
        ({"path": "/"}, IsADirectoryError, "`path` must be a file"),
        ({"xs": IMAGES[0, 0]}, ValueError, "leading axis of examples"),
        ({"xs": {"a": IMAGES, "b": IMAGES}}, TypeError, "`xs` must be one array"),
        ({"tokens": [["a"] * 8] * 2}, ValueError, "one list for each of 3"),
        ({"tokens": [["a"] * 8, ["a"] * 7, ["a"] * 8]}, ValueError, "got 7 for example 1"),
        ({"kind": "sound"}, ValueError, "`kind` must be one of"),
        ({"kind": "text"}, ValueError, "`tokens` must be given"),
        ({"class_names": ["a"]}, ValueError, "`class_names` must be 3 names"),
        ({"jacobian": "no"}, TypeError, "`jacobian` must be a bool"),
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


@pytest.mark.slow
def test_a_browser_switches_and_sorts(tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    path = tmp_path / "r.html"
    methods = [ja.gradient, ja.saliency]
    ja.report(network, IMAGES, None, methods, path=path, metrics=[], jacobian=True)
    problems = []
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((360, "light"), (1400, "dark")):
            tab = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            ).new_page()
            tab.on("console", lambda message: problems.append(message.text))
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.goto(path.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            tab.focus("input[name=class]:checked")
            tab.keyboard.press("ArrowRight")  # to the first class
            visible = "[...document.querySelectorAll('[data-class]')].filter(e => !e.hidden)"
            assert tab.evaluate(f"{visible}.map(e => e.dataset.class)") == ["0"] * 3
            assert tab.locator(".example .panel:visible").count() == 3 * 4
            score = tab.locator("#predictions th button").nth(3)
            for order in (1, -1):
                score.focus()
                tab.keyboard.press("Enter")
                cells = tab.locator("#predictions tbody tr td:nth-child(4)").all_inner_texts()
                numbers = [float(cell) for cell in cells]
                assert numbers == sorted(numbers)[::order]
            background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(20, 20, 22)") is (scheme == "dark")
        browser.close()
    assert not problems
