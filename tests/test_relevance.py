"""LRP against a dense reference implementation, layer by layer; errors and warnings."""

import functools
import warnings

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import relevance_reference as reference
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial
from relevance_reference import RULES, addition, layer, pass_through, residual, winner_take_all

import jaxattn as ja

CASES = {rule: {"rule": rule, "epsilon": 0.01} for rule in RULES}
CASES["z"]["epsilon"] = 0.0  # in sums, too
CASES["bounded"] |= {"low": -3.0, "high": 2.5}
CASES["epsilon, bias shared"] = CASES["epsilon"] | {"conserve_bias": True}
FEW = {name: CASES[name] for name in ("epsilon, bias shared", "gamma", "alpha_beta", "bounded")}
OPTIONS = {
    "z, bias shared": {"rule": "z", "epsilon": 0.0, "conserve_bias": True},
    "gamma 1": {"rule": "gamma", "gamma": 1.0},
    "alpha 1.5": {"rule": "alpha_beta", "alpha": 1.5},
    "bias ignored": {"rule": "alpha_beta", "ignore_bias": True},
}

X = np.array([1.0, 2.0, -1.0])
W1, B1 = np.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.5]]), np.array([0.1, 0.2])
W2, B2 = np.array([[1.0, -0.5], [-1.0, 2.0]]), np.array([0.3, -0.1])


