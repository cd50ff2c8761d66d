"""A pre-norm transformer, and AttnLRP of it layer by layer: NumPy, float64, explicit matrices.

It follows Achtibat et al. 2024 (arXiv:2402.05602) and shares no code with the library: the epsilon
rule in linear layers and sums, one half for each factor of a product, the Taylor expansion of the
softmax, and the identity through activations and normalisations. With constant attention weights it
is CP-LRP (Ali et al. 2022, arXiv:2202.07304).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Weights(NamedTuple):
    """Weights of one layer; a bias or a shift is `None` where the layer has none.

    Attributes:
        scales: of the norms before attention and before the perceptron (2, D).
        shifts: of these norms (2, D).
        qkv: projections to queries, keys and values (3, D, D), and their biases (3, D).
        out: the projection of the heads (D, D), and its bias (D,).
        up: the projections into the perceptron, one (1, D, F) or a gated pair (2, D, F), and their
            biases.
        down: the projection back (F, D), and its bias (D,).
    """

    scales: np.ndarray
    shifts: np.ndarray | None
    qkv: tuple[np.ndarray, np.ndarray | None]
    out: tuple[np.ndarray, np.ndarray | None]
    up: tuple[np.ndarray, np.ndarray | None]
    down: tuple[np.ndarray, np.ndarray | None]


class Transformer(NamedTuple):
    """A causal transformer over token ids.

    Attributes:
        embeddings: of the tokens (V, D).
        layers: the weights of each layer.
        scale: of the last norm (D,).
        head: the projection to logits (D, V), and its bias (V,).
        heads: the number of attention heads.
        gated: whether the norm is an RMS norm and the perceptron a SwiGLU; otherwise they are a
            layer norm and a GELU.
    """

    embeddings: np.ndarray
    layers: list[Weights]
    scale: np.ndarray
    head: tuple[np.ndarray, np.ndarray | None]
    heads: int
    gated: bool


def random_transformer(*, layers, gated, width=8, hidden=12, vocabulary=11, heads=2):
    """Return a transformer with normal weights; the gated one has no biases."""
    rng = np.random.default_rng(0)

    def linear(*shape):
        bias = None if gated else 0.3 * rng.normal(size=(*shape[:-2], shape[-1]))
        return rng.normal(size=shape) / np.sqrt(shape[-2]), bias

    def layer():
        return Weights(
            1 + 0.3 * rng.normal(size=(2, width)),
            None if gated else 0.3 * rng.normal(size=(2, width)),
            linear(3, width, width),
            linear(width, width),
            linear(1 + gated, width, hidden),
            linear(hidden, width),
        )

    return Transformer(
        rng.normal(size=(vocabulary, width)),
        [layer() for _ in range(layers)],
        1 + 0.3 * rng.normal(size=width),
        linear(width, vocabulary),
        heads,
        gated,
    )


# The network, as a user writes it.


def logits(model, x):
    """Return the logits (V,) of the token after embeddings x (T, D), in JAX."""
    for weights in model.layers:
        x = x + _attend(model, weights, _norm(model, x, weights, 0))
        x = x + _perceptron(model, weights, _norm(model, x, weights, 1))
    return _linear(_normalise(model, x) * model.scale[None], model.head)[-1]


def _normalise(model, x):
    if model.gated:
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-6)


def _norm(model, x, weights, index):
    x = _normalise(model, x) * weights.scales[index][None]
    return x if weights.shifts is None else x + weights.shifts[index][None]


def _linear(x, layer, index=()):
    weight, bias = layer
    z = x @ weight[index]
    return z if bias is None else z + bias[index][None]


def _attend(model, weights, x):
    steps, width = x.shape
    q, k, v = (
        _linear(x, weights.qkv, i).reshape(steps, model.heads, -1).swapaxes(0, 1) for i in range(3)
    )
    scores = q @ k.swapaxes(1, 2) / np.sqrt(width // model.heads)
    causal = jnp.tril(jnp.ones((steps, steps), bool))
    attention = jax.nn.softmax(jnp.where(causal[None], scores, -jnp.inf))
    return _linear((attention @ v).swapaxes(0, 1).reshape(steps, width), weights.out)


def _perceptron(model, weights, x):
    first = _linear(x, weights.up, 0)
    if model.gated:
        return _linear(jax.nn.silu(first) * _linear(x, weights.up, 1), weights.down)
    return _linear(jax.nn.gelu(first), weights.down)


# Its relevance.


class Rules(NamedTuple):
    """The stabiliser, and whether attention weights are constants (CP-LRP)."""

    epsilon: float
    constant_weights: bool

    def divided(self, relevance, z):
        """Return relevance / (z + epsilon), with the epsilon of the sign of z."""
        return relevance / (z + np.where(z >= 0, self.epsilon, -self.epsilon))

    def through(self, x, matrix, z, relevance):
        """Return the relevance of x for that of z = x @ matrix + bias, by the epsilon rule."""
        pairs = x[..., :, None] * matrix  # the contribution of each input to each output
        return (pairs * self.divided(relevance, z)[..., None, :]).sum(-1)

    def product(self, a, b, relevance):
        """Return the relevance of a and of b for that of a @ b: one half each."""
        pairs = a[..., :, :, None] * b[..., None, :, :]
        shares = pairs * self.divided(relevance, a @ b)[..., :, None, :] / 2
        return shares.sum(-1), shares.sum(-3)

    def sum(self, a, b, relevance):
        """Return the relevance of a and of b for that of a + b."""
        share = self.divided(relevance, a + b)
        return a * share, b * share


def relevance(model, x, target, rules):
    """Return the relevance of embeddings x (T, D) for the logit `target` of the next token."""
    streams = [np.asarray(x)]  # the residual stream before and after each attention and perceptron
    for weights in model.layers:
        for index, block in enumerate((_attend, _perceptron)):
            inside = block(model, weights, _norm(model, streams[-1], weights, index))
            streams.append(streams[-1] + np.asarray(inside))
    normalised = np.asarray(_normalise(model, streams[-1]))
    score = np.asarray(_linear(normalised * model.scale, model.head))[-1, target]
    above = np.zeros_like(streams[-1])
    column = (model.scale * model.head[0][:, target])[:, None]
    above[-1] = rules.through(normalised[-1], column, score[None], score[None])
    for layer in reversed(range(len(model.layers))):
        weights = model.layers[layer]
        for index, block in ((1, _of_perceptron), (0, _of_attention)):
            stream = streams[2 * layer + index]
            inside = streams[2 * layer + index + 1] - stream
            skipped, of_block = rules.sum(stream, inside, above)
            normalised = np.asarray(_normalise(model, stream))
            # A norm passes relevance on: its scale is a part of the layers behind it.
            above = skipped + block(model, weights, normalised, inside, of_block, rules)
    return above


def _folded(weights, index, layer, i):
    """Return a projection with the scale and shift of the norm before it as part of it."""
    matrix = weights.scales[index][:, None] * layer[0][i]
    if layer[1] is None:
        return matrix, 0.0
    return matrix, layer[1][i] + weights.shifts[index] @ layer[0][i]


def _of_perceptron(model, weights, x, z, above, rules):
    layers = [_folded(weights, 1, weights.up, i) for i in range(len(weights.up[0]))]
    values = [x @ matrix + bias for matrix, bias in layers]
    if model.gated:
        hidden = np.asarray(jax.nn.silu(values[0])) * values[1]
        half = rules.through(hidden, weights.down[0], z, above) / 2
        shares = [half, half]
    else:
        hidden = np.asarray(jax.nn.gelu(values[0]))
        shares = [rules.through(hidden, weights.down[0], z, above)]
    return sum(
        rules.through(x, matrix, value, share)
        for (matrix, _), value, share in zip(layers, values, shares, strict=True)
    )


def _of_attention(model, weights, x, z, above, rules):
    steps, width = x.shape
    size = width // model.heads
    layers = [_folded(weights, 0, weights.qkv, i) for i in range(3)]
    values = [x @ matrix + bias for matrix, bias in layers]
    contexts, cores = np.zeros_like(x), []
    for head in range(model.heads):
        columns = slice(head * size, (head + 1) * size)
        q, k, v = (value[:, columns] for value in values)
        scores = np.where(np.tri(steps, dtype=bool), q @ k.T / np.sqrt(size), -np.inf)
        attention = np.exp(scores - scores.max(1, keepdims=True))
        attention /= attention.sum(1, keepdims=True)
        contexts[:, columns] = attention @ v
        cores.append((columns, q, k, v, scores, attention))
    of_contexts = rules.through(contexts, weights.out[0], z, above)
    shares = [np.zeros_like(x) for _ in range(3)]
    for columns, q, k, v, scores, attention in cores:
        of_weights, of_v = rules.product(attention, v, of_contexts[:, columns])
        if rules.constant_weights:
            shares[2][:, columns] = 2 * of_v
            continue
        # The Taylor expansion; masked scores have the weight 0.
        finite = np.where(np.isfinite(scores), scores, 0)
        of_scores = finite * (of_weights - attention * of_weights.sum(1, keepdims=True))
        of_q, of_k = rules.product(q, k.T, of_scores)
        shares[0][:, columns], shares[1][:, columns] = of_q, of_k.T
        shares[2][:, columns] = of_v
    return sum(
        rules.through(x, matrix, value, share)
        for (matrix, _), value, share in zip(layers, values, shares, strict=True)
    )
