"""Random blocks without loops: layers, gates, norms, masks, changes of layout."""

import jax
import jax.numpy as jnp
from draws import ACTIVATIONS, GATES, SOFTMAXES, Block
from jax import lax


def dense(draw):
    name, fn = draw.pick(**ACTIVATIONS)
    layer = draw.dense()
    return Block(f"dense({name})", lambda forms, x: forms.activation(fn, layer(x)))


def perceptron(draw):
    """A dense layer, an activation and a dense layer, of another width."""
    name, fn = draw.pick(**ACTIVATIONS)
    first, second = draw.dense(outputs=draw.width + 2), draw.dense(inputs=draw.width + 2)
    return Block(f"perceptron({name})", lambda forms, x: second(forms.activation(fn, first(x))))


def gated_unit(draw):
    """One projection times the gate of another: two products, or one that is divided."""
    name, gate = draw.pick(**GATES)
    layout = draw.pick(two=0, halves=1, interleaved=2)
    signal, control, both = draw.dense(), draw.dense(), draw.dense(outputs=2 * draw.width)

    def apply(forms, x):
        if layout[1] == 0:
            a, b = signal(x), control(x)
        elif layout[1] == 1:
            a, b = jnp.split(both(x), 2, axis=-1)
        else:
            a, b = both(x)[:, ::2], both(x)[:, 1::2]
        return a * forms.gate(gate(b))

    return Block(f"gated_unit({name}, {layout[0]})", apply)


def selection(draw):
    """Features weighted by a softmax over features, as in variable selection."""
    name, softmax = draw.pick(**SOFTMAXES)
    signal, control = draw.dense(), draw.dense()

    def apply(forms, x):
        weights = forms.weights(softmax(control(x), axis=-1))
        return forms.contraction(jnp.multiply, weights, signal(x))

    return Block(f"selection({name})", apply)


def bilinear_unit(draw):
    """A product of two signals, as in SwiGLU."""
    name, fn = draw.pick(silu=jax.nn.silu, gelu=jax.nn.gelu, none=None)
    first, second, last = draw.dense(), draw.dense(), draw.dense()

    def apply(forms, x):
        a, b = first(x), second(x)
        return last(forms.product(a if fn is None else forms.activation(fn, a), b))

    return Block(f"bilinear_unit({name})", apply)


def highway(draw):
    name, gate = draw.pick(**GATES)
    control, layer = draw.dense(), draw.dense()

    def apply(forms, x):
        g = forms.gate(gate(control(x)))
        return g * forms.activation(jnp.tanh, layer(x)) + (1 - g) * x

    return Block(f"highway({name})", apply)


def maxout(draw):
    first, second = draw.dense(), draw.dense()
    name, pick = draw.pick(maximum=jnp.maximum, minimum=jnp.minimum)
    return Block(name, lambda forms, x: pick(first(x), second(x)))


def norm(draw):
    """A layer norm, an RMS norm or a Euclidean norm, in several ways to write them."""
    scale, shift = 1 + draw.bias(1, draw.width), draw.bias(1, draw.width)
    axis = int(draw.rng.choice([-1, -1, 0]))

    def mean(x):
        return x.mean(axis, keepdims=True)

    def layer_norm(forms, x):
        centred = forms.centre(x, mean(x))
        deviation = forms.statistic(jnp.sqrt(mean(jnp.square(x - mean(x))) + 1e-3))
        return centred / deviation * scale + shift

    def inverse_root(forms, x):
        inverse = forms.statistic(lax.rsqrt(x.var(axis, keepdims=True) + 1e-3))
        return forms.centre(x, mean(x)) * (inverse * scale) + shift

    def rms_norm(forms, x):
        return x * forms.statistic(lax.rsqrt(mean(jnp.square(x)) + 1e-3)) * scale

    def euclidean(forms, x):
        return x / forms.statistic(jnp.sqrt(jnp.square(x).sum(axis, keepdims=True) + 1e-6)) * scale

    def absolute(forms, x):
        return x / forms.statistic(jnp.abs(x).sum(axis, keepdims=True) + 0.1)

    name, apply = draw.pick(
        layer_norm=layer_norm, inverse_root=inverse_root, rms_norm=rms_norm,
        euclidean=euclidean, absolute=absolute,
    )  # fmt: skip
    return Block(f"{name}(axis={axis})", apply)


# Blocks that mix time steps.


