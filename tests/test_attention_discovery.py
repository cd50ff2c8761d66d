"""Test that attention weights are found by their structure, in models of all libraries."""

import equinox as eqx
import flax.linen as linen
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl
from jax.tree_util import Partial

import jaxattn as ja

T, D, HEADS = 5, 6, 2


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


QUERY, KEY, VALUE = (draw(i, D, D) for i in range(3))
VECTOR = draw(3, D)


@pytest.fixture(scope="module")
def x():
    return draw(9, T, D)


@pytest.fixture(autouse=True)
def rank_promotion():
    with jax.numpy_rank_promotion("allow"):  # required by Keras layers
        yield


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def scores(x):
    return x @ QUERY @ (x @ KEY).T / D**0.5


def weights(x):
    return jax.nn.softmax(scores(x))


CAUSAL = np.tril(np.ones((T, T), bool))

#: Networks of one layer, and their weights.
WRITTEN = {
    "plain": (lambda x: weights(x) @ x, weights),
    "capped": (
        lambda x: jax.nn.softmax(3 * jnp.tanh(scores(x) / 3)) @ x,
        lambda x: jax.nn.softmax(3 * jnp.tanh(scores(x) / 3)),
    ),
    "masked": (
        lambda x: jax.nn.softmax(jnp.where(CAUSAL, scores(x), -1e30)) @ x,
        lambda x: jax.nn.softmax(scores(x), where=CAUSAL),
    ),
    "masked afterwards": (lambda x: kept(x) @ x, lambda x: kept(x)),
    "heads": (
        lambda x: jnp.einsum("hts,hse->the", weights_of_heads(x), heads(x @ VALUE)).reshape(T, D),
        lambda x: weights_of_heads(x),
    ),
    "transposed": (
        lambda x: jnp.einsum("sht,hse->the", jnp.moveaxis(weights_of_heads(x), 2, 0), heads(x)),
        lambda x: weights_of_heads(x),
    ),
    "talking heads": (
        lambda x: jnp.einsum(
            "hts,hse->the", jnp.einsum("hts,hg->gts", weights_of_heads(x), QUERY[:2, :2]), heads(x)
        ),
        lambda x: weights_of_heads(x),
    ),
    "with a sink": (
        lambda x: jax.nn.softmax(jnp.pad(scores(x), ((0, 0), (0, 1))))[:, :T] @ x,
        lambda x: jax.nn.softmax(jnp.pad(scores(x), ((0, 0), (0, 1)))),
    ),
    "additive": (
        lambda x: jax.nn.softmax(jnp.tanh(x[:, None] @ QUERY + x[None] @ KEY) @ VECTOR) @ x,
        lambda x: jax.nn.softmax(jnp.tanh(x[:, None] @ QUERY + x[None] @ KEY) @ VECTOR),
    ),
    "pooling": (
        lambda x: jax.nn.softmax(jnp.tanh(x) @ VECTOR) @ x,
        lambda x: jax.nn.softmax(jnp.tanh(x) @ VECTOR),
    ),
    "pooling as a weighted sum": (
        lambda x: (jax.nn.softmax(jnp.tanh(x) @ VECTOR)[:, None] * x).sum(0),
        lambda x: jax.nn.softmax(jnp.tanh(x) @ VECTOR),
    ),
    "sigmoid": (lambda x: jax.nn.sigmoid(scores(x)) @ x, lambda x: jax.nn.sigmoid(scores(x))),
    "half precision": (
        lambda x: weights(x).astype(jnp.bfloat16) @ x.astype(jnp.bfloat16),
        weights,
    ),
    "relative positions": (
        lambda x: jax.nn.softmax(scores(x) + draw(5, T, T)) @ x,
        lambda x: jax.nn.softmax(scores(x) + draw(5, T, T)),
    ),
    "learned queries": (
        lambda x: jax.nn.softmax(draw(6, 3, D) @ x.T) @ x,
        lambda x: jax.nn.softmax(draw(6, 3, D) @ x.T),
    ),
    "states of an unrolled loop": (
        lambda x: jax.nn.softmax(unrolled(x) @ VECTOR) @ unrolled(x),
        lambda x: jax.nn.softmax(unrolled(x) @ VECTOR),
    ),
    "states of a scan": (
        lambda x: jax.nn.softmax(states(x) @ VECTOR) @ states(x),
        lambda x: jax.nn.softmax(states(x) @ VECTOR),
    ),
    "a decoder's steps": (
        lambda x: decoder(x)[1],
        lambda x: decoder(x)[0],
    ),
    "weights contracted after the scan": (
        lambda x: jax.lax.map(lambda row: jax.nn.softmax(x @ row), x) @ x,
        lambda x: jax.nn.softmax(x @ x.T),
    ),
    "scores of relative positions": (
        lambda x: jax.nn.softmax(scores(x) + jnp.einsum("qd,qkd->qk", x, draw(5, T, T, D))) @ x,
        lambda x: jax.nn.softmax(scores(x) + jnp.einsum("qd,qkd->qk", x, draw(5, T, T, D))),
    ),
    "a cache of keys in a scan": (
        lambda x: cached(x), lambda x: jax.nn.softmax(x @ x.T, where=CAUSAL),
    ),
    "windows": (
        lambda x: jnp.einsum("tw,twd->td", jax.nn.softmax(windows(x)), x[WINDOWS]),
        lambda x: jax.nn.softmax(windows(x)),
    ),
    "weights plus the identity": (lambda x: (weights(x) + jnp.eye(T)) @ x, weights),
    "learned queries that attend to each other": (
        lambda x: (lambda z: jax.nn.softmax(z @ z.T) @ z)(latents(x)),
        lambda x: {
            "attention_weights_0": jax.nn.softmax(draw(6, 3, D) @ x.T),
            "attention_weights_1": jax.nn.softmax(latents(x) @ latents(x).T),
        },
    ),
    "a difference of weights": (
        lambda x: (weights(x) - 0.3 * jax.nn.softmax(x @ x.T)) @ x,
        lambda x: {
            "attention_weights_0": weights(x), "attention_weights_1": jax.nn.softmax(x @ x.T),
        },
    ),
    "a custom derivative rule": (lambda x: ruled(x), weights),
    "rematerialised": (jax.checkpoint(lambda x: weights(x) @ x), weights),
    "along the first axis": (
        lambda x: jax.nn.softmax(scores(x), axis=0).T @ x,
        lambda x: jax.nn.softmax(scores(x), axis=0).T,
    ),
    "a branch": (
        lambda x: jax.lax.cond(x.sum() > 1e9, lambda x: x, lambda x: x, weights(x)) @ x,
        weights,
    ),
    "vmapped rows": (
        lambda x: jax.vmap(lambda row: jax.nn.softmax(x @ row) @ x)(x),
        lambda x: jax.nn.softmax(x @ x.T),
    ),
}  # fmt: skip


