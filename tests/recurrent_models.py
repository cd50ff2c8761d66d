"""Recurrent models of every library in float64, with the weights that their parameters are.

Each model ends in a dense layer over the outputs of all time steps, so that every state matters.
Imported lazily: tests of one library need no other.
"""

import contextlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

import jaxattn as ja

T, D, H = 5, 2, 3
KEY = jax.random.key(0)


def series() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


class Expected(NamedTuple):
    """The library's own parameters by gate: kernels, recurrent kernels and biases."""

    kernel: dict[str, Any]
    recurrent: dict[str, Any]
    bias: dict[str, Any]
    recurrent_bias: Any = None


class Case(NamedTuple):
    """A model and the expected weights of its layers, by name."""

    model: Any
    layers: dict[str, Expected]


def blocks(array, names, axis=-1):
    """Divide an array into the gates that the library stores side by side."""
    return dict(zip(names, jnp.split(jnp.asarray(array), len(names), axis), strict=True))


LSTM = ("input", "forget", "cell", "output")
GRU_RESET_FIRST = ("reset", "update", "new")


def perturbed(module):
    """Draw all parameters of an NNX module anew, biases included."""
    rng = np.random.default_rng(1)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)) * 0.5, state))
    return module


def drawn(params, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)) * 0.5, params)


class Outputs(nnx.Module):
    """All outputs of a recurrent layer as one vector."""

    def __init__(self, rnn):
        self.rnn = rnn

    def __call__(self, x):
        out = self.rnn(x)
        return jnp.ravel(jnp.asarray(getattr(out, "outputs", out)))


def jaxattn_case(kind, **options):
    layer = {"lstm": ja.nn.LSTM, "gru": ja.nn.GRU, "rnn": ja.nn.RNN}[kind](
        D, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options
    )
    names = {"lstm": LSTM, "gru": GRU_RESET_FIRST, "rnn": ("new",)}[kind]
    perturbed(layer)
    expected = {}
    for index in range(layer.num_layers):
        for backward in (False, True)[: 1 + layer.bidirectional]:
            own = layer.weights(index, backward=backward)
            name = "rnn" if layer.num_layers == 1 else f"rnn/{index}"
            name += ("/backward" if backward else "/forward") if layer.bidirectional else ""
            expected[name] = Expected(
                blocks(own.kernel, names),
                blocks(own.recurrent, names),
                blocks(own.bias, names),
                getattr(own, "recurrent_bias", None),
            )
    return Case(Outputs(layer), expected)


def nnx_expected(cell, kind):
    own = {name: value for name, value in vars(cell).items() if isinstance(value, nnx.Linear)}
    if kind == "lstm" and "ii" in own:
        letters = dict(zip(LSTM, "ifgo", strict=True))
        of_input = {n: own["if_" if c == "f" else f"i{c}"] for n, c in letters.items()}
        of_hidden = {n: own[f"h{c}"] for n, c in letters.items()}
        return Expected(
            {n: layer.kernel[...] for n, layer in of_input.items()},
            {n: layer.kernel[...] for n, layer in of_hidden.items()},
            {n: layer.bias[...] for n, layer in of_hidden.items()},
        )
    names = {"lstm": LSTM, "gru": GRU_RESET_FIRST, "rnn": ("new",)}[kind]
    i, h = own["dense_i"], own["dense_h"]
    biased = h if kind == "lstm" else i
    return Expected(
        blocks(i.kernel[...], names), blocks(h.kernel[...], names), blocks(biased.bias[...], names)
    )