def close(got, want, rtol=1e-10):
    """Compare relative to the largest value: single values may be zero."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * max(np.abs(want).max(), 1e-3))


def every_case(fn, x, target, cases=CASES):
    """Return the attributions of all cases, from one compiled program."""
    program = reference.compiled(
        lambda x: {n: ja.lrp(fn, x, target, **options) for n, options in cases.items()}
    )
    return program(jnp.asarray(x))


def check_against_reference(steps, x, target=1, cases=CASES):
    got = every_case(functools.partial(reference.run, steps), x, target, cases)
    for name, options in cases.items():
        values, absorbed = reference.lrp(steps, x, target, **options)
        close(got[name].values, values)
        close(got[name].info["absorbed"], absorbed)


class Draw:
    """Draw random weights, and build layers of them."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape):
        return self.rng.normal(size=shape)

    def dense(self, inputs, outputs):
        w, b = self(inputs, outputs), self(outputs)
        return lambda x: x @ w + (b if x.ndim == 1 else b[None])

    def conv(self, inputs, outputs, *, rank=2, stride=1, padding="SAME", groups=1, **options):
        w, b = self(*[3] * rank, inputs // groups, outputs), self(*[1] * rank, outputs)
        dims = ("NHWC", "HWIO", "NHWC") if rank == 2 else ("NWC", "WIO", "NWC")

        def apply(x):
            z = jax.lax.conv_general_dilated(
                x[None],
                jnp.asarray(w),
                (stride,) * rank,
                padding,
                dimension_numbers=dims,
                feature_group_count=groups,
                **options,
            )
            return z[0] + b

        return apply

    def batch_norm(self, *shape):
        """Running statistics, scale and shift, over the last axis."""
        mean, scale, shift = self(*shape), self(*shape), self(*shape)
        variance = self.rng.uniform(0.5, 2, shape)
        return lambda x: (x - mean) * jax.lax.rsqrt(jnp.asarray(variance) + 1e-3) * scale + shift

    def affine(self, *shape):
        scale, shift = self(*shape), self(*shape)
        return lambda x: x * scale + shift


def chain(*fns):
    return lambda x: functools.reduce(lambda x, fn: fn(x), fns, x)


def pool(x, reduce=jax.lax.add, start=0.0):
    size = (2, 2, 1)
    total = jax.lax.reduce_window(x, np.array(start, x.dtype), reduce, size, size, "VALID")
    return total / 4 if reduce is jax.lax.add else total


def standardise(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)


relu, tanh, flatten = pass_through(jax.nn.relu), pass_through(jnp.tanh), winner_take_all(jnp.ravel)
max_pool = winner_take_all(lambda x: pool(x, jax.lax.max, -jnp.inf))


def dense_network(d):
    steps = [layer(d.dense(6, 5)), relu, layer(d.dense(5, 4)), tanh, layer(d.dense(4, 3))]
    return steps, d(6)


def conv_network(d):
    steps = [layer(d.conv(2, 3, stride=2)), relu, layer(d.conv(3, 4, padding="VALID")), tanh]
    return [*steps, flatten, layer(d.dense(4, 3))], d(6, 6, 2)


def pooling_network(d):
    steps = [layer(d.conv(1, 4)), relu, max_pool, layer(d.conv(4, 4)), tanh, addition(pool), relu]
    return [*steps, flatten, layer(d.dense(16, 3))], d(8, 8, 1)


def pooled_right_before_a_dense_layer(d):
    steps = [layer(d.conv(1, 3)), tanh, addition(pool), flatten, layer(d.dense(12, 3))]
    return steps, d(4, 4, 1)


def mean_right_before_a_dense_layer(d):
    steps = [layer(d.dense(3, 4)), tanh, addition(lambda x: x.mean(0)), layer(d.dense(4, 3))]
    return steps, d(5, 3)


def norm_after_conv(d):
    steps = [layer(chain(d.conv(2, 3), d.batch_norm(1, 1, 3))), relu, flatten]
    return [*steps, layer(d.dense(27, 3))], d(3, 3, 2)


def norm_before_dense(d):
    steps = [layer(d.dense(4, 5)), relu, layer(chain(d.batch_norm(5), d.dense(5, 4))), relu]
    return [*steps, layer(chain(d.batch_norm(4), d.dense(4, 3), d.batch_norm(3)))], d(4)


def layer_norm_before_dense(d):
    gelu = pass_through(lambda x: jax.nn.gelu(x))
    steps = [layer(d.dense(4, 5)), gelu, pass_through(standardise)]
    return [*steps, layer(chain(d.affine(5), d.dense(5, 3)))], d(4)


def norms_alone(d):
    """A scaling and a shift without an adjacent contraction form a separate layer."""
    steps = [addition(d.batch_norm(4)), tanh, layer(d.dense(4, 5)), pass_through(jax.nn.silu)]
    return [
        *steps,
        pass_through(standardise),
        addition(d.affine(5)),
        tanh,
        layer(d.dense(5, 3)),
    ], d(4)


def residual_network(d):
    block = residual(layer(d.dense(4, 5)), relu, layer(d.dense(5, 4)))
    return [layer(d.dense(3, 4)), relu, block, relu, layer(d.dense(4, 3))], d(3)


def transformer_block(d):
    """Normalise, expand, contract, add: over positions."""
    norm = [pass_through(standardise), layer(chain(d.affine(1, 4), d.dense(4, 6)))]
    gelu = pass_through(lambda x: jax.nn.gelu(x, approximate=False))
    steps = [residual(*norm, gelu, layer(d.dense(6, 4))), flatten, layer(d.dense(12, 3))]
    return steps, d(3, 4)


def grouped_and_dilated(d):
    first = d.conv(2, 4, rank=1, groups=2, padding="VALID", rhs_dilation=(2,))
    second = d.conv(4, 2, rank=1, lhs_dilation=(2,), padding=[(1, 1)])
    softplus = pass_through(jax.nn.softplus)
    return [layer(first), softplus, layer(second), tanh, flatten, layer(d.dense(10, 3))], d(7, 2)


NETWORKS = {
    dense_network: CASES,
    conv_network: CASES,
    norm_before_dense: CASES,
    layer_norm_before_dense: CASES,
    residual_network: CASES,
    pooling_network: FEW,
    pooled_right_before_a_dense_layer: FEW,
    mean_right_before_a_dense_layer: FEW,
    norm_after_conv: FEW,
    norms_alone: FEW,
    transformer_block: FEW,
    grouped_and_dilated: FEW,
}


@pytest.mark.representatives("dense_network")
@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_every_rule_matches_the_dense_formula(make, x64):
    check_against_reference(*make(Draw()), cases=NETWORKS[make])


def test_rule_options(x64):
    check_against_reference(*dense_network(Draw()), cases=OPTIONS)


EPSILON, FLAT, PLUS = {"rule": "epsilon"}, {"rule": "flat"}, {"rule": "alpha_beta", "alpha": 1.0}
ALPHA_2, GAMMA, Z = {"rule": "alpha_beta", "alpha": 2.0}, {"rule": "gamma"}, {"rule": "z"}
COMPOSITES = {
    "epsilon_plus": (PLUS, PLUS, EPSILON, EPSILON),
    "epsilon_plus_flat": (FLAT, PLUS, EPSILON, EPSILON),
    "epsilon_alpha2_beta1": (ALPHA_2, ALPHA_2, EPSILON, EPSILON),
    "epsilon_alpha2_beta1_flat": (FLAT, ALPHA_2, EPSILON, EPSILON),
    "epsilon_gamma_box": ({"rule": "bounded"}, GAMMA, EPSILON, EPSILON),
    "alpha_beta_flat": (FLAT, ALPHA_2, ALPHA_2, ALPHA_2),
    "sequential_preset_a": (PLUS, PLUS, EPSILON, EPSILON),
    "sequential_preset_b_flat": (FLAT, ALPHA_2, EPSILON, EPSILON),
    (("conv", "gamma"),): (GAMMA, GAMMA, EPSILON, EPSILON),
    ((-1, "z"), (1, "gamma"), ("*", "flat")): (FLAT, GAMMA, FLAT, Z),
    (("dense", "flat"), ("input", "z")): (Z, EPSILON, FLAT, FLAT),
    (("second", "flat"), ("*", "gamma")): (GAMMA, FLAT, GAMMA, GAMMA),
    (("sec*", "flat"), ("conv", ja.LRPRule("gamma", gamma=0.5))): (
        GAMMA | {"gamma": 0.5},
        FLAT,
        EPSILON,
        EPSILON,
    ),
}


@pytest.mark.slow
def test_composites(x64):
    """Select the rule of each layer by preset, kind of layer, depth and name."""
    d = Draw(8)
    fns = [d.conv(1, 2), d.conv(2, 2, stride=2), d.dense(8, 4), d.dense(4, 3)]

    def network(x):
        x = jnp.tanh(ja.tag(fns[0](x), "first"))
        x = jnp.tanh(ja.tag(fns[1](x), "second"))
        x = jnp.tanh(fns[2](x.ravel()))
        return fns[3](x)

    x = d(4, 4, 1)
    options = {"epsilon": 0.01, "low": x - 1.0, "high": 3.0}
    got = every_case(network, x, 1, {str(rule): options | {"rule": rule} for rule in COMPOSITES})
    for rule, (first, second, third, fourth) in COMPOSITES.items():
        steps = [layer(fns[0], **first), tanh, layer(fns[1], **second), tanh, flatten]
        steps += [layer(fns[2], **third), tanh, layer(fns[3], **fourth)]
        values, absorbed = reference.lrp(steps, x, 1, "", **options)
        close(got[str(rule)].values, values)
        close(got[str(rule)].info["absorbed"], absorbed)


def block(kind, d, width, wide, activation):
    """Return the steps of one block over positions, and its width."""
    if kind == "residual":
        return [residual(layer(d.dense(width, 4)), activation, layer(d.dense(4, width)))], width
    if kind == "layer norm":
        dense = chain(d.affine(1, width), d.dense(width, wide))
        return [pass_through(standardise), layer(dense)], wide
    affine = {
        "dense": d.dense(width, wide),
        "conv": d.conv(width, wide, rank=1),
        "norm": chain(d.dense(width, wide), d.batch_norm(1, wide)),
    }[kind]
    return [layer(affine)], wide


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.data())
def test_every_rule_on_random_networks(data):
    """Blocks in any order, activations between them, and widths of 2 to 5."""
    activations = st.sampled_from([jax.nn.relu, jnp.tanh, jax.nn.elu, jax.nn.gelu])
    kinds = st.sampled_from(["dense", "conv", "norm", "layer norm", "residual"])
    with jax.enable_x64(True):
        d, width = Draw(data.draw(st.integers(0, 1000))), 3
        steps, x = [], d(3, width)
        for kind in data.draw(st.lists(kinds, min_size=1, max_size=3)):
            activation = pass_through(data.draw(activations))
            made, width = block(kind, d, width, data.draw(st.integers(2, 5)), activation)
            steps += [*made, activation]
        check_against_reference([*steps, flatten, layer(d.dense(3 * width, 2))], x, cases=FEW)


