"""What a captioner says by itself: greedily, and by beam search."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Real

from jaxattn import nn
from jaxattn.models.captioner import END, Captioner
from jaxattn.nn.attention_layer import check_sizes


class Caption(NamedTuple):
    """What the network says of a picture.

    Attributes:
        words: their ids, `END` after the last one.
        log_prob: the log-probability of the caption.
        weights: how much of each place the network read to say each word.
    """

    words: Integer[Array, "*batch T"]
    log_prob: Float[Array, "*batch"]
    weights: Float[Array, "*batch T L"]


def greedy_caption(model: Captioner, image: Real[ArrayLike, "*batch H W C"]) -> Caption:
    """Say the most likely word at every step.

    Hard attention reads the most likely place.

    Args:
        model: the network.
        image: one picture, or a batch.

    Returns:
        The caption; its weights are zero after the end.

    Raises:
        ValueError: pictures of another shape.
    """
    found = beam_captions(model, image, width=1)
    return Caption(*(jnp.take(part, 0, axis=jnp.ndim(image) - 3) for part in found))


def beam_captions(
    model: Captioner, image: Real[ArrayLike, "*batch H W C"], *, width: int = 5
) -> Caption:
    """Keep the `width` most likely beginnings at every step.

    Args:
        model: the network.
        image: one picture, or a batch.
        width: how many captions to keep. The first is at least as good as any other that was kept;
            wide enough, it is the most likely of all.

    Returns:
        The captions, (..., width) of them, the most likely first; `log_prob` is minus infinity
        where there are not as many. Weights are zero after the end.

    Raises:
        ValueError: pictures of another shape, a width below 1.
        TypeError: a width that is no whole number.
    """
    check_sizes(width=width)
    image, _ = model.picture(image)
    return _search(*nnx.split(model), image, width)


@partial(jax.jit, static_argnames=("graph", "width"))
def _search(graph: Any, weights: Any, image: Array, width: int) -> Caption:
    model = nnx.merge(graph, weights)

    def search(image: Array) -> Caption:
        memory, state = model.begin(image)
        dtype, size = memory.annotations.dtype, model.vocabulary_size
        ended = jnp.where(jnp.arange(size) == END, 0, -jnp.inf).astype(dtype)

        def advance(state: nn.LSTMState, word: Array) -> tuple[nn.LSTMState, Array, Array]:
            embedded = model.embedding(word)
            state, context, weights, _ = model.advance(memory, state, embedded)
            return (
                state,
                jax.nn.log_softmax(model.logits(embedded, state.hidden, context)),
                weights,
            )

        def step(carry: Any, t: Array) -> tuple[Any, None]:
            state, word, done, found = carry
            state, scores, weights = jax.vmap(advance)(state, word)
            scores = jnp.where(done[:, None], ended[None], scores) + found.log_prob[:, None]
            best, chosen = jax.lax.top_k(scores.ravel(), width)
            parent, word = chosen // size, chosen % size
            weights = jnp.where(done[:, None], 0, weights)
            kept = Caption(found.words, best, found.weights.at[:, t].set(weights))
            state, done, kept = jax.tree.map(lambda a: a[parent], (state, done, kept))
            kept = kept._replace(words=kept.words.at[:, t].set(word), log_prob=best)
            return (state, word, done | (word == END), kept), None

        length, places = model.max_length, len(memory.annotations)
        start = jax.tree.map(lambda a: jnp.broadcast_to(a, (width, *a.shape)), state)
        none = Caption(
            jnp.full((width, length), END, jnp.int32),
            jnp.where(jnp.arange(width) == 0, 0, -jnp.inf).astype(dtype),
            jnp.zeros((width, length, places), dtype),
        )
        first = jnp.full(width, END, jnp.int32), jnp.zeros(width, bool)
        (*_, found), _ = jax.lax.scan(step, (start, *first, none), jnp.arange(length))
        return found

    for _ in image.shape[:-3]:
        search = jax.vmap(search)
    return search(image)