WINDOWS = np.minimum(np.arange(T)[:, None] + np.arange(2), T - 1)


def windows(x):
    """Return the scores of each step with itself and the next step."""
    return jnp.einsum("td,twd->tw", x, (x @ KEY)[WINDOWS])


def latents(x):
    """Return learned queries after they have attended to the input."""
    return draw(6, 3, D) + jax.nn.softmax(draw(6, 3, D) @ x.T) @ x


def cached(x):
    """Decode step by step, with the keys of earlier steps in a buffer."""

    def step(buffer, inputs):
        i, row = inputs
        buffer = buffer.at[i].set(row)
        attention = jax.nn.softmax(jnp.where(jnp.arange(T) <= i, buffer @ row, -1e9))
        return buffer, attention @ buffer

    return jax.lax.scan(step, jnp.zeros((T, D)), (jnp.arange(T), x))[1]


def experts(x):
    """Return the outputs (T, experts, D) of three layers."""
    return jnp.einsum("td,edf->tef", x, draw(7, 3, D, D))


def top_experts(x, share, index):
    return jnp.einsum("tk,tkd->td", share, experts(x)[jnp.arange(T)[:, None], index])


@jax.custom_vjp
def ruled(x):
    """Compute attention with a derivative rule of its own."""
    return weights(x) @ x


ruled.defvjp(lambda x: (ruled(x), x), lambda x, cotangent: (cotangent,))


def kept(x):
    """Return weights of which some are masked, and the others divided by their sum."""
    some = weights(x) * (x[:, 0] > 0).astype(x.dtype)
    return some / (some.sum(-1, keepdims=True) + 1e-9)


def heads(x):
    return x.reshape(T, HEADS, -1).swapaxes(0, 1)


