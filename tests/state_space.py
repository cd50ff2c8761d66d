"""Small state-space models and gated linear recurrences in plain JAX.

Each model is a function `(x, stop, half)`. With `stop=name_it` (the default) it tags the values
that receive no relevance, and is explained by `jaxattn.lrp`. With `stop=hold_it` these values, and
all other factors that receive no relevance, are constants of the derivative, and with `half=divide`
a product passes one half of its derivative to each factor. The gradient of that model times its
input is the relevance by LRP-0: a reference that shares no code with the library.
"""

import jax
import jax.numpy as jnp
import numpy as np
from relevance_reference import compiled

import jaxattn as ja

T, D, E, N = 6, 3, 4, 2  # time steps, channels, inner channels, states

hold = jax.lax.stop_gradient


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) / 1.5)


def name_it(value, name=None):
    """Tag a value that receives no relevance; one without a name is left to the library."""
    return value if name is None else ja.tag(value, name)


def hold_it(value, name=None):
    return hold(value)


def multiply(a, b):
    return a * b


def divide(a, b):
    """Multiply, and pass one half of the derivative to each factor."""
    return (a * hold(b) + hold(a) * b) / 2


def reference(model, x):
    """Return the score and the gradient times the input of a model that holds its constants."""
    score, slope = compiled(jax.value_and_grad(lambda x: model(x, hold_it, divide)))(x)
    return score, slope * x


def silu(z, stop):
    return z * stop(jax.nn.sigmoid(z))


def rms_norm(x, stop):
    return x * stop(jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6))


def over_time(step, state, rows):
    return jax.lax.scan(step, state, rows)[1]


def readout(h):
    return h[-1] @ draw(h.shape[-1], seed=99)


def mamba_block(x, stop, half, bias, seed):
    """A selective state-space model with a convolution and an output gate."""
    u, z = jnp.split(x @ draw(D, 2 * E, seed=seed) + bias * draw(2 * E, seed=seed), 2, axis=-1)
    kernel, width = draw(3, E, seed=seed + 1), 3
    padded = jnp.pad(u, ((width - 1, 0), (0, 0)))
    u = sum(padded[i : i + T] * kernel[i] for i in range(width)) + bias * draw(E)
    u = silu(u, stop)
    dt, b, c = jnp.split(u @ draw(E, E + 2 * N, seed=seed + 2), [E, E + N], axis=-1)
    dt = stop(jax.nn.softplus(dt + draw(E, seed=seed + 3)), "dt")
    b, c = stop(b, "B"), stop(c, "C")
    a = -jnp.exp(draw(E, N, seed=seed + 4))

    def step(h, row):
        dt, b, c, u = row
        h = jnp.exp(dt[:, None] * a) * h + (dt[:, None] * b[None]) * u[:, None]
        return h, h @ c

    y = over_time(step, jnp.zeros((E, N), x.dtype), (dt, b, c, u)) + u * draw(E, seed=7)
    return half(y, silu(z, stop)) @ draw(E, D, seed=seed + 5)


def mamba(x, stop=name_it, half=multiply, bias=0.0):
    for seed in (10, 20):
        x = x + mamba_block(rms_norm(x, stop), stop, half, bias, seed)
    return readout(rms_norm(x, stop))


def s5_parameters():
    """Return the decay, the input and the output matrix of a discretised diagonal system."""
    rate = -jnp.exp(draw(N, seed=1)) + 1j * draw(N, seed=2)
    decay = jnp.exp(rate * jnp.exp(draw(N, seed=3)))
    b = ((decay - 1) / rate)[:, None] * (draw(N, D, seed=4) + 1j * draw(N, D, seed=5))
    return decay, b, draw(D, N, seed=6) + 1j * draw(D, N, seed=7)


def s5(x, stop=name_it, half=multiply):
    """A diagonal state-space model with complex states, of which it reads the real part."""
    decay, b, c = s5_parameters()

    def step(h, row):
        h = decay * h + b @ row
        return h, (c @ h).real

    y = over_time(step, jnp.zeros(N, jnp.complex128), x) + draw(D, seed=8) * x
    return readout(silu(y, stop) + x)


def s5_in_real_parts(x):
    """The same as `s5`, with two real states for each complex one."""
    decay, b, c = s5_parameters()

    def step(h, row):
        real = (decay.real * h[0] - decay.imag * h[1]) + b.real @ row
        imag = (decay.real * h[1] + decay.imag * h[0]) + b.imag @ row
        return (real, imag), c.real @ real - c.imag @ imag

    y = over_time(step, (jnp.zeros(N), jnp.zeros(N)), x) + draw(D, seed=8) * x
    return readout(jax.nn.silu(y) + x)


def passed_on(function, z, stop):
    """Apply an activation or a normalisation that passes relevance on, as a factor of its input."""
    return function(z) if stop is name_it else z * hold(function(z) / z)


def normalised(z):
    """Normalise each of two groups of channels by its mean and its variance."""
    groups = z.reshape(*z.shape[:-1], 2, -1)
    centred = groups - groups.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)).reshape(
        z.shape
    )


def slstm(x, stop=name_it, half=multiply):
    """The scalar LSTM of xLSTM: exponential gates, a normaliser and a running maximum."""
    kernel, recurrent = draw(D, 4 * E, seed=1), draw(E, 4 * E, seed=2)

    def step(state, row):
        h, c, n, largest = state
        z, i, f, o = jnp.split(row @ kernel + h @ recurrent, 4)
        f = jax.nn.log_sigmoid(f) + largest
        largest = jnp.maximum(f, i)
        i, f = stop(jnp.exp(i - largest), "i"), stop(jnp.exp(f - largest), "f")
        c, n = f * c + i * passed_on(jnp.tanh, z, stop), f * n + i
        h = stop(jax.nn.sigmoid(o)) * (c / n)
        return (h, c, n, largest), h

    zeros = jnp.zeros(E)
    return readout(over_time(step, (zeros, zeros, zeros, zeros - 9.0), x))


