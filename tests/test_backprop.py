"""Test guided backpropagation and deconvnet: backward passes and detection of ReLUs."""

import warnings

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen, nnx

import jaxattn as ja
from jaxattn.jaxpr.interpreter import scopes, sub_jaxprs
from jaxattn.jaxpr.relu import rectified

METHODS = {
    ja.guided_backprop: lambda z, g: g * (z > 0) * (g > 0),
    ja.deconvnet: lambda z, g: g * (g > 0),
}
both = pytest.mark.parametrize("method, relu_vjp", METHODS.items(), ids=lambda m: m.__name__)


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@both
def test_dense_network_by_hand(method, relu_vjp):
    w1, b1 = jnp.array([[1, -1], [0.5, 2], [-1, 0.5]]), jnp.array([0.1, 0.2])
    w2, b2 = jnp.array([[1, -0.5], [-1, 2]]), jnp.array([0.3, -0.1])

    def fn(x):
        return jax.nn.relu(x @ w1 + b1) @ w2 + b2

    got = method(fn, jnp.array([1.0, 2.0, -1.0]), 1)
    close(got.output, [0.7, 3.75], 1e-6)
    close(got.values, [-2, 4, 1], 1e-6)
    hidden_off = method(fn, jnp.array([-1.0, -2.0, 1.0]), 1)
    close(hidden_off.values, [0, 0, 0] if method is ja.guided_backprop else [-2, 4, 1], 1e-6)


@both
def test_convolutional_network_equals_backward_pass_by_hand(method, relu_vjp, x64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(6, 5, 2)), rng.normal(size=(3, 3, 2, 4))
    w1, w2 = rng.normal(size=(48, 6)), rng.normal(size=(6, 3))

    def fn(x):
        z = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(jax.nn.relu(z[0]).ravel() @ w1) @ w2

    patches = [(i, j, x[i : i + 3, j : j + 3]) for i in range(4) for j in range(3)]
    z = np.array([np.tensordot(patch, kernel, 3) for *_, patch in patches])
    hidden = np.maximum(z, 0).ravel() @ w1
    of_hidden = relu_vjp(hidden, w2[:, 2])
    of_z = relu_vjp(z, (w1 @ of_hidden).reshape(z.shape))
    expected = np.zeros_like(x)
    for (i, j, _), g in zip(patches, of_z, strict=True):
        expected[i : i + 3, j : j + 3] += kernel @ g
    close(method(fn, x, 2).values, expected)
    assert abs(expected - ja.gradient(fn, x, 2).values).max() > 1


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrent_network_equals_backward_pass_by_hand(method, relu_vjp, reverse, x64):
    rng = np.random.default_rng(1)
    x, w, u = rng.normal(size=(5, 3)), rng.normal(size=(3, 4)), rng.normal(size=(4, 4))
    readout = rng.normal(size=4)

    def fn(x):
        def advance(h, row):
            return jax.nn.relu(row @ w + h @ u), None

        return jax.lax.scan(advance, jnp.zeros(4), x, reverse=reverse)[0] @ readout

    order = range(5)[::-1] if reverse else range(5)
    h, zs = np.zeros(4), {}
    for t in order:
        zs[t] = x[t] @ w + h @ u
        h = np.maximum(zs[t], 0)
    expected, g = np.zeros_like(x), readout
    for t in reversed(order):
        of_z = relu_vjp(zs[t], g)
        expected[t], g = w @ of_z, u @ of_z
    close(method(fn, x).values, expected)
    assert abs(expected - ja.gradient(fn, x).values).max() > 0.1


def by_scan(z, **options):
    return jax.lax.scan(lambda _, row: (None, jnp.maximum(row, 0)), None, z, **options)[1]


RELUS = {
    "jax": jax.nn.relu,
    "nnx": nnx.relu,
    "linen": linen.relu,
    "keras": keras.ops.relu,
    "keras activation": keras.activations.relu,
    "keras layer": lambda z: keras.layers.ReLU()(z),
    "equinox": eqx.nn.Lambda(jax.nn.relu),
    "max": lambda z: jnp.maximum(z, 0),
    "zero first": lambda z: jnp.maximum(0.0, z),
    "zeros": lambda z: jax.lax.max(z, jnp.zeros_like(z)),
    "clip": lambda z: jnp.clip(z, 0),
    "where positive": lambda z: jnp.where(z > 0, z, 0),
    "where negative": lambda z: jnp.where(z < 0, 0, z),
    "where inside of jit": lambda z: jax.jit(jnp.where)(z > 0, z, 0.0),
    "jit": jax.jit(jax.nn.relu),
    "vmap": jax.vmap(jax.nn.relu),
    "remat": jax.checkpoint(lambda z: jax.nn.relu(z)),
    "remat of a scan in a jit": jax.checkpoint(jax.jit(by_scan)),
    "scan": by_scan,
    "scan backwards": lambda z: by_scan(z, reverse=True),
    "cond": lambda z: jax.lax.cond(z.sum() > 0, lambda z: jax.nn.relu(z), lambda z: z, z),
    "fori": lambda z: jax.lax.fori_loop(0, 2, lambda _, z: jax.nn.relu(z), z),
}