def two_layers(x):
    return jax.nn.relu(x @ W1 + B1) @ W2 + B2


def test_closed_forms(x64):
    got = every_case(two_layers, X, 1, {r: {"rule": r} for r in ("z", "w_square")})
    close(got["z"].values, [-2.5, 7.5, -1.5], 1e-12)
    close(got["z"].output, [0.7, 3.75], 1e-12)
    close(got["w_square"].values, [0.770308, 2.713586, 0.266106], 1e-6)
    close(ja.gradient(two_layers, jnp.asarray(X), 1).values, [-2.5, 3.75, 1.5], 1e-12)


def test_closed_form_of_alpha_beta_without_bias(x64):
    """The score without biases, 3.5, is scaled to the score with biases, 3.75."""
    got = ja.lrp(
        lambda x: jax.nn.relu(x @ W1) @ W2,
        jnp.asarray(X),
        lambda out: out[1] * (3.75 / 3.5),
        rule="alpha_beta",
    )
    close(got.values, [-7.5, 12.5, -5.0], 1e-12)


def test_z_rule_of_relu_networks_is_input_x_gradient(x64):
    """The identity holds without biases, also for the reference."""
    d = Draw(3)
    w, v = d(4, 5), d(5, 2)
    fn, x = lambda x: jax.nn.relu(x @ w) @ v, d(4)
    want = x * jax.grad(lambda x: fn(x)[0])(x)
    close(ja.lrp(fn, jnp.asarray(x), 0, rule="z").values, want, 1e-12)
    steps = [layer(lambda x: x @ w), relu, layer(lambda x: x @ v)]
    close(reference.lrp(steps, x, 0, "z")[0], want, 1e-12)


