"""Coalitions of windows of time that share the states of loops, against whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.engine.coalition_reuse import window_game
from jaxattn.engine.coalitions import Game
from jaxattn.engine.feature_groups import feature_groups
from jaxattn.jaxpr.flops import count_equations

T, D, H = 12, 2, 3
KEY = jax.random.key(0)
rng = np.random.default_rng(0)
W, U, V = (np.asarray(rng.normal(size=s), np.float32) for s in [(D, H), (H, H), (H, H)])
X = np.asarray(rng.normal(size=(T, D)), np.float32)


def scan(x, weights=W, reverse=False):
    """Return the last hidden state of a tanh network, and all of them."""

    def advance(h, row):
        h = jnp.tanh(row @ weights + h @ U)
        return h, h

    return jax.lax.scan(advance, jnp.zeros(H), x, reverse=reverse)


def counted(x):
    """Return a score of a network that counts its steps: a carry that does not change."""

    def advance(carry, row):
        count, h = carry
        return (count + 1, jnp.tanh(row @ W + h @ U) * jnp.cos(count)), None

    return jax.lax.scan(advance, (0.0, jnp.zeros(H)), x)[0][1].sum()


def both(x):
    return scan(x)[1] + scan(x, reverse=True)[1]


def states_and_outputs(x):
    """Return two outputs of one loop for each step."""

    def advance(h, row):
        h = jnp.tanh(row @ W + h @ U)
        return h, (h, h * row.sum())

    return jax.lax.scan(advance, jnp.zeros(H), x)[1]


def second_loop(x):
    """Return the last state of a loop that reads two outputs of another one."""

    def advance(h, rows):
        return jnp.tanh(rows[0] @ V + h @ U - rows[1]), None

    return jax.lax.scan(advance, jnp.zeros(H), states_and_outputs(x))[0].sum()


NETWORKS = {
    "forward": lambda x: scan(x)[0].sum(),
    "reverse": lambda x: scan(x, reverse=True)[0].sum(),
    "flipped": lambda x: scan(2 * x[::-1])[0].sum(),
    "hidden states": lambda x: (scan(x)[1] ** 2).mean(),
    "two layers": lambda x: scan(jnp.maximum(scan(x)[1], 0) * 3, V)[0].sum(),
    "residual": lambda x: scan(scan(x)[1] + x @ W, V)[0].sum(),
    "bidirectional": lambda x: scan(x)[0].sum() * scan(x, reverse=True)[0].sum() + x.sum(),
    "two bidirectional layers": lambda x: scan(both(x), V)[0].sum(),
    "counted": counted,
    "product of two outputs": lambda x: jnp.prod(jnp.stack(states_and_outputs(x)), 0).sum(),
    "second loop reads two outputs": second_loop,
}
#: Windows of several lengths, whose ids are not in the order of time.
GROUPS = np.repeat([7, 3, 5, 1], [2, 5, 1, 4])[:, None]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.representatives("7-flipped")
def test_shared_states_change_no_value(name, batch_size):
    fn, options = NETWORKS[name], {"groups": GROUPS, "baseline": 0.3, "batch_size": batch_size}
    for method in (ja.shapley_values, ja.shapley_value_sampling, ja.kernel_shap):
        draws = {} if method is ja.shapley_values else {"key": KEY, "num_samples": 4}
        shared = method(fn, X, **options, **draws)
        whole = method(fn, X, reuse=False, **options, **draws)
        np.testing.assert_allclose(shared.values, whole.values, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["forward", "reverse", "bidirectional", "two layers"])
@pytest.mark.representatives("forward")
def test_nested_and_enumerated_coalitions_take_fewer_operations(name):
    x, score_of = jnp.asarray(X), lambda x: (NETWORKS[name](x), ())
    game = Game(score_of, x, 0 * x, feature_groups(x, ja.groups.windows(X.shape, 1)))
    windows = window_game(game)
    assert windows is not None
    assert windows._pays(lambda way: [(i, i + 1, i + 2) for i in range(T)], T + 1)
    assert windows._pays(lambda way: [(i, i + 1, 2 ** (i + 1)) for i in range(T)], 2**T)
    # Without shared states there are still only two projections of each row.
    assert windows._pays(lambda way: [(0, T, 100)], 100)
    assert not windows._pays(lambda way: [(0, T, 101)], 50)


def test_work_does_not_depend_on_evaluations_in_flight():
    """Coalitions share the same states, however many of them are in flight."""
    weights, recurrent = np.ones((D, 64), np.float32), np.ones((64, 64), np.float32)

    def fn(x):
        def advance(h, row):
            return jnp.tanh(row @ weights + h @ recurrent), None

        return jax.lax.scan(advance, jnp.zeros(64), x)[0].sum()

    def flops(method, batch_size, **options):
        options |= {"key": KEY, "groups": ja.groups.windows(X.shape, 1), "batch_size": batch_size}
        closed = jax.make_jaxpr(lambda x: method(fn, x, **options).values)(X)
        return count_equations(closed.jaxpr.eqns)

    for method, samples in (ja.shapley_value_sampling, 8), (ja.kernel_shap, 200):
        few, many = (flops(method, size, num_samples=samples) for size in (26, 400))
        assert many <= few <= 1.1 * many  # the last chunk may repeat coalitions
        assert few < 0.8 * flops(method, 400, num_samples=samples, reuse=False)


def test_nothing_is_shared_without_windows_or_loops():
    x = jnp.asarray(X)
    for fn, groups in (
        (NETWORKS["forward"], ja.groups.channels(X.shape)),
        (NETWORKS["forward"], None),
        (NETWORKS["two bidirectional layers"], np.arange(T)[:, None] % 3),
        (lambda x: x.sum(), ja.groups.windows(X.shape, 2)),
    ):
        game = Game(lambda x, fn=fn: (fn(x), ()), x, 0 * x, feature_groups(x, groups))
        assert window_game(game) is None


@pytest.mark.slow
def test_gradients_of_values_with_shared_states():
    def total(x, reuse):
        values = ja.shapley_values(NETWORKS["forward"], x, groups=GROUPS, reuse=reuse).values
        return jnp.sin(values).sum()

    shared, whole = (jax.grad(total)(jnp.asarray(X), reuse) for reuse in (True, False))
    np.testing.assert_allclose(shared, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "method", [ja.shapley_values, ja.shapley_value_sampling, ja.kernel_shap, ja.lime]
)
def test_reuse_must_be_a_bool(method):
    with pytest.raises(TypeError, match="`reuse` must be a bool"):
        method(NETWORKS["forward"], X, groups=GROUPS, key=KEY, reuse="no")


@pytest.mark.slow
def test_events_share_states():
    """The events that cannot be apart are one window."""
    options = {"key": KEY, "max_events": 4, "tolerance": 0.0}
    fn = NETWORKS["bidirectional"]
    got = ja.time_shap(fn, X, **options)
    groups = np.maximum(np.arange(T) - T + 5, 0)[:, None]
    want = ja.shapley_values(fn, X, groups=groups, reuse=False)
    np.testing.assert_allclose(got.info["groups"], want.info["groups"], rtol=0, atol=1e-5)
    old = [fn(jnp.where(jnp.arange(T)[:, None] < t, X, 0)) for t in range(8, 13)]
    new = [fn(jnp.where(jnp.arange(T)[:, None] >= t, X, 0)) for t in range(8, 13)]
    pruning = [(old[i] - new[4] + old[4] - new[i]) / 2 for i in range(4)]
    np.testing.assert_allclose(got.info["pruning"], pruning, rtol=0, atol=1e-5)