def weights_of_heads(x):
    return jax.nn.softmax(jnp.einsum("hte,hse->hts", heads(x @ QUERY), heads(x @ KEY)))


def states(x):
    return jax.lax.scan(lambda h, row: 2 * (jnp.tanh(row + h @ KEY),), VECTOR, x)[1]


def unrolled(x):
    h, found = VECTOR, []
    for row in x:
        h = jnp.tanh(row + h @ KEY)
        found.append(h)
    return jnp.stack(found)


def decoder(x):
    def step(h, _):
        attention = jax.nn.softmax(jnp.tanh(x + h) @ VECTOR)
        return attention @ x, (attention, h)

    return jax.lax.scan(step, VECTOR, None, length=3)[1]


@pytest.mark.representatives(
    "plain",
    "masked",
    "heads",
    "additive",
    "pooling",
    "a cache of keys in a scan",
    "windows",
    "a branch",
    "vmapped rows",
    "states of a scan",
)
@pytest.mark.parametrize("kind", WRITTEN)
def test_weights_of_plain_functions(kind, x):
    network, expected = WRITTEN[kind]
    jax.tree.map(close, ja.attention(network, x).values, expected(x))


#: Softmaxes that are not attention.
OTHERS = {
    "vocabulary": lambda x: jax.nn.softmax(x @ draw(5, D, 9)) @ draw(6, 9, D),
    "tied vocabulary": lambda x: jax.nn.softmax(x @ QUERY) @ QUERY.T,
    "output": lambda x: jax.nn.softmax(x.mean(0)),
    "experts": lambda x: jnp.einsum(
        "te,ted->td", jax.nn.softmax(x @ QUERY[:, :3]), experts(x)
    ),
    "top experts": lambda x: top_experts(x, *jax.lax.top_k(jax.nn.softmax(x @ QUERY[:, :3]), 2)),
    "variable selection": lambda x: jnp.einsum(
        "td,tde->te", jax.nn.softmax(jnp.tanh(x @ QUERY) @ KEY), x[..., None] * draw(8, D, 3)
    ),
    "contraction over another axis": lambda x: jax.nn.softmax(x @ x.T, axis=0) @ x,
    "gates": lambda x: (jax.nn.sigmoid(x @ QUERY) * jnp.tanh(x @ KEY)) @ VALUE,
    "expected value": lambda x: jax.nn.softmax(x @ QUERY) @ jnp.arange(6.0),
    "sigmoid network": lambda x: jax.nn.sigmoid(x @ QUERY) @ jax.nn.sigmoid(x @ KEY).T,
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_softmaxes_are_left_out(kind, x):
    with pytest.raises(ValueError, match="`fn` has no attention weights"):
        ja.attention(OTHERS[kind], x)


def test_names_that_match_nothing_raise(x):
    for at in ("nothing", "nothing*"):
        with pytest.raises(ValueError, match=r"no intermediate 'nothing.*attention_weights"):
            ja.attention(WRITTEN["plain"][0], x, at=at)


def test_a_fused_kernel_is_refused_with_the_switch(x):
    def kernel(x, out):
        out[...] = jax.nn.softmax(x[...] @ x[...].T) @ x[...]

    def network(x):
        return pl.pallas_call(kernel, jax.typeof(x), interpret=True)(x)

    close(network(x), jax.nn.softmax(x @ x.T) @ x)
    with pytest.raises(ValueError, match=r'calls `pallas_call`.*implementation="xla"'):
        ja.attention(network, x)


def test_a_compiled_layer_that_is_called_twice(x):
    @jax.jit
    def layer(x):
        return x + weights(x) @ x

    values = ja.attention(lambda x: layer(layer(x)), x).values
    assert list(values) == ["attention_weights_0", "attention_weights_1"]
    close(values["attention_weights_1"], weights(layer(x)))


def test_weights_of_different_layouts(x):
    """A decoder that reads an encoder has weights that are not square."""

    def network(x):
        memory = weights(x) @ x
        return jax.nn.softmax(draw(6, 3, D) @ memory.T) @ memory

    values = ja.attention(network, x).values
    assert [each.shape for each in values.values()] == [(T, T), (3, T)]
    assert ja.value_zeroing(network, x, (0, 0)).values.shape == (T,)
    with pytest.raises(ValueError, match=r"`at` must name weights \(..., T, T\) with one T"):
        ja.attention_rollout(network, x)
    close(ja.attention_rollout(network, x, at="*_0", residual=0.0).values, weights(x))


def test_layers_are_named_by_path_and_by_order(x):
    def network(x):
        for _ in range(2):
            x = x + weights(x) @ x
        with jax.named_scope("last"):
            return weights(x) @ x

    values = ja.attention(network, x).values
    names = ["attention_weights_0", "attention_weights_1", "last/attention_weights"]
    assert list(values) == names
    first = x + weights(x) @ x
    expected = [weights(x), weights(first), weights(first + weights(first) @ first)]
    for name, each in zip(names, expected, strict=True):
        close(values[name], each)
        close(ja.attention(network, x, at=name).values, each)
        close(ja.capture(network, name)(x)[1][name], each)
    for at in ("last", "las?"):
        close(ja.attention(network, x, at=at).values, expected[2])


@pytest.mark.slow
def test_all_methods_take_the_same_names(x):
    """Methods on the weights that were found equal those on tagged weights."""

    def network(x, tag=lambda weights, name: weights):
        for name in ("a", "b"):
            attention = tag(weights_of_heads(x), name)
            mixed = jnp.einsum("hts,hse->the", attention, heads(x))
            x = jnp.tanh(x + mixed.reshape(T, D))
        return x.mean(0)

    def tagged(x):
        return network(x, ja.tag)

    for method in (ja.attention_rollout, ja.attention_flow, ja.value_zeroing):
        found, expected = method(network, x, 1), method(tagged, x, 1, at=("a", "b"))
        close(found.values, expected.values)
    found = ja.gradient_x_attention(network, x, 1).values
    expected = ja.gradient_x_attention(tagged, x, 1, at=("a", "b")).values
    for mine, theirs in zip(found.values(), expected.values(), strict=True):
        close(mine, theirs)
    uniform = jnp.full((HEADS, T, T), 1 / T)
    changed = ja.intervene(network, {"attention_weights_1": uniform})(x)
    close(changed, ja.intervene(tagged, {"b": uniform})(x))
    drawn = ja.attention(network, x)
    assert ja.plot.attention_heads(drawn.values).shape == (2, HEADS)
    panels = ja.plot.attention_heads(drawn)
    assert panels[1, 0].get_title() == "attention_weights_1, head 0"
    (picture,) = panels[1, 0].images
    np.testing.assert_array_equal(picture.get_array(), drawn.values["attention_weights_1"][0])
    plt.close("all")


def test_explain_finds_the_weights_of_a_batch(x):
    batch = jnp.stack([x, 2 * x, -x])
    values = ja.explain(ja.attention, WRITTEN["heads"][0], batch).values
    close(values, jax.vmap(weights_of_heads)(batch))


def test_gradient_reaches_the_weights(x):
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64)

        def attend(x):
            return jax.nn.softmax(x @ x.T) @ x

        slope = jax.grad(lambda x: ja.attention(attend, x).values[0, 1])(x)
        expected = jax.grad(lambda x: jax.nn.softmax(x @ x.T)[0, 1])(x)
        np.testing.assert_allclose(slope, expected, rtol=1e-12)


