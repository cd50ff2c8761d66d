"""Softmaxes are found in every form in which they are written, and explained alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from relevance_reference import compiled

import jaxattn as ja
from jaxattn.jaxpr.flat import flatten
from jaxattn.jaxpr.structure.softmaxes import find_softmaxes

T, D = 5, 3
rng = np.random.default_rng(0)
X, Q, K = rng.normal(size=(T, D)), rng.normal(size=(D, D)), rng.normal(size=(D, D))
MASK = np.array([1, 0, 1, 1, 0]) > 0
EPS = 1e-12


@pytest.fixture(autouse=True)
def float64(x64):
    pass


def total(e, axis=-1):
    return e.sum(axis, keepdims=True)


def top(s):
    return s.max(-1, keepdims=True)


def divided(e, eps=EPS):
    return e / (total(e) + eps)


def renormalised(s):
    weights = jax.nn.softmax(s * MASK[None]) * MASK[None]
    return weights / (total(weights) + EPS)


PLAIN = {
    "stabiliser": lambda s: divided(jnp.exp(s)),
    "stabiliser, maximum": lambda s: divided(jnp.exp(s - jax.lax.stop_gradient(top(s)))),
    "maximum with a derivative": lambda s: divided(jnp.exp(s - top(s))),
    "exponential computed twice": lambda s: jnp.exp(s) / total(jnp.exp(s)),
    "constant shift": lambda s: divided(jnp.exp(s - 2.0)),
    "stopped shift": lambda s: divided(jnp.exp(s - jax.lax.stop_gradient(s[:, :1]))),
    "reciprocal": lambda s: jnp.exp(s) * (1 / total(jnp.exp(s))),
    "powers of 2": lambda s: jnp.exp2(s / np.log(2)) / total(jnp.exp2(s / np.log(2))),
    "powers of e": lambda s: (
        jnp.power(jnp.asarray(np.e, s.dtype), s) / total(jnp.power(jnp.asarray(np.e, s.dtype), s))
    ),
    "power of -1": lambda s: jnp.exp(s) * total(jnp.exp(s)) ** -1,
    "bounded sum": lambda s: jnp.exp(s) / jnp.maximum(total(jnp.exp(s)), EPS),
    "clipped sum": lambda s: jnp.exp(s) / jnp.clip(total(jnp.exp(s)), EPS, 1e30),
    "sum without zeros": lambda s: (
        jnp.exp(s) / jnp.where(total(jnp.exp(s)) == 0, 1.0, total(jnp.exp(s)))
    ),
    "axis added later": lambda s: jnp.exp(s) / jnp.exp(s).sum(-1)[:, None],
    "reshaped sum": lambda s: jnp.exp(s) / jnp.exp(s).sum(-1).reshape(-1, 1),
    "transposed": lambda s: (jnp.exp(s).T / jnp.exp(s).T.sum(0)[None]).T,
    "more axes": lambda s: divided(jnp.exp(s)[None, :, None, :])[0, :, 0],
    "logarithm of the sum": lambda s: jnp.exp(s - jnp.log(total(jnp.exp(s)))),
    "logsumexp": lambda s: jnp.exp(s - logsumexp(s, axis=-1, keepdims=True)),
    "logsumexp, axis added later": lambda s: jnp.exp(s - logsumexp(s, axis=-1)[:, None]),
    "log-softmax": lambda s: jnp.exp(jax.nn.log_softmax(s)),
    "unnormalised log-softmax": lambda s: divided(jnp.exp(jax.nn.log_softmax(s))),
    "named": lambda s: divided(ja.tag(jnp.exp(s), "exponentials")),
}
SCALED = {
    "temperature": lambda s: divided(jnp.exp(s / 0.5)),
    "temperature, maximum inside": lambda s: divided(jnp.exp((s - top(s)) / 0.5)),
    "factor first": lambda s: divided(jnp.exp(2.0 * (s - top(s)))),
}
MASKED = {
    "product": lambda s: divided(jnp.exp(s) * MASK[None]),
    "product computed twice": lambda s: jnp.exp(s) * MASK / (total(jnp.exp(s) * MASK) + EPS),
    "product with the sum masked": lambda s: MASK * (jnp.exp(s) / total(jnp.exp(s) * MASK)),
    "predicate": lambda s: divided(jnp.where(MASK, jnp.exp(s), 0.0)),
    "predicate of zeros": lambda s: divided(jnp.where(~MASK, 0.0, jnp.exp(s - top(s)))),
    "logits of -inf": lambda s: divided(jnp.exp(jnp.where(MASK, s, -jnp.inf))),
    "logits of -1e9, maximum": lambda s: (lambda z: divided(jnp.exp(z - top(z))))(
        jnp.where(MASK, s, -1e9)
    ),
    "sum over some": lambda s: jax.nn.softmax(s, where=MASK[None]),
    "renormalised": renormalised,
}


def attend(weights):
    """The scores are a product of queries and keys; attention weighs the rows."""
    return lambda x: (weights((x @ Q) @ (x @ K).T) @ jnp.tanh(x))[1].sum()


def found_in(weights):
    """Return the softmaxes of a function of scores (T, T)."""
    flat = flatten(jax.make_jaxpr(weights)(jnp.ones((T, T))))
    producers = {var: step for step in flat.steps for var in step.outputs}
    return find_softmaxes(flat, producers)


OPTIONS = {
    "cp_lrp": {},
    "attnlrp": {"attention": "attnlrp"},
    "gamma": {"attention": "attnlrp", "rule": "gamma"},
    "conserve_bias": {"attention": "attnlrp", "conserve_bias": True},
}


def compare(forms, reference, options, tolerance=1e-6):
    """Compare all forms with a reference, in one program."""
    forms = {"reference": reference, **forms}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        every = compiled(lambda x: {n: ja.lrp(attend(f), x, **options) for n, f in forms.items()})
        found = every(jnp.asarray(X))
    want = found["reference"].values
    for name, got in found.items():
        scale = abs(want).max()
        np.testing.assert_allclose(got.values, want, 0, tolerance * scale, err_msg=name)
        np.testing.assert_allclose(got.values.sum() + got.info["absorbed"], got.output, 1e-9)


REFERENCES = {
    "plain": (PLAIN, jax.nn.softmax),
    "scaled": (SCALED, lambda s: jax.nn.softmax(s / 0.5)),
    "masked": (MASKED, lambda s: jax.nn.softmax(jnp.where(MASK, s, -jnp.inf))),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.representatives("attnlrp-scaled")
def test_relevance_is_that_of_the_softmax_of_jax(kind, options):
    compare(*REFERENCES[kind], OPTIONS[options])


@pytest.mark.parametrize("form", PLAIN | SCALED | MASKED)
def test_every_form_is_found(form):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        *_, softmax = found_in((PLAIN | SCALED | MASKED)[form]).values()
    assert softmax.axes == (1,)
    assert softmax.logits.shape == (T, T)
    assert bool(softmax.masks) == (form in MASKED and not form.startswith("logits"))


NOT_SOFTMAXES = {
    "sum over another axis": lambda s: jnp.exp(s) / jnp.exp(s).sum(0)[:, None],
    "exponentials of another value": lambda s: jnp.exp(s) / total(jnp.exp(2 * s)),
    "powers of two bases": lambda s: jnp.exp(s) / total(jnp.exp2(s)),
    "reversed": lambda s: jnp.exp(s)[::-1] / total(jnp.exp(s)),
    "transposed": lambda s: jnp.exp(s).T / total(jnp.exp(s)),
    "masked in the sum only": lambda s: jnp.exp(s) / total(jnp.exp(s) * MASK),
    "no exponentials": lambda s: jnp.square(s) / total(jnp.square(s)),
    "sum of a part": lambda s: jnp.exp(s) / total(jnp.exp(s)[:, :3]),
    "sum in the numerator": lambda s: jnp.exp(s) * total(jnp.exp(s)),
}


@pytest.mark.parametrize("form", NOT_SOFTMAXES)
def test_other_quotients_are_no_softmaxes(form):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert not found_in(NOT_SOFTMAXES[form])


def test_axes_and_logits_are_those_before_layout():
    """The exponentials are transposed, and one axis is added, before they are divided."""
    (softmax,) = found_in(
        lambda s: (lambda e: e / e.sum(1, keepdims=True))(jnp.exp(s).T[None])
    ).values()
    assert softmax.axes == (1,)
    assert softmax.layout == (2, 1)
    assert not softmax.is_plain
    value = np.arange(T * T).reshape(1, T, T)
    np.testing.assert_array_equal(softmax.of_output(jnp.asarray(value)), value[0].T)


@pytest.mark.slow
def test_lengths_from_the_input_are_masks():
    """The first feature of the first row is the number of rows to attend to."""

    def attending(masked):
        def fn(x):
            known = jnp.arange(T) < jnp.round(x[0, 0])
            return (masked((x @ Q) @ (x @ K).T, known[None]) @ jnp.tanh(x))[1].sum()

        return fn

    x = jnp.asarray(X).at[0, 0].set(3.0)
    forms = [
        lambda s, known: jax.nn.softmax(jnp.where(known, s, -jnp.inf)),
        lambda s, known: divided(jnp.exp(s) * known.astype(s.dtype)),
        lambda s, known: jax.nn.softmax(s, where=known),
    ]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        every = compiled(lambda x: [ja.lrp(attending(f), x, attention="attnlrp") for f in forms])
        want, *got = every(x)
    for found in got:
        np.testing.assert_allclose(found.values, want.values, 0, 1e-6)
        np.testing.assert_allclose(found.values.sum() + found.info["absorbed"], found.output)
    assert not want.values[3:].any()
    assert want.values[:3].any(1).all()


def test_soft_masks_from_the_input_are_not_constants():
    """A factor that depends on the input is a second operand: the quotient is no softmax."""

    def fn(x):
        e = jnp.exp((x @ Q) @ (x @ K).T) * jax.nn.sigmoid(x @ Q[:, :1]).T
        return (divided(e) @ jnp.tanh(x))[1].sum()

    with pytest.raises(ValueError, match="combines two signals"):
        ja.lrp(fn, jnp.asarray(X))


def test_half_precision_between_exponentials_and_sum():
    def weights(s):
        e = jnp.exp(s).astype(jnp.bfloat16)
        return (e / total(e.astype(jnp.float32)).astype(jnp.bfloat16)).astype(s.dtype)

    compare({"bfloat16": weights}, jax.nn.softmax, {"attention": "attnlrp"}, tolerance=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stabiliser", "bounded sum", "logsumexp", "transposed"])
def test_difference_methods_sum_to_the_difference(form):
    fn, x = attend(PLAIN[form]), jnp.asarray(X)
    found = ja.deep_lift(fn, x)
    np.testing.assert_allclose(found.values.sum(), fn(x) - fn(jnp.zeros_like(x)), atol=1e-9)


@pytest.mark.parametrize("form", ["product", "predicate", "sum over some"])
def test_parts_of_a_masked_softmax_sum_to_the_score(form):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = ja.contextual_decomposition(attend(MASKED[form]), jnp.asarray(X), phrase=(0, 2))
    parts = found.values + found.info["irrelevant"] + found.info["bias"]
    np.testing.assert_allclose(parts, found.output, atol=1e-9)


@pytest.mark.parametrize("forms", [PLAIN, SCALED, MASKED], ids=["plain", "scaled", "masked"])
@pytest.mark.representatives("scaled")
def test_softmax_of_the_logits_is_the_output(forms):
    """This holds where the output is not masked."""
    kept = MASK if forms is MASKED else np.ones(T, bool)
    # Refused: the quotient has the axes of the logits in another order.
    forms = {name: form for name, form in forms.items() if name != "transposed"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        every = compiled(lambda z: {n: (ja.without_softmax(f)(z), f(z)) for n, f in forms.items()})
        found = every(jnp.asarray(rng.normal(size=(2, T))))
    for name, (logits, output) in found.items():
        got = jax.nn.softmax(logits[:, kept])
        np.testing.assert_allclose(got, output[:, kept], atol=1e-9, err_msg=name)