def test_zero_inputs_receive_relevance_of_a_bias(x64):
    w, b = jnp.ones((3, 1)), jnp.full(1, 6.0)
    x = jnp.array([0.0, 3.0, 0.0])
    got = ja.lrp(lambda x: x @ w + b, x, rule="z", conserve_bias=True)
    close(got.values, [2.0, 5.0, 2.0], 1e-12)
    close(got.info["absorbed"], 0.0)
    got = ja.lrp(lambda x: x @ w + b, x, rule="z")
    close(got.values, [0.0, 3.0, 0.0], 1e-12)
    close(got.info["absorbed"], 6.0, 1e-12)


def test_zero_denominator_absorbs_relevance(x64):
    w = jnp.array([[1.0, 2.0], [-1.0, 0.0]])
    fn, x = lambda x: jnp.tanh(x @ w) + 1.0, jnp.ones(2)  # the first unit's inputs cancel
    for rule in ("z", "gamma", "alpha_beta"):
        got = ja.lrp(fn, x, lambda out: out.sum(), rule=rule)
        assert np.isfinite(got.values).all()
        close(got.values.sum() + got.info["absorbed"], got.output.sum())


def test_epsilon_treats_zero_as_positive(x64):
    """At z = 0 the denominator is +epsilon, not 0 or -epsilon."""
    w = jnp.array([[1.0], [-1.0]])
    got = ja.lrp(lambda x: jnp.exp(x @ w), jnp.ones(2), rule="epsilon", epsilon=0.5)
    close(got.values, [2.0, -2.0], 1e-12)


# Equivalent forms of an affine map.

