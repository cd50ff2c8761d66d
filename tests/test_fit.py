"""Feature importance in time: the true Gaussian, the peer's numbers, and windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_network import X, peer_network

import jaxattn as ja

T, D = 4, 3
MEAN = np.array([0.3, -0.2, 0.5])
COVARIANCE = np.array([[1.0, 0.5, 0.2], [0.5, 2.0, -0.3], [0.2, -0.3, 0.5]])
W = np.array([1.0, -0.5, 2.0])
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def constant(x, key):
    """Return one Gaussian for all steps."""
    return jnp.tile(MEAN, (x.shape[0], 1)), jnp.tile(COVARIANCE, (x.shape[0], 1, 1))


def persistent(scale):
    """Return a generator of half of the last step, with a multiple of the covariance."""

    def generator(x, key):
        return 0.5 * x, scale * jnp.tile(COVARIANCE, (x.shape[0], 1, 1))

    return generator


def opaque(fn):
    """Return the same function in a form that is not known to be causal."""
    return lambda x, *args: jax.tree.map(lambda y: y[::-1][::-1], fn(x[::-1][::-1], *args))


def divergence(first, second):
    """Return that of Bernoulli distributions with these logits."""
    p, q = (1 / (1 + np.exp(-np.asarray(z))) for z in (first, second))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_true_gaussian_equals_the_integral(x):
    """The logit is linear, so given one feature it is Gaussian: integrate by Gauss-Hermite."""
    number = 4000
    options = {"generator": constant, "per_step": True, "num_samples": number}
    got = ja.fit(lambda x: x @ jnp.asarray(W), x, key=jax.random.key(0), **options)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights /= weights.sum()
    logits = np.asarray(x @ W)
    for t in range(1, T):
        shift = divergence(logits[t], logits[t - 1])
        close(got.info["shift"][t], shift)
        for i in range(D):
            gain = COVARIANCE[:, i] / COVARIANCE[i, i]
            mean = W @ (MEAN + gain * (float(x[t, i]) - MEAN[i]))
            rest = COVARIANCE - np.outer(gain, COVARIANCE[i])
            each = divergence(logits[t], mean + np.sqrt(W @ rest @ W) * nodes)
            expected = weights @ each
            error = np.sqrt(weights @ (each - expected) ** 2 / number)
            assert abs(got.info["importance"][t, i] - (shift - expected)) < 4 * error
    close(got.values, 2 / (1 + np.exp(-5 * got.info["importance"])) - 1)
    close(got.values[0], 0, 0)


def test_values_equal_those_of_time_interpret():
    """With a narrow Gaussian the draws are its conditional means."""
    options = {"generator": persistent(1e-20), "per_step": True, "num_samples": 1}
    got = ja.fit(peer_network, X, key=jax.random.key(0), **options)
    want = [
        [0, 0, 0],
        [0.033959733, 0.05584262, 0.0816064586],
        [0.2679801784, 0.2711468788, 0.2808843762],
        [0.5419361299, 0.5036063253, 0.454349233],
    ]
    close(got.values, want, 1e-8)


def last_logits(x, length):
    return peer_network(x)[length - 1]


@pytest.mark.parametrize("method", [ja.fit, ja.windowed_fit])
@pytest.mark.representatives("windowed_fit")
def test_all_kinds_of_prefixes_agree(method):
    options = {"generator": persistent(1.0), "key": jax.random.key(1), "num_samples": 2}
    options |= {"window": 3} if method is ja.windowed_fit else {}
    want = method(peer_network, X, per_step=True, **options).values
    assert np.abs(want[1:]).max() > 0.01
    close(method(opaque(peer_network), X, per_step=True, batch_size=5, **options).values, want)
    lengths = {"args": (jnp.int32(T),), "length_arg": 0}
    close(method(last_logits, X, **lengths, **options).values, want)


def test_windowed_values_are_differences_of_divergences():
    """Against plain loops over starts, features and offsets, with a deterministic generator."""
    window, x = 3, np.asarray(X)
    network = jax.jit(peer_network)
    clean = np.asarray(network(x))
    by_start = np.zeros((window, T + 1, D))
    for start in range(1, T):
        for i in range(D):
            replaced = x.copy()
            for offset in range(min(window, T - start)):
                t = start + offset
                replaced[t, i] = 0.5 * replaced[t - 1, i]
                logits = np.asarray(network(replaced))
                margins = clean[t, 1] - clean[t, 0], logits[t, 1] - logits[t, 0]
                by_start[offset, start, i] = divergence(*margins)
    want = np.zeros((T, D))
    for start in range(1, T):
        offsets = range(min(window, T - start))
        later = [by_start[w - 1, start + 1] if w else 0 for w in offsets]
        want[start] = np.mean(
            [by_start[w, start] - b for w, b in zip(offsets, later, strict=True)], axis=0
        )
    options = {"generator": persistent(1e-20), "per_step": True, "num_samples": 1, "window": window}
    got = ja.windowed_fit(peer_network, X, key=jax.random.key(0), **options)
    close(got.info["divergence"], by_start[:, :T], 1e-8)
    close(got.values, want, 1e-8)


@pytest.mark.slow
def test_padding_has_no_importance():
    """The network holds its state at padded steps."""

    def fn(x, length):
        def advance(h, row_and_step):
            row, step = row_and_step
            h = jnp.where(step < length, jnp.tanh(h + row), h)
            return h, h[:2]

        steps = jnp.arange(T, dtype=length.dtype)
        return jax.lax.scan(advance, jnp.zeros(D), (x, steps))[1]

    xs = jnp.stack([X, X])
    options = {"generator": constant, "per_step": True, "key": jax.random.key(0)}
    got = ja.explain(ja.fit, fn, xs, args=(jnp.array([T, 2]),), **options).values
    close(got[1, 2:], 0, 0)
    close(got[1, 0], 0, 0)
    assert (got[1, 1] != 0).any()


GENERATOR = "`generator` must return arrays of shapes"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": None}, ValueError, "`key` is missing: fit draws observations"),
        ({"generator": None}, ValueError, "`generator` is missing"),
        ({"generator": 3}, TypeError, "`generator` must be callable, got int"),
        ({"generator": lambda x, key: (x, x)}, ValueError, GENERATOR),
        ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1, got 0"),
        ({"x": np.ones((T, D, 1))}, ValueError, r"`x` must be one series of shape \(T, D\)"),
        ({"x": np.ones((T, D), np.int32)}, TypeError, "`x` must hold floating-point numbers"),
        ({"fn": lambda x: jax.nn.softmax(x)}, ValueError, "`fn` must return logits, got the"),
        ({"fn": lambda x: x[..., None]}, ValueError, "`fn` must return a vector of logits"),
    ],
)
def test_wrong_arguments(options, error, message, x):
    call = {"fn": lambda x: x, "x": x, "key": jax.random.key(0), "generator": constant}
    with pytest.raises(error, match=message):
        ja.fit(**call | {"per_step": True} | options)


def test_window_longer_than_the_series(x):
    with pytest.raises(ValueError, match="`window` must be at most 4, the number of steps, got 5"):
        ja.windowed_fit(
            lambda x: x, x, key=jax.random.key(0), generator=constant, per_step=True, window=5
        )


def test_padded_steps_have_no_part_in_windows():
    """A narrow Gaussian draws the same for all lengths."""
    options = {"generator": persistent(1e-20), "key": jax.random.key(0), "num_samples": 1}
    options |= {"window": 3, "args": (jnp.int32(3),), "length_arg": 0}
    got = ja.windowed_fit(last_logits, X, **options).values
    close(got[:3], ja.windowed_fit(last_logits, X[:3], **options).values, 1e-8)
    close(got[3:], 0, 0)


def test_padded_outputs_have_no_importance():
    def fn(x, length):
        return jnp.where(jnp.arange(5) < length, jnp.cumsum(x[:, 0]), 0.0)

    options = {"generator": persistent(1.0), "key": jax.random.key(0), "length_arg": 0}
    x = jnp.arange(15.0).reshape(5, 3) / 15
    got = ja.fit(fn, x, args=(3,), per_step=True, num_samples=1, **options)
    assert got.values[1:3].all()
    close(got.values[3:], 0, 0)
    close(got.info["shift"][3:], 0, 0)