# Libraries: the weights equal those that the model itself returns or sows.


def keras_model(layer, x, **options):
    inputs = keras.Input(x.shape)
    output, attention = layer(inputs, inputs, return_attention_scores=True, **options)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(output)))
    return model, keras.Model(inputs, attention)(x[None])[0]


def keras_lists(layer, x, **options):
    inputs = keras.Input(x.shape)
    output, attention = layer([inputs, inputs], return_attention_scores=True, **options)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(output)))
    return model, keras.Model(inputs, attention)(x[None])[0]


KERAS = {
    "Attention": lambda x: keras_lists(keras.layers.Attention(), x),
    "scaled Attention": lambda x: keras_lists(keras.layers.Attention(use_scale=True), x),
    "causal Attention": lambda x: keras_lists(keras.layers.Attention(), x, use_causal_mask=True),
    "AdditiveAttention": lambda x: keras_lists(keras.layers.AdditiveAttention(), x),
    "MultiHeadAttention": lambda x: keras_model(keras.layers.MultiHeadAttention(HEADS, 3), x),
    "one head": lambda x: keras_model(keras.layers.MultiHeadAttention(1, 3), x),
    "with dropout": lambda x: keras_model(
        keras.layers.MultiHeadAttention(HEADS, 3, dropout=0.1), x
    ),
    "causal": lambda x: keras_model(
        keras.layers.MultiHeadAttention(HEADS, 3), x, use_causal_mask=True
    ),
    "grouped queries": lambda x: keras_model(keras.layers.GroupQueryAttention(3, 4, 2), x),
}


