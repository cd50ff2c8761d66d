"""Test the addition benchmark: sequences, networks and evaluation of methods."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import addition

SEQUENCES = addition.draw(200, seed=3)
# These fail by design, or their epsilon is large relative to this adder's activations (0.01).
FAILING = {"LRP-half", "LRP-prop", "LRP", "LRP, conserved bias"}


@pytest.fixture(scope="module")
def adder():
    """An adder exact up to 1e-4: open gates, and tanh applied to 0.01 times the numbers."""
    model = addition.Adder(rngs=nnx.Rngs(0))
    cell = model.recurrent.cells[0]
    cell["kernel"][...] = jnp.zeros((2, 4)).at[0, 2].set(0.01)
    cell["recurrent"][...] = jnp.zeros((1, 4))
    cell["bias"][...] = jnp.array([20.0, 20.0, 0.0, 20.0])
    model.readout.kernel[...] = jnp.array([[100.0]])
    return model


def test_first_column_holds_marked_numbers_and_second_the_others():
    xs, lengths, marked = SEQUENCES
    assert set(lengths) == set(range(4, 11))
    steps = np.arange(10)
    added = (steps == marked[:, :1]) | (steps == marked[:, 1:])
    valid = steps < lengths[:, None]
    assert (marked[:, 0] < marked[:, 1]).all()
    np.testing.assert_array_equal(xs[..., 0] != 0, added)
    np.testing.assert_array_equal(xs[..., 1] != 0, valid & ~added)
    sizes = np.abs(xs[xs != 0])
    assert 0.5 <= sizes.min() < 0.51
    assert 0.99 < sizes.max() < 1
    assert 0.45 < (xs[xs != 0] > 0).mean() < 0.55
    np.testing.assert_array_equal(SEQUENCES.numbers, xs[..., 0][added].reshape(-1, 2))


def test_positions_are_uniformly_distributed():
    sequences = addition.draw(20_000, seed=0)
    marked = sequences.marked[sequences.lengths == 5]
    counts = np.bincount(marked.ravel(), minlength=10)
    assert (counts[5:] == 0).all()
    np.testing.assert_allclose(counts[:5] / len(marked), 2 / 5, atol=0.03)


def test_padding_does_not_change_the_output(adder):
    xs, lengths, _ = SEQUENCES
    short = int(np.argmin(lengths))
    np.testing.assert_allclose(adder(xs[short], lengths[short]), adder(xs[short, :4]), rtol=1e-6)


@pytest.mark.parametrize("name", addition.METHODS)
@pytest.mark.representatives("DeepLIFT", "LRP, conserved bias", "LRP-prop")
def test_methods_recover_the_numbers_of_an_exact_adder(adder, name):
    assert jnp.abs(addition.errors(adder, SEQUENCES)).max() < 5e-4
    fit = addition.judge(name, adder, SEQUENCES)
    if name in FAILING:
        assert fit.squared_error > 0.01
    else:
        assert min(fit.first, fit.second) > 99.997
        assert fit.squared_error < 1e-6


def test_correlation_and_squared_error_by_hand(adder, monkeypatch):
    xs = SEQUENCES.xs
    places = jnp.broadcast_to(jnp.arange(10.0)[:, None] / 20, xs.shape[1:])

    def method(fn, x, target=None, *, args=(), **_):
        return addition.ja.Attribution(places, fn(x, *args))

    monkeypatch.setattr(addition.ja, "method", method, raising=False)
    monkeypatch.setattr(addition, "METHODS", {"m": ("method", {})})
    fit = addition.judge("m", adder, SEQUENCES)
    places = SEQUENCES.marked / 10
    numbers = SEQUENCES.numbers
    correlations = [100 * np.corrcoef(places[:, i], numbers[:, i])[0, 1] for i in (0, 1)]
    np.testing.assert_allclose(fit[:2], correlations, rtol=1e-5)
    difference = places.sum(1) - numbers.sum(1)
    np.testing.assert_allclose(fit.squared_error, (difference**2).mean(), rtol=1e-3)


@pytest.mark.slow
def test_lrp_recovers_the_numbers_of_trained_networks(tmp_path, capsys, monkeypatch):
    methods = set(addition.METHODS) - {"DeepLIFT", "LRP", "LRP, conserved bias"}
    monkeypatch.setattr(addition, "METHODS", {name: addition.METHODS[name] for name in methods})
    path = tmp_path / "new" / "numbers.json"
    monkeypatch.setattr(addition, "GOOD", 1e-3)
    command = ["--networks", "2", "--steps", "3000", "--sequences", "500", "--json", str(path)]
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
        addition.main(command)
    report = json.loads(path.read_text())
    good = sum(loss < 1e-3 for loss in report["losses"])
    assert len(set(report["losses"])) == 2
    assert f"{good} of 2 networks" in capsys.readouterr().out
    assert report["methods"].keys() == methods
    for network in range(good):
        fits = {name: addition.Fit(**fits[network]) for name, fits in report["methods"].items()}
        rival = min(fits["occlusion"].squared_error, fits["gradient × input"].squared_error)
        for name in ("LRP, epsilon 1e-6", "integrated gradients"):
            assert min(fits[name][:2]) > 99.9
            assert fits[name].squared_error < rival / 100
        for name in ("LRP-half", "LRP-prop"):
            assert min(fits[name][:2]) < 90
            assert fits[name].squared_error > 0.1


def test_failed_training_is_reported(adder, capsys, monkeypatch):
    monkeypatch.setattr(addition, "train", lambda *_: [adder])
    monkeypatch.setattr(addition, "GOOD", 0)
    with pytest.raises(SystemExit):
        addition.main(["--sequences", "10"])
    assert "no network learnt to add: the smallest error is" in capsys.readouterr().err
