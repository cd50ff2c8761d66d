"""A captioning network with attention over the image (Xu et al. 2015)."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, PyTree, Real

from jaxattn import nn
from jaxattn.nn.attention_layer import check_sizes

#: Id of the word that ends a caption and fills it up; also the word before the first.
END = 0


class Reading(NamedTuple):
    """The result for an image and a given caption.

    Attributes:
        logits: Logits of each word, given those before it.
        weights: Attention weights of each word over the places of the image.
        positions: Place chosen by hard attention; the place of the largest weight of soft
            attention.
    """

    logits: Float[Array, "*batch T V"]
    weights: Float[Array, "*batch T L"]
    positions: Integer[Array, "*batch T"]


class Memory(NamedTuple):
    """The annotations of an image, and their part of the attention scores."""

    annotations: Float[Array, "L D"]
    keys: Float[Array, "L units"]


class Step(NamedTuple):
    """One step of the decoder: the next state, and the attention that led to it."""

    state: nn.LSTMState
    context: Float[Array, " D"]
    weights: Float[Array, " L"]
    position: Integer[Array, ""]


class Captioner(nnx.Module):
    r"""Captioning network: convolutions, attention over places, and an LSTM (Xu et al. 2015).

    The convolutions compute an annotation of each place of the image, to which a learned vector of
    the place is added. The initial state is $\tanh$ of two linear maps of the mean annotation. A
    step computes the context $z_t$ from the annotations, advances the LSTM with the previous word
    and $z_t$, and scores the words by $L_o \tanh(E y_{t-1} + L_h h_t + L_z z_t)$.

    Args:
        image_shape: (height, width, channels) of the images.
        vocabulary_size: V, number of words, `END` included.
        max_length: Largest number of words of a caption, `END` included.
        attention: "soft" for a weighted sum of all places, "hard" for one place.
        channels: Output channels of the convolutions. Each but the last halves the image; the last,
            with a kernel of size 1, has D channels.
        hidden_features: H, number of units of the LSTM.
        embedding_features: Size of the embedding of a word.
        attention_units: Size of the hidden layer of the attention scores.
        param_dtype: Dtype of the weights, to which images are converted.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If `attention` is unknown, a size is below 1, or there are no `channels`.
        TypeError: If a size is not an integer.

    Reference:
        Xu et al. 2015, Show, attend and tell: neural image caption generation with visual
        attention, arXiv:1502.03044.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.Captioner((8, 8, 3), 10, 5, channels=(4, 4), rngs=nnx.Rngs(0))
        >>> model(jnp.ones((8, 8, 3)), jnp.array([3, 1, 0])).shape
        (3, 10)
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
            raise ValueError(f"`attention` must be 'soft' or 'hard', got {attention!r}.")
        if len(image_shape) != 3:
            raise ValueError(f"`image_shape` must be (height, width, channels), got {image_shape}.")
        if not channels:
            raise ValueError("`channels` must be of at least one convolution, got ().")
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
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        widths = (image_shape[2], *channels)
        # Kernels of 4 x 4 pixels centre the receptive field of an annotation on its cell.
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
        """Compute the logits of each word of a caption, given those before it.

        Args:
            image: Image of shape `(H, W, C)`, or a batch `(..., H, W, C)`; see `read`.
            words: Ids of the words, shape `(..., T)`; see `read`.

        Returns:
            The logits, shape `(..., T, V)`.

        Raises:
            ValueError: As `read`.
            TypeError: As `read`.
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
        """Compute the logits and the attention for a given caption (teacher forcing).

        Args:
            image: Image of shape `(H, W, C)` with values in [0, 1], or a batch `(..., H, W, C)`.
            words: Ids of the words, shape `(..., T)`, filled up with `END`.
            key: Key of the places of hard attention and of the dropout. By default hard attention
                chooses the most likely places, and there is no dropout.
            positions: Places of shape `(..., T)` for hard attention, instead of draws.
            expected: Booleans of shape `(...)`, True for examples in which hard attention is
                replaced by the weighted sum of all places.
            hidden_dropout: Probability with which a word is scored without the state $h_t$. This
                prevents the LSTM from storing what it attended to at an earlier word.

        Returns:
            The logits `(..., T, V)`, weights `(..., T, L)` and places `(..., T)`.

        Raises:
            ValueError: If an array has another shape, or the caption is longer than `max_length`;
                unless traced, if ids lie outside the vocabulary, places outside the grid, or
                `hidden_dropout` outside [0, 1].
            TypeError: If ids or places are not integers, or `expected` is not boolean.
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
        """Return the image in the dtype of the weights, and its leading axes."""
        image = jnp.asarray(image)
        if image.shape[-3:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"`image` must have shape (..., {shape}), got {image.shape}.")
        return image.astype(self.places[...].dtype), image.shape[:-3]

    def _check_words(self, words: ArrayLike, batch: tuple[int, ...]) -> None:
        shape, dtype = jnp.shape(words), jnp.result_type(words)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"`words` must be integers, got dtype {dtype}.")
        if len(shape) != len(batch) + 1 or shape[:-1] != batch:
            expected = (*batch, "T")
            raise ValueError(f"`words` must have shape {expected} for these images, got {shape}.")
        if not 1 <= shape[-1] <= self.max_length:
            raise ValueError(
                f"`words` must hold 1 to {self.max_length} words per caption, got {shape[-1]}."
            )
        _check_range("words", words, self.vocabulary_size - 1)

    def begin(self, image: Array) -> tuple[Memory, nn.LSTMState]:
        """Return the annotations of one image, and the initial state of the decoder."""
        features = image
        for convolution in self.convolutions:
            features = jax.nn.relu(convolution(features))
        annotations = features.reshape(-1, features.shape[-1]) + self.places[...]
        mean = annotations.mean(0)
        state = nn.LSTMState(jnp.tanh(self.hidden_head(mean)), jnp.tanh(self.cell_head(mean)))
        return Memory(annotations, self.attention.keys(annotations)), state

    def advance(
        self,
        memory: Memory,
        state: nn.LSTMState,
        embedded: Array,
        key: PRNGKeyArray | None = None,
        position: Array | None = None,
        expected: Array | None = None,
    ) -> Step:
        """Advance the decoder by one step; see `read` for the options."""
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
        return Step(state, context, weights, position)

    def logits(
        self, embedded: Array, hidden: Array, context: Array, kept: Array | None = None
    ) -> Array:
        """Compute the logits from the previous word, the next state (if kept) and the context."""
        from_state = self.say_hidden(hidden)
        if kept is not None:
            from_state = jnp.where(kept, from_state, 0)
        return self.say(jnp.tanh(embedded + from_state + self.say_context(context)))