D, H, T = 2, 3, 4
ROWS = np.random.default_rng(0)
W, U, B_X, B_H = (ROWS.normal(size=s) for s in ((D, H), (H, H), (H,), (H,)))
FUSED, BIAS = np.concatenate([W, U]), B_X + B_H
FORMS = {
    "fused": lambda x, h: jnp.concatenate([x, h]) @ FUSED + BIAS,
    "separate": lambda x, h: (x @ W + B_X) + (h @ U + B_H),
    "a dense for each unit": lambda x, h: jnp.concatenate(
        [x @ W[:, [j]] + (h @ U[:, [j]] + BIAS[[j]]) for j in range(H)]
    ),
    "split afterwards": lambda x, h: jnp.concatenate(
        jnp.split(jnp.concatenate([x, h]) @ FUSED + BIAS, H)
    ),
    "einsum": lambda x, h: jnp.einsum("i,ij->j", x, W) + U.T @ h + BIAS,
    "vmap": lambda x, h: jax.vmap(jnp.vdot, (1, None))(FUSED, jnp.concatenate([x, h])) + BIAS,
    "scaled": lambda x, h: BIAS - (0.5 * (x @ (-2 * W)) - (h @ (3 * U)) / 3),
    "multiply and sum": lambda x, h: (jnp.concatenate([x, h])[:, None] * FUSED).sum(0) + BIAS,
}
SEQUENCE, READOUT = ROWS.normal(size=(T, D)), ROWS.normal(size=(H, 2))
# `epsilon` also represents `z`, and `alpha_beta` represents `z_plus`.
IN_LOOPS = FEW | {rule: CASES[rule] for rule in ("w_square", "flat")}


def recurrent(form, x):
    def advance(h, row):
        return jnp.tanh(FORMS[form](row, h)), None

    return jax.lax.scan(advance, jnp.full(H, 0.3), x)[0] @ READOUT


@functools.cache
def of_form(form):
    with jax.enable_x64(True):
        return every_case(functools.partial(recurrent, form), SEQUENCE, 1, IN_LOOPS)


@pytest.mark.parametrize("case", IN_LOOPS)
def test_affine_map_in_a_scan_is_one_layer(case):
    options = dict(CASES[case])
    hidden = [np.full(H, 0.3)]
    for row in SEQUENCE:
        hidden.append(np.tanh(np.concatenate([row, hidden[-1]]) @ FUSED + BIAS))
    score = hidden[-1] @ READOUT
    above = reference.redistribute(READOUT, np.zeros(2), hidden[-1], score * [0, 1], **options)
    values = np.zeros((T, D))
    for t in reversed(range(T)):
        below = np.concatenate([SEQUENCE[t], hidden[t]])
        values[t], above = np.split(
            reference.redistribute(FUSED, BIAS, below, above, **options), [D]
        )
    got = of_form("fused")[case]
    close(got.values, values)
    close(got.info["absorbed"], score[1] - values.sum())


@pytest.mark.slow
@pytest.mark.representatives("einsum", "split afterwards")
@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_forms_of_an_affine_map_are_equivalent(form):
    got, want = of_form(form), of_form("fused")
    for case in IN_LOOPS:
        np.testing.assert_allclose(got[case].values, want[case].values, rtol=0, atol=1e-12)


# Equivalent forms of a recurrence.


def cell(h, row):
    return jnp.tanh(FORMS["fused"](row, h)), None


def scan_cells(h, rows):
    return jax.lax.scan(cell, h, rows)


@jax.custom_vjp
def custom_tanh(z):
    return jnp.tanh(z)


custom_tanh.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (g / jnp.square(jnp.cosh(z)),))


def branch(h, row):
    """Both branches compute the same map, in two forms."""
    branches = [lambda: cell(h, row)[0], lambda: jnp.tanh(FORMS["separate"](row, h))]
    return jax.lax.cond(row[0] > 0, *branches), None


