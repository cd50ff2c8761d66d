"""Tests of the glimpse example: scenes, MNIST files, and a run on a small budget."""

import contextlib
import gzip
import io
import re

import jax
import numpy as np
import pytest
from PIL import Image

from examples import clutter, glimpses, looking

SMALL = glimpses.Plan(8, 1, 2, 32, 0, 3, 1e-2), glimpses.Plan(12, 2, 2, 8, 1, 2)
FIGURES = {"mnist", "clutter", "training", "relevance", "mistakes"}
RNG = np.random.default_rng(0)
DIGITS = clutter.Digits(
    RNG.uniform(0.5, 1, (20, 28, 28)).astype(np.float32), np.arange(20, dtype=np.int32) % 10
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the path of the page, and the printed text."""
    parts = clutter.load()
    few = tuple(clutter.Digits(*(a[:1000] for a in part)) for part in parts)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "120")
        patch.setattr(clutter, "load", lambda folder: few)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            path = glimpses.main(
                tmp_path_factory.mktemp("glimpses"), plans=SMALL, max_error=0.8, min_margin=None
            )
    return path, printed.getvalue()


@pytest.mark.slow
def test_figures_are_saved_with_captions(run):
    path, _ = run
    assert {file.stem for file in path.parent.glob("*.png")} == FIGURES
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 75
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 50
    text = path.read_text(encoding="utf-8")
    figures = re.findall(r'<img class="figure"[^>]* alt="[^"]{20,}" src="data:image/png;', text)
    assert len(figures) == len(FIGURES)
    assert len(re.findall('<table class="data', text)) == 4 + 2  # of predictions and costs


@pytest.mark.slow
def test_prints_tables(run):
    path, printed = run
    for name in ("MNIST 28 × 28", "learned glimpses", "random glimpses", "random minus learned"):
        assert re.search(rf"{name}.*\d\.\d\d% ± \d", printed)
    for name in ("learned: on the digit", "random: on the digit", "LRP", "saliency"):
        assert re.search(rf"{name}\W+\d+", printed)
    assert str(path) in printed.replace("\n", "")


@pytest.mark.slow
def test_checkpoints_are_saved(run):
    path, _ = run
    model = glimpses.build(SMALL[1])
    before = np.array(model.classifier.kernel[...])
    glimpses.checkpoints.restore(model, path.parent / "checkpoints" / "learned")
    assert np.any(before != model.classifier.kernel[...])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"max_error": 0}, r"test error .* is above 0%"),
        ({"max_error": 1, "min_margin": 1}, "error with random glimpses is larger by"),
    ],
)
@pytest.mark.slow
def test_inaccurate_networks_raise(tmp_path, monkeypatch, wanted, message):
    monkeypatch.setattr(clutter, "load", lambda folder: (DIGITS, DIGITS))
    monkeypatch.setattr(glimpses, "train", lambda model, draw, plan, **_: np.ones(plan.epochs))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(SystemExit, match=message):
        glimpses.main(tmp_path, plans=SMALL, **wanted)


@pytest.mark.slow
def test_batches_draw_independent_paths():
    model = glimpses.build(SMALL[0])
    for weights in (model.location.linear, model.classifier):
        weights.kernel[...] = jax.random.normal(jax.random.key(0), weights.kernel.shape)
    images = np.tile(DIGITS.images[:4], (2, 1, 1))
    for random in (True, False):
        first, second = np.split(
            glimpses.glimpse_probabilities(model, images, 1, random=random, batch=4), 2
        )
        assert np.all(np.any(first != second, (1, 2)))


@pytest.mark.slow
def test_mistakes_use_the_drawn_paths():
    model = glimpses.build(SMALL[0])
    seen = looking.glimpse_all(model, DIGITS.images)
    predicted = seen.logits[:, -1].argmax(-1)
    axes = []

    class Page:
        def figure(self, name, title, drawn, *_, **__):
            axes.append(drawn)

    looking.mistakes(Page(), model, DIGITS, seen)
    titles = [ax.get_title() for ax in axes[0][0]]
    wrong = {
        f"label {label}, prediction {found}"
        for label, found in zip(DIGITS.labels, predicted, strict=True)
        if label != found
    }
    assert len(set(titles)) == 5 and set(titles) <= wrong


def test_scenes_contain_digit_and_fragments():
    scenes = clutter.scattered(DIGITS, np.random.default_rng(1), size=60, fragments=4, width=8)
    assert scenes.images.shape == (20, 60, 60)
    np.testing.assert_array_equal(scenes.labels, DIGITS.labels)
    assert len(np.unique(scenes.corners, axis=0)) > 15
    assert scenes.corners.min() >= 0 and scenes.corners.max() <= 32
    for image, digit, (row, column) in zip(
        scenes.images, DIGITS.images, scenes.corners, strict=True
    ):
        there = image[row : row + 28, column : column + 28]
        assert np.all(there >= digit)  # fragments are drawn over the digit
        assert np.mean(there == digit) > 0.6
        outside = np.count_nonzero(image) - 28 * 28
        assert 0 <= outside <= 4 * 64
    alone = clutter.scattered(DIGITS, np.random.default_rng(1), fragments=0)
    assert np.all(np.count_nonzero(alone.images, (1, 2)) == 28 * 28)


def test_shifts_are_bounded():
    shifted = clutter.shifted(DIGITS, np.random.default_rng(0), by=2)
    found = set()
    for image, digit in zip(shifted.images, DIGITS.images, strict=True):
        canvas = np.pad(digit, 2)
        fits = [
            at for at in np.ndindex(5, 5)
            if np.array_equal(canvas[at[0] : at[0] + 28, at[1] : at[1] + 28], image)
        ]  # fmt: skip
        assert len(fits) == 1
        found |= set(fits)
    assert len(found) > 8


def write(folder, change=lambda name, raw: raw, end=""):
    """Write files in the format of MNIST, of 3 and 2 digits."""
    for part, count in (("train", 3), ("t10k", 2)):
        images = np.arange(count * 784, dtype=np.uint8).reshape(count, 28, 28)
        sizes = np.array([count, 28, 28], ">u4").tobytes()
        for name, raw in (
            (f"{part}-images-idx3", b"\0\0\x08\x03" + sizes + images.tobytes()),
            (f"{part}-labels-idx1", b"\0\0\x08\x01" + sizes[:4] + bytes(range(count))),
        ):
            raw = change(name, raw)
            if raw is not None:
                packed = gzip.compress(raw) if end == ".gz" else raw
                (folder / f"{name}-ubyte{end}").write_bytes(packed)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_files_are_read(tmp_path, end):
    write(tmp_path, end=end)
    train, test = clutter.load(tmp_path)
    assert train.images.shape == (3, 28, 28) and test.images.shape == (2, 28, 28)
    assert train.images.dtype == np.float32 and train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.labels, [0, 1, 2])
    np.testing.assert_array_equal(train.images.reshape(-1)[:256] * 255, np.arange(256))


BROKEN = {
    "missing": (
        lambda name, raw: None if "t10k-labels" in name else raw,
        "contains no t10k-labels",
    ),
    "cut": (lambda name, raw: raw[:-1], "not a complete IDX file of bytes"),
    "something else": (lambda name, raw: b"PNG" + raw, "not a complete IDX file of bytes"),
    "empty": (lambda name, raw: b"", "not a complete IDX file of bytes"),
    "labels of other images": (
        lambda name, raw: b"\0\0\x08\x01\0\0\0\x01\0" if "labels" in name else raw,
        "do not match",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_raise(tmp_path, change, message):
    write(tmp_path, change)
    with pytest.raises(SystemExit, match=message):
        clutter.load(tmp_path)


def test_missing_files_raise_with_file_name(tmp_path):
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte"):
        clutter.load(tmp_path / "nowhere")