def mlstm(x, stop=name_it, half=multiply):
    """The matrix LSTM of xLSTM: a memory of values by keys, read by queries."""
    q, k, v, o = jnp.split(x @ draw(D, 4 * E, seed=1), 4, axis=-1)
    gates = x @ draw(D, 2, seed=2)
    q, k, o = stop(q, "q"), stop(k, "k"), stop(jax.nn.sigmoid(o))
    i, f = stop(jnp.exp(gates[:, 0]), "i"), stop(jax.nn.sigmoid(gates[:, 1]), "f")

    def step(state, row):
        (memory, n), (q, k, v, o, i, f) = state, row
        memory, n = f * memory + i * (v[:, None] * k), f * n + i * k
        return (memory, n), o * (memory @ q / jnp.maximum(abs(n @ q), 1.0))

    return readout(over_time(step, (jnp.zeros((E, E)), jnp.zeros(E)), (q, k, v, o, i, f)))


def shifted(x, seed):
    """Mix each time step with the one before."""
    mix = jax.nn.sigmoid(draw(x.shape[-1], seed=seed))
    return mix * x + (1 - mix) * jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def rwkv(x, stop=name_it, half=multiply):
    """RWKV-4: time mixing with exponential weights and a running maximum, and channel mixing."""
    decay, bonus = -jnp.exp(draw(E, seed=1)), draw(E, seed=2)
    z = rms_norm(x, stop)
    k = stop(shifted(z, 3) @ draw(D, E, seed=3), "k")
    v = shifted(z, 4) @ draw(D, E, seed=4)
    r = stop(jax.nn.sigmoid(shifted(z, 5) @ draw(D, E, seed=5)))

    def step(state, row):
        (a, b, p), (k, v) = state, row
        q = jnp.maximum(p, bonus + k)
        old, new = jnp.exp(p - q), jnp.exp(bonus + k - q)
        y = (old * a + new * v) / (old * b + new)
        q = jnp.maximum(p + decay, k)
        old, new = jnp.exp(p + decay - q), jnp.exp(k - q)
        return (old * a + new * v, old * b + new, q), y

    x = x + (r * over_time(step, (jnp.zeros(E), jnp.zeros(E), jnp.zeros(E) - 9.0), (k, v))) @ draw(
        E, D, seed=6
    )
    z = rms_norm(x, stop)
    r = stop(jax.nn.sigmoid(shifted(z, 7) @ draw(D, D, seed=7)))
    k = passed_on(lambda z: jnp.square(jax.nn.relu(z)), shifted(z, 8) @ draw(D, E, seed=8), stop)
    return readout(x + r * (k @ draw(E, D, seed=9)))


def retnet(x, stop=name_it, half=multiply):
    """Retention as a recurrence, a group norm and a swish gate."""
    q, k, v, g = jnp.split(x @ draw(D, 4 * E, seed=1), 4, axis=-1)
    q, k = stop(q, "q"), stop(k, "k")

    def step(memory, row):
        q, k, v = row
        memory = 0.9 * memory + k[:, None] * v
        return memory, q @ memory

    y = passed_on(normalised, over_time(step, jnp.zeros((E, E)), (q, k, v)), stop)
    return readout(x + half(silu(g, stop), y) @ draw(E, D, seed=2))


def positive(z):
    """A positive activation, whose logarithm is `log_positive`."""
    return jnp.where(z >= 0, z + 0.5, jax.nn.sigmoid(z))


def log_positive(z):
    return jnp.where(z >= 0, jnp.log(jax.nn.relu(z) + 0.5), -jax.nn.softplus(-z))


def projections(x):
    return x @ draw(D, E, seed=1), x @ draw(D, E, seed=2)


def min_gru(x, stop=name_it, half=multiply):
    """A minimal GRU, whose gate does not depend on its state."""
    z, v = projections(x)
    rows = stop(jax.nn.sigmoid(-z)), stop(jax.nn.sigmoid(z)), passed_on(positive, v, stop)

    def step(h, row):
        f, i, v = row
        h = f * h + i * v
        return h, h

    return readout(over_time(step, jnp.full(E, 0.5), rows))


def min_gru_in_logarithms(x):
    """The same with a recurrence of logarithms."""
    z, v = projections(x)

    def step(h, row):
        log_f, log_v = row
        h = jnp.logaddexp(log_f + h, log_v)
        return h, h

    rows = -jax.nn.softplus(z), -jax.nn.softplus(-z) + log_positive(v)
    return readout(jnp.exp(over_time(step, jnp.log(jnp.full(E, 0.5)), rows)))


def min_gru_in_parallel(x, cumulative=jax.lax.cumlogsumexp):
    """The same by Heinsen's scan: cumulative sums of logarithms."""
    z, v = projections(x)
    decays = jnp.pad(jnp.cumsum(-jax.nn.softplus(z), 0), ((1, 0), (0, 0)))
    written = jax.nn.log_sigmoid(z) + log_positive(v)
    written = jnp.concatenate([jnp.log(jnp.full((1, E), 0.5)), written])
    return readout(jnp.exp(decays + cumulative(written - decays)))