def mixing(draw):
    """A dense layer over time."""
    layer = draw.dense(draw.length, draw.length)
    return Block("mixing", lambda forms, x: forms.activation(jnp.tanh, layer(x.T)).T)


def convolution(draw):
    """A convolution over time: centred, causal, dilated or depthwise."""
    name, (padding, dilation) = draw.pick(
        same=("SAME", 1), causal=([(2, 0)], 1), dilated=([(4, 0)], 2), reverse=([(0, 2)], 1)
    )
    depthwise = draw.rng.random() < 0.3
    kernel = draw.weight(3, 1 if depthwise else draw.width, draw.width)
    bias = draw.bias(1, draw.width)

    def apply(forms, x):
        z = lax.conv_general_dilated(
            x[None], kernel, (1,), padding, rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=draw.width if depthwise else 1,
        )  # fmt: skip
        return forms.activation(jax.nn.relu, z[0] + bias)

    return Block(f"convolution({name}{', depthwise' * depthwise})", apply)


def pooling(draw):
    """A mean or maximum over windows of time."""

    def window(reduce, start):
        return lambda x: lax.reduce_window(x, start, reduce, (3, 1), (1, 1), "SAME")

    name, pool = draw.pick(
        mean=lambda x: window(lax.add, 0.0)(x) / 3,
        maximum=window(lax.max, -jnp.inf),
        running_maximum=lambda x: lax.cummax(x, axis=0),
        running_sum=lambda x: 0.3 * jnp.cumsum(x, axis=0),
        running_mean=lambda x: jnp.cumsum(x, axis=0) / jnp.arange(1.0, len(x) + 1)[:, None],
        difference=lambda x: jnp.diff(x, axis=0, prepend=x[:1]),
    )
    return Block(f"pooling({name})", lambda forms, x: pool(x))


def layout(draw):
    """Reversals, strides, shifts, gathers and reshapes."""
    length, width, rng = draw.length, draw.width, draw.rng
    order = rng.permutation(length)
    some = rng.integers(0, length, length)
    half = (length + 1) // 2
    name, move = draw.pick(
        reverse=lambda x: x[::-1],
        flip_both=lambda x: jnp.flip(x),
        stride=lambda x: jnp.repeat(x[::2], 2, axis=0)[:length],
        odd_stride=lambda x: jnp.concatenate([x[1::2], x[::2]]),
        negative_stride=lambda x: jnp.tile(x[::-2], (2, 1))[:length],
        channel_stride=lambda x: jnp.concatenate([x[:, ::2], x[:, 1::2]], axis=1),
        roll=lambda x: jnp.roll(x, 2, axis=0),
        shift=lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:-1],
        permute=lambda x: x[order],
        gather=lambda x: jnp.take(x, some, axis=0),
        reshape=lambda x: x.T.reshape(length, width),
        ravel=lambda x: x.ravel()[::-1].reshape(length, width),
        halves=lambda x: jnp.concatenate([x[half:], x[:half]]),
        set_row=lambda x: x.at[1].set(x[0]),
        set_constant=lambda x: x.at[0].set(0.5),
        add_row=lambda x: x.at[jnp.array([0, 2])].add(x[1:3]),
        update=lambda x: lax.dynamic_update_slice(x, x[:2] * 0.5, (1, 0)),
        stack=lambda x: jnp.stack(list(x)[::-1]),
    )
    return Block(name, lambda forms, x: move(x))


def mask(draw):
    """Masks that are constants, and masks that are computed from the input."""
    rows = jnp.asarray(draw.rng.random((draw.length, 1)) < 0.7)
    cells = jnp.asarray(draw.rng.random((draw.length, draw.width)) < 0.8)
    layer = draw.dense()
    name, apply = draw.pick(
        constant=lambda x: jnp.where(rows, x, 0.0),
        constant_branches=lambda x: jnp.where(cells, x, layer(x)),
        factor=lambda x: x * rows.astype(x.dtype),
        dropout=lambda x: jnp.where(cells, x / 0.8, 0.0),
        positive=lambda x: jnp.where(x > 0, x, 0.1 * x),
        of_rows=lambda x: jnp.where(x.sum(1, keepdims=True) > 0, x, layer(x)),
        any_of_row=lambda x: jnp.where(jnp.any(x > 0.5, axis=1, keepdims=True), x, 0.0),
    )
    return Block(f"mask({name})", lambda forms, x: apply(x))