LOOPS = {
    "unrolled by hand": lambda h, x: functools.reduce(lambda h, row: cell(h, row)[0], x, h),
    "fori_loop": lambda h, x: jax.lax.fori_loop(0, T, lambda i, h: cell(h, x[i])[0], h),
    "remat": lambda h, x: jax.jit(jax.lax.scan, static_argnums=0)(jax.checkpoint(cell), h, x)[0],
    "backward": lambda h, x: jax.lax.scan(cell, h, x[::-1], reverse=True, unroll=2)[0],
    "nested": lambda h, x: jax.lax.scan(scan_cells, h, x.reshape(2, T // 2, D))[0],
    "custom rule": lambda h, x: jax.lax.scan(
        lambda h, row: (custom_tanh(FORMS["fused"](row, h)), None), h, x
    )[0],
    "cond": lambda h, x: jax.lax.scan(branch, h, x)[0],
    "batch": lambda h, x: jax.lax.scan(jax.vmap(cell), h[None], x[:, None])[0][0],
}


@pytest.mark.representatives("unrolled by hand", "cond")
@pytest.mark.parametrize("loop", LOOPS)
def test_forms_of_a_recurrence_are_equivalent(loop, x64):
    cases = {case: CASES[case] for case in ("epsilon, bias shared", "gamma")}
    got = every_case(lambda x: LOOPS[loop](jnp.full(H, 0.3), x) @ READOUT, SEQUENCE, 1, cases)
    for case in cases:
        np.testing.assert_allclose(
            got[case].values, of_form("fused")[case].values, rtol=0, atol=1e-12
        )


# Layers of other libraries.

SCALE, SHIFT = np.array([-1.5, 0.5, 2.0, 1.0]), np.array([0.3, -0.2, 0.1, 0.4])


def keras_norm(kind, *weights):
    norm = keras.Sequential([keras.layers.Input((4,)), kind()])
    norm.set_weights(weights)
    return norm


def nnx_norm(kind, bias=True):
    norm = kind(4, rngs=nnx.Rngs(0))
    norm.scale = nnx.Param(jnp.asarray(SCALE))
    if bias:
        norm.bias = nnx.Param(jnp.asarray(SHIFT))
    return norm


def equinox_norm():
    at = eqx.tree_at(lambda n: (n.weight, n.bias), eqx.nn.LayerNorm(4), (SCALE, SHIFT))
    return jax.tree.map(jnp.asarray, at)


NORMS = {
    "nnx": lambda: nnx_norm(nnx.LayerNorm),
    "linen": lambda: Partial(
        linen.LayerNorm().apply, {"params": {"scale": jnp.asarray(SCALE), "bias": SHIFT}}
    ),
    "equinox": equinox_norm,
    "function": lambda: lambda x: jax.nn.standardize(x) * SCALE + SHIFT,
    "nnx, root mean square": lambda: nnx_norm(nnx.RMSNorm, bias=False),
    "keras, root mean square": lambda: keras_norm(keras.layers.RMSNormalization, SCALE),
}


@pytest.fixture
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.representatives("nnx")
@pytest.mark.parametrize("name", NORMS)
def test_normalisation_of_every_library_passes_relevance_through(name, x64, plain_promotion):
    """Scale and shift belong to the dense layer that follows.

    Most libraries multiply the inverse root by the scale, and relevance passes through both. Rules
    that depend on the signs of weights, or on the range of inputs, match the reference only where
    the scale is applied separately. Keras adds the shift to the subtracted mean: the shift receives
    no relevance.
    """
    d, norm = Draw(1), NORMS[name]()
    first, last, x = d.dense(3, 4), d.dense(4, 2), d(3)
    call = (lambda x: norm(x[None])[0]) if name.startswith("keras") else norm
    shift = 0.0 if "root" in name else SHIFT

    def core(hidden):
        return (call(hidden) - shift) / SCALE

    def affine(normal):
        return last(normal * SCALE + shift)

    scale_is_separate = name in ("equinox", "function")
    cases = FEW if scale_is_separate else {n: FEW[n] for n in ["epsilon, bias shared"]}
    got = every_case(lambda x: last(call(jnp.tanh(first(x)))), x, 1, cases)
    steps = [layer(first), tanh, pass_through(core), layer(affine)]
    tolerance = 1e-6 if name.startswith("keras") else 1e-10  # Keras' norms round to float32
    for case, options in cases.items():
        values, absorbed = reference.lrp(steps, x, 1, **options)
        close(got[case].values, values, tolerance)
        close(got[case].info["absorbed"], absorbed, tolerance)


@pytest.mark.slow
def test_keras_batch_norm_is_part_of_the_convolution(x64, plain_promotion):
    keras.utils.set_random_seed(0)
    convolution = keras.layers.Conv1D(4, 3, padding="same")
    norm = keras.layers.BatchNormalization()
    head = keras.layers.Dense(3)
    between = [keras.layers.ReLU(), keras.layers.Flatten()]
    model = keras.Sequential([keras.layers.Input((5, 2)), convolution, norm, *between, head])
    d = Draw(2)
    model.set_weights([np.abs(d(*w.shape)) + 0.1 for w in model.get_weights()])
    steps = [
        layer(lambda x: norm(convolution(x[None]), training=False)[0]),
        relu,
        flatten,
        layer(lambda x: head(x[None])[0]),
    ]
    x = d(5, 2)
    got = every_case(model, x, 1, FEW)
    for case, options in FEW.items():
        values, absorbed = reference.lrp(steps, x, 1, **options)
        close(got[case].values, values, 1e-6)  # Keras' norm rounds to float32
        close(got[case].info["absorbed"], absorbed, 1e-6)


# Errors and warnings.

VECTOR = jnp.array([0.5, -1.0, 2.0])
SQUARE = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)


def product_of_signals(x):
    return ((x @ SQUARE) * jnp.tanh(x @ SQUARE.T)).sum()


def until_large(x):
    """A loop whose length depends on the data."""
    return jax.lax.while_loop(lambda h: h.sum() < 10.0, lambda h: h + jnp.abs(h @ SQUARE), x).sum()


def until_large_or_long(x):
    """A loop whose length depends on the data, with two carries."""

    def unfinished(carry):
        return (carry[0] < 9) & (carry[1].sum() < 10.0)

    return jax.lax.while_loop(
        unfinished, lambda carry: (carry[0] + 1, carry[1] + jnp.abs(carry[1] @ SQUARE)), (0, x)
    )[1].sum()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rule": "espilon"}, "rule.*espilon"),
        ({"rule": 3}, "rule"),
        ({"rule": "alpha_beta", "alpha": 0.5}, "alpha.*0.5"),
        ({"epsilon": -1.0}, "epsilon.*-1"),
        ({"rule": "gamma", "gamma": -1.0}, "gamma.*-1"),
        ({"rule": "bounded"}, "low|high"),
        ({"rule": "z_b"}, "z_b.*low"),
        ({"gates": "none"}, "gates.*none"),
        ({"attention": "none"}, "attention.*none"),
        ({"rule": [("no_such_layer", "gamma"), ("*", "epsilon")]}, "no_such_layer"),
    ],
    ids=str,
)
def test_invalid_options_raise(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ja.lrp(lambda x: jnp.tanh(x @ SQUARE), VECTOR, 0, **options)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.argmax(x).astype(jnp.float32),
        lambda x: jnp.round(x).astype(jnp.int32).astype(jnp.float32).sum(),
        lambda x: (x > 0).sum().astype(jnp.float32),
    ],
    ids=["argmax", "round", "compare"],
)
def test_missing_differentiable_path_raises(fn):
    with pytest.raises((ValueError, TypeError), match="differentiable"):
        ja.lrp(fn, VECTOR)


