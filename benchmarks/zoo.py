"""Small networks of many libraries, each with an independent way to compute its parts.

A network is a library's layer `body` and a head: the mean over positions and a dense layer. The
parts are computed by the library's own calls or by hand, and never by jaxattn.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxattn as ja

T, D, HEADS, CLASSES = 5, 4, 2, 3
IDS = ((3, 5, 7, 2, 1), (4, 1, 6, 9, 2), (8, 2, 3, 5, 4))  # distinct in each example


class Model(NamedTuple):
    """A network and its parts.

    Attributes:
        fn: the network, as a user passes it to a method.
        xs: three examples.
        layer: the name of a layer: of the embedding, where the examples are token ids.
        inner: the value of this layer, from an example.
        rest: the output, from the value of the layer and the example.
        weights: the attention weights (heads, queries, keys) of each layer, from an example;
            `None` if there is no attention.
    """

    fn: Callable[..., Any]
    xs: jax.Array
    layer: str
    inner: Callable[[jax.Array], jax.Array]
    rest: Callable[[jax.Array, jax.Array], jax.Array]
    weights: Callable[[jax.Array], list[jax.Array]] | None = None

    @property
    def embedding(self) -> str | None:
        """The layer that is explained in place of token ids."""
        return self.layer if jnp.issubdtype(self.xs.dtype, jnp.integer) else None

    def explained(self, x: jax.Array) -> jax.Array:
        """Return what a method attributes to: the example, or its embedding."""
        return x if self.embedding is None else self.inner(x)

    def output(self, explained: jax.Array, x: jax.Array) -> jax.Array:
        """Compute the output from what is explained."""
        return self.rest(self.inner(explained) if self.embedding is None else explained, x)


MODELS: dict[str, Callable[[], Model]] = {}


def model(name: str) -> Callable[[Callable[[], Model]], Callable[[], Model]]:
    """Register the function that builds a network."""

    def register(build: Callable[[], Model]) -> Callable[[], Model]:
        MODELS[name] = build
        return build

    return register


def draw(*shape: int, seed: int = 0) -> jax.Array:
    """Return normally distributed numbers."""
    numbers = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(numbers, jnp.float32)


def series() -> jax.Array:
    return draw(3, T, D, seed=1)


def head(kernel: jax.Array, bias: jax.Array | float = 0.0) -> Callable[..., jax.Array]:
    """Return the head of a network, written by hand."""

    def apply(h: jax.Array, x: jax.Array | None = None) -> jax.Array:
        return h.mean(range(h.ndim - 1)) @ kernel + bias

    return apply


def softmax_of(query: jax.Array, key: jax.Array) -> jax.Array:
    """Return attention weights (H, T, T) of queries and keys (T, H, E)."""
    return jax.nn.softmax(jnp.einsum("thd,shd->hts", query, key) / math.sqrt(query.shape[-1]))


# Linen


def linen_model(body: Any, attends: bool = False) -> Model:
    import flax.linen as linen

    class Net(linen.Module):
        body: linen.Module

        @linen.compact
        def __call__(self, x):
            return linen.Dense(CLASSES, name="head")(self.body(x).mean(0))

    net, xs = Net(body), series()
    params = net.init(jax.random.key(0), xs[0])["params"]

    def inner(x):
        return body.apply({"params": params["body"]}, x)

    def weights(x):
        _, state = net.apply({"params": params}, x, mutable=["intermediates"])
        return jax.tree.leaves(state["intermediates"])

    return Model(
        Partial(net.apply, {"params": params}),
        xs,
        "body",
        inner,
        head(params["head"]["kernel"], params["head"]["bias"]),
        weights if attends else None,
    )


@model("linen MLP")
def linen_mlp() -> Model:
    import flax.linen as linen

    return linen_model(linen.Sequential([linen.Dense(6), linen.relu, linen.Dense(D), linen.gelu]))


@model("linen transformer encoder, 2 layers")
def linen_encoder() -> Model:
    import flax.linen as linen

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x):
            for i in range(2):
                attention = linen.MultiHeadDotProductAttention(HEADS, name=f"attention_{i}")
                x = x + attention(linen.LayerNorm()(x), sow_weights=True)
                x = x + linen.Dense(D)(linen.gelu(linen.Dense(2 * D)(linen.LayerNorm()(x))))
            return x

    return linen_model(Encoder(), attends=True)


@model("linen RNN of OptimizedLSTMCell")
def linen_lstm() -> Model:
    import flax.linen as linen

    return linen_model(linen.RNN(linen.OptimizedLSTMCell(D)))


# NNX


def nnx_model(body: Any, weights: Callable[..., Any] | None = None) -> Model:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, width):
            self.body = body
            self.head = nnx.Linear(width, CLASSES, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.head(self.body(x).mean(0))

    xs = series()
    graph, state = nnx.split(body)

    def inner(x):
        return nnx.merge(graph, state, copy=True)(x)

    net = Net(jax.eval_shape(inner, xs[0]).shape[-1])
    rest = head(net.head.kernel[...], net.head.bias[...])
    return Model(net, xs, "body", inner, rest, weights)


@model("NNX encoder of MultiHeadAttention, 2 layers")
def nnx_encoder() -> Model:
    from flax import nnx

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.List(
                [
                    nnx.MultiHeadAttention(HEADS, D, decode=False, deterministic=True, rngs=rngs)
                    for _ in range(2)
                ]
            )
            self.norm = nnx.LayerNorm(D, rngs=rngs)
            self.dense = nnx.Linear(D, D, rngs=rngs)
            self.sow = False

        def __call__(self, x):
            for attention in self.attention:
                x = x + attention(self.norm(x), sow_weights=self.sow)
                x = x + nnx.gelu(self.dense(x))
            return x

    body = Encoder(nnx.Rngs(0))

    def weights(x):
        sowing = nnx.clone(body)
        sowing.sow = True
        sowing(x)
        return jax.tree.leaves(nnx.pop(sowing, nnx.Intermediate))

    return nnx_model(body, weights)


@model("NNX RNN of LSTMCell")
def nnx_lstm() -> Model:
    from flax import nnx

    return nnx_model(nnx.RNN(nnx.LSTMCell(D, 3, rngs=nnx.Rngs(0))))


@model("NNX Bidirectional of GRUCell")
def nnx_bidirectional() -> Model:
    from flax import nnx

    rngs = nnx.Rngs(0)
    forward, backward = (nnx.RNN(nnx.GRUCell(D, 3, rngs=rngs)) for _ in range(2))
    return nnx_model(nnx.Bidirectional(forward, backward))


# Haiku


def haiku_model(run: Callable[..., Any], weights: Callable[..., Any] | None = None) -> Model:
    import haiku as hk

    class Body(hk.Module):
        def __call__(self, x):
            return run(x)

    def network(x):
        return hk.Linear(CLASSES, name="head")(Body(name="body")(x).mean(0))

    net = hk.without_apply_rng(hk.transform(network))
    body = hk.without_apply_rng(hk.transform(lambda x: Body(name="body")(x)))
    xs = series()
    params = net.init(jax.random.key(0), xs[0])
    return Model(
        Partial(net.apply, params),
        xs,
        "body",
        lambda x: body.apply(params, x),
        head(params["head"]["w"], params["head"]["b"]),
        None if weights is None else lambda x: weights(params, x),
    )


@model("haiku LSTM, dynamic_unroll")
def haiku_lstm() -> Model:
    import haiku as hk

    def run(x):
        lstm = hk.LSTM(3)
        return hk.dynamic_unroll(lstm, x, lstm.initial_state(None))[0]

    return haiku_model(run)


@model("haiku MultiHeadAttention")
def haiku_attention() -> Model:
    import haiku as hk

    def run(x):
        layer = hk.MultiHeadAttention(HEADS, 3, w_init=hk.initializers.RandomNormal())
        return layer(x, x, x)

    def weights(params, x):
        query, key = (params[f"body/multi_head_attention/{name}"]["w"] for name in ("query", "key"))
        return [softmax_of((x @ query).reshape(T, HEADS, 3), (x @ key).reshape(T, HEADS, 3))]

    return haiku_model(run, weights)


# Equinox


def equinox_model(body: Any, weights: Callable[..., Any] | None = None) -> Model:
    import equinox as eqx

    class Net(eqx.Module):
        body: eqx.Module
        head: eqx.nn.Linear

        def __call__(self, x):
            return self.head(self.body(x).mean(0))

    xs = series()
    width = jax.eval_shape(body, xs[0]).shape[-1]
    net = Net(body, eqx.nn.Linear(width, CLASSES, key=jax.random.key(1)))
    return Model(net, xs, "body", body, head(net.head.weight.T, net.head.bias), weights)


@model("equinox MultiheadAttention")
def equinox_attention() -> Model:
    import equinox as eqx

    class SelfAttention(eqx.Module):
        layer: eqx.nn.MultiheadAttention

        def __call__(self, x):
            return self.layer(x, x, x)

    layer = eqx.nn.MultiheadAttention(HEADS, D, key=jax.random.key(0))

    def weights(x):
        query, key = (
            jax.vmap(projection)(x).reshape(T, HEADS, -1)
            for projection in (layer.query_proj, layer.key_proj)
        )
        return [softmax_of(query, key)]

    return equinox_model(SelfAttention(layer), weights)


@model("equinox GRUCell in a scan")
def equinox_gru() -> Model:
    import equinox as eqx

    class Recurrent(eqx.Module):
        cell: eqx.nn.GRUCell

        def __call__(self, x):
            def step(h, row):
                h = self.cell(row, h)
                return h, h

            return jax.lax.scan(step, jnp.zeros(3), x)[1]

    return equinox_model(Recurrent(eqx.nn.GRUCell(D, 3, key=jax.random.key(0))))


# Keras


def keras_model(
    layer: Any, call: Callable[..., Any] | None = None, xs: jax.Array | None = None
) -> Model:
    """Return a functional model of a layer; `call` applies a layer that attends."""
    import keras

    xs = series() if xs is None else xs
    inputs = keras.Input(xs.shape[1:])
    body = layer(inputs) if call is None else call(layer, inputs)
    pool = "GlobalAveragePooling1D" if len(body.shape) == 3 else "GlobalAveragePooling2D"
    dense = keras.layers.Dense(CLASSES, name="head")
    net = keras.Model(inputs, dense(getattr(keras.layers, pool)()(body)))
    inner = keras.Model(inputs, body)

    def weights(x):
        return [call(layer, x[None], return_attention_scores=True)[1].reshape(-1, T, T)]

    return Model(
        net,
        xs,
        "body",
        lambda x: inner(x[None])[0],
        head(dense.kernel.value, dense.bias.value),
        None if call is None else weights,
    )


@model("Keras LSTM")
def keras_lstm() -> Model:
    import keras

    return keras_model(keras.layers.LSTM(3, return_sequences=True, name="body"))


@model("Keras Bidirectional LSTM")
def keras_bidirectional() -> Model:
    import keras

    lstm = keras.layers.LSTM(3, return_sequences=True)
    return keras_model(keras.layers.Bidirectional(lstm, name="body"))


@model("Keras MultiHeadAttention")
def keras_attention(dropout: float = 0.0) -> Model:
    import keras

    layer = keras.layers.MultiHeadAttention(HEADS, 3, dropout=dropout, name="body")
    return keras_model(layer, lambda layer, x, **options: layer(x, x, **options))


@model("Keras MultiHeadAttention with dropout")
def keras_attention_with_dropout() -> Model:
    return keras_attention(0.1)


@model("Keras Attention")
def keras_plain_attention() -> Model:
    import keras

    layer = keras.layers.Attention(name="body")
    return keras_model(layer, lambda layer, x, **options: layer([x, x], **options))


@model("Keras Conv2D")
def keras_convolution() -> Model:
    import keras

    layer = keras.layers.Conv2D(3, 3, activation="relu", name="body")
    return keras_model(layer, xs=draw(3, 6, 5, 1, seed=1))


# KerasHub and gemma: token ids


def keras_hub_model(net: Any, batch: Callable[..., Any], output: str, weights: Any) -> Model:
    table = net.token_embedding.embeddings

    def read(outputs):
        return outputs[output][0, :CLASSES] if output else outputs[0, -1, :CLASSES]

    def rest(rows, ids):
        """Evaluate the network with changed rows of the table of embeddings."""
        changed = table.value.at[ids].set(rows)
        trainable = [changed if v is table else v.value for v in net.trainable_variables]
        fixed = [v.value for v in net.non_trainable_variables]
        return read(net.stateless_call(trainable, fixed, batch(ids))[0])

    return Model(
        lambda ids: read(net(batch(ids))),
        jnp.asarray(IDS),
        "token_embedding",
        lambda ids: table.value[ids],
        rest,
        lambda ids: weights(net, batch(ids)),
    )


HUB = {
    "vocabulary_size": 20,
    "num_layers": 2,
    "num_heads": HEADS,
    "hidden_dim": 8,
    "intermediate_dim": 8,
    "max_sequence_length": 8,
}


@model("KerasHub BERT, 2 layers")
def bert() -> Model:
    import keras
    import keras_hub

    def batch(ids):
        zeros = jnp.zeros((1, T), int)
        return {"token_ids": ids[None], "segment_ids": zeros, "padding_mask": zeros + 1}

    def weights(net, inputs):
        hidden, found = keras.Model(net.input, net.get_layer("embeddings_dropout").output), []
        h = hidden(inputs)
        for layer in net.transformer_layers:
            found.append(layer._self_attention_layer(h, h, return_attention_scores=True)[1][0])
            h = layer(h)
        return found

    return keras_hub_model(keras_hub.models.BertBackbone(**HUB), batch, "pooled_output", weights)


@model("KerasHub GPT-2, 2 layers")
def gpt2() -> Model:
    import keras
    import keras_hub

    def batch(ids):
        return {"token_ids": ids[None], "padding_mask": jnp.ones((1, T), int)}

    def weights(net, inputs):
        hidden, found = keras.Model(net.input, net.get_layer("embeddings_dropout").output), []
        h, causal = hidden(inputs), np.tril(np.ones((1, T, T), bool))
        for layer in net.transformer_layers:
            normal = layer._self_attention_layer_norm(h)
            options = {"attention_mask": causal, "return_attention_scores": True}
            found.append(layer._self_attention_layer(normal, normal, **options)[1][0])
            h = layer(h)
        return found

    return keras_hub_model(keras_hub.models.GPT2Backbone(**HUB), batch, "", weights)


@contextlib.contextmanager
def recorded_softmaxes() -> Iterator[list[jax.Array]]:
    """Record the results of `jax.nn.softmax`."""
    found: list[jax.Array] = []
    original = jax.nn.softmax

    def softmax(*args, **options):
        found.append(original(*args, **options))
        return found[-1]

    with mock.patch.object(jax.nn, "softmax", softmax):
        yield found


@model("gemma Transformer, 2 layers")
def gemma() -> Model:
    from gemma import modules, transformer

    config = transformer.TransformerConfig(
        num_layers=2, num_embed=20, embed_dim=8, hidden_dim=8, num_heads=4, head_dim=4,
        num_kv_heads=2, final_logit_softcap=30.0, attn_logits_soft_cap=50.0,
        use_post_attn_norm=True, use_post_ffw_norm=True, sliding_window_size=2,
        attention_types=[modules.AttentionType.LOCAL_SLIDING, modules.AttentionType.GLOBAL],
        max_cache_length=None,
    )  # fmt: skip
    net, xs = transformer.Transformer(config), jnp.asarray(IDS)
    positions, mask = jnp.arange(T)[None], jnp.tril(jnp.ones((1, T, T), bool))
    params = net.init(jax.random.key(0), xs[:1], positions, None, mask)["params"]
    table = params["embedder"]["input_embedding"]

    def network(ids, table=table):
        changed = params | {"embedder": params["embedder"] | {"input_embedding": table}}
        logits = net.apply({"params": changed}, ids[None], positions, None, mask)[0]
        return logits[0, -1, 10 : 10 + CLASSES]  # tokens that occur in no example

    def weights(ids):
        with recorded_softmaxes() as found:
            network(ids)
        return [each[0].swapaxes(0, 1) for each in found]

    return Model(
        lambda ids: network(ids),
        xs,
        "embedder.encode",
        lambda ids: table[ids] * math.sqrt(8),
        lambda rows, ids: network(ids, table.at[ids].set(rows / math.sqrt(8))),
        weights,
    )


# Plain JAX


def plain_model(body: Callable[..., Any], weights: Callable[..., Any] | None = None) -> Model:
    xs = series()
    rest = head(draw(jax.eval_shape(body, xs[0]).shape[-1], CLASSES, seed=2))
    return Model(lambda x: rest(ja.tag(body(x), "body")), xs, "body", body, rest, weights)


@model("JAX, scanned and rematerialised attention")
def scanned() -> Model:
    query, key, value = (draw(3, D, D, seed=seed) / 2 for seed in range(3))

    def attention(x, query, key):
        return softmax_of(*((x @ w).reshape(T, HEADS, -1) for w in (query, key)))

    @jax.checkpoint
    def layer(x, parameters):
        query, key, value = parameters
        mixed = jnp.einsum(
            "hts,she->the", attention(x, query, key), (x @ value).reshape(T, HEADS, -1)
        )
        return x + jnp.tanh(mixed.reshape(T, D)), None

    def body(x):
        return jax.lax.scan(layer, x, (query, key, value))[0]

    def weights(x):
        found = []
        for parameters in zip(query, key, value, strict=True):
            found.append(attention(x, *parameters[:2]))
            x, _ = layer(x, parameters)
        return found

    return plain_model(body, weights)


def rms_norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


@model("JAX Mamba")
def mamba() -> Model:
    """A selective state-space model with a convolution over time and an output gate."""
    inner, states, width = 6, 2, 3

    def body(x):
        u, z = jnp.split(rms_norm(x) @ draw(D, 2 * inner, seed=1) / 2, 2, axis=-1)
        padded, kernel = jnp.pad(u, ((width - 1, 0), (0, 0))), draw(width, inner, seed=2)
        u = jax.nn.silu(sum(padded[i : i + T] * kernel[i] for i in range(width)))
        projected = u @ draw(inner, inner + 2 * states, seed=3) / 2
        dt, b, c = jnp.split(projected, [inner, inner + states], axis=-1)
        dt, b, c = ja.tag(jax.nn.softplus(dt), "dt"), ja.tag(b, "B"), ja.tag(c, "C")
        a = -jnp.exp(draw(inner, states, seed=4))

        def step(h, row):
            dt, b, c, u = row
            h = jnp.exp(dt[:, None] * a) * h + (dt * u)[:, None] * b
            return h, h @ c

        y = jax.lax.scan(step, jnp.zeros((inner, states)), (dt, b, c, u))[1] + u
        return x + (y * jax.nn.silu(z)) @ draw(inner, D, seed=5) / 2

    return plain_model(body)


@model("JAX RWKV-4")
def rwkv() -> Model:
    """Time mixing with exponential weights and a running maximum."""
    decay, bonus = -jnp.exp(draw(D, seed=1)), draw(D, seed=2)

    def body(x):
        z = rms_norm(x)
        k, v, r = (z @ draw(D, D, seed=seed) / 2 for seed in (3, 4, 5))
        k = ja.tag(k, "k")

        def step(state, row):
            (a, b, p), (k, v) = state, row
            q = jnp.maximum(p, bonus + k)
            old, new = jnp.exp(p - q), jnp.exp(bonus + k - q)
            y = (old * a + new * v) / (old * b + new)
            q = jnp.maximum(p + decay, k)
            old, new = jnp.exp(p + decay - q), jnp.exp(k - q)
            return (old * a + new * v, old * b + new, q), y

        start = jnp.zeros(D), jnp.zeros(D), jnp.full(D, -9.0)
        y = jax.lax.scan(step, start, (k, v))[1]
        return x + (jax.nn.sigmoid(r) * y) @ draw(D, D, seed=6)

    return plain_model(body)


@model("JAX S5")
def s5() -> Model:
    """A diagonal state-space model with complex states."""
    states = 3
    decay = jnp.exp(-jnp.exp(draw(states, seed=1)) + 1j * draw(states, seed=2))
    b = draw(states, D, seed=3) + 1j * draw(states, D, seed=4)
    c = draw(D, states, seed=5) + 1j * draw(D, states, seed=6)

    def body(x):
        def step(h, row):
            h = decay * h + b @ row
            return h, (c @ h).real

        y = jax.lax.scan(step, jnp.zeros(states, complex), x)[1]
        return x + jax.nn.silu(y + draw(D, seed=7) * x)

    return plain_model(body)