def nnx_case(kind, cell="", bidirectional=False):
    cells = {"lstm": nnx.LSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}
    make = {"optimized": nnx.OptimizedLSTMCell}.get(cell, cells[kind])

    def rnn():
        options = {"dtype": jnp.float64} if kind == "rnn" else {}
        cell = make(D, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
        return nnx.RNN(cell)

    if not bidirectional:
        model = perturbed(Outputs(rnn()))
        return Case(model, {"rnn": nnx_expected(model.rnn.cell, kind)})
    model = perturbed(Outputs(nnx.Bidirectional(rnn(), rnn())))
    both = model.rnn
    return Case(
        model,
        {
            "rnn/forward_rnn": nnx_expected(both.forward_rnn.cell, kind),
            "rnn/backward_rnn": nnx_expected(both.backward_rnn.cell, kind),
        },
    )


def linen_case(kind, bidirectional=False):
    import flax.linen as linen

    make = {
        "lstm": linen.LSTMCell,
        "optimized": linen.OptimizedLSTMCell,
        "gru": linen.GRUCell,
        "rnn": linen.SimpleCell,
    }[kind]

    def rnn(**options):
        return linen.RNN(make(H, param_dtype=jnp.float64, dtype=jnp.float64), **options)

    layer = linen.Bidirectional(rnn(), rnn()) if bidirectional else rnn()
    params = drawn(layer.init(KEY, series()))

    def expected(own):
        if kind == "rnn":
            return Expected(
                {"new": own["i"]["kernel"]}, {"new": own["h"]["kernel"]}, {"new": own["i"]["bias"]}
            )
        names = (
            {"reset": "r", "update": "z", "new": "n"}
            if kind == "gru"
            else dict(zip(LSTM, "ifgo", strict=True))
        )
        biases = {n: own[("i" if kind == "gru" else "h") + c]["bias"] for n, c in names.items()}
        return Expected(
            {n: own[f"i{c}"]["kernel"] for n, c in names.items()},
            {n: own[f"h{c}"]["kernel"] for n, c in names.items()},
            biases,
            own["hn"]["bias"] if kind == "gru" else None,
        )

    model = Partial(lambda p, x: layer.apply(p, x).ravel(), params)
    own = params["params"]
    if not bidirectional:
        return Case(model, {"RNN": expected(own["cell"])})
    return Case(
        model,
        {
            f"Bidirectional/{name}": expected(own[name]["cell"])
            for name in ("forward_rnn", "backward_rnn")
        },
    )


def equinox_case(kind, reverse=False):
    import equinox as eqx

    make = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[kind]
    cell = make(D, H, key=KEY)
    cell = jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_array(a) else a, cell)

    class Model(eqx.Module):
        cell: eqx.Module

        def __call__(self, x):
            zero = jnp.zeros(H)
            init = (zero, zero) if kind == "lstm" else zero

            def step(carry, x):
                carry = self.cell(x, carry)
                return carry, carry[0] if kind == "lstm" else carry

            return jax.lax.scan(step, init, x, reverse=reverse)[1].ravel()

    names = {"lstm": LSTM, "gru": GRU_RESET_FIRST}[kind]
    return Case(
        Model(cell),
        {
            "cell": Expected(
                blocks(cell.weight_ih.T, names),
                blocks(cell.weight_hh.T, names),
                blocks(cell.bias, names),
                cell.bias_n if kind == "gru" else None,
            )
        },
    )


def haiku_case(kind):
    import haiku as hk

    core = {"lstm": hk.LSTM, "gru": hk.GRU, "rnn": hk.VanillaRNN}[kind]

    def forward(x):
        cell = core(H)
        return hk.dynamic_unroll(cell, x, cell.initial_state(None))[0].ravel()

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = drawn(transformed.init(KEY, series()))
    name = {"lstm": "lstm", "gru": "gru", "rnn": "vanilla_rnn"}[kind]
    if kind == "lstm":
        own = params["lstm/linear"]
        order = ("input", "cell", "forget", "output")
        bias = blocks(own["b"], order)
        bias["forget"] = bias["forget"] + 1  # haiku adds 1 to the forget gate
        expected = Expected(blocks(own["w"][:D], order), blocks(own["w"][D:], order), bias)
    elif kind == "gru":
        own = params["gru"]
        order = ("update", "reset", "new")
        expected = Expected(
            blocks(own["w_i"], order), blocks(own["w_h"], order), blocks(own["b"], order)
        )
    else:
        i, h = params["vanilla_rnn/linear"], params["vanilla_rnn/linear_1"]
        expected = Expected({"new": i["w"]}, {"new": h["w"]}, {"new": i["b"] + h["b"]})
    return Case(Partial(transformed.apply, params), {name: expected})


