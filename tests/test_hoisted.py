"""An affine map is one layer, also if it has several steps or is hoisted out of a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

T, D, H, K = 5, 3, 4, 2
rng = np.random.default_rng(0)
W, U, b, V = (rng.normal(size=s) for s in [(D, 4 * H), (H, 4 * H), (4 * H,), (H, K)])
SCALE = 1 + rng.random(4 * H)
X = rng.normal(size=(T, D))
RULES = ("epsilon", "z", "gamma", "alpha_beta", "z_plus", "w_square", "flat")


def lstm(inputs, project, reverse=False):
    """Return an LSTM's logits; `project` maps a scanned row and a state to the pre-activation."""

    def step(state, row):
        h, c = state
        i, f, g, o = jnp.split(project(row, h), 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros(H, inputs.dtype)
    return jax.lax.scan(step, (zeros, zeros), inputs, reverse=reverse)[0][0] @ V


def gate_by_gate(x, h):
    columns = [slice(k * H, (k + 1) * H) for k in range(4)]
    return jnp.concatenate([(x @ W[:, k] + b[k]) + h @ U[:, k] for k in columns])


FORMS = {
    "one product": lambda x: lstm(
        x, lambda x, h: jnp.concatenate([x, h]) @ jnp.concatenate([W, U]) + b
    ),
    "gate by gate": lambda x: lstm(x, gate_by_gate),
    "einsum": lambda x: lstm(x, lambda x, h: jnp.einsum("d,dk->k", x, W) + b + h @ U),
    "products and sums": lambda x: lstm(
        x, lambda x, h: (x[:, None] * W).sum(0) + (h[:, None] * U).sum(0) + b
    ),
    "two biases": lambda x: lstm(x, lambda x, h: (x @ W + 0.25 * b) + (h @ U + 0.75 * b)),
    "hoisted": lambda x: lstm(x @ W + b[None], lambda p, h: p + h @ U),
    "hoisted, bias inside": lambda x: lstm(x @ W, lambda p, h: h @ U + b + p),
    "hoisted, bias of each step": lambda x: lstm(
        x @ W + jnp.broadcast_to(b, (T, 4 * H)), lambda p, h: p + h @ U
    ),
    "hoisted, in part": lambda x: lstm(
        (x @ (W / SCALE)) * SCALE[None], lambda p, h: (p + h @ U) + b
    ),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def values(method, names=FORMS, **options):
    """Return the values of a method for a plain form and for several others, in one program."""

    def explain(x):
        plain = lstm_of(lambda x, h: x @ W + h @ U + b)
        return [method(fn, x, 1, **options).values for fn in (plain, *map(FORMS.get, names))]

    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(explain, compiler_options=quick)(jnp.asarray(X))


def lstm_of(project):
    return lambda x: lstm(x, project)


def close(found, names=FORMS):
    want, *got = map(np.asarray, found)
    for name, value in zip(names, got, strict=True):
        np.testing.assert_allclose(value, want, 0, 1e-12 * abs(want).max(), err_msg=name)


@pytest.mark.slow
def test_lrp_is_independent_of_the_form_of_a_layer():
    close(values(ja.lrp, rule="alpha_beta", conserve_bias=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.representatives("epsilon")
def test_every_rule_is_independent_of_the_form_of_a_layer(rule):
    names = ["one product", "hoisted"]
    close(values(ja.lrp, names, rule=rule, conserve_bias=rule == "epsilon"), names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, options",
    [(ja.contextual_decomposition, {}), (ja.deep_lift, {"multiplier": "reveal_cancel"})],
)
@pytest.mark.representatives("contextual_decomposition-options0")
def test_other_methods_are_independent_of_the_form_of_a_layer(method, options):
    names = ["one product", "hoisted", "hoisted, in part"]
    close(values(method, names, **options), names)


@pytest.mark.slow
def test_projection_hoisted_out_of_reversed_and_nested_loops():
    def outer(x, project, hoisted):
        def body(state, part):
            inner = part @ W if hoisted else part
            return state + lstm(inner, project, reverse=True), None

        return jax.lax.scan(body, jnp.zeros(K), x)[0]

    x = jnp.asarray(rng.normal(size=(2, T, D)))
    want = ja.lrp(lambda x: outer(x, lambda x, h: x @ W + h @ U, False), x, 1, rule="alpha_beta")
    got = ja.lrp(lambda x: outer(x, lambda p, h: p + h @ U, True), x, 1, rule="alpha_beta")
    np.testing.assert_allclose(got.values, want.values, rtol=1e-10)
    assert np.ptp(want.values) > 0.1


def test_projection_that_mixes_time_steps_is_a_separate_layer():
    mixing = rng.normal(size=(T, T))

    def fn(x):
        mixed = jnp.einsum("st,td->sd", mixing, x) @ W
        return lstm(mixed, lambda p, h: p + h @ U)

    found = ja.lrp(fn, jnp.asarray(X), 1, conserve_bias=True)
    np.testing.assert_allclose(found.values.sum() + found.info["absorbed"], found.output[1])
