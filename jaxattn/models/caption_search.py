"""Greedy and beam search for the caption of an image."""

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, PyTree, Real

from jaxattn import nn
from jaxattn.models.captioner import END, Captioner
from jaxattn.nn.attention_layer import check_sizes


class Caption(NamedTuple):
    """The caption of an image.

    Attributes:
        words: Ids of the words, `END` after the last one.
        log_prob: Log-probability of the caption.
        weights: Attention weights of each word over the places of the image.
    """

    words: Integer[Array, "*batch T"]
    log_prob: Float[Array, "*batch"]
    weights: Float[Array, "*batch T L"]


def greedy_caption(model: Captioner, image: Real[ArrayLike, "*batch H W C"]) -> Caption:
    """Compute a caption of the most likely word at each step.

    Hard attention chooses the most likely place.

    Args:
        model: Captioner.
        image: Image of shape `(H, W, C)`, or a batch `(..., H, W, C)`.

    Returns:
        The caption; its weights are zero after the end.

    Raises:
        ValueError: If `image` has another shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.Captioner((8, 8, 3), 10, 5, channels=(4, 4), rngs=nnx.Rngs(0))
        >>> caption = ja.models.greedy_caption(model, jnp.ones((8, 8, 3)))
        >>> caption.words.shape, caption.weights.shape
        ((5,), (5, 16))
    """
    captions = beam_captions(model, image, width=1)
    return Caption(*(jnp.take(part, 0, axis=jnp.ndim(image) - 3) for part in captions))


def beam_captions(
    model: Captioner, image: Real[ArrayLike, "*batch H W C"], *, width: int = 5
) -> Caption:
    """Compute the most likely captions by beam search.

    Args:
        model: Captioner.
        image: Image of shape `(H, W, C)`, or a batch `(..., H, W, C)`.
        width: Number of prefixes kept at each step.

    Returns:
        The captions, `(..., width)` of them, the most likely first. `log_prob` is minus infinity if
        there are fewer. Weights are zero after the end.

    Raises:
        ValueError: If `image` has another shape, or `width` is below 1.
        TypeError: If `width` is not an integer.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.Captioner((8, 8, 3), 10, 5, channels=(4, 4), rngs=nnx.Rngs(0))
        >>> ja.models.beam_captions(model, jnp.ones((8, 8, 3)), width=3).words.shape
        (3, 5)
    """
    check_sizes(width=width)
    image, _ = model.picture(image)
    return _search(*nnx.split(model), image, width)


#: State of the LSTM, previous word and end of each prefix, and the captions so far.
Beam: TypeAlias = tuple[nn.LSTMState, Array, Array, Caption]


@partial(jax.jit, static_argnames=("graph", "width"))
def _search(graph: nnx.GraphDef, weights: PyTree[Array], image: Array, width: int) -> Caption:
    model = nnx.merge(graph, weights)

    def search(image: Array) -> Caption:
        memory, state = model.begin(image)
        dtype, size = memory.annotations.dtype, model.vocabulary_size
        ended = jnp.where(jnp.arange(size) == END, 0, -jnp.inf).astype(dtype)

        def advance(state: nn.LSTMState, word: Array) -> tuple[nn.LSTMState, Array, Array]:
            embedded = model.embedding(word)
            taken = model.advance(memory, state, embedded)
            logits = model.logits(embedded, taken.state.hidden, taken.context)
            return taken.state, jax.nn.log_softmax(logits), taken.weights

        def step(beam: Beam, t: Array) -> tuple[Beam, None]:
            state, word, done, captions = beam
            state, scores, weights = jax.vmap(advance)(state, word)
            scores = jnp.where(done[:, None], ended[None], scores) + captions.log_prob[:, None]
            best, chosen = jax.lax.top_k(scores.ravel(), width)
            parent, word = chosen // size, chosen % size
            weights = jnp.where(done[:, None], 0, weights)
            kept = Caption(captions.words, best, captions.weights.at[:, t].set(weights))
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
        (*_, captions), _ = jax.lax.scan(step, (start, *first, none), jnp.arange(length))
        return captions

    for _ in image.shape[:-3]:
        search = jax.vmap(search)
    return search(image)
