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


def group_norm(x, stop):
    """Normalise each of two groups of channels, with no mean subtracted from the derivative."""
    groups = x.reshape(*x.shape[:-1], 2, -1)
    centred = groups - groups.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return (centred * stop(scale)).reshape(x.shape)


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
