"""A network that describes a picture word by word, looking at it (Xu et al. 2015)."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Real

from jaxattn import nn
from jaxattn.nn.attention_layer import check_sizes

END = 0  # the word after the last one, and from there on; also what stands before the first


class Reading(NamedTuple):
    """What the network makes of a picture and a given caption.

    Attributes:
        logits: of each word, given those before it.
        weights: how much of each place the network read to say it.
        positions: the place that hard attention read; of soft attention the one it read most of.
    """

    logits: Float[Array, "*batch T V"]
    weights: Float[Array, "*batch T L"]
    positions: Integer[Array, "*batch T"]


class Memory(NamedTuple):
    """What the decoder reads at every step: annotations (L, D), and their part of the scores."""

    annotations: Array
    keys: Array


class Captioner(nnx.Module):
    r"""Convolutions give an annotation of each place; an LSTM reads them, and says a word a step.

    The initial state is $\tanh$ of two linear maps of the mean annotation. A step reads the
    annotations into a context z, advances the LSTM on the word before and z, and scores the words
    by $L_o \tanh(E y_{t-1} + L_h h_t + L_z z_t)$. An annotation is what the convolutions find plus
    a learned vector of its place: without that, "above" could not be told from "left of".

    Args:
        image_shape: (height, width, channels) of the pictures.
        vocabulary_size: V, number of words, `END` among them.
        max_length: of a caption in words, `END` included.
        attention: "soft" reads all places by their weights, "hard" one of them.
        channels: of the convolutions, of which each but the last halves the picture, and the last,
            of single places, gives the D numbers of an annotation.
        hidden_features: H, number of units of the LSTM.
        embedding_features: size of a word's embedding.
        attention_units: size of the layer that scores the places.
        param_dtype: dtype of the weights, to which pictures are converted.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: an unknown `attention`, a size below 1, no `channels`.
        TypeError: a size that is no whole number.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        vocabulary_size: int,
        max_length: int,
        *,
        attention: Literal["soft", "hard"] = "soft",
        channels: tuple[int, ...] = (32, 64, 128, 128),
        hidden_features: int = 128,
        embedding_features: int = 64,
        attention_units: int = 128,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if attention not in ("soft", "hard"):
            raise ValueError(f"attention must be 'soft' or 'hard', got {attention!r}")
        if len(image_shape) != 3:
            raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
        if not channels:
            raise ValueError("channels must be of at least one convolution, got ()")
        check_sizes(
            vocabulary_size=vocabulary_size,
            max_length=max_length,
            hidden_features=hidden_features,
            embedding_features=embedding_features,
            attention_units=attention_units,
            **{f"image_shape[{i}]": size for i, size in enumerate(image_shape)},
            **{f"channels[{i}]": size for i, size in enumerate(channels)},
        )
        self.image_shape = tuple(image_shape)
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.hard = attention == "hard"
        scale = 2 ** (len(channels) - 1)
        self.grid = (-(-image_shape[0] // scale), -(-image_shape[1] // scale))
        options: Any = {"param_dtype": param_dtype, "rngs": rngs}
        widths = (image_shape[2], *channels)
        # Of 4 x 4 pixels, so that what an annotation sees has the middle of its cell for a centre.
        shapes = [(4, 2)] * (len(channels) - 1) + [(1, 1)]
        self.convolutions = nnx.List([
            nnx.Conv(
                widths[i],
                widths[i + 1],
                kernel_size=(size, size),
                strides=stride,
                kernel_init=nnx.initializers.he_normal(),
                **options,
            )
            for i, (size, stride) in enumerate(shapes)
        ])  # fmt: skip
        small, features = nnx.initializers.normal(0.1), channels[-1]
        places = self.grid[0] * self.grid[1], features
        self.places = nnx.Param(small(rngs.params(), places, param_dtype))
        self.hidden_head = nnx.Linear(features, hidden_features, **options)
        self.cell_head = nnx.Linear(features, hidden_features, **options)
        layer = nn.HardSpatialAttention if self.hard else nn.SoftSpatialAttention
        self.attention = layer(features, hidden_features, attention_units, **options)
        self.embedding = nnx.Embed(
            vocabulary_size, embedding_features, embedding_init=small, **options
        )
        self.lstm = nn.LSTM(embedding_features + features, hidden_features, **options)
        self.say_hidden = nnx.Linear(hidden_features, embedding_features, **options)
        self.say_context = nnx.Linear(features, embedding_features, use_bias=False, **options)
        self.say = nnx.Linear(embedding_features, vocabulary_size, **options)

    def __call__(
        self, image: Real[ArrayLike, "*batch H W C"], words: Integer[ArrayLike, "*batch T"]
    ) -> Float[Array, "*batch T V"]:
        """Return the logits of every word of a caption, given those before it.

        Arguments and errors: see `read`.
        """
        return self.read(image, words).logits

    def read(
        self,
        image: Real[ArrayLike, "*batch H W C"],
        words: Integer[ArrayLike, "*batch T"],
        *,
        key: PRNGKeyArray | None = None,
        positions: Integer[ArrayLike, "*batch T"] | None = None,
        expected: Bool[ArrayLike, "*batch"] | None = None,
        hidden_dropout: Float[ArrayLike, ""] = 0.0,
    ) -> Reading:
        """Read a picture and a caption (teacher forcing).

        Args:
            image: one picture (H, W, C) in [0, 1], or a batch (..., H, W, C).
            words: the caption's ids (..., T), `END` after the last word and from there on.
            key: draws the places of hard attention, and what is dropped. Without it hard attention
                reads the most likely places, and nothing is dropped.
            positions: the places (..., T) that hard attention reads, instead of drawn ones.
            expected: where it is True, hard attention reads all places by their weights.
            hidden_dropout: the probability with which a word is scored without the state $h_t$, by
                what is read for it. Else the LSTM may say what it saw a word before, and look
                elsewhere.

        Returns:
            The logits (..., T, V), weights (..., T, L) and places (..., T).

        Raises:
            ValueError: pictures of another shape, a caption longer than `max_length`, an argument
                for another batch; unless they are traced, ids outside the vocabulary, places
                outside the grid, a `hidden_dropout` outside 0 to 1.
            TypeError: ids or places that are not integers, an `expected` that is not boolean.
        """
        image, batch = self.picture(image)
        self._check_words(words, batch)
        words = jnp.asarray(words, jnp.int32)
        if positions is not None:
            _check("positions", positions, jnp.integer, words.shape)
            _check_range("positions", positions, len(self.places[...]) - 1)
        if expected is not None:
            _check("expected", expected, jnp.bool_, batch)
        _check_range("hidden_dropout", hidden_dropout, 1)

        keys = None if key is None else jax.random.split(key, batch)
        return _read(*nnx.split(self), hidden_dropout, image, words, keys, positions, expected)

    def picture(self, image: ArrayLike) -> tuple[Array, tuple[int, ...]]:
        """The picture in the dtype of the weights, and its leading axes."""
        image = jnp.asarray(image)
        if image.shape[-3:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"image must have shape (..., {wanted}), got {image.shape}")
        return image.astype(self.places[...].dtype), image.shape[:-3]

    def _check_words(self, words: ArrayLike, batch: tuple[int, ...]) -> None:
        shape, dtype = jnp.shape(words), jnp.result_type(words)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"words must be integers, got dtype {dtype}")
        if len(shape) != len(batch) + 1 or shape[:-1] != batch:
            wanted = (*batch, "T")
            raise ValueError(f"words must have shape {wanted} for these pictures, got {shape}")
        if not 1 <= shape[-1] <= self.max_length:
            raise ValueError(f"words must be 1 to {self.max_length} a caption, got {shape[-1]}")
        _check_range("words", words, self.vocabulary_size - 1)

    def begin(self, image: Array) -> tuple[Memory, nn.LSTMState]:
        """Look at one picture: what the decoder reads at every step, and its first state."""
        found = image
        for convolution in self.convolutions:
            found = jax.nn.relu(convolution(found))
        annotations = found.reshape(-1, found.shape[-1]) + self.places[...]
        mean = annotations.mean(0)
        state = nn.LSTMState(jnp.tanh(self.hidden_head(mean)), jnp.tanh(self.cell_head(mean)))
        return Memory(annotations, self.attention.keys(annotations)), state

    def advance(
        self,
        memory: Memory,
        state: nn.LSTMState,
        embedded: Array,
        key: Any = None,
        position: Any = None,
        expected: Any = None,
    ) -> tuple[nn.LSTMState, Array, Array, Array]:
        """One step: the next state, and the context, the weights and the place behind it."""
        annotations = memory.annotations
        weights = self.attention.attend(memory.keys, state.hidden)
        if position is None:
            position = nn.choose_position(weights, key)
        if isinstance(self.attention, nn.SoftSpatialAttention):
            context = self.attention.context(weights, annotations, state.hidden)
        else:
            context = nn.read_position(annotations, position)
            if expected is not None:
                context = jnp.where(expected, weights @ annotations, context)
        state = nn.lstm_step(self.lstm.weights(), state, jnp.concatenate([embedded, context]))
        return state, context, weights, position

    def logits(
        self, embedded: Array, hidden: Array, context: Array, kept: Array | None = None
    ) -> Array:
        """Score the words, by the word before, the state after the step, if kept, and context."""
        remembered = self.say_hidden(hidden)
        if kept is not None:
            remembered = jnp.where(kept, remembered, 0)
        return self.say(jnp.tanh(embedded + remembered + self.say_context(context)))


def _check(name: str, given: ArrayLike, kind: Any, wanted: tuple[int, ...]) -> None:
    shape, dtype = jnp.shape(given), jnp.result_type(given)
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(f"{name} must be of dtype {kind.__name__}, got {dtype}")
    if shape != wanted:
        raise ValueError(f"{name} must have shape {wanted} for these captions, got {shape}")


def _check_range(name: str, given: ArrayLike, last: int) -> None:
    try:
        concrete = np.asarray(given)
    except jax.errors.TracerArrayConversionError:
        return  # what is traced has no values to check
    if concrete.size and not 0 <= concrete.min() <= concrete.max() <= last:
        got = f"{concrete.min()} to {concrete.max()}"
        raise ValueError(f"{name} must lie in 0 to {last}, got {got}")


# A scan called eagerly compiles anew at every call, unless a stable function is jitted around it.
@partial(jax.jit, static_argnames="graph")
def _read(graph: Any, weights: Any, drop: Any, image: Array, *given: Any) -> Reading:
    model = nnx.merge(graph, weights)

    def read(image: Array, words: Array, key: Any, positions: Any, expected: Any) -> Reading:
        memory, state = model.begin(image)
        before = jnp.concatenate([jnp.full(1, END, jnp.int32), words[:-1]])
        embedded = model.embedding(before)
        keys = kept = None
        if key is not None:
            drawn, dropped = jax.random.split(key)
            kept = jax.random.bernoulli(dropped, 1 - drop, (len(words), 1))
            if model.hard:
                keys = jax.random.split(drawn, len(words))

        def step(state: nn.LSTMState, now: Any) -> tuple[nn.LSTMState, Any]:
            embedded, key, position = now
            state, *seen = model.advance(memory, state, embedded, key, position, expected)
            return state, (state.hidden, *seen)

        _, seen = jax.lax.scan(step, state, (embedded, keys, positions))
        hidden, context, weights, position = seen
        return Reading(model.logits(embedded, hidden, context, kept), weights, position)

    for _ in image.shape[:-3]:
        read = jax.vmap(read)
    return read(image, *given)
