"""Test padding, batches, other forms of cells, and errors of `jaxattn.introspect`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recurrent_models import CASES, D, H, T, jaxattn_case, other_libraries, series

import jaxattn as ja
from jaxattn import introspect

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with other_libraries():
        yield


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def score(output):
    return (jnp.arange(output.size) * jnp.sin(output)).sum()


W, U = (np.random.default_rng(i).normal(size=(n, 4 * H)) * 0.5 for i, n in enumerate((D, H)))
B = np.random.default_rng(2).normal(size=4 * H)


def lstm_update(a, c):
    i, f, g, o = jnp.split(a, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def written(form):
    """The same LSTM in several forms."""

    def model(x):
        def inside(carry, row):
            h, c = lstm_update(row @ W + h_product(carry[0]) + B, carry[1])
            return (h, c), h

        def hoisted(carry, row):
            h, c = lstm_update(row + carry[0] @ U, carry[1])
            return (h, c), h

        def as_tanh(carry, row):
            i, f, g, o = jnp.split(row @ W + carry[0] @ U + B, 4)
            i, f, o = (0.5 * jnp.tanh(0.5 * a) + 0.5 for a in (i, f, o))
            c = f * carry[1] + i * jnp.tanh(g)
            return (o * jnp.tanh(c), c), o * jnp.tanh(c)

        def concatenated(carry, row):
            both = jnp.concatenate([row, carry[0]])
            h, c = lstm_update(both @ jnp.concatenate([W, U]) + B, carry[1])
            return (h, c), h

        def h_product(h):
            return h @ U

        start = jnp.zeros(H), jnp.zeros(H)
        body = {"tanh": as_tanh, "concatenated": concatenated, "inside": inside}.get(form, hoisted)
        rows = x @ W + B if form == "hoisted" else x
        return jax.lax.scan(body, start, rows)[1].ravel()

    return model


@pytest.mark.parametrize(
    "form",
    ["hoisted", *(pytest.param(f, marks=pytest.mark.slow) for f in ("tanh", "concatenated"))],
)
def test_other_forms_of_an_lstm(form):
    model, x = written(form), series()
    weights = introspect.weights(model, x)
    for gate, block in zip(("input", "forget", "cell", "output"), range(4), strict=True):
        columns = slice(block * H, (block + 1) * H)
        close(getattr(weights.kernel, gate), W[:, columns])
        close(getattr(weights.recurrent, gate), U[:, columns])
        close(getattr(weights.bias, gate), B[columns])
    found = introspect.gate_gradients(model, x, score)
    close(sum(part for _, part in found.inputs.items()), ja.gradient(model, x, score).values)
    reference = introspect.gate_gradients(written("inside"), x, score)
    jax.tree.map(close, found.weights.kernel, reference.weights.kernel)


@pytest.mark.slow
def test_jacobians_through_the_gates_sum_to_the_jacobian():
    model = CASES["jaxattn gru"]().model
    parts = introspect.gate_jacobians(model, series())
    assert parts.reset.shape == (T * H, T, D)
    close(sum(part for _, part in parts.items()), jax.jacrev(model)(series()))


def test_gradients_of_states_follow_the_chain_rule():
    model, x = CASES["jaxattn lstm"]().model, series()
    found = introspect.gate_gradients(model, x, score)
    gates = introspect.gates(model, x)
    states = introspect.states(model, x)
    # h_t = o_t tanh(c_t), c_t = f_t c_(t-1) + i_t g_t: chain rules of one step.
    before = jnp.concatenate([jnp.zeros((1, H)), states.cell[:-1]])
    by_output = found.hidden * jnp.tanh(states.cell)
    close(found.activation.output, by_output)
    close(found.activation.forget, found.cell * before)
    close(found.activation.input, found.cell * gates.activation.cell)
    slope = gates.activation.forget * (1 - gates.activation.forget)
    close(found.preactivation.forget, found.activation.forget * slope)
    # The score depends on the outputs alone, so their gradient is known.
    close(found.output.ravel(), jax.grad(score)(states.hidden.ravel()))
    # Beyond the outputs, a state acts through the next pre-activations.
    weights = introspect.weights(model, x)
    later = sum(
        slopes[1:] @ getattr(weights.recurrent, gate).T
        for gate, slopes in found.preactivation.items()
    )
    close(found.hidden[:-1], found.output[:-1] + later)


@pytest.mark.slow
def test_padding_keeps_the_state_and_has_no_gradient():
    layer, x = jaxattn_case("lstm").model.rnn, series()

    def padded(x, length):
        return layer(x, length).outputs.ravel()

    length = jnp.asarray(3)
    states = introspect.states(padded, x, args=(length,))
    close(states.hidden[:3], introspect.states(layer, x[:3]).hidden)
    close(states.hidden[3:], states.hidden[2:3].repeat(2, 0))
    found = introspect.gate_gradients(padded, x, score, args=(length,))
    total = sum(part for _, part in found.inputs.items())
    close(total, ja.gradient(padded, x, score, args=(length,)).values)
    close(total[3:], 0)
    expected = introspect.weights(layer, x)
    jax.tree.map(close, introspect.weights(padded, x, args=(length,)).kernel, expected.kernel)
    jacobian = introspect.state_jacobians(padded, x, args=(length,), reduction=None).hidden
    close(jacobian[4, 2], jnp.eye(H))


@pytest.mark.slow
def test_results_map_over_a_batch():
    model = CASES["jaxattn gru"]().model
    xs = jnp.stack([series(), 2 * series()])
    batch = jax.vmap(lambda x: introspect.gates(model, x))(xs)
    assert batch.activation.reset.shape == (2, T, H)
    assert batch.layer == "rnn"
    one = introspect.gates(model, xs[1])
    jax.tree.map(close, jax.tree.map(lambda a: a[1], batch), one)
    jitted = jax.jit(lambda x: introspect.gate_gradients(model, x, score))(xs[1])
    jax.tree.map(close, jitted, introspect.gate_gradients(model, xs[1], score))


@pytest.mark.slow
def test_integer_inputs_have_no_gradient_by_gate():
    layer = jaxattn_case("rnn").model.rnn
    table = jnp.asarray(np.random.default_rng(0).normal(size=(7, D)))

    def model(tokens):
        return layer(table[tokens]).outputs.ravel()

    tokens = jnp.array([1, 5, 2])
    found = introspect.gate_gradients(model, tokens, score)
    assert found.inputs is None
    expected = introspect.gate_gradients(lambda x: layer(x).outputs.ravel(), table[tokens], score)
    jax.tree.map(close, found.weights.kernel, expected.weights.kernel)
    with pytest.raises(TypeError, match="`x` must hold floating-point numbers"):
        introspect.gate_jacobians(model, tokens)


@pytest.mark.slow
def test_cells_that_share_one_loop():
    import haiku as hk

    def forward(x):
        core = hk.DeepRNN([hk.LSTM(H), hk.LSTM(H + 1)])
        return hk.dynamic_unroll(core, x, core.initial_state(None))[0].ravel()

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = transformed.init(jax.random.key(0), series())
    model = jax.tree_util.Partial(transformed.apply, params)
    infos = introspect.layers(model, series())
    assert [(info.name, info.units) for info in infos] == [("deep_rnn/0", H), ("deep_rnn/1", H + 1)]
    for index, info in enumerate(infos):
        found = introspect.gate_gradients(model, series(), score, layer=info.name)
        total = sum(part for _, part in found.inputs.items())
        close(total, ja.gradient(model, series(), score).values)
        weights = introspect.weights(model, series(), layer=info.name)
        own = params[f"lstm{'_1' if index else ''}/linear"]["w"]
        rows = weights.kernel.cell.shape[0]
        close(weights.kernel.cell, jnp.split(own, 4, axis=1)[1][:rows])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normalised", "peepholes"])
def test_lstm_that_is_not_affine_has_gates_but_no_weights(kind):
    def model(x):
        def step(carry, row):
            a = row @ W + carry[0] @ U + B
            if kind == "normalised":
                a = (a - a.mean()) / jnp.sqrt(a.var() + 1e-5)
            else:
                a = a + jnp.tile(carry[1], 4) * jnp.linspace(-1, 1, 4 * H)
            h, c = lstm_update(a, carry[1])
            return (h, c), h

        return jax.lax.scan(step, (jnp.zeros(H), jnp.zeros(H)), x)[1].ravel()

    found = introspect.gate_gradients(model, series(), score)
    assert found.weights is None
    total = sum(part for _, part in found.inputs.items())
    close(total, ja.gradient(model, series(), score).values)
    with pytest.raises(ValueError, match="must have pre-activations that are affine"):
        introspect.weights(model, series())


BIDIRECTIONAL = ja.nn.LSTM(D, H, bidirectional=True, rngs=nnx.Rngs(0))
EVERY = (
    introspect.weights,
    introspect.states,
    introspect.gates,
    introspect.gate_gradients,
    introspect.gate_jacobians,
    introspect.state_jacobians,
    introspect.memory_reach,
    introspect.half_life,
    introspect.saturation,
    introspect.dead_units,
    introspect.check_finite,
)


@pytest.mark.parametrize(
    "function",
    [EVERY[0], *(pytest.param(each, marks=pytest.mark.slow) for each in EVERY[1:])],
)
def test_models_without_the_layer_raise(function):
    x = jnp.ones((T, D), jnp.float32)
    with pytest.raises(ValueError, match="`model` must have a recurrent layer"):
        function(lambda x: (x @ x.T).sum(), x)
    names = re.escape("['rnn_0/forward', 'rnn_0/backward']")
    with pytest.raises(ValueError, match=f"`layer` must be one of the .* {names}, got None"):
        function(BIDIRECTIONAL, x)
    with pytest.raises(ValueError, match=f"`layer` must be one of the .* {names}, got 'head'"):
        function(BIDIRECTIONAL, x, layer="head")


def test_loops_without_products_are_no_layers():
    def model(x):
        total = jax.lax.scan(lambda c, row: (c + row, c), jnp.zeros(D), x)[1]
        return total.sum()

    assert introspect.layers(model, series()) == ()


def test_loops_inside_of_loops_are_counted_in_the_message():
    def model(x):
        def outer(carry, _):
            return carry, jax.lax.scan(lambda h, row: (jnp.tanh(row + h * h), h), carry, x)[1]

        return jax.lax.scan(outer, jnp.zeros(D), None, 2)[1].sum()

    with pytest.raises(ValueError, match="1 inside of another loop or branch are not inspected"):
        introspect.states(model, series())


def test_names_may_be_the_end_of_a_path():
    x = jnp.ones((T, D), jnp.float32)
    full = introspect.states(BIDIRECTIONAL, x, layer="rnn_0/backward")
    short = introspect.states(BIDIRECTIONAL, x, layer="backward")
    assert short.layer == full.layer == "rnn_0/backward"
    with pytest.raises(TypeError, match="must be callable"):
        introspect.layers(3, x)