@pytest.mark.representatives(
    "jax",
    "nnx",
    "linen",
    "keras",
    "equinox",
    "max",
    "clip",
    "where positive",
    "remat",
    "scan",
    "cond",
)
@pytest.mark.parametrize("form", RELUS)
def test_every_form_of_relu_is_detected(form):
    def fn(z):
        return (jnp.array([1.0, 1.0, 1.0, -1.0, 2.0]) * RELUS[form](z)).sum()

    z = jnp.array([-1.0, -0.0, 0.0, 2.0, 3.0])
    close(ja.guided_backprop(fn, z).values, [0, 0, 0, 0, 2], 0)
    close(ja.deconvnet(fn, z).values, [1, 1, 1, 0, 2], 0)
    close(ja.deconvnet(fn, z).output, fn(z), 0)


@pytest.mark.parametrize(
    "relu6",
    [
        jax.nn.relu6,
        keras.ops.relu6,
        lambda z: keras.layers.ReLU(max_value=6)(z),
        lambda z: jax.lax.clamp(0.0, z, 6.0),
        lambda z: jnp.clip(z, 0, 6),
        lambda z: jnp.minimum(6.0, jnp.maximum(z, 0.0)),
    ],
)
def test_upper_bound_of_relu_stops_the_gradient(relu6):
    def fn(z):
        return (jnp.array([1.0, 1.0, -1.0, 1.0, 1.0, 2.0]) * relu6(z)).sum()

    z = jnp.array([-1.0, 0.0, 2.0, 6.0, 7.0, 3.0])
    close(ja.guided_backprop(fn, z).values, [0, 0, 0, 0, 0, 2], 0)
    close(ja.deconvnet(fn, z).values, [1, 1, 0, 0, 0, 2], 0)
    close(ja.deconvnet(fn, z).output, fn(z), 0)


@jax.custom_vjp
def straight_through(z):
    return jnp.sign(jnp.maximum(z, 0))


straight_through.defvjp(lambda z: (straight_through(z), None), lambda _, g: (g,))


@jax.custom_jvp
def surrogate(z):
    return jnp.maximum(z, 0)


surrogate.defjvp(lambda z, tangent: (surrogate(z[0]), 3 * tangent[0]))


@jax.custom_jvp
def relu(z):
    """Double the input, unlike a ReLU."""
    return 2 * z


relu.defjvp(lambda z, tangent: (relu(z[0]), 5 * tangent[0]))


def linen_norm(z):
    return linen.LayerNorm().bind({"params": {"scale": jnp.arange(4.0), "bias": jnp.ones(4)}})(z)


@pytest.mark.parametrize(
    "fn",
    [
        straight_through,
        surrogate,
        relu,
        jnp.tanh,
        jax.nn.silu,
        jax.nn.gelu,
        jax.nn.celu,
        jax.nn.elu,
        jax.nn.softplus,
        jax.nn.hard_sigmoid,
        jax.nn.hard_silu,
        jax.nn.sparse_sigmoid,
        jax.nn.leaky_relu,
        lambda z: jax.lax.max(z, z[::-1]),
        lambda z: jnp.maximum(z.astype(jnp.int32), 0).astype(z.dtype) * z,
        linen_norm,
        nnx.LayerNorm(4, rngs=nnx.Rngs(0)),
        lambda z: nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0))(z[None])[0],
        eqx.nn.LayerNorm(4),
        lambda z: keras.layers.LayerNormalization()(z[None])[0],
    ],
)
def test_other_functions_keep_their_gradient(fn):
    z = jnp.array([-1.0, 0.5, 2.0, -0.2])

    def score(z):
        return (jnp.array([1.0, -1.0, 0.7, -2.0]) * fn(z)).sum()

    def gradients(z):
        changed = (rectified(score, gated=gated) for gated in (True, False))
        return [jax.grad(fn)(z) for fn in (score, *changed)]

    with pytest.warns(UserWarning, match="no ReLU"):
        expected, *got = jax.jit(gradients)(z)
    close(got, [expected, expected], 0)


def test_custom_vjp_beside_a_relu_is_kept():
    def fn(z):
        return (jnp.array([1.0, -1.0, 2.0]) * jax.nn.relu(straight_through(z) * 3)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ja.guided_backprop(fn, jnp.array([0.5, 0.4, -2.0]))
    close(got.values, [3, 0, 0], 0)
    close(ja.deconvnet(fn, jnp.array([0.5, 0.4, -2.0])).values, [3, 0, 6], 0)


def of_linen(weights):
    model = linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(2)])
    names = [f"layers_{i}" for i in (0, 2)]
    params = {n: {"kernel": w, "bias": b} for n, (w, b) in zip(names, weights, strict=True)}
    return jax.tree_util.Partial(model.apply, {"params": params})