def set_keras(policy, floatx, longest):
    """Set the precision of Keras, which converts values also while a model runs."""
    import keras
    from keras.src.backend.common import dtypes

    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = longest


@contextlib.contextmanager
def other_libraries():
    """Allow implicit promotion, and reset Keras if a model of it was built."""
    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with promotion[0], promotion[1]:
        yield
    if "keras" in sys.modules:
        set_keras("float32", "float32", "float32")


def keras_case(kind, bidirectional=False, **options):
    import keras

    set_keras("float64", "float64", "float64")  # it has float64 with other backends alone
    make = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[kind]
    layer = make(H, return_sequences=True, **options)
    if bidirectional:
        layer = keras.layers.Bidirectional(layer)
    model = keras.Sequential([keras.layers.Input((T, D)), layer, keras.layers.Flatten()])
    rng = np.random.default_rng(1)
    model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.get_weights()])
    names = {"lstm": LSTM, "gru": ("update", "reset", "new"), "rnn": ("new",)}[kind]

    def expected(own):
        bias = jnp.asarray(own.cell.bias.numpy())
        recurrent_bias = None
        if bias.ndim == 2:  # that of the input, and that of the recurrent product
            both = [blocks(b, names) for b in bias]
            recurrent_bias = both[1]["new"]
            summed = {n: both[0][n] + (both[1][n] if n != "new" else 0) for n in names}
        else:
            summed = blocks(bias, names)
        return Expected(
            blocks(own.cell.kernel.numpy(), names),
            blocks(own.cell.recurrent_kernel.numpy(), names),
            summed,
            recurrent_bias,
        )

    if not bidirectional:
        return Case(model, {layer.name: expected(layer)})
    parts = (layer.forward_layer, layer.backward_layer)
    return Case(model, {f"{layer.name}/{part.name}": expected(part) for part in parts})


CASES = {
    "jaxattn lstm": lambda: jaxattn_case("lstm"),
    "jaxattn gru": lambda: jaxattn_case("gru"),
    "jaxattn rnn": lambda: jaxattn_case("rnn"),
    "jaxattn relu": lambda: jaxattn_case("rnn", activation="relu"),
    "jaxattn bidirectional": lambda: jaxattn_case("lstm", bidirectional=True),
    "nnx lstm": lambda: nnx_case("lstm"),
    "nnx optimized": lambda: nnx_case("lstm", "optimized"),
    "nnx gru": lambda: nnx_case("gru"),
    "nnx rnn": lambda: nnx_case("rnn"),
    "nnx bidirectional": lambda: nnx_case("gru", bidirectional=True),
    "linen lstm": lambda: linen_case("lstm"),
    "linen optimized": lambda: linen_case("optimized"),
    "linen gru": lambda: linen_case("gru"),
    "linen rnn": lambda: linen_case("rnn"),
    "linen bidirectional": lambda: linen_case("gru", bidirectional=True),
    "equinox lstm": lambda: equinox_case("lstm"),
    "equinox gru": lambda: equinox_case("gru"),
    "equinox backward": lambda: equinox_case("gru", reverse=True),
    "haiku lstm": lambda: haiku_case("lstm"),
    "haiku gru": lambda: haiku_case("gru"),
    "haiku rnn": lambda: haiku_case("rnn"),
    "keras lstm": lambda: keras_case("lstm"),
    "keras gru": lambda: keras_case("gru"),
    "keras gru before": lambda: keras_case("gru", reset_after=False),
    "keras rnn": lambda: keras_case("rnn"),
    "keras bidirectional": lambda: keras_case("gru", bidirectional=True),
}
STACKED = {
    "jaxattn stacked": lambda: jaxattn_case("gru", num_layers=2, bidirectional=True),
}
QUICK = ("jaxattn lstm", "nnx gru")
