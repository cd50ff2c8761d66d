"""Random blocks with loops: recurrences over time, and layers in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
from draws import Block
from jax import lax


def recurrence(draw):
    """A tanh network in a scan: either direction, with masks of time steps, unrolled."""
    inputs, states = draw.dense(), draw.dense()
    reverse, unroll = bool(draw.rng.random() < 0.4), int(draw.rng.choice([1, 1, 2]))
    start = draw.bias(draw.width) * float(draw.rng.random() < 0.5)
    valid = jnp.asarray(np.arange(draw.length) < draw.rng.integers(2, draw.length + 1))
    name, keep = draw.pick(
        all=lambda row, is_valid: None,
        length=lambda row, is_valid: is_valid,
        computed=lambda row, is_valid: jnp.any(row > -0.5),
    )

    def apply(forms, x):
        def advance(h, step):
            row, is_valid = step
            new = forms.activation(jnp.tanh, inputs(row) + states(h))
            kept = keep(row, is_valid)
            h = new if kept is None else jnp.where(kept, new, h)
            return h, h

        return lax.scan(advance, start, (x, valid), reverse=reverse, unroll=unroll)[1]

    return Block(f"recurrence({name}, reverse={reverse}, unroll={unroll})", apply)


def gated_recurrence(draw):
    """An LSTM, a GRU or a minimal gated unit in a scan."""
    width, reverse = draw.width, bool(draw.rng.random() < 0.4)
    of_row, of_state = draw.dense(outputs=4 * width), draw.dense(outputs=4 * width)
    candidate = draw.dense()
    gate_name, sigmoid = draw.pick(sigmoid=jax.nn.sigmoid, hard_sigmoid=jax.nn.hard_sigmoid)

    def lstm(forms, state, row):
        h, c = state
        i, f, g, o = jnp.split(of_row(row) + of_state(h), 4)
        i, f, o = (forms.gate(sigmoid(z)) for z in (i, f, o))
        c = f * c + i * forms.activation(jnp.tanh, g)
        h = o * forms.activation(jnp.tanh, c)
        return (h, c), h

    def gru(forms, state, row):
        h, c = state
        a, b = jnp.split(of_row(row), 4), jnp.split(of_state(h), 4)
        z, r = (forms.gate(sigmoid(x + y)) for x, y in list(zip(a, b, strict=True))[:2])
        new = forms.activation(jnp.tanh, a[2] + r * b[2])
        h = (1 - z) * new + z * h
        return (h, c), h

    def minimal(forms, state, row):
        h, c = state
        z = forms.gate(sigmoid(of_row(row)[:width]))
        h = z * h + (1 - z) * candidate(row)
        return (h, c), h

    name, step = draw.pick(lstm=lstm, gru=gru, minimal=minimal)

    def apply(forms, x):
        state = (jnp.zeros(width), jnp.zeros(width))
        return lax.scan(lambda s, row: step(forms, s, row), state, x, reverse=reverse)[1]

    return Block(f"{name}({gate_name}, reverse={reverse})", apply)


def linear_recurrence(draw):
    """h = a h + b, with constant decays or gates, as a scan or an associative scan."""
    decay = jnp.asarray(draw.rng.uniform(0.3, 0.95, (1, draw.width)))
    inputs, control, outputs = draw.dense(), draw.dense(), draw.dense()
    gated = bool(draw.rng.random() < 0.5)
    associative, reverse = bool(draw.rng.random() < 0.5), bool(draw.rng.random() < 0.3)

    def combine(first, second):
        return first[0] * second[0], first[1] * second[0] + second[1]

    def apply(forms, x):
        a = jnp.broadcast_to(decay, x.shape)
        b = inputs(x)
        if gated:
            a = forms.gate(jax.nn.sigmoid(control(x)))
            b = (1 - a) * b
        if associative:
            states = lax.associative_scan(combine, (a, b), reverse=reverse)[1]
        else:

            def advance(h, step):
                h = step[0] * h + step[1]
                return h, h

            states = lax.scan(advance, jnp.zeros(draw.width), (a, b), reverse=reverse)[1]
        return outputs(states)

    kind = "associative" if associative else "scan"
    return Block(f"linear_recurrence({kind}, gated={gated}, reverse={reverse})", apply)


def written_loop(draw):
    """A recurrence without a scan: a loop of Python, or a `fori_loop` that writes its states."""
    inputs, states = draw.dense(), draw.dense()

    def python(forms, x):
        h, found = jnp.zeros(draw.width), []
        for row in x:
            h = forms.activation(jnp.tanh, inputs(row) + states(h))
            found.append(h)
        return jnp.stack(found)

    def fori(forms, x):
        def body(t, carry):
            h, found = carry
            h = forms.activation(jnp.tanh, inputs(x[t]) + states(h))
            return h, lax.dynamic_update_index_in_dim(found, h, t, 0)

        return lax.fori_loop(0, len(x), body, (jnp.zeros(draw.width), jnp.zeros(x.shape)))[1]

    def mapped(forms, x):
        return lax.map(lambda row: forms.activation(jnp.tanh, inputs(row)), x)

    def depth(forms, x):
        """Layers in a scan, with their weights stacked."""
        weights = jnp.stack([inputs(jnp.eye(draw.width)), states(jnp.eye(draw.width))])
        return lax.scan(lambda h, w: (h + forms.activation(jnp.tanh, h @ w), None), x, weights)[0]

    name, apply = draw.pick(python=python, fori=fori, map=mapped, depth=depth)
    return Block(f"loop({name})", apply)