@pytest.mark.slow
def test_z_b_equals_bounded():
    bounds = {"low": -3.0, "high": 3.0}

    def values(rule, **options):
        return ja.lrp(lambda x: x @ SQUARE, VECTOR, 0, rule=rule, **options).values

    want = values("bounded", **bounds)
    for rule in ("z_b", (("input", "z_b"),)):
        np.testing.assert_array_equal(values(rule, **bounds), want)
    for kind in ("bounded", "z_b"):
        np.testing.assert_array_equal(values(ja.LRPRule(kind, **bounds)), want)
    with pytest.raises(ValueError, match=r"low.*high"):
        values("z_b")


@pytest.mark.parametrize("name", ja.LRP_PRESETS)
def test_preset_equals_its_rules(name):
    def values(rule):
        return ja.lrp(lambda x: jnp.tanh(x @ SQUARE), VECTOR, 0, rule=rule, low=-3.0, high=3.0)

    by_name, by_pairs = values(name), values(ja.LRP_PRESETS[name])
    np.testing.assert_array_equal(by_name.values, by_pairs.values)


def test_presets_are_immutable():
    with pytest.raises(TypeError):
        ja.LRP_PRESETS["epsilon_plus"] = ()


def test_product_of_two_signals_raises():
    with pytest.raises(ValueError, match=r"(?s)mul.*products="):
        ja.lrp(product_of_signals, VECTOR)


