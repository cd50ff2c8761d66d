"""Test saturation, dead units, non-finite entries, the summary, the history and penalties."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from recurrent_models import D, H, T, jaxattn_case, nnx_case, series
from rich.console import Console

import jaxattn as ja
from jaxattn import introspect

pytestmark = pytest.mark.usefixtures("x64")


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def driven(kind, logits):
    """A layer of one unit without recurrence whose pre-activations equal its input."""
    layer = {"lstm": ja.nn.LSTM, "rnn": ja.nn.RNN}[kind](
        1, 1, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    cell = layer.cells[0]
    cell["kernel"][...] = jnp.ones_like(cell["kernel"][...])
    cell["recurrent"][...] = jnp.zeros_like(cell["recurrent"][...])
    cell["bias"][...] = jnp.zeros_like(cell["bias"][...])
    return layer, jnp.asarray(logits)[:, None]


def test_saturation_counts_time_steps():
    layer, x = driven("lstm", [-3.0, -2.0, 0.0, 1.3, 3.0])
    found = introspect.saturation(layer, x)
    # sigmoid(-2) is 0.12 and tanh(1.3) is 0.86: the threshold of a tanh is 0.8.
    for gate, low, high in (("forget", 1, 1), ("input", 1, 1), ("cell", 2, 2)):
        close(getattr(found.low, gate), low / 5)
        close(getattr(found.high, gate), high / 5)
    wide = introspect.saturation(layer, x, margin=0.2)
    close(wide.low.forget, 2 / 5)


def test_dead_units_never_change():
    layer = ja.nn.RNN(1, 3, activation="relu", param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell = layer.cells[0]
    cell["kernel"][...] = jnp.ones((1, 3))
    cell["recurrent"][...] = jnp.zeros((3, 3))
    cell["bias"][...] = jnp.array([-9.0, 0.0, -9.0])
    x = jnp.array([[1.0], [2.0], [3.0]])
    assert introspect.dead_units(layer, x).tolist() == [True, False, True]
    found = introspect.saturation(layer, x)
    close(found.low.new, [1, 0, 1])
    close(found.high.new, 0)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: jaxattn_case("lstm"), id="jaxattn"),
        pytest.param(lambda: nnx_case("lstm"), id="nnx", marks=pytest.mark.slow),
    ],
)
def test_nan_and_infinity_are_where_they_are(build):
    model = build().model
    is_nnx = isinstance(model.rnn, nnx.RNN)
    expected = introspect.weights(model, series())
    if is_nnx:
        model.rnn.cell.if_.kernel[...] = model.rnn.cell.if_.kernel[...].at[1, 2].set(jnp.nan)
        model.rnn.cell.hg.kernel[...] = model.rnn.cell.hg.kernel[...].at[0, 1].set(-jnp.inf)
        model.rnn.cell.ho.bias[...] = model.rnn.cell.ho.bias[...].at[2].set(jnp.inf)
    else:
        cell = model.rnn.cells[0]
        cell["kernel"][...] = cell["kernel"][...].at[1, 3 + 2].set(jnp.nan)
        cell["recurrent"][...] = cell["recurrent"][...].at[0, 6 + 1].set(-jnp.inf)
        cell["bias"][...] = cell["bias"][...].at[9 + 2].set(jnp.inf)
    found = introspect.weights(model, series())
    close(found.kernel.forget, expected.kernel.forget.at[1, 2].set(jnp.nan))
    close(found.recurrent.cell, expected.recurrent.cell.at[0, 1].set(-jnp.inf))
    close(found.bias.output, expected.bias.output.at[2].set(jnp.inf))
    close(found.kernel.input, expected.kernel.input)
    report = introspect.check_finite(model, series())
    counts = [
        (part, gate, int(count.nan), int(count.inf))
        for part in ("kernel", "recurrent", "bias")
        for gate, count in getattr(report, part).items()
        if count.nan or count.inf
    ]
    assert counts == [
        ("kernel", "forget", 1, 0),
        ("recurrent", "cell", 0, 1),
        ("bias", "output", 0, 1),
    ]
    assert int(report.activation.forget.nan) > 0
    assert int(report.hidden.nan) > 0
    assert int(report.total) > 3


def test_a_finite_layer_has_an_empty_report():
    assert int(introspect.check_finite(jaxattn_case("gru").model, series()).total) == 0


def text_of(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_summary_has_a_row_for_each_gate():
    model = jaxattn_case("gru", bidirectional=True).model
    model.rnn.cells[1]["kernel"][...] = model.rnn.cells[1]["kernel"][...].at[0, 0].set(jnp.nan)
    table = introspect.summary(model, series())
    assert table.row_count == 6
    text = text_of(table)
    lines = {gate: [row for row in text.splitlines() if gate in row] for gate in ("reset", "new")}
    weights = introspect.weights(model, series(), layer="rnn/forward")
    rms = f"{np.sqrt(np.mean(np.square(weights.kernel.new))):.3f}"
    assert rms in lines["new"][0]
    assert "2x3" in lines["new"][0]
    assert "nan" in lines["reset"][1]
    assert "rnn/backward" in text
    assert introspect.summary(model, series(), layer="rnn/forward").row_count == 3
    with pytest.raises(ValueError, match=re.escape("['rnn/forward', 'rnn/backward'], got 'x'")):
        introspect.summary(model, series(), layer="x")
    with pytest.raises(ValueError, match="`model` must have a recurrent layer"):
        introspect.summary(lambda x: x.sum(), series())


@pytest.mark.slow
def test_history_records_norms_and_probes_inside_of_a_jitted_loop():
    model = jaxattn_case("lstm").model
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x):
        return jnp.square(nnx.merge(graphdef, params, rest)(x)).sum()

    def probe(params):
        found = introspect.saturation(nnx.merge(graphdef, params, rest), series())
        return {"saturated": found.low.forget + found.high.forget}

    recorder = introspect.record_history(4, probe)
    optimizer = optax.chain(recorder, optax.sgd(0.1))

    @jax.jit
    def train(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, series()), state, params)
            return (optax.apply_updates(params, updates), state), params

        return jax.lax.scan(step, (params, state), None, 4)

    (_, state), visited = train(params, optimizer.init(params))
    history = state[0]
    assert int(history.taken) == 4
    gradients = jax.vmap(jax.grad(loss), (0, None))(visited, series())

    def norms(arrays):
        return jax.tree.map(lambda a: jnp.sqrt(jnp.square(a).reshape(4, -1).sum(1)), arrays)

    jax.tree.map(close, history.weight_norms, norms(visited))
    jax.tree.map(close, history.gradient_norms, norms(gradients))
    first = introspect.saturation(model, series())
    close(history.probes["saturated"][0], first.low.forget + first.high.forget)


def test_history_overwrites_the_oldest_entry():
    recorder = introspect.record_history(2)
    params = jnp.ones(1)
    state = recorder.init(params)
    assert np.isnan(state.weight_norms).all()
    for scale in (1.0, 2.0, 3.0):
        updates, state = recorder.update(scale * params, state, params)
        close(updates, scale)
    close(state.gradient_norms, [3, 2])
    with pytest.raises(ValueError, match="`params` must be passed to `update`"):
        recorder.update(params, state)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got 0"):
        introspect.record_history(0)


@pytest.mark.slow
def test_penalties_of_single_gates_and_their_gradient():
    model = jaxattn_case("lstm").model
    weights = introspect.weights(model, series())
    expected = 0.1 * jnp.abs(weights.recurrent.forget).sum()
    expected += 0.2 * jnp.square(weights.recurrent.forget).sum()
    options = {"l1": 0.1, "l2": 0.2, "parts": ["recurrent"], "gates": ["forget"]}
    close(introspect.weight_penalty(weights, **options), expected)
    graphdef, params = nnx.split(model)

    def penalty(params):
        found = introspect.weights(nnx.merge(graphdef, params), series())
        return introspect.weight_penalty(found, **options)

    gradient = jax.grad(penalty)(params)["rnn"]["cells"][0]
    recurrent = model.rnn.cells[0]["recurrent"][...]
    block = (jnp.arange(4 * H) // H == 1)[None]
    slope = jnp.where(block, 0.1 * jnp.sign(recurrent) + 0.4 * recurrent, 0)
    close(gradient["recurrent"][...], slope)
    close(gradient["kernel"][...], 0)
    for name, given in (("parts", ["weights"]), ("gates", ["reset"]), ("gates", "forget")):
        with pytest.raises(ValueError, match=f"`{name}` must be some of"):
            introspect.weight_penalty(weights, **{name: given})


def test_margin_must_be_below_half():
    with pytest.raises(ValueError, match=re.escape("`margin` must lie between 0 and 0.5, got 0.5")):
        introspect.saturation(ja.nn.RNN(D, H, rngs=nnx.Rngs(0)), jnp.ones((T, D)), margin=0.5)
