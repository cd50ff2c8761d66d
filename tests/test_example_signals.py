"""Tests of the example of attention over time series: data, and a run on a small budget."""

import contextlib
import io
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxattn as ja
from examples import checkpoints, self_attention_signals as signals, series, stepwise

FIGURES = {
    "channels", "channels-equal", "attention", "histograms", "series-JapaneseVowels",
    "deletion-JapaneseVowels",
}  # fmt: skip
METHODS = ("attention", "LRP", "saliency", "occlusion", "random")


@pytest.fixture(scope="module")
def data():
    """Return every fifth series of JapaneseVowels."""
    *parts, classes = series.load("JapaneseVowels")
    return *(series.Series(*(array[::5] for array in part)) for part in parts), classes


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Return the path of the page, and the printed text, of one of the two data sets."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "100")
        patch.setattr(signals, "load", {"JapaneseVowels": data}.__getitem__)
        patch.setattr(signals, "ABOUT", {"JapaneseVowels": "Vowels."})
        # Of nine classes, after 5 of 100 epochs.
        patch.setattr(signals, "MIN_ACCURACY", {"JapaneseVowels": 0.25})
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            path = signals.main(
                tmp_path_factory.mktemp("signals"), epochs=5, hidden_features=6, units=3
            )
    return path, printed.getvalue()


def rows(printed, columns):
    """Return the rows of all printed tables with `columns` columns."""
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines()]
    return [row for row in cells if len(row) == columns]


@pytest.mark.slow
def test_figures_are_embedded_with_captions(run):
    path, printed = run
    assert {file.stem for file in path.parent.glob("*.png")} == FIGURES
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 75
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 50
    page = path.read_text(encoding="utf-8")
    figures = r'<img class="figure"[^>]* alt="[^"]{20,}" src="data:image/png;[^<]*</div>\s*'
    captions = re.findall(figures + r"<p>(\S.{60,}?\.)</p>", page)
    assert len(captions) == 6
    assert str(path) in printed.replace("\n", "")


@pytest.mark.slow
def test_prints_accuracies_and_shapes(run):
    table = {row[1]: row for row in rows(run[1], 6)}
    assert table["self"][-2:] == ["(29, 6)", "(29, 29)"]
    assert table["weighted"][-2:] == ["(6,)", "(29,)"]
    for kind in signals.KINDS:
        assert table[kind][0] == "JapaneseVowels"
        assert all(re.fullmatch(r"\d+\.\d%", cell) for cell in table[kind][2:4])


@pytest.mark.slow
def test_deletion_table_has_every_method(run):
    table = {row[0]: row[1:] for row in rows(run[1], 7)}
    assert set(table) == set(METHODS)
    for name in METHODS:
        for left, area, alike in (table[name][:3], table[name][3:]):
            assert 0 < float(left) < 1
            area, error = map(float, area.split(" ± "))
            assert 0 < area < 1 and error > 0
            assert alike == "" if name == "attention" else -1 <= float(alike) <= 1


@pytest.mark.slow
def test_checkpoints_are_saved(run, data):
    model = ja.models.SignalClassifier(
        12, 29, len(data[2]), hidden_features=6, units=3, rngs=nnx.Rngs(9)
    )
    before = np.asarray(model.head.kernel[...])
    checkpoints.restore(model, run[0].parent / "checkpoints" / "JapaneseVowels-self")
    assert np.abs(np.asarray(model.head.kernel[...]) - before).max() > 0.01


@pytest.mark.slow
def test_inaccurate_network_raises(data, monkeypatch, tmp_path):
    monkeypatch.setattr(signals, "load", lambda name: data)
    monkeypatch.setattr(signals, "fit", lambda *args, **options: None)
    with pytest.raises(SystemExit, match=r"accuracy \S+ of the self network on JapaneseVowels"):
        signals.main(tmp_path, hidden_features=6, units=3)