def of_nnx(weights):
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
    for layer, (w, b) in zip(layers, weights, strict=True):
        layer.kernel[...], layer.bias[...] = w, b
    return nnx.Sequential(layers[0], nnx.relu, layers[1])


def of_equinox(weights):
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))  # its activation is a ReLU
    return eqx.tree_at(
        lambda m: [a for layer in m.layers for a in (layer.weight, layer.bias)],
        model,
        [a for w, b in weights for a in (w.T, b)],
    )


def of_haiku(weights):
    fn = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    names = [f"mlp/~/linear_{i}" for i in (0, 1)]
    params = {n: {"w": w, "b": b} for n, (w, b) in zip(names, weights, strict=True)}
    return jax.tree_util.Partial(fn.apply, params)


def of_keras(weights):
    layers = [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.set_weights([a for pair in weights for a in pair])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("library", [of_linen, of_nnx, of_equinox, of_haiku, of_keras])
@pytest.mark.representatives("of_nnx")
def test_relus_of_every_library(library):
    rng = np.random.default_rng(2)
    shapes = (3, 4), (4,), (4, 2), (2,)
    w1, b1, w2, b2 = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    xs = rng.normal(size=(6, 3)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):  # required by Keras
        got = ja.explain(ja.guided_backprop, library([(w1, b1), (w2, b2)]), xs, 1)
    z, g = xs @ w1 + b1, w2[:, 1]
    close(got.values, (g * (z > 0) * (g > 0)) @ w1.T, 1e-5)
    close(got.output, np.maximum(z, 0) @ w2 + b2, 1e-5)


@both
def test_gradient_at_a_named_intermediate(method, relu_vjp):
    weights = jnp.array([[1.0, -1.0], [0.5, 2.0]])

    def fn(x):
        return (
            jax.nn.relu(ja.tag(jnp.maximum(x, 0), "seen") @ weights) * jnp.array([-1.0, 1])
        ).sum()

    got = method(fn, jnp.array([-1.0, 2.0]), at="seen")
    close(got.values, [-1, 2])


@both
@pytest.mark.representatives("guided_backprop")
def test_second_derivatives_equal_central_differences(method, relu_vjp, x64):
    rng = np.random.default_rng(3)
    start, direction = ([rng.normal(size=s) for s in ((3, 3), (3, 5), (5, 5))] for _ in range(2))

    @jax.jit
    def penalty(h):
        x, w, u = (a + h * b for a, b in zip(start, direction, strict=True))

        def fn(x):
            def advance(h, row):
                return jnp.tanh(jax.nn.relu(row @ w + h @ u)) + 0.1 * h, None

            return (jax.lax.scan(advance, jnp.zeros(5), x)[0] ** 2).sum()

        return jnp.sin(method(fn, x).values).sum()

    expected = (penalty(1e-6) - penalty(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(penalty)(0.0), expected, rtol=1e-6)
    assert abs(expected) > 1e-2


def test_layers_keep_their_paths():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, name="head")(jax.jit(linen.relu)(linen.Dense(4, name="body")(x)))

    x = jnp.ones(3)
    params = Net().init(jax.random.key(0), x)

    def paths(closed):
        for eqn in closed.jaxpr.eqns:
            yield "/".join(label for label, *_ in scopes(eqn))
            for inner in sub_jaxprs(eqn):
                yield from paths(inner)

    plain, changed = (
        set(paths(jax.make_jaxpr(fn)(x)))
        for fn in (
            lambda x: Net().apply(params, x),
            rectified(lambda x: Net().apply(params, x), gated=True),
        )
    )
    assert {"Net/body", "Net/head"} <= plain & changed


def test_while_loop_raises_only_if_it_depends_on_the_input():
    def doubled(z):
        return jax.lax.while_loop(lambda z: z.sum() < 9, lambda z: 2 * jax.nn.relu(z), z)

    with pytest.raises(ValueError, match="while"):
        ja.guided_backprop(lambda z: jax.nn.relu(doubled(z)).sum(), jnp.ones(2))
    got = ja.guided_backprop(
        lambda z, n: (doubled(n) * jax.nn.relu(z)).sum(), jnp.ones(2), args=(jnp.ones(2),)
    )
    close(got.values, [8, 8])


def test_relu_inside_custom_vmap_raises():
    fn = jax.custom_batching.custom_vmap(lambda z: jax.nn.relu(z))
    fn.def_vmap(lambda size, batched, z: (jax.nn.relu(z), True))
    with pytest.raises(ValueError, match="ReLU inside of a `custom_vmap_call`"):
        ja.deconvnet(lambda z: fn(z).sum(), jnp.ones(2))
