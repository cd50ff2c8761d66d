"""PatternNet and PatternAttribution against the formulas of the paper in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

ESTIMATORS = ("relu", "linear")
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
N, T = 40, 6


@pytest.fixture(autouse=True)
def float64(x64):
    """Run all tests in float64."""


def close(got, want, atol=1e-10):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=atol), got, want)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def pattern(v, w, b, estimator):
    """Return the patterns of neurons `v @ w + b`: equations 4 and 8 of the paper."""
    y = v @ w
    if estimator == "linear":
        return (v - v.mean(0)).T @ (y - y.mean(0)) / len(v) / y.var(0)
    positive = (y + b > 0).astype(float)
    count = positive.sum(0)
    direction = v.T @ (positive * y) / count - v.T @ positive / count * y.mean(0)
    return direction / (w * direction).sum(0)


def back(w, a, attribution):
    return w * a if attribution else a


def values(patterns, fn, x, target=None, attribution=False, **options):
    method = ja.pattern_attribution if attribution else ja.pattern_net
    return method(fn, jnp.asarray(x), target, patterns=patterns, **options).values


# Linear models.


@every_estimator
def test_signal_of_the_example_of_the_paper(estimator):
    """Section 2: the weights (1, -1) extract s from x = s (1, 0) + d (1, 1)."""
    s, d = np.array(list(itertools.product([-1.0, 0.5, 2.0], [-3.0, 0.0, 3.0]))).T
    xs, w = np.stack([s + d, d], 1), jnp.array([1.0, -1.0])
    (found,) = patterns = ja.fit_patterns(lambda x: x @ w, xs, estimator=estimator)
    close(found, [1.0, 0.0], 1e-12)
    signal = ja.explain(ja.pattern_net, lambda x: x @ w, xs, patterns=patterns).values
    close(signal, np.stack([s, 0 * s], 1), 1e-12)


def test_linear_model():
    x, w, b = draw(0, (N, 4), (4, 3), 3)
    fn = lambda x: x @ w + b  # noqa: E731
    patterns = ja.fit_patterns(fn, x, estimator="linear")
    want = np.linalg.solve(np.diag((x @ w).var(0)), w.T @ np.cov(x.T, bias=True)).T
    close(patterns, [want], 1e-12)
    score = (x[0] @ w + b)[1]
    close(values(patterns, fn, x[0], 1), want[:, 1] * score, 1e-12)
    contributions = values(patterns, fn, x[0], 1, attribution=True)
    close(contributions, w[:, 1] * want[:, 1] * score, 1e-12)
    close(contributions.sum(), score, 1e-12)


def test_signals_are_linear_in_the_target():
    x, w = draw(1, (N, 4), (4, 3))
    fn = lambda x: jnp.tanh(x) @ w  # noqa: E731
    patterns = ja.fit_patterns(fn, x)
    both = values(patterns, fn, x[0], lambda out: 2.0 * out[2] - out[0])
    first, last = (values(patterns, fn, x[0], i) for i in (0, 2))
    slope = (1 - np.tanh(x[0]) ** 2) * (np.tanh(x[0]) @ w)[0] * patterns[0][:, 0]
    close(first, slope)
    close(both, 2 * last - first)


# Networks.


@pytest.fixture(scope="module")
def dense():
    x, w1, b1, w2, b2, w3 = draw(8, (N, 4), (4, 6), 6, (6, 5), 5, (5, 3))

    def fn(x):
        return jax.nn.relu(jax.nn.relu(x @ w1 + b1) @ w2 + b2) @ w3

    return fn, x, (w1, w2, w3), (b1, b2, np.zeros(3))


@every_estimator
@pytest.mark.representatives("relu")
def test_dense_network(dense, estimator):
    fn, x, weights, biases = dense
    inputs, want = [x], []
    for w, b in zip(weights, biases, strict=True):
        want.append(pattern(inputs[-1], w, b, estimator))
        inputs.append(np.maximum(inputs[-1] @ w + b, 0))
    patterns = ja.fit_patterns(fn, x, estimator=estimator)
    close(patterns, want)
    for w, a in zip(weights, patterns, strict=True):
        close((w * a).sum(0), np.ones(w.shape[1]))
    for attribution in (False, True):
        signal = np.zeros((N, 3))
        signal[:, 2] = (inputs[-2] @ weights[-1])[:, 2]
        for i in (2, 1, 0):
            signal = signal @ back(weights[i], want[i], attribution).T
            signal *= inputs[i] > 0 if i else 1
        method = ja.pattern_attribution if attribution else ja.pattern_net
        close(ja.explain(method, fn, x, 2, patterns=patterns).values, signal)


def patches(image, size):
    """Return the zero-padded windows of an image (H, W, C) as rows (H * W, size * size * C)."""
    padded = np.pad(image, [(size // 2,) * 2] * 2 + [(0, 0)])
    places = itertools.product(*map(range, image.shape[:2]))
    return np.stack([padded[i : i + size, j : j + size].ravel() for i, j in places])


def unpatched(rows, shape, size):
    """Apply the transpose of `patches`."""
    padded = np.zeros((shape[0] + size - 1, shape[1] + size - 1, shape[2]))
    places = itertools.product(*map(range, shape[:2]))
    for row, (i, j) in zip(rows, places, strict=True):
        padded[i : i + size, j : j + size] += row.reshape(size, size, shape[2])
    edge = size // 2
    return padded[edge:-edge, edge:-edge]


@pytest.fixture(scope="module")
def convolutional():
    x, kernel, b1, w2 = draw(3, (12, 4, 4, 2), (3, 3, 2, 3), (1, 1, 3), (12, 2))

    def fn(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(
            x[None], jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=numbers
        )
        hidden = jax.nn.relu(z[0] + b1)
        pooled = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        return pooled.ravel() @ w2

    return fn, x, kernel, b1, w2


@pytest.mark.slow
def test_convolutional_network(convolutional):
    fn, x, kernel, b1, w2 = convolutional
    rows = np.stack([patches(image, 3) for image in x])
    w1 = kernel.reshape(-1, 3)
    hidden = np.maximum(rows @ w1 + b1.ravel(), 0)
    hidden = hidden.reshape(-1, 2, 2, 2, 2, 3)  # windows of 2 by 2
    pooled = hidden.max((2, 4))
    a1 = pattern(rows.reshape(-1, 18), w1, b1.ravel(), "relu")
    a2 = pattern(pooled.reshape(-1, 12), w2, 0, "relu")
    patterns = ja.fit_patterns(fn, x, batch_size=5)
    close(patterns, [a1.reshape(kernel.shape), a2])
    for attribution in (False, True):
        score = pooled[0].ravel() @ w2[:, 1]
        signal = (score * back(w2, a2, attribution)[:, 1]).reshape(2, 1, 2, 1, 3)
        won = (hidden[0] == pooled[0][:, None, :, None]) & (hidden[0] > 0)
        signal = (signal * won).reshape(16, 3) @ back(w1, a1, attribution).T
        signal = unpatched(signal, (4, 4, 2), 3)
        close(values(patterns, fn, x[0], 1, attribution), signal)


def lstm(w, u, b):
    """Return an LSTM with all gates in one product; `recorded` collects the input of each step."""

    def fn(x, recorded=None):
        def step(state, row):
            h, c = state
            z = row @ w + h @ u + b
            i, f, g, o = jnp.split(z, 4)
            new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            if recorded is not None:
                recorded.append(np.concatenate([row, h]))
            return (jax.nn.sigmoid(o) * jnp.tanh(new), new), None

        state = jnp.zeros(3), jnp.zeros(3)
        if recorded is None:
            return jax.lax.scan(step, state, x)[0][0]
        for row in x:
            state, _ = step(state, row)
        return state[0]

    return fn


@pytest.mark.slow
@every_estimator
@pytest.mark.representatives("relu")
def test_time_steps_are_samples_and_two_products_are_one_layer(estimator):
    w, u, b, x = draw(4, (4, 12), (3, 12), 12, (8, T, 4))
    fn, recorded = lstm(w, u, b), []
    for row in x:
        fn(row, recorded)
    want = pattern(np.array(recorded), np.concatenate([w, u]), b, estimator)
    of_w, of_u = ja.fit_patterns(fn, x, estimator=estimator)
    close([of_w, of_u], [want[:4], want[4:]])
    close((w * of_w).sum(0) + (u * of_u).sum(0), np.ones(12))


def test_branches_are_fitted_to_the_examples_that_take_them():
    x, w1, w2 = draw(5, (N, 4), (4, 3), (4, 3))

    def fn(x):
        return jax.lax.cond(x[0] > 0, lambda x: x @ w1, lambda x: jnp.tanh(x @ w2), x)

    taken = x[:, 0] > 0
    found = ja.fit_patterns(fn, x)
    close(found[::-1], [pattern(x[taken], w1, 0, "relu"), pattern(x[~taken], w2, 0, "relu")])


@pytest.mark.slow
def test_normalisation_is_part_of_the_neuron():
    """A normalisation with running statistics around the weights can be folded into them."""
    x, w, scale, shift, b, v = draw(6, (N, 4), (4, 5), 5, 5, 4, (5, 3))

    def apart(x):
        return jax.nn.relu(-(((x / 255.0 + b) @ w) * scale + shift)) @ v

    def folded(x):
        return jax.nn.relu(x @ (w * -scale / 255) - (b @ w * scale + shift)) @ v

    patterns = ja.fit_patterns(apart, x)
    close(patterns, ja.fit_patterns(folded, x), 1e-6)
    for attribution in (False, True):
        got, want = (values(patterns, fn, x[0], 0, attribution) for fn in (apart, folded))
        close(got / np.abs(want).max(), want / np.abs(want).max())


@pytest.mark.slow
def test_layouts_of_the_weights():
    x, w, b = draw(7, (N, 2, 4), (2, 4, 3), 3)
    first, last = ja.fit_patterns(lambda x: jnp.stack([x[0] @ w[0], x[1] @ w[1]]) + b[None], x)
    close([first, last], [pattern(x[:, i], w[i], b, "relu") for i in (0, 1)])
    (left,) = ja.fit_patterns(lambda x: w[0].T @ x[0] + b, x)
    close(left, first.T)
    (heads,) = ja.fit_patterns(lambda x: jnp.einsum("hij,hi->hj", w, x) + b[None], x)
    close(heads, jnp.stack([first, last]))
    turned = w.transpose(2, 0, 1)
    (heads,) = ja.fit_patterns(lambda x: jnp.einsum("jhi,hi->jh", turned, x) + b[:, None], x)
    close(heads, jnp.stack([first, last]).transpose(2, 0, 1))


# Contractions that are not layers.


def attention(x, wq, wk, wv, wo):
    q, k, v = x @ wq, x @ wk, x @ wv
    return jnp.tanh(jax.nn.softmax(q @ k.T, -1) @ v).mean(0) @ wo


WITH_WEIGHTS = {
    "attention": (attention, [(5, 4), (4, 3), (4, 3), (4, 3), (3, 2)]),
    "lstm": (lambda x, w, u, v: lstm(w, u, 0.5)(x) @ v, [(5, 4), (4, 12), (3, 12), (3, 2)]),
    "weights in the carry": (
        lambda x, w, u, v: (
            jax.lax.scan(
                lambda c, row: ((c[0], c[1], jnp.tanh(row @ c[0] + c[2] @ c[1])), None),
                (w, u, jnp.zeros(3)),
                x,
            )[0][2]
            @ v
        ),
        [(5, 4), (4, 3), (3, 3), (3, 2)],
    ),
    "an average pool": (
        lambda x, w, v: (jax.nn.relu(x @ w).reshape(2, 3, 4).mean(1) * 0.5).ravel() @ v,
        [(6, 4), (4, 4), (8, 2)],
    ),
    "a mean and its sum": (
        lambda x, w, v: jnp.tanh(x.mean(0) @ w + x.sum(0) @ v),
        [(6, 4), (4, 2), (4, 2)],
    ),
    "residual": (lambda x, w, v: (x + jax.nn.relu(x @ w)) @ v, [4, (4, 4), (4, 2)]),
}


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.representatives("residual")
def test_weights_as_patterns_give_the_gradient(name):
    fn, shapes = WITH_WEIGHTS[name]
    x, *weights = map(jnp.asarray, draw(8, *shapes))
    score, slope = jax.value_and_grad(lambda x: fn(x, *weights)[1])(x)
    close(values(weights, lambda x: fn(x, *weights), x, 1), score * slope)
    ones = [np.ones(w.shape) for w in weights]
    close(values(ones, lambda x: fn(x, *weights), x, 1, attribution=True), score * slope)


@pytest.mark.slow
def test_named_intermediate():
    x, w, v = draw(9, (N, 4), (4, 5), (5, 3))
    hidden = np.tanh(x @ w)
    fn = lambda x, s: s * jnp.tanh(ja.tag(jnp.tanh(x @ w), "hidden") @ v)  # noqa: E731
    rest = lambda h, s: s * jnp.tanh(h @ v)  # noqa: E731
    scale = np.linspace(1, 2, N)
    patterns = ja.fit_patterns(fn, x, args=(scale,), at="hidden")
    close(patterns, ja.fit_patterns(rest, hidden, args=(scale,)))
    assert len(patterns) == 1
    options = {"patterns": patterns, "args": (scale,)}
    got = ja.explain(ja.pattern_net, fn, x, 1, at="hidden", **options)
    close(got.values, ja.explain(ja.pattern_net, rest, hidden, 1, **options).values)


# Numerics.


@pytest.mark.slow
def test_patterns_are_independent_of_batch_size_and_jit(dense):
    fn, x, *_ = dense
    want = ja.fit_patterns(fn, x)
    for size in (1, 7, 1000):
        close(ja.fit_patterns(fn, x, batch_size=size), want, 1e-12)
    close(jax.jit(lambda x: ja.fit_patterns(fn, x))(x), want, 1e-12)


def test_patterns_are_stable_for_large_means():
    x, w = (a.astype(np.float32) for a in draw(10, (500, 4), (4, 3)))
    (near,) = ja.fit_patterns(lambda x: x @ w, x, estimator="linear")
    (far,) = ja.fit_patterns(lambda x: x @ w, x + 100, estimator="linear")
    assert far.dtype == np.float32
    close(far, near, 1e-3)


def test_constant_neurons_have_zero_patterns():
    x, w = draw(11, (N, 4), (4, 3))
    (found,) = ja.fit_patterns(lambda x: x @ w - jnp.array([0.0, 1e3, 0.0]), x)
    close(found[:, 1], np.zeros(4), 0)
    assert (np.abs(found[:, ::2]) > 1e-3).all()
    close(ja.fit_patterns(lambda x: x @ w, x[:1])[0], np.zeros((4, 3)), 0)


# Invalid arguments.


def test_patterns_of_another_network_raise(dense):
    fn, x, *_ = dense
    one = jnp.asarray(x[0])
    patterns = ja.fit_patterns(fn, x)
    for method in (ja.pattern_net, ja.pattern_attribution):
        with pytest.raises(ValueError, match=r"`patterns` are missing.*fit_patterns"):
            method(fn, one, 1)
        with pytest.raises(ValueError, match=r"this network.*\(5, 3\)\], got \[\(4, 6\)\]"):
            method(fn, one, 1, patterns=patterns[:1])
        with pytest.raises(ValueError, match=r"`patterns` must have .*got \[\(6, 4\), "):
            method(fn, one, 1, patterns=[p.T for p in patterns])


def scan_over_weights(x):
    weights = jnp.ones((3, 4, 4))
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


def while_loop_over_data(x):
    return jax.lax.while_loop(lambda h: h.sum() < 9.0, lambda h: jnp.tanh(h) + 1.0, x) @ np.eye(4)


@pytest.mark.parametrize(
    "fn, xs, options, error, message",
    [
        (scan_over_weights, np.ones((2, 4)), {}, ValueError, "different weights at each step"),
        (while_loop_over_data, np.ones((2, 4)), {}, ValueError, "`while`.*depends on the data"),
        (jnp.tanh, np.ones((0, 4)), {}, ValueError, "`xs` must hold at least one example"),
        (jnp.tanh, np.ones((2, 4)), {"estimator": "rleu"}, ValueError, "estimator.*rleu"),
        (jnp.tanh, np.full((2, 4), np.nan), {}, ValueError, "`xs` holds 8 NaN"),
        (jnp.tanh, np.ones((2, 4)), {"batch_size": 0}, ValueError, "batch_size"),
        (jnp.exp2, np.ones((2, 4), int), {}, TypeError, "floating-point numbers for patterns"),
        (jax.lax.stop_gradient, np.ones((2, 4)), {}, ValueError, "no differentiable path"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_fits_raise(fn, xs, options, error, message):
    with pytest.raises(error, match=message):
        ja.fit_patterns(fn, xs, **options)