@pytest.mark.representatives("Attention", "MultiHeadAttention", "grouped queries")
@pytest.mark.parametrize("kind", KERAS)
def test_keras_layers(kind, x):
    model, expected = KERAS[kind](x)
    close(ja.attention(model, x).values, expected)


def test_keras_without_returned_weights(x):
    """Without `return_attention_scores` the layer calls a function that computes all at once."""
    layer = keras.layers.MultiHeadAttention(HEADS, 3, name="mixer")
    inputs = keras.Input(x.shape)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(layer(inputs, inputs)))
    _, expected = layer(x[None], x[None], return_attention_scores=True)
    close(ja.attention(model, x).values, expected[0])
    close(ja.attention(model, x, at="mixer").values, expected[0])
    assert ja.attention_rollout(model, x).values.shape == (T, T)


class Block(linen.Module):
    dropout: float = 0.0

    @linen.compact
    def __call__(self, x, mask=None):
        attention = linen.MultiHeadDotProductAttention(HEADS, dropout_rate=self.dropout)
        mixed = attention(linen.LayerNorm()(x), mask=mask, deterministic=True, sow_weights=True)
        return x + linen.Dense(D)(linen.gelu(linen.Dense(2 * D)(x + mixed)))


class Encoder(linen.Module):
    dropout: float = 0.0

    @linen.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(self.dropout, name=f"layer_{i}")(x, linen.make_causal_mask(x[..., 0]))
        return x.mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.representatives("0.1")
def test_linen(dropout, x):
    model = Encoder(dropout)
    params = {"params": model.init(jax.random.key(0), x)["params"]}
    _, state = model.apply(params, x, mutable=["intermediates"])
    values = ja.attention(Partial(model.apply, params), x).values
    assert len(values) == 2
    for name, value in values.items():
        layer = "layer_0" if "layer_0" in name else "layer_1"
        sown = state["intermediates"][layer]["MultiHeadDotProductAttention_0"]
        close(value, sown["attention_weights"][0])
        close(ja.attention(Partial(model.apply, params), x, at=name).values, value)


@pytest.mark.slow
def test_linen_layers_that_are_scanned_and_rematerialised(x):
    class Stack(linen.Module):
        @linen.compact
        def __call__(self, x):
            class Step(linen.Module):
                @linen.compact
                def __call__(self, x, _):
                    return Block()(x), None

            scanned = linen.scan(
                linen.remat(Step),
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scanned()(x, None)[0]

    model = Stack()
    params = {"params": model.init(jax.random.key(0), x)["params"]}
    _, state = model.apply(params, x, mutable=["intermediates"])
    (expected,) = jax.tree.leaves(state["intermediates"])
    close(ja.attention(Partial(model.apply, params), x).values, expected)
    rollout = ja.attention_rollout(Partial(model.apply, params), x)
    assert rollout.info["layers"].shape == (3, T, T)


@pytest.mark.parametrize("options", [{}, {"dropout_rate": 0.1}, {"normalize_qk": True}])
def test_nnx(options, x):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(HEADS, D, decode=False, rngs=rngs, **options)
            self.sow_weights = False

        def __call__(self, x):
            return self.attention(x, deterministic=True, sow_weights=self.sow_weights).mean(0)

    model = Model(nnx.Rngs(0))
    values = ja.attention(model, x).values
    model.sow_weights = True
    model(x)
    (expected,) = nnx.pop(model, nnx.Intermediate)["attention"]["attention_weights"].get_value()
    close(values, expected)


def test_haiku(x):
    def network(x):
        layer = hk.MultiHeadAttention(HEADS, 3, w_init=hk.initializers.RandomNormal())
        return layer(x, x, x).mean(0)

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), x)
    query, key = (
        (x @ params[f"multi_head_attention/{name}"]["w"]).reshape(T, HEADS, 3)
        for name in ("query", "key")
    )
    expected = jax.nn.softmax(jnp.einsum("thd,shd->hts", query, key) / 3**0.5)
    close(ja.attention(Partial(model.apply, params), x).values, expected)


