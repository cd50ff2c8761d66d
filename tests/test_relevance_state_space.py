"""Relevance of state-space models, and of intermediates that are constants for relevance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import state_space as models
from relevance_reference import compiled

import jaxattn as ja

MAMBA = {"constants": ("dt", "B", "C"), "products": "half"}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def inputs(seed=3):
    return models.draw(models.T, models.D, seed=seed)


def relevance(fn, x=None, **options):
    """Return the relevance by LRP-0, which with what is absorbed sums to the score."""
    found = compiled(lambda x: ja.lrp(fn, x, **{"rule": "z"} | options))(
        inputs() if x is None else x
    )
    total = found.values.sum() + found.info["absorbed"]
    np.testing.assert_allclose(total, found.output, rtol=1e-10)
    return found


@pytest.mark.slow
@pytest.mark.representatives("0.0")
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_mamba_equals_its_reference(bias):
    model = functools.partial(models.mamba, bias=bias)
    found = relevance(model, **MAMBA)
    score, want = models.reference(model, inputs())
    np.testing.assert_allclose(found.output, score, rtol=1e-12)
    np.testing.assert_allclose(found.values, want, rtol=1e-8, atol=1e-12)
    if not bias:
        np.testing.assert_allclose(found.values.sum(), score, rtol=1e-10)


@pytest.mark.slow
def test_mamba_in_a_batch_and_from_a_layer():
    def model(x):
        return models.mamba(ja.tag(2.0 * x, "embedding"))

    xs = jnp.stack([inputs(3), inputs(4)])
    found = ja.explain(ja.lrp, model, xs, rule="z", **MAMBA).values
    for x, values in zip(xs, found, strict=True):
        np.testing.assert_allclose(values, relevance(model, x, **MAMBA).values, rtol=1e-8)
    below = ja.lrp(model, xs[0], at="embedding", rule="z", **MAMBA).values
    np.testing.assert_allclose(below, found[0], rtol=1e-8)


@pytest.mark.slow
def test_two_signals_name_the_way_out():
    with pytest.raises(ValueError, match=r"combines two signals.*constants"):
        relevance(models.mamba)
    # The line of code is known although the named values were replaced.
    with pytest.raises(ValueError, match=r"state_space.py, line \d+.*combines"):
        relevance(models.mamba, constants="B")
    with pytest.raises(ValueError, match=r"constants: .*no intermediate 'Q'.*\['dt', 'B', 'C'\]"):
        relevance(models.mamba, constants=("B", "Q"))
    for constants in (3, (3,)):
        with pytest.raises(TypeError, match="`constants` must be a name or a sequence of names"):
            relevance(models.mamba, constants=constants)


OPTIONS = {
    "slstm": {"constants": ("i", "f")},
    "mlstm": {"constants": ("i", "f", "q", "k")},
    "rwkv": {"constants": "k"},
    "retnet": {"constants": ("q", "k"), "products": "half"},
    "min_gru": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.representatives("mlstm", "min_gru")
def test_gated_linear_recurrences_equal_their_references(name):
    model = getattr(models, name)
    found = relevance(model, **OPTIONS[name])
    score, want = models.reference(model, inputs())
    np.testing.assert_allclose(found.output, score, rtol=1e-12)
    np.testing.assert_allclose(found.values, want, rtol=1e-8, atol=1e-11)
    assert abs(want).max() > 1e-2
    if OPTIONS[name]:
        with pytest.raises(ValueError, match=r"state_space.py, line \d+.*two signals.*constants"):
            relevance(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slstm", "mlstm", "rwkv", "retnet"])
def test_products_of_signals_conserve_relevance(name):
    for products in ("half", "proportional"):
        found = relevance(getattr(models, name), products=products)
        assert abs(found.values).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slstm", "mlstm", "min_gru", "min_gru_in_logarithms"])
@pytest.mark.representatives("mlstm", "min_gru_in_logarithms")
def test_deep_lift_sums_to_the_difference(name):
    model, baseline = getattr(models, name), inputs(5)
    found = compiled(lambda x: ja.deep_lift(model, x, baseline=baseline))(inputs())
    difference = found.output - compiled(model)(baseline)
    np.testing.assert_allclose(found.values.sum(), difference, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["all", "half", "proportional"])
def test_a_recurrence_of_logarithms_equals_the_recurrence(gates):
    """Relevance of a logarithm is that of its exponential, divided as in a sum of exponentials."""
    want = relevance(models.min_gru, gates=gates)
    found = relevance(models.min_gru_in_logarithms, gates=gates)
    np.testing.assert_allclose(found.values, want.values, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.info["absorbed"], want.info["absorbed"], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cumulative",
    [
        jax.lax.cumlogsumexp,
        functools.partial(jax.lax.associative_scan, jnp.logaddexp),
    ],
    ids=["cumlogsumexp", "associative scan"],
)
def test_a_parallel_scan_of_logarithms_equals_the_recurrence(cumulative):
    want = relevance(models.min_gru)
    found = relevance(lambda x: models.min_gru_in_parallel(x, cumulative))
    np.testing.assert_allclose(found.values, want.values, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.info["absorbed"], want.info["absorbed"], rtol=1e-8)


def test_an_associative_scan_equals_the_recurrence():
    def combine(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    def rows(x):
        z, v = models.projections(x)
        return ja.tag(jax.nn.sigmoid(-z), "f"), jax.nn.sigmoid(z) * jnp.tanh(v)

    def in_order(x):
        step = lambda h, row: (row[0] * h + row[1],) * 2  # noqa: E731
        return models.readout(models.over_time(step, jnp.zeros(models.E), rows(x)))

    def in_parallel(x):
        return models.readout(jax.lax.associative_scan(combine, rows(x))[1])

    want = relevance(in_order, constants="f").values
    np.testing.assert_allclose(relevance(in_parallel, constants="f").values, want, rtol=1e-8)


def test_sums_of_logarithms_that_are_read_as_such_are_sums():
    p, q = (lambda x: jax.nn.softplus(x[0])), (lambda x: jnp.exp(jnp.tanh(x[1])))
    found = relevance(lambda x: (jnp.log(p(x)) + jnp.log(q(x))).sum())
    np.testing.assert_allclose(found.values[0], jnp.log(p(inputs())), rtol=1e-10)
    np.testing.assert_allclose(found.values[1], jnp.log(q(inputs())), rtol=1e-10)


W = np.random.default_rng(0).normal(size=(2, 3, 3))


def scopes(x):
    """Two layers with paths, and a product of their outputs."""
    with jax.named_scope("block/left"):
        left = x @ W[0]
    with jax.named_scope("block/right"):
        right = jnp.tanh(x @ W[1])
    return (left * right).sum()


@pytest.mark.slow
@pytest.mark.parametrize("names", ["block/left", "left", ["*/left"], ("*left", "block/left")])
def test_layers_and_patterns_are_constants(names):
    x = inputs()
    left = x @ W[0]
    want = relevance(lambda x: (left * jnp.tanh(x @ W[1])).sum()).values
    np.testing.assert_allclose(relevance(scopes, constants=names).values, want, rtol=1e-10)


COMBINATIONS = {
    "concatenated": lambda x, c: jnp.concatenate([x @ W[0], c]) @ W[1],
    "added": lambda x, c: jnp.tanh(x @ W[0]) + c,
    "divided by": lambda x, c: jnp.tanh(x @ W[0]) / c,
    "dividing": lambda x, c: c / (1 + jnp.exp(x @ W[0])),
    "to the power": lambda x, c: jnp.abs(jnp.tanh(x @ W[0])) ** c,
    "selected": lambda x, c: jnp.where(c > 0, x @ W[0], c),
    "contracted": lambda x, c: jnp.tanh(x @ W[0]) @ c.T,
    "written into": lambda x, c: jax.lax.dynamic_update_slice(c, (x @ W[0])[:2], (1, 0)),
    "larger of two": lambda x, c: jnp.maximum(x @ W[0], c),
    "scanned": lambda x, c: jax.lax.scan(
        lambda h, row: (row[0] * h + row[1] @ W[0], h), jnp.zeros(3), (c, jnp.tanh(x @ W[1]))
    )[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_constant_is_like_an_array_of_its_values(name):
    combine = COMBINATIONS[name]
    named = relevance(lambda x: combine(x, ja.tag(x @ W[1] + 1, "c")).sum(), constants="c")
    values = inputs() @ W[1] + 1
    closed = relevance(lambda x: combine(x, values).sum())
    np.testing.assert_allclose(named.values, closed.values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(named.info["absorbed"], closed.info["absorbed"], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["all", "half", "proportional"])
@pytest.mark.parametrize("activation", [jax.nn.silu, jax.nn.gelu, jax.nn.mish, jax.nn.softplus])
def test_activations_that_are_products_pass_relevance_on(activation, gates):
    found = ja.lrp(activation, jnp.asarray(-0.3), gates=gates)
    np.testing.assert_allclose(found.values, activation(-0.3), rtol=1e-12)
    assert found.info["absorbed"] == 0


def test_functions_of_two_signals_are_refused_by_name():
    refusal = r"no rule for `atan2` .*, line \d+.*2 signals.*`constants`"
    with pytest.raises(ValueError, match=refusal):
        relevance(lambda x: jnp.arctan2(x[0] @ W[0], x[1] @ W[1]).sum())
