"""The page of a report in headless Chromium: it opens, switches, sorts and shows its values."""

import contextlib
import io
import shutil
import time

import jax
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

import jaxattn as ja

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]

WEIGHTS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)


def network(x):
    return jax.numpy.tanh(x).ravel() @ WEIGHTS


@contextlib.contextmanager
def opened(path, width, scheme="light"):
    """Open a page; it must write nothing to the console."""
    problems = []
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        viewport = {"width": width, "height": 900}
        tab = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(path.as_uri())
        yield tab
        browser.close()
    assert not problems


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "r.html"
    methods = [ja.gradient, ja.saliency]
    return ja.report(network, IMAGES, None, methods, path=path, metrics=[], jacobian=True)


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1400, "dark")])
def test_the_page_fits_switches_and_sorts(path, width, scheme):
    with opened(path, width, scheme) as tab:
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


def test_a_screenshot_has_the_colours_of_the_values_and_the_marks_of_their_sign(path):
    target = int(np.argmax(network(IMAGES[0])))
    values = np.asarray(ja.gradient(network, IMAGES[0], target).values)
    with opened(path, 1400) as tab:
        panel = tab.locator(".example .stack img.pixels").first
        plain = imread(io.BytesIO(panel.screenshot()))
        tab.check("#signs")
        marked = imread(io.BytesIO(panel.screenshot()))
    side = len(plain)
    places = ((np.arange(8) + 0.5) * side / 8).astype(int)
    off_centre = places + side // 32  # beside the mark, which has a third of the width
    expected = colormaps["RdBu_r"]((values / abs(values).max() + 1) / 2)[..., :3]
    seen = plain[np.ix_(off_centre, off_centre)][..., :3]
    np.testing.assert_allclose(seen, expected, atol=0.03)
    change = abs(marked - plain).max(-1)[np.ix_(places, places)] > 0.2
    np.testing.assert_array_equal(change, values < -0.05 * abs(values).max())


def test_a_page_of_200_examples_opens_within_a_second(tmp_path):
    values = np.random.default_rng(2).normal(size=(200, 28, 28)).astype(np.float32)
    given = ja.Attribution(jax.numpy.asarray(values), jax.numpy.zeros(200))
    methods = dict.fromkeys(["a", "b", "c", "d"], given)
    path = tmp_path / "r.html"
    ja.report(lambda x: x.sum(), values, None, methods, path=path, metrics=[], curves=False)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with opened(path, 1400) as tab:
            start_of_load = "performance.timing.navigationStart"
            ready = f"performance.timing.loadEventEnd - {start_of_load}"
            seconds.append(tab.evaluate(ready) / 1000)
            assert tab.locator(".example").count() == 200
        assert time.perf_counter() - start < 60
    assert min(seconds) < 1
