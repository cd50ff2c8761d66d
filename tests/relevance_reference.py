"""Reference implementation of LRP: layers are dense matrices, rules are formulas over all pairs.

It follows the equations of the papers, in NumPy and float64, and shares no code with the library.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

RULES = ("epsilon", "z", "gamma", "alpha_beta", "z_plus", "w_square", "flat", "bounded")


def compiled(fn):
    """Jit `fn` without optimization: programs that run once compile ten times faster."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def ratio(a, b):
    """Return a / b, and 0 where b is 0: relevance without contributions is absorbed."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.zeros(a.shape), where=b != 0)


def redistribute(
    weight,
    bias,
    x,
    relevance,
    rule="epsilon",
    *,
    epsilon=1e-3,
    gamma=0.25,
    alpha=2.0,
    low=None,
    high=None,
    ignore_bias=False,
    conserve_bias=False,
):
    """Return the relevance (I,) of x (I,) for that (J,) of x @ weight (I, J) + bias (J,)."""
    x = x[:, None]
    positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
    if rule in ("epsilon", "z"):
        z = (x * weight).sum(0) + bias
        stabiliser = np.where(z >= 0, 1.0, -1.0) * epsilon * (rule == "epsilon")
        connected = weight != 0
        spread = connected * ratio(bias + stabiliser, connected.sum(0)) * conserve_bias
        return ratio(x * weight + spread, z + stabiliser) @ relevance
    if rule == "gamma":
        parts = x * (weight + gamma * positive)
        return ratio(parts, parts.sum(0) + bias + gamma * np.maximum(bias, 0)) @ relevance
    if rule in ("alpha_beta", "z_plus"):
        alpha = 1.0 if rule == "z_plus" else alpha
        bias = bias * (rule == "alpha_beta" and not ignore_bias)
        up, down = np.maximum(x * weight, 0), np.minimum(x * weight, 0)
        up = ratio(up, up.sum(0) + np.maximum(bias, 0))
        down = ratio(down, down.sum(0) + np.minimum(bias, 0))
        return (alpha * up - (alpha - 1) * down) @ relevance
    parts = {
        "w_square": lambda: weight**2,
        "flat": lambda: 1.0 * (weight != 0),
        "bounded": lambda: (
            x * weight - np.reshape(low, (-1, 1)) * positive - np.reshape(high, (-1, 1)) * negative
        ),
    }[rule]()
    return ratio(parts, parts.sum(0)) @ relevance


class Step(NamedTuple):
    """One step of a feed-forward network, and how relevance propagates through it."""

    kind: str
    fn: Any
    rule: dict | None = None


def layer(fn, **rule):
    """An affine layer: a contraction with adjacent scalings and shifts, and its own rule if any."""
    return Step("layer", fn, rule)


def addition(fn):
    """A sum, an average pool or a scaling alone: always the epsilon rule."""
    return layer(fn, rule="epsilon")


def pass_through(fn):
    """An activation or the core of a normalisation: relevance passes through unchanged."""
    return Step("pass_through", fn)


def winner_take_all(fn):
    """A maximum or a reshape: relevance propagates like a gradient."""
    return Step("winner_take_all", fn)


def residual(*steps):
    """The input plus the output of the steps."""
    return Step("residual", steps)


def run(steps, x):
    """Apply the network; JAX can trace it."""
    for step in steps:
        x = x + run(step.fn, x) if step.kind == "residual" else step.fn(x)
    return x


@functools.cache
def linear(fn: Callable, shape):
    """Return the dense weight (I, J) and bias (J,) of an affine function."""
    both = compiled(lambda x: (jax.jacobian(fn)(x), fn(x)))
    weight, bias = map(np.asarray, both(np.zeros(shape)))
    return weight.reshape(bias.size, -1).T, bias.ravel()


def propagate(steps, x, relevance, rule, **options):
    """Return the relevance of x for the relevance of run(steps, x)."""
    inputs = [x]
    for step in steps:
        inputs.append(np.asarray(run([step], inputs[-1])))
    for step, below in zip(reversed(steps), reversed(inputs[:-1]), strict=True):
        if step.kind == "layer":
            weight, bias = linear(step.fn, below.shape)
            step_options = {"rule": rule, **options, **(step.rule or {})}
            parts = redistribute(weight, bias, below.ravel(), relevance.ravel(), **step_options)
            relevance = parts.reshape(below.shape)
        elif step.kind == "winner_take_all":
            relevance = np.asarray(jax.vjp(step.fn, below)[1](relevance)[0])
        elif step.kind == "residual":
            branch = np.asarray(run(step.fn, below))
            skip, branch_relevance = split_sum(below, branch, relevance, **options)
            relevance = skip + propagate(step.fn, below, branch_relevance, rule, **options)
    return relevance


def split_sum(a, b, relevance, *, epsilon=1e-3, conserve_bias=False, **_):
    """Split the relevance of a + b by the epsilon rule."""
    z = a + b
    stabiliser = np.where(z >= 0, epsilon, -epsilon)
    spread = stabiliser / 2 * conserve_bias
    return [ratio(part + spread, z + stabiliser) * relevance for part in (a, b)]


def lrp(steps, x, target, rule, **options):
    """Return the expected values of `jaxattn.lrp` and its `info["absorbed"]`."""
    output = np.asarray(run(steps, x))
    start = np.zeros_like(output)
    start[target] = output[target]
    values = propagate(steps, np.asarray(x), start, rule, **options)
    return values, output[target] - values.sum()


class Cell(NamedTuple):
    """One direction of an LSTM: kernel (D, 4H), recurrent (H, 4H), bias (4H,), gates i f g o."""

    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def run_lstm(cell, x, h, c):
    """Return the states h and c (T + 1, H), initial ones first, and the gates (T, 4, H)."""
    hidden, memory, gates = [h], [c], []
    for row in x:
        z = row @ cell.kernel + hidden[-1] @ cell.recurrent + cell.bias
        i, f, g, o = np.split(z, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        memory.append(f * memory[-1] + i * g)
        hidden.append(o * np.tanh(memory[-1]))
        gates.append([i, f, g, o])
    return np.array(hidden), np.array(memory), np.array(gates)


def gated(gate, signal, relevance, gates="all", **options):
    """Return the relevance of the gate and of the signal for that of their product."""
    if gates == "all":
        return 0 * relevance, relevance
    if gates == "half":
        return relevance / 2, relevance / 2
    return split_sum(gate, signal, relevance, **options)  # proportional, as for a sum


def lstm_relevance(cell, x, relevance, h, c, gates="all", **options):
    """Propagate relevance through an LSTM, backward through time (Arras et al. 2017).

    Args:
        relevance: of the hidden state after each step, (T, H).

    Returns:
        The relevance of x (T, D), of the initial hidden state and of the initial cell state.
    """
    hidden, memory, activations = run_lstm(cell, x, h, c)
    weight = np.concatenate([cell.kernel, cell.recurrent])
    values, of_h, of_c = np.zeros_like(x), np.zeros_like(h), np.zeros_like(c)
    for t in reversed(range(len(x))):
        i, f, g, o = activations[t]
        of_h = of_h + relevance[t]
        of_o, of_tanh = gated(o, np.tanh(memory[t + 1]), of_h, gates, **options)
        kept, written = split_sum(f * memory[t], i * g, of_c + of_tanh, **options)
        of_f, of_c = gated(f, memory[t], kept, gates, **options)
        of_i, of_g = gated(i, g, written, gates, **options)
        above = np.concatenate([of_i, of_f, of_g, of_o])
        below = np.concatenate([x[t], hidden[t]])
        parts = redistribute(weight, cell.bias, below, above, **options)
        values[t], of_h = np.split(parts, [x.shape[1]])
    return values, of_h, of_c


def lstm_classifier(layers, head, x, target, h=0.0, c=0.0, gates="all", **options):
    """Propagate relevance through stacked LSTMs; a dense head (weight, bias) reads the last states.

    Args:
        layers: the cells of each layer: one, or one forward and one backward.
        h: initial hidden state of every cell.
        c: initial cell state of every cell.

    Returns:
        The score, the relevance of x, and the total relevance of all initial states.
    """
    inputs, width = [x], layers[0][0].recurrent.shape[0]
    h, c = np.full(width, h), np.full(width, c)
    for cells in layers:
        sides = [
            run_lstm(cell, inputs[-1][:: 1 - 2 * back], h, c)[0][1:][:: 1 - 2 * back]
            for back, cell in enumerate(cells)
        ]
        inputs.append(np.concatenate(sides, axis=1))
    final = np.concatenate([inputs[-1][-1, :width], inputs[-1][0, width:]])
    score = (final @ head[0] + head[1])[target]
    start = np.eye(head[1].size)[target] * score
    of_final = redistribute(*head, final, start, **options)
    relevance = np.zeros_like(inputs[-1])
    relevance[-1, :width] += of_final[:width]
    relevance[0, width:] += of_final[width:]
    of_states = 0.0
    for below, cells in zip(reversed(inputs[:-1]), reversed(layers), strict=True):
        above, relevance = relevance, np.zeros_like(below)
        for back, cell in enumerate(cells):
            order = slice(None, None, 1 - 2 * back)
            part = above[order, back * width : (back + 1) * width]
            values, *states = lstm_relevance(cell, below[order], part, h, c, gates, **options)
            relevance += values[order]
            of_states += sum(map(np.sum, states))
    return score, relevance, of_states