def _check(name: str, array: ArrayLike, kind: type, expected: tuple[int, ...]) -> None:
    shape, dtype = jnp.shape(array), jnp.result_type(array)
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(f"`{name}` must be of dtype {kind.__name__}, got {dtype}.")
    if shape != expected:
        raise ValueError(f"`{name}` must have shape {expected} for these captions, got {shape}.")


def _check_range(name: str, array: ArrayLike, last: int) -> None:
    try:
        concrete = np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return  # traced values are not checked
    if concrete.size and not 0 <= concrete.min() <= concrete.max() <= last:
        got = f"{concrete.min()} to {concrete.max()}"
        raise ValueError(f"`{name}` must lie in 0 to {last}, got {got}.")


# A scan compiles at every eager call unless it is inside of a jitted function that persists.
@partial(jax.jit, static_argnames="graph")
def _read(
    graph: nnx.GraphDef,
    weights: PyTree[Array],
    drop: ArrayLike,
    image: Array,
    words: Array,
    *options: Array | None,
) -> Reading:
    model = nnx.merge(graph, weights)

    def read(
        image: Array,
        words: Array,
        key: PRNGKeyArray | None,
        positions: Array | None,
        expected: Array | None,
    ) -> Reading:
        memory, state = model.begin(image)
        before = jnp.concatenate([jnp.full(1, END, jnp.int32), words[:-1]])
        embedded = model.embedding(before)
        keys = kept = None
        if key is not None:
            drawn, dropped = jax.random.split(key)
            kept = jax.random.bernoulli(dropped, 1 - drop, (len(words), 1))
            if model.hard:
                keys = jax.random.split(drawn, len(words))

        def step(
            state: nn.LSTMState, inputs: tuple[Array, PRNGKeyArray | None, Array | None]
        ) -> tuple[nn.LSTMState, tuple[Array, ...]]:
            embedded, key, position = inputs
            taken = model.advance(memory, state, embedded, key, position, expected)
            rows = taken.state.hidden, taken.context, taken.weights, taken.position
            return taken.state, rows

        _, rows = jax.lax.scan(step, state, (embedded, keys, positions))
        hidden, context, weights, position = rows
        return Reading(model.logits(embedded, hidden, context, kept), weights, position)

    for _ in image.shape[:-3]:
        read = jax.vmap(read)
    return read(image, words, *options)
