"""The Jacobian: forward and reverse mode agree with a loop over outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn.engine.callable import as_function
from jaxattn.jaxpr.reuse.reuse_plan import Traced
from jaxattn.methods.stepwise import Stepwise

T, D, H, K = 5, 3, 4, 2
MODES = ["auto", "forward", "reverse"]
pytestmark = pytest.mark.usefixtures("x64")


def classifier(**options):
    rngs = nnx.Rngs(0)
    return ja.models.SequenceClassifier(D, H, K, param_dtype=jnp.float64, rngs=rngs, **options)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=atol), got, want)


def by_loop(fn, x, shape):
    """Return the Jacobian row by row, one gradient per output."""
    row = jax.jit(jax.grad(lambda x, i: fn(x).ravel()[i]))
    return np.stack([row(x, i) for i in range(np.prod(shape))]).reshape(*shape, *x.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("readout", ["last", "steps"])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.representatives("None-steps-auto", "None-last-reverse", "4-steps-forward")
def test_every_mode_equals_a_loop(mode, readout, batch_size, x):
    model = classifier(bidirectional=True, readout=readout)
    shape = (K,) if readout == "last" else (T, K)
    got = ja.jacobian(model, x, mode=mode, batch_size=batch_size)
    assert got.values.shape == (*shape, T, D)
    close(got.values, by_loop(model, x, shape))
    close(got.output, model(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.representatives("reverse")
def test_causal_network_has_zeros_for_future_steps(mode, x):
    values = np.asarray(ja.jacobian(classifier(readout="steps"), x, mode=mode).values)
    future = np.arange(T)[:, None] < np.arange(T)
    by_steps = values.transpose(0, 2, 1, 3)
    assert (by_steps[future] == 0).all()
    assert (by_steps[~future] != 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.representatives("auto")
def test_pytrees_of_outputs_over_pytrees_of_inputs(mode):
    a, b = jnp.arange(1.0, 3.0), jnp.array(5.0)

    def fn(x):
        return (x["a"] ** 2 * x["b"], {"sum": x["a"].sum()})

    x = {"a": a, "b": b, "n": jnp.arange(3, dtype=jnp.int32)}
    got = ja.jacobian(fn, x, mode=mode).values
    squares = {"a": jnp.diag(2 * a * b), "b": a**2, "n": jnp.zeros((2, 3))}
    total = {"a": jnp.ones(2), "b": jnp.zeros(()), "n": jnp.zeros(3)}
    assert jax.tree.structure(got) == jax.tree.structure((squares, {"sum": total}))
    close(got, (squares, {"sum": total}))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.representatives("reverse", "auto")
def test_jacobian_of_a_target_is_the_gradient(mode, x):
    model = classifier()
    got = ja.jacobian(model, x, 1, mode=mode)
    close(got.values, ja.gradient(model, x, 1).values)
    pair = ja.jacobian(model, x, lambda out: out[0] * out[1], mode=mode)
    close(pair.values, jax.grad(lambda x: jnp.prod(model(x)))(x))


def test_auto_selects_the_cheaper_mode():
    def same_flops(inputs, outputs):
        def fn(x):
            inner = jnp.tanh(jnp.ones((20, inputs)) @ x)
            return jnp.sin(jnp.ones((outputs, 20)) @ inner)

        def flops(mode):
            compiled = jax.jit(lambda x: ja.jacobian(fn, x, mode=mode).values).lower(x).compile()
            return compiled.cost_analysis()["flops"]

        x = jnp.ones(inputs)
        return [flops("auto") == flops(mode) for mode in MODES[1:]]

    assert same_flops(2, 5) == [True, False]
    assert same_flops(5, 2) == [False, True]


def test_batch_matches_vmapped_jacrev(x):
    model = classifier()
    xs = jnp.stack([x, x[::-1], -x])
    close(ja.explain(ja.jacobian, model, xs).values, jax.vmap(jax.jacrev(model))(xs))


@pytest.mark.representatives("7-options1-forward")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "cell": "gru"}])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_reuse_preserves_values(mode, options, batch_size):
    model = classifier(readout="steps", **options)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(17, D)))
    values = ja.jacobian(model, x, mode=mode, batch_size=batch_size).values
    plain = ja.jacobian(model, x, mode=mode, reuse=False)
    close(values, plain.values)
    pairs = ja.jacobian(model, x, mode=mode, batch_size=batch_size, reduction="norm")
    close(pairs.values, np.sqrt((plain.values**2).sum((1, 3))))
    close(pairs.output, plain.output)


def test_reuse_computes_only_the_causal_half():
    model = as_function(classifier(readout="steps"))
    x = jnp.ones((64, D))
    output, pullback = jax.vjp(model, x)
    found = Stepwise.of(lambda ct: pullback(ct)[0], output, None)
    plain = Traced.of(lambda ct: pullback(ct)[0], output).flops * output.size
    assert 0.5 < found.flops / plain < 0.6  # above a half because groups share their first step


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.slow
def test_norm_is_differentiable_at_zero(reuse):
    model, x = classifier(readout="steps"), jnp.ones((6, D))

    def norm(x):
        return ja.jacobian(model, x, reduction="norm", reuse=reuse).values.sum()

    def plain(x):
        by_steps = jax.jacrev(model)(x).transpose(0, 2, 1, 3)
        return jnp.sqrt(jnp.square(by_steps[np.tril_indices(6)]).sum((1, 2))).sum()

    close(jax.grad(norm)(x), jax.grad(plain)(x))


def test_reverse_mode_supports_custom_vjp():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, ct: (2 * ct,))
    x = jnp.arange(6.0).reshape(3, 2)
    values = ja.jacobian(lambda x: jnp.concatenate([double(x), x], 1), x, mode="reverse").values
    assert values.shape == (3, 4, 3, 2) and float(values.sum()) == 18


@pytest.mark.parametrize(
    "fn, x, options, message",
    [
        (lambda x: x, np.ones((4, 2)), {"reduction": "mean"}, '`reduction` must be "norm"'),
        (
            lambda x: x.sum(),
            np.ones((4, 2)),
            {"reduction": "norm"},
            "`reduction` must be None unless",
        ),
        (
            lambda x: (x, x),
            np.ones((4, 2)),
            {"reduction": "norm"},
            "`reduction` must be None unless",
        ),
        (
            lambda x: x,
            np.ones((4, 2)),
            {"reduction": "norm", "target": (0, 1)},
            "`reduction` must be None",
        ),
    ],
)
def test_reduction_without_time_steps_raises(fn, x, options, message):
    with pytest.raises(ValueError, match=message):
        ja.jacobian(fn, x, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "forward"])
@pytest.mark.representatives("auto")
def test_while_loop_uses_forward_mode(mode, x):
    def fn(x):
        count = jnp.where(x[0, 0] > 100, 2, 3)
        rows = jax.lax.fori_loop(0, count, lambda _, rows: jnp.tanh(rows), x)
        return jnp.concatenate([rows, 2 * rows])

    close(ja.jacobian(fn, x, mode=mode).values, jax.jacfwd(fn)(x))
    norms = ja.jacobian(fn, x, mode=mode, reduction="norm").values
    close(norms, jnp.sqrt((jax.jacfwd(fn)(x) ** 2).sum((1, 3))))


@pytest.mark.parametrize("scale", [1e-180, 1.0, 1e180])
@pytest.mark.parametrize("reuse", [True, False])
def test_norms_do_not_overflow_or_underflow(scale, reuse, x):
    def fn(x):
        return jnp.cumsum(x, 0) * scale

    got = ja.jacobian(fn, x, reduction="norm", reuse=reuse).values
    np.testing.assert_allclose(got, scale * np.sqrt(D) * np.tri(T), rtol=1e-12)


def test_norms_in_half_precision(x):
    got = ja.jacobian(lambda x: jnp.cumsum(x, 0) * 300, x.astype(np.float16), reduction="norm")
    assert got.values.dtype == np.float16
    np.testing.assert_allclose(got.values, 300 * np.sqrt(D) * np.tri(T), rtol=1e-3)


def test_norms_propagate_nan(x):
    bad = ja.jacobian(
        lambda x: jnp.cumsum(x, 0) * jnp.array([[1, jnp.nan, 1]]), x, reduction="norm"
    )
    assert np.isnan(bad.values)[np.tri(T) > 0].all()


def test_norms_of_zero_steps():
    none = jnp.zeros((0, D))
    assert ja.jacobian(lambda x: x, none, reduction="norm").values.shape == (0, 0)


def _until_small(x):
    """More features than outputs, where rows would be fewer."""
    h = jax.lax.while_loop(lambda h: jnp.abs(h).max() > 0.3, lambda h: jnp.tanh(0.9 * h), x)
    return h.sum(1)[:2]


def _as_often_as_given(x):
    times = jnp.where(x[0, 0] > 9, 4, 3)
    return jax.lax.fori_loop(0, times, lambda _, h: jnp.sin(h) + 0.1 * h.sum(), x).sum(0)


def _inside_of_a_scan(x):
    def step(h, row):
        times = jnp.where(row[0] > 0, 2, 1)
        return jax.lax.fori_loop(0, times, lambda _, h: jnp.tanh(h + row.sum()), h), h

    return jax.lax.scan(step, jnp.zeros(()), x)[0]


@pytest.mark.parametrize("fn", [_until_small, _as_often_as_given, _inside_of_a_scan])
def test_auto_chooses_forward_mode_where_there_is_no_other(fn, x):
    got = ja.jacobian(fn, x)
    close(got.values, jax.jacfwd(fn)(x))
    close(got.output, fn(x))
    with pytest.raises(ValueError, match=r'`mode` must be "forward" or "auto" .* `while` loop'):
        ja.jacobian(fn, x, mode="reverse")


def test_norms_of_steps_through_a_while_loop(x):
    whole = jax.jacfwd(_until_small)(x)
    got = ja.jacobian(_until_small, x, reduction="norm").values
    close(got, np.linalg.norm(whole, axis=-1))


def test_while_loop_that_no_derivative_enters_keeps_reverse_mode(x):
    def fn(x):
        number = jax.lax.while_loop(lambda n: n < x[0, 0], lambda n: n + 1, 0.0)
        return jnp.sin(x.sum(1)) * jax.lax.stop_gradient(number + 1)

    want = jax.jacrev(fn)(x)
    for mode in MODES:
        close(ja.jacobian(fn, x, mode=mode).values, want)
