"""Test what `jaxattn.introspect` finds inside of recurrent layers of every library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrent_models import CASES, QUICK, STACKED, H, other_libraries, series

import jaxattn as ja
from jaxattn import introspect

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with other_libraries():
        yield


BUILT: dict = {}


def case_of(name):
    if name not in BUILT:
        BUILT[name] = (CASES | STACKED)[name]()
    return BUILT[name]


def tiers(names):
    marks = {name: () if name in QUICK else pytest.mark.slow for name in names}
    return [pytest.param(name, marks=mark, id=name) for name, mark in marks.items()]


every_case = pytest.mark.parametrize("name", tiers([*CASES, *STACKED]))


def score(output):
    """A loss in which every output has a derivative of its own."""
    return (jnp.arange(output.size) * jnp.sin(output)).sum()


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@every_case
def test_weights_are_the_parameters_of_the_library(name):
    case = case_of(name)
    assert [layer.name for layer in introspect.layers(case.model, series())] == list(case.layers)
    for layer, expected in case.layers.items():
        found = introspect.weights(case.model, series(), layer=layer)
        for part in ("kernel", "recurrent", "bias"):
            for gate, values in getattr(found, part).items():
                close(values, getattr(expected, part)[gate])
        if expected.recurrent_bias is not None:
            close(found.recurrent_bias, expected.recurrent_bias)
        elif found.recurrent_bias is not None:
            close(found.recurrent_bias, 0)
        assert found.direction == ("backward" if "backward" in layer + name else "forward")


@every_case
def test_gradients_through_the_gates_sum_to_the_gradient(name):
    case = case_of(name)
    names = list(case.layers)
    for each in [names[:2], names[2:]] if name in STACKED else [names]:
        parts = [
            part
            for layer in each
            for _, part in introspect.gate_gradients(
                case.model, series(), score, layer=layer
            ).inputs.items()
        ]
        assert all(abs(part).max() > 1e-3 for part in parts)
        close(sum(parts), ja.gradient(case.model, series(), score).values)


#: GRUs whose reset gate multiplies the state, not its product with the weights.
RESETS_STATE = ("keras gru before", "haiku gru")


def equations(weights, kind, x, flipped, name):
    """Run the textbook equations with weights by gate, and return states and gates."""
    w, u, b = (dict(part.items()) for part in (weights.kernel, weights.recurrent, weights.bias))
    h = c = jnp.zeros(H)
    found = []
    for row in x[::-1] if flipped else x:
        a = {gate: row @ w[gate] + h @ u[gate] + b[gate] for gate in w}
        if kind == "lstm":
            gates = {g: jnp.tanh(v) if g == "cell" else jax.nn.sigmoid(v) for g, v in a.items()}
            c = gates["forget"] * c + gates["input"] * gates["cell"]
            h = gates["output"] * jnp.tanh(c)
        elif kind == "gru":
            gates = {g: jax.nn.sigmoid(a[g]) for g in ("update", "reset")}
            inside = gates["reset"] * (h @ u["new"] + weights.recurrent_bias)
            if name in RESETS_STATE:
                inside = (gates["reset"] * h) @ u["new"]
            gates["new"] = jnp.tanh(row @ w["new"] + b["new"] + inside)
            keep = 1 - gates["update"] if name == "haiku gru" else gates["update"]
            h = (1 - keep) * gates["new"] + keep * h
        else:
            gates = {"new": jnp.tanh(a["new"])}
            h = gates["new"]
        found.append({"hidden": h, "cell_state": c, **gates})
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *found)
    return jax.tree.map(lambda v: v[::-1], stacked) if flipped else stacked


@pytest.mark.parametrize(
    "name",
    tiers(["jaxattn lstm", "nnx gru", "jaxattn rnn", "jaxattn bidirectional", "nnx bidirectional",
           "keras gru", "equinox backward", "haiku lstm", "haiku gru", "keras gru before"]),
)  # fmt: skip
def test_states_and_gates_follow_the_equations(name):
    case = case_of(name)
    for info in introspect.layers(case.model, series()):
        x, layer = series(), info.name
        weights = introspect.weights(case.model, x, layer=layer)
        expected = equations(weights, info.kind, x, info.direction == "backward", name)
        states = introspect.states(case.model, x, layer=layer)
        close(states.hidden, expected["hidden"])
        if info.kind == "lstm":
            close(states.cell, expected["cell_state"])
        for gate, values in introspect.gates(case.model, x, layer=layer).activation.items():
            close(values, expected[gate])


def loss_of(weights, kind, x, flipped, name):
    return score(equations(weights, kind, x, flipped, name)["hidden"].ravel())


@pytest.mark.parametrize(
    "name", tiers(["jaxattn lstm", "jaxattn gru", "nnx rnn", "keras gru", "equinox backward",
                   "haiku lstm", "haiku gru", "keras gru before", "linen gru"])
)  # fmt: skip
def test_gradients_of_a_loss_with_respect_to_weights(name):
    case, x = case_of(name), series()
    (info,) = introspect.layers(case.model, x)
    weights = introspect.weights(case.model, x)
    backward = info.direction == "backward"
    expected = jax.grad(loss_of)(weights, info.kind, x, backward, name)
    found = introspect.gate_gradients(case.model, x, score)
    close(found.score, loss_of(weights, info.kind, x, backward, name))
    jax.tree.map(close, found.weights, expected)