def test_contraction_of_two_signals_raises():
    with pytest.raises(ValueError, match=r"(?s)dot_general.*products="):
        ja.lrp(lambda x: (x @ SQUARE) @ jnp.tanh(x @ SQUARE.T), VECTOR)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.square(jnp.tanh(x @ SQUARE)).sum(),
        lambda x: jax.nn.silu(x @ SQUARE).sum(),
        lambda x: ((x @ SQUARE) * jax.nn.sigmoid(1.702 * (x @ SQUARE))).sum(),
        lambda x: jax.nn.gelu(x @ SQUARE).sum(),
        lambda x: jax.nn.mish(x @ SQUARE).sum(),
    ],
    ids=["square", "silu", "quick gelu", "gelu", "mish"],
)
def test_product_of_a_variable_with_itself_is_an_activation(fn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ja.lrp(fn, VECTOR, rule="z", epsilon=0.0)
    np.testing.assert_allclose(got.values.sum(), got.output, rtol=1e-4)


def test_epsilon_in_a_contraction_of_two_signals():
    a, b = np.array([1.0, 2.0], np.float32), np.array([3.0, -1.0], np.float32)
    found = ja.lrp(lambda x: x["a"] @ x["b"], {"a": a, "b": b}, products="half", epsilon=0.5)
    half = a * b / 2 * (a @ b) / (a @ b + 0.5)
    np.testing.assert_allclose(found.values["a"], half, rtol=1e-6)
    np.testing.assert_allclose(found.values["b"], half, rtol=1e-6)


def test_values_multiplied_by_zero_receive_no_relevance():
    mask, x = np.array([1, 0, 2], np.float32), np.array([0.5, 1, 0.2], np.float32)
    found = ja.lrp(lambda x: jax.nn.relu(jnp.tanh(x) * mask) @ np.ones((3, 1)), x, 0, rule="flat")
    third = float(found.output[0]) / 3
    np.testing.assert_allclose(found.values, [third, 0, third], rtol=1e-6)
    np.testing.assert_allclose(found.info["absorbed"], third, rtol=1e-6)


def test_product_of_a_gate_and_a_signal_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ja.lrp(lambda x: (jax.nn.sigmoid(x @ SQUARE) * jnp.tanh(x @ SQUARE.T)).sum(), VECTOR)


@pytest.mark.parametrize("fn", [until_large, until_large_or_long])
def test_while_loop_raises_in_lrp_but_not_in_occlusion(fn):
    """LRP needs the steps backward, which JAX does not record; occlusion runs forward."""
    with pytest.raises(ValueError, match="while"):
        ja.lrp(fn, VECTOR)
    found = ja.occlusion(fn, VECTOR, window=1)
    want = fn(VECTOR) - fn(VECTOR.at[1].set(0.0))
    np.testing.assert_allclose(found.values[1], want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["ordered", "callback"])
def test_side_effects_raise(kind):
    def fn(x):
        if kind == "ordered":
            jax.debug.print("{}", x, ordered=True)
            return (x @ SQUARE).sum()
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(np.sin, shape, x @ SQUARE).sum()

    with pytest.raises((ValueError, TypeError), match=r"callback|effect"):
        ja.lrp(fn, VECTOR)
