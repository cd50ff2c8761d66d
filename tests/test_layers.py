"""Layer conductance and internal influence: closed forms, and completeness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

rng = np.random.default_rng(0)
ROWS, W, U, READOUT = (rng.normal(size=s) / 2 for s in ((5, 3), (3, 4), (4, 4), (4, 2)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def hidden(x):
    return jnp.tanh(x @ W + 0.3)


def dense(x):
    y = ja.tag(hidden(x), "hidden")
    return (y * jnp.roll(y, 1, -1)).sum(0) @ READOUT


def recurrent(x):
    def advance(h, row):
        h = jnp.tanh(row @ W + h @ U)
        return h, ja.tag(h, "state")

    _, states = jax.lax.scan(advance, jnp.zeros(4), x)
    return jnp.sin(states).sum(0) @ READOUT


EXACT = {"quadrature": "gauss_legendre", "num_steps": 40}


def test_conductance_of_linear_layers_closed_form(x64):
    def linear(x):
        return ja.tag(x @ W, "y") @ READOUT

    got = ja.layer_conductance(linear, ROWS[0], 1, at="y", baseline=ROWS[1], num_steps=1)
    close(got.values, (ROWS[0] - ROWS[1]) @ W * READOUT[:, 1])
    close(got.output, ROWS[0] @ W @ READOUT)

    def product(x):
        return ja.tag(x @ W[:, :2], "y").prod()

    got = ja.layer_conductance(product, ROWS[0], at="y", num_steps=1)
    close(got.values, np.full(2, (ROWS[0] @ W[:, :2]).prod() / 2))


@pytest.mark.parametrize(
    ("fn", "at"), [(dense, "hidden"), (recurrent, "state")], ids=["dense", "recurrent"]
)
def test_conductance_is_complete(fn, at, x64):
    got = ja.layer_conductance(fn, ROWS, 1, at=at, baseline=0.2, **EXACT)
    assert got.values.shape == (5, 4)
    change = fn(ROWS)[1] - fn(np.full_like(ROWS, 0.2))[1]
    close(got.values.sum(), change, 1e-9)
    close(got.info["delta"], 0, 1e-9)
    assert abs(change) > 0.05


def test_conductance_equals_a_riemann_sum(x64):
    steps = 400
    points = np.linspace(0, 1, 2 * steps + 1)[:, None, None] * ROWS
    y = hidden(points)
    slope = jax.vmap(jax.grad(lambda y: (y * jnp.roll(y, 1, -1)).sum(0) @ READOUT[:, 0]))
    want = (slope(y[1::2]) * (y[2::2] - y[:-2:2])).sum(0)
    close(ja.layer_conductance(dense, ROWS, 0, at="hidden", **EXACT).values, want, 1e-4)
    got = ja.layer_conductance(dense, ROWS, 0, at="hidden", num_steps=steps, batch_size=64)
    close(got.values, want, 1e-5)


def test_conductance_of_the_input_equals_integrated_gradients(x64):
    def fn(x):
        return jnp.tanh(ja.tag(x, "x") @ W).sum(0) @ READOUT

    options = {"num_steps": 5, "baseline": 0.1}
    got = ja.layer_conductance(fn, ROWS, 0, at="x", **options)
    want = ja.integrated_gradients(fn, ROWS, 0, **options)
    close(got.values, want.values)
    close(got.info["delta"], want.info["delta"])


def test_delta_is_the_effect_that_bypasses_the_layer(x64):
    def fn(x):
        return dense(x)[0] + 3 * x.sum()

    got = ja.layer_conductance(fn, ROWS, at="hidden", **EXACT)
    close(got.info["delta"], -3 * ROWS.sum(), 1e-9)


def test_inputs_that_bypass_the_layer_follow_the_path(x64):
    def fn(x):
        return (ja.tag(x @ W, "y") * x[:, :1]).sum()

    got = ja.layer_conductance(fn, ROWS, at="y", **EXACT)
    close(got.values, ROWS @ W * ROWS[:, :1] / 2)


def test_conductance_with_baselines_per_example_and_integer_leaves(x64):
    def fn(x):
        return dense(x["rows"] * x["scale"].astype(float))

    xs = {"rows": np.stack([ROWS, -ROWS]), "scale": np.array([2, 3])}
    baseline = {"rows": np.stack([0 * ROWS, ROWS]), "scale": np.array([0, 0])}
    options = {"at": "hidden", **EXACT}
    got = ja.explain(ja.layer_conductance, fn, xs, 1, baseline=baseline, **options)
    close(got.info["delta"], 0, 1e-9)
    one = ja.layer_conductance(dense, -3 * ROWS, 1, baseline=3 * ROWS, **options)
    close(got.values[1], one.values, 1e-9)


def test_conductance_of_integer_inputs_raises():
    def fn(ids):
        return ja.tag(jnp.asarray(W, jnp.float32)[ids], "embedding").sum()

    with pytest.raises(TypeError, match="a path from the baseline"):
        ja.layer_conductance(fn, np.array([0, 2]), at="embedding")


def test_invalid_path_options_raise():
    with pytest.raises(ValueError, match="quadrature"):
        ja.layer_conductance(dense, ROWS, 0, at="hidden", quadrature="simpson")
    with pytest.raises(ValueError, match="num_steps"):
        ja.layer_conductance(dense, ROWS, 0, at="hidden", num_steps=0)


def rectified(x):
    """Return the logits of a dense network whose layer is tagged before and after its ReLU."""
    weights = np.sin(np.arange(12) * 1.7 + 0.3).reshape(3, 4)
    readout = np.sin(np.arange(8) * 0.9 + 0.3).reshape(4, 2)
    return ja.tag(jax.nn.relu(ja.tag(x @ weights + 0.1, "before")), "after") @ readout


@pytest.mark.parametrize(
    ("at", "want"),
    [
        ("before", [0.72699048705, 0.13265280758, -0.2590027983, 0.03738496362]),
        ("after", [0.93203908597, 0.14112000806, -0.99616460884, 0.31154136351]),
    ],
)
def test_internal_influence_agrees_with_captum(at, want, x64):
    """InternalInfluence with method="riemann_middle"."""
    options = {"at": at, "baseline": np.ones(3), "num_steps": 50}
    got = ja.internal_influence(rectified, np.array([1.0, -2.0, 0.5]), 1, **options)
    close(got.values, want, 1e-10)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_internal_influence_of_the_input_is_the_mean_gradient(batch_size, x64):
    def fn(x):
        return jnp.tanh(ja.tag(x, "x") @ W).sum(0) @ READOUT

    options = {"num_steps": 5, "baseline": 0.1, "batch_size": batch_size}
    got = ja.internal_influence(fn, ROWS, 0, at="x", **options)
    close(got.values * (ROWS - 0.1), ja.integrated_gradients(fn, ROWS, 0, **options).values)
    close(got.output, fn(ROWS))


@pytest.mark.parametrize("method", [ja.layer_conductance, ja.internal_influence])
def test_missing_at_raises(method):
    with pytest.raises(ValueError, match=f"`at` is missing: {method.__name__}"):
        method(rectified, ROWS, 1)
    with pytest.raises(TypeError, match="a path from the baseline"):
        method(lambda ids: ja.tag(ids.astype(jnp.float32), "h").sum(), np.array([0, 2]), at="h")