def small():
    model = ja.models.SignalClassifier(2, 5, 3, hidden_features=4, units=3, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    data = series.Series(x, np.array([5, 4], np.int32), np.array([0, 1], np.int32))
    x[1, 4] = 0
    return model, data


@pytest.mark.slow
def test_step_attention_is_mean_over_valid_queries():
    model, data = small()
    found = stepwise.explain(model, data)
    _, weights = model.attention(
        model.recurrent(data.x, data.lengths).outputs, np.arange(5) < data.lengths[:, None]
    )
    np.testing.assert_allclose(found.steps["attention"][0], weights[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(found.steps["attention"][1], weights[1, :4].mean(0), atol=1e-6)
    assert found.steps["attention"][1, 4] == 0
    assert set(found.steps) == set(METHODS)
    for values in found.values.values():
        assert values.shape == (2, 5, 2)
        assert not values[1, 4].any()


@pytest.mark.slow
def test_deletion_order_excludes_padding():
    model, data = small()
    found = stepwise.explain(model, data)
    steps = np.array([[0.0, 3, 1, 2, 4], [5, 1, 9, 2, 99]])
    left = stepwise.deletion(found, data, steps)
    said = found.probabilities.argmax(1)
    orders = [[4, 1, 3, 2, 0], [2, 0, 3, 1]]
    for i, order in enumerate(orders):
        for k, share in enumerate(stepwise.FRACTIONS):
            x = data.x[i].copy()
            x[order[: round(share * len(order))]] = 0
            wanted = stepwise.probabilities(model, x[None], data.lengths[i : i + 1])[0, said[i]]
            np.testing.assert_allclose(left[i, k], wanted, rtol=1e-5)


def test_agreement_is_rank_correlation():
    _, data = small()
    up, down = np.tile(np.arange(5.0), (2, 1)), -np.tile(np.arange(5.0), (2, 1))
    down[1, 4] = 99  # padding
    found = SimpleNamespace(steps={"attention": up, "same": up**3, "opposite": down})
    assert stepwise.agreement(found, data, "same") == pytest.approx(1)
    assert stepwise.agreement(found, data, "opposite") == pytest.approx(-1)


def test_uniform_attention_over_valid_steps():
    lengths, alike = np.array([2, 3]), np.array([[1 / 2, 1 / 2, 0], [1 / 3] * 3], np.float32)
    weights = np.array([[1, 0, 0], [0.7, 0.3, 0]], np.float32)  # a softmax may be 0 where it reads
    np.testing.assert_array_equal(signals.uniform_attention(weights, lengths), alike)
    square = np.stack([weights] * 3, 1)
    np.testing.assert_array_equal(
        signals.uniform_attention(square, lengths), np.stack([alike] * 3, 1)
    )


@pytest.mark.slow
def test_page_describes_published_and_own_task(run):
    page = run[0].read_text(encoding="utf-8")
    assert "240 steps of 4 channels" in page and "one output with a sigmoid" in page
    assert "JapaneseVowels 29 steps of 12 channels and 9 classes" in page


def test_series_file_is_parsed(tmp_path):
    path = tmp_path / "S.ts"
    path.write_text(
        "# about\n@problemName S\n@classLabel true a b\n@data\n1,2,3:4,5,6:b\n7,8:9,10:a\n"
    )
    xs, labels, names = series.read(path)
    np.testing.assert_array_equal(xs[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(xs[1], [[7, 9], [8, 10]])
    assert (labels.tolist(), names) == ([1, 0], ["a", "b"])


def test_archive_shapes_and_normalization():
    train, test, classes = series.load("JapaneseVowels")
    assert (train.x.shape, test.x.shape) == ((270, 29, 12), (370, 29, 12))
    assert classes == [str(k) for k in range(1, 10)]
    assert np.bincount(train.labels).tolist() == [30] * 9
    assert (train.lengths.min(), max(train.lengths.max(), test.lengths.max())) == (7, 29)
    valid = np.arange(29) < train.lengths[:, None]
    np.testing.assert_allclose(train.x[valid].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.x[valid].std(0), 1, atol=1e-5)
    assert not train.x[~valid].any()


def test_missing_series_raise_with_install_command(monkeypatch):
    def missing(name):
        raise series.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(series.metadata, "distribution", missing)
    with pytest.raises(SystemExit, match="pip install --no-deps aeon"):
        series.load("JapaneseVowels")
