"""Metrics that explain changed inputs and changed models."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen, nnx
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn import metrics
from jaxattn.metrics.similarities import similarity_of

KEY = jax.random.key(0)
XS = jnp.array([[1.0, 2, -1], [0.5, -1, 2]])
STABILITY = [
    metrics.max_sensitivity,
    metrics.average_sensitivity,
    metrics.local_lipschitz,
    metrics.relative_input_stability,
    metrics.relative_output_stability,
]


def name(metric):
    return getattr(getattr(metric, "func", metric), "__name__", None)


def linear(x):
    return x @ jnp.array([1.0, -2, 4])


def square(x):
    return (x**2).sum()


@pytest.mark.parametrize("metric", STABILITY, ids=name)
@pytest.mark.representatives("max_sensitivity", "relative_output_stability")
def test_a_constant_explanation_is_stable(metric):
    np.testing.assert_array_equal(metric(ja.gradient, linear, XS, key=KEY), [0, 0])


@pytest.mark.slow
def test_the_gradient_of_a_square_is_proportional_to_the_input():
    """The explanation is 2 x: the change is 2 d, and relative changes equal those of the input."""
    shared = (ja.gradient, square, XS)
    options = {"key": KEY, "num_samples": 400, "radius": 0.1}
    np.testing.assert_allclose(metrics.local_lipschitz(*shared, **options), 2, rtol=1e-4)
    np.testing.assert_allclose(metrics.relative_input_stability(*shared, **options), 1, rtol=1e-4)
    largest = metrics.max_sensitivity(*shared, **options)
    mean = metrics.average_sensitivity(*shared, **options)
    norms = np.linalg.norm(XS, axis=1)
    # The change is at most the diagonal of the cube; its mean square is 3 radius^2 / 3.
    assert (largest <= 0.1 * np.sqrt(3) / norms + 1e-6).all()
    assert (largest >= 0.85 * 0.1 * np.sqrt(3) / norms).all()
    assert (mean <= 0.1 / norms).all() and (mean >= 0.9 * 0.1 / norms).all()


def test_relative_output_stability_closed_form():
    xs = jnp.array([[2.0]])
    got = metrics.relative_output_stability(
        ja.input_x_gradient, lambda x: x[0] ** 2, xs, key=KEY, radius=0.01
    )
    # Values 2 x^2 and output x^2: the relative change is |x'^2 - x^2| / x^2.
    np.testing.assert_allclose(got, [1 / 4], rtol=1e-2)


def test_changes_of_a_zero_explanation_are_undefined():
    zeros = jnp.zeros((1, 3))
    assert np.isnan(metrics.max_sensitivity(ja.gradient, square, zeros, key=KEY)).all()
    assert np.isnan(metrics.input_invariance(ja.input_x_gradient, square, zeros, shift=1.0)).all()
    model = Partial(lambda w, x: x @ w, jnp.ones(3))
    assert np.isnan(metrics.efficient_mprt(ja.input_x_gradient, model, zeros, key=KEY)).all()


def test_an_undefined_explanation_of_a_changed_input_counts():
    def fn(x):
        return jnp.where(x > 1, jnp.sqrt(x - 1), 0).sum()  # its gradient is NaN for x < 1

    got = metrics.relative_input_stability(ja.gradient, fn, jnp.array([[1.01]]), key=KEY)
    assert np.isnan(got).all()


def test_similarities_of_very_small_and_large_numbers():
    ones = jnp.ones((1, 2))
    small, large = jnp.array([[1e-25, 0]]), jnp.full((1, 2), 1e20)
    np.testing.assert_allclose(similarity_of(small, ones, kind="cosine"), 2**-0.5, rtol=1e-6)
    np.testing.assert_allclose(similarity_of(large, ones, kind="cosine"), 1, rtol=1e-6)
    rising = jnp.array([[1.0, 2]])
    np.testing.assert_allclose(similarity_of(small, rising, kind="pearson"), -1, rtol=1e-6)
    got = metrics.max_sensitivity(
        ja.input_x_gradient, lambda x: 1e25 * x.sum(), jnp.ones((1, 2)), key=KEY
    )
    assert 0 < got[0] < 0.02 + 1e-6


def test_options_of_the_inner_method_may_differ_between_examples():
    groups = np.array([[0, 0, 1], [0, 1, 1]])
    options = {"key": KEY, "num_samples": 1}
    got = metrics.max_sensitivity(ja.feature_ablation, linear, XS, groups=groups, **options)
    assert (got > 0).all()
    method = functools.partial(ja.feature_ablation, batch_size=None)
    got = metrics.max_sensitivity(method, linear, XS, baseline=XS + 1, **options)
    assert (got > 0).all()


def test_changes_of_the_predicted_class_do_not_count():
    def fn(x):
        """The gradient of the first output jumps where the predicted class changes."""
        return jnp.stack([jnp.where(x[0] > 0, x[0], 10 * x[0]), jnp.float32(0)])

    xs = jnp.array([[1e-3]])
    metric = functools.partial(metrics.relative_input_stability, ja.gradient, key=KEY)
    np.testing.assert_array_equal(metric(fn, xs, 0), [0])
    assert metric(lambda x: fn(x)[0], xs)[0] > 0.1  # a single output has no class

    def another_class_around(x):
        return jnp.stack([x[0] * jnp.where(x[0] == 1e-3, 1, -1), jnp.float32(0)])

    assert np.isnan(metric(another_class_around, jnp.abs(xs), 0, radius=5e-4)).all()


@pytest.mark.slow
def test_stability_takes_options_of_the_method():
    model = Partial(lambda w, x: jnp.tanh(x @ w).sum(), jnp.arange(6.0).reshape(3, 2) / 6)
    got = metrics.max_sensitivity(ja.integrated_gradients, model, XS, key=KEY, num_steps=8)
    bound = functools.partial(ja.integrated_gradients, num_steps=8)
    np.testing.assert_allclose(metrics.max_sensitivity(bound, model, XS, key=KEY), got, rtol=1e-5)
    coarse = metrics.max_sensitivity(ja.integrated_gradients, model, XS, key=KEY, num_steps=1)
    assert not np.allclose(coarse, got, rtol=1e-3)


@pytest.mark.slow
def test_draws_of_the_method_are_the_same_for_all_changes():
    model = Partial(lambda w, x: jnp.tanh(x @ w).sum(), jnp.arange(6.0).reshape(3, 2) / 6)
    options = {"method": ja.gradient, "num_samples": 4, "noise": 0.3}
    smooth = functools.partial(ja.smooth_grad, **options)
    small = metrics.max_sensitivity(smooth, model, XS, key=KEY, radius=1e-4)
    assert (small < 1e-2).all()
    whole = metrics.average_sensitivity(smooth, model, XS, key=KEY, num_samples=5)
    parts = metrics.average_sensitivity(smooth, model, XS, key=KEY, num_samples=5, batch_size=8)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


@pytest.mark.slow
def test_integer_leaves_keep_their_values():
    xs = {"a": XS, "n": jnp.array([2, 3])}

    def fn(x):
        return square(x["a"]) * x["n"].astype(jnp.float32)

    got = metrics.local_lipschitz(ja.gradient, fn, xs, key=KEY)
    np.testing.assert_allclose(got, [4, 6], rtol=1e-4)
    got = metrics.input_invariance(ja.gradient, fn, xs, shift=1.0)
    np.testing.assert_allclose(got, 0, atol=1e-5)


def test_input_invariance_closed_form():
    got = metrics.input_invariance(ja.input_x_gradient, linear, XS, shift=jnp.array([0.0, 1, 0]))
    # The shift adds -2 to the second value.
    want = 2 / np.linalg.norm(np.asarray(XS) * [1, -2, 4], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    fixed = functools.partial(
        metrics.input_invariance, ja.integrated_gradients, linear, XS, shift=1.0
    )
    assert (fixed() > 0.1).all()  # the baseline stays at 0


@pytest.mark.parametrize("metric", STABILITY, ids=name)
def test_bad_robustness_arguments_raise(metric):
    shared = (ja.gradient, linear, XS)
    for radius in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="`radius` must be a number and positive"):
            metric(*shared, key=KEY, radius=radius)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        metric(*shared, key=KEY, num_samples=0)
    with pytest.raises(TypeError, match="gradient has no option 'steps'"):
        metric(*shared, key=KEY, steps=3)
    with pytest.raises(ValueError, match="`key` is missing"):
        metric(*shared, key=None)


def weights(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def apply(w, x):
    return (jnp.tanh(jnp.tanh(x @ w["a_last"]) @ w["c_first"]) @ w["b_middle"]).sum()


def three_layers():
    a, b, c = weights((3, 4), (4, 2), (4, 4))
    return Partial(apply, {"a_last": a, "b_middle": b, "c_first": c})


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.tanh(linen.Dense(4, name="zero")(x))
        x = linen.RNN(linen.SimpleCell(3), name="recurrent")(x[:, None])[-1]
        return linen.Dense(2, name="alpha")(x)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.zero = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.cell = nnx.RNN(nnx.SimpleCell(4, 3, rngs=rngs))
        self.alpha = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(jnp.tanh(self.zero(x)))
        return self.alpha(self.cell(x[None, :, None] * jnp.ones((1, 4, 4)))[0, -1])


class Equinox(eqx.Module):
    zero: eqx.nn.Linear
    alpha: eqx.nn.Linear

    def __call__(self, x):
        return self.alpha(jnp.tanh(self.zero(x)))


def models():
    linen_params = Linen().init(KEY, jnp.ones(3))
    keys = jax.random.split(KEY)
    return {
        "partial": (three_layers(), ["a_last", "c_first", "b_middle"]),
        "linen": (Partial(Linen().apply, linen_params), ["zero", "SimpleCell_0", "alpha"]),
        "nnx": (Net(nnx.Rngs(0)), ["zero", "cell", "alpha"]),
        "equinox": (
            Equinox(eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])),
            ["zero", "alpha"],
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("library", ["partial", "linen", "nnx", "equinox"])
@pytest.mark.representatives("equinox")
def test_layers_are_found_in_the_order_of_use(library):
    model, order = models()[library]
    target = None if library == "partial" else 1
    found = metrics.mprt(ja.gradient, model, XS, target, key=KEY, order="bottom_up")
    layers = list(dict.fromkeys(layer.split("/")[0] for layer in found.layers))
    assert layers == order
    assert found.similarity.shape == (2, len(found.layers))
    np.testing.assert_allclose(found.mean, found.similarity.mean(1), rtol=1e-6)
    down = metrics.mprt(ja.gradient, model, XS, target, key=KEY)
    assert down.layers == found.layers[::-1]
    # With all layers drawn anew both orders end at the same model.
    np.testing.assert_allclose(down.similarity[:, -1], found.similarity[:, -1], atol=1e-5)


@pytest.mark.slow
def test_each_order_draws_its_layers():
    model, _ = models()["partial"]
    names, original = ["a_last", "c_first", "b_middle"], model.args[0]
    run = functools.partial(metrics.mprt, ja.gradient, model, XS, key=KEY)
    alone, up, down = (run(order=o) for o in ("independent", "bottom_up", "top_down"))
    np.testing.assert_allclose(alone.similarity[:, 0], up.similarity[:, 0], atol=1e-6)
    np.testing.assert_allclose(alone.similarity[:, -1], down.similarity[:, 0], atol=1e-6)
    # By hand: the layers have the means and standard deviations of before.
    number = dict(zip(sorted(original), range(3), strict=True))
    key = jax.random.split(KEY)[0]  # the other one is for the explanations
    drawn = {
        n: w.mean() + w.std() * jax.random.normal(jax.random.fold_in(key, number[n]), w.shape)
        for n, w in original.items()
    }
    before = ja.explain(ja.gradient, model, XS).values
    for i in range(3):
        changed = original | {n: drawn[n] for n in names[: i + 1]}
        after = ja.explain(ja.gradient, Partial(apply, changed), XS).values
        want = [scipy.stats.spearmanr(*pair).statistic for pair in zip(before, after, strict=True)]
        np.testing.assert_allclose(up.similarity[:, i], want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["spearman", "pearson", "cosine"])
def test_a_method_that_ignores_the_model_fails_the_randomisation(similarity):
    @ja.method
    def inputs(fn, x, target=None, *, args=(), key=None, batch_size=None):
        return ja.Attribution(x, fn(x, *args))

    model, _ = models()["partial"]
    found = metrics.mprt(inputs, model, XS, key=KEY, similarity=similarity, control=model)
    np.testing.assert_allclose(found.mean, 1, rtol=1e-5)
    np.testing.assert_allclose(found.control, 1, rtol=1e-5)
    np.testing.assert_allclose(metrics.efficient_mprt(inputs, model, XS, key=KEY), 0, atol=1e-6)
    smooth = metrics.smooth_mprt(inputs, model, XS, key=KEY, num_samples=3)
    np.testing.assert_allclose(smooth.mean, 1, rtol=1e-5)


@pytest.mark.slow
def test_smooth_mprt_without_noise_is_mprt():
    model, _ = models()["partial"]
    want = metrics.mprt(ja.gradient, model, XS, key=KEY, similarity="cosine")
    got = metrics.smooth_mprt(
        ja.gradient, model, XS, key=KEY, similarity="cosine", noise=0.0, num_samples=3
    )
    np.testing.assert_allclose(got.similarity, want.similarity, rtol=1e-4)


def test_efficient_mprt_closed_form():
    def readout(w, x):
        return x @ w["readout"]

    values = jnp.array([0.0, 0, 0, 4])
    model = Partial(readout, {"readout": values})
    got = metrics.efficient_mprt(ja.gradient, model, jnp.ones((1, 4)), key=KEY, num_bins=1000)
    # One bin has three values and one has one; drawn anew, all four lie in different bins.
    before = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(got, [(np.log(4) - before) / before], rtol=1e-4)


@pytest.mark.slow
def test_random_logit_closed_form():
    rows = jnp.array([[1.0, 2, 3], [3.0, 2, 1], [3.0, 2, 1]])
    got = metrics.random_logit(ja.gradient, lambda x: rows @ x, XS, 0, key=KEY)
    np.testing.assert_allclose(got, -1, rtol=1e-6)

    def same(x):
        return jnp.stack([linear(x), 2 * linear(x) + 1])[None]

    for similarity in ("spearman", "pearson", "cosine"):
        got = metrics.random_logit(
            ja.gradient, same, XS, np.array([[0, 0], [0, 1]]), key=KEY, similarity=similarity
        )
        np.testing.assert_allclose(got, 1, rtol=1e-5)


def test_bad_randomisation_arguments_raise():
    model, _ = models()["partial"]
    shared = (ja.gradient, model, XS)
    with pytest.raises(ValueError, match='`order` must be one of "independent", "top_down"'):
        metrics.mprt(*shared, key=KEY, order="up")
    with pytest.raises(ValueError, match='`similarity` must be one of "spearman"'):
        metrics.mprt(*shared, key=KEY, similarity="ssim")
    with pytest.raises(TypeError, match="`model` must have parameters, got function"):
        metrics.mprt(ja.gradient, linear, XS, key=KEY)
    with pytest.raises(ValueError, match="`noise` must be a number and not negative"):
        metrics.smooth_mprt(*shared, key=KEY, noise=-1.0)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        metrics.smooth_mprt(*shared, key=KEY, num_samples=0)
    with pytest.raises(ValueError, match="`num_bins` must be at least 2"):
        metrics.efficient_mprt(*shared, key=KEY, num_bins=1)
    with pytest.raises(ValueError, match="`targets` must be indices of at least two classes"):
        metrics.random_logit(ja.gradient, lambda x: x.sum()[None], XS, 0, key=KEY)
    with pytest.raises(ValueError, match=r"`targets` must be indices .* got None"):
        metrics.random_logit(ja.gradient, lambda x: x, XS, None, key=KEY)
    with pytest.raises(ValueError, match="`key` is missing: parameters are drawn"):
        metrics.mprt(*shared, key=None)
    with pytest.raises(ValueError, match="`shift` must broadcast to the shape"):
        metrics.input_invariance(ja.gradient, linear, XS, shift=np.ones(2))
    with pytest.raises(TypeError, match="gradient has no option 'steps'"):
        metrics.random_logit(ja.gradient, lambda x: x, XS, 0, key=KEY, steps=1)