def test_equinox(x):
    layer = eqx.nn.MultiheadAttention(HEADS, D, key=jax.random.key(0))

    class Model(eqx.Module):
        layer: eqx.Module

        def __call__(self, x):
            return self.layer(x, x, x).mean(0)

    query, key = (
        jax.vmap(projection)(x).reshape(T, HEADS, -1)
        for projection in (layer.query_proj, layer.key_proj)
    )
    expected = jax.nn.softmax(jnp.einsum("thd,shd->hts", query, key) / (D / HEADS) ** 0.5)
    close(ja.attention(Model(layer), x).values, expected)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dot_product_attention_with_grouped_queries(groups):
    x = draw(0, T, 4, 3)

    def network(q):
        return jax.nn.dot_product_attention(q, q[:, :groups], q[:, :groups], is_causal=True)

    key = jnp.repeat(x[:, :groups], 4 // groups, 1)
    logits = jnp.einsum("tnh,snh->nts", x, key) / 3**0.5
    close(ja.attention(network, x).values, jax.nn.softmax(logits, where=CAUSAL))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Bert", "GPT2"])
@jax.numpy_dtype_promotion("standard")
def test_keras_hub(name):
    keras_hub = pytest.importorskip("keras_hub")
    model = getattr(keras_hub.models, f"{name}Backbone")(
        vocabulary_size=20, num_layers=2, num_heads=HEADS, hidden_dim=8, intermediate_dim=8,
        max_sequence_length=8,
    )  # fmt: skip
    is_bert = name == "Bert"
    batch = {"token_ids": jnp.array([[3, 5, 7, 2, 0]]), "padding_mask": jnp.ones((1, T), int)}
    if is_bert:
        batch["padding_mask"] = batch["padding_mask"].at[0, -1].set(0)
        batch["segment_ids"] = jnp.zeros((1, T), int)
    mask = batch["padding_mask"].astype(bool)

    def network(ids):
        output = model({**batch, "token_ids": ids[None]})
        return output["pooled_output"][0] if is_bert else output[0]

    values = ja.attention(network, batch["token_ids"][0]).values
    assert len(values) == 2
    hidden = keras.Model(model.input, model.get_layer("embeddings_dropout").output)(batch)
    for layer, value in zip(model.transformer_layers, values.values(), strict=True):
        attended = hidden if is_bert else layer._self_attention_layer_norm(hidden)
        _, expected = layer._self_attention_layer(
            attended, attended, attention_mask=mask[:, None] if is_bert else CAUSAL[None],
            return_attention_scores=True,
        )  # fmt: skip
        close(value, expected[0])
        hidden = layer(hidden, padding_mask=batch["padding_mask"]) if is_bert else layer(hidden)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 4])
@jax.numpy_dtype_promotion("standard")
def test_gemma(groups, monkeypatch):
    transformer = pytest.importorskip("gemma.transformer")
    modules = pytest.importorskip("gemma.modules")
    config = transformer.TransformerConfig(
        num_layers=2, num_embed=20, embed_dim=8, hidden_dim=8, num_heads=4, head_dim=4,
        num_kv_heads=groups, final_logit_softcap=30.0, attn_logits_soft_cap=50.0,
        use_post_attn_norm=True, use_post_ffw_norm=True, sliding_window_size=2,
        attention_types=[modules.AttentionType.LOCAL_SLIDING, modules.AttentionType.GLOBAL],
        max_cache_length=None,
    )  # fmt: skip
    model = transformer.Transformer(config)
    ids, positions = jnp.array([3, 5, 7, 2, 1]), jnp.arange(T)
    mask = jnp.asarray(CAUSAL)[None]
    params = model.init(jax.random.key(0), ids[None], positions[None], None, mask)

    def network(ids):
        return model.apply(params, ids[None], positions[None], None, mask)[0][0, -1]

    values = ja.attention(network, ids).values
    seen = []

    def recorded(logits, axis=-1):
        seen.append(softmax(logits, axis))
        return seen[-1]

    softmax = jax.nn.softmax
    monkeypatch.setattr(jax.nn, "softmax", recorded)
    network(ids)
    assert len(values) == len(seen) == 2
    for value, expected in zip(values.values(), seen, strict=True):
        close(value, expected[0].swapaxes(0, 1))
