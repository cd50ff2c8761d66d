"""Attention over the places of a picture, soft and hard (Xu et al. 2015)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, checked_mask, masked_softmax
from jaxattn.nn.attention_layer import check_sizes


class SpatialWeights(NamedTuple):
    """Weights that score the places of a picture."""

    annotation: Float[Array, "D units"]
    state: Float[Array, "H units"]
    bias: Float[Array, " units"]
    score: Float[Array, " units"]


class Fixation(NamedTuple):
    """What hard attention returns.

    Attributes:
        values: the annotation of the one place that is read; zero where none may be read.
        weights: the probability of each place.
        position: the index of the place.
    """

    values: Float[Array, "*batch D"]
    weights: Float[Array, "*batch L"]
    position: Integer[Array, "*batch"]


def spatial_keys(
    weights: SpatialWeights, annotations: Float[Array, "L D"]
) -> Float[Array, "L units"]:
    """The part of the scores that is the same at every step, $a W_a + b$."""
    return annotations @ weights.annotation + weights.bias[None]


def spatial_scores(
    weights: SpatialWeights, keys: Float[Array, "L units"], hidden: Float[Array, " H"]
) -> Float[Array, " L"]:
    r"""Score every place: $e_i = w \cdot \tanh(a_i W_a + h W_h + b)$.

    Args:
        weights: `state` $W_h$ and `score` w; the others are in the keys.
        keys: of the annotations, from `spatial_keys`.
        hidden: the decoder's hidden state.

    Returns:
        A score for each place.
    """
    return jnp.tanh(keys + (hidden @ weights.state)[None]) @ weights.score


def choose_position(
    weights: Float[Array, " L"], key: PRNGKeyArray | None = None
) -> Integer[Array, ""]:
    """Draw a place by its weight; without a key, take the one with the largest."""
    if key is None:
        return weights.argmax().astype(jnp.int32)
    return jax.random.categorical(key, jnp.log(weights)).astype(jnp.int32)


def read_position(
    annotations: Float[Array, "L D"], position: Integer[Array, ""]
) -> Float[Array, " D"]:
    """The annotation of one place."""
    # Relevance propagates through a choice, not through an index that depends on the input.
    here = jnp.arange(len(annotations), dtype=position.dtype) == position
    return jnp.where(here[:, None], annotations, 0).sum(0)


def doubly_stochastic_penalty(
    weights: Float[ArrayLike, "*batch T L"], mask: Bool[ArrayLike, "..."] | None = None
) -> Float[Array, "*batch"]:
    r"""What places cost that are not read once in all: $\sum_i (1 - \sum_t \alpha_{ti})^2$.

    Args:
        weights: of each step and place.
        mask: True at the steps (..., T) that count. None: all.

    Returns:
        The penalty of each example.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a mask that does not broadcast to (..., T).
    """
    weights = jnp.asarray(weights)
    if mask is not None:
        weights = jnp.where(checked_mask(mask, weights.shape[:-1])[..., None], weights, 0)
    return ((1 - weights.sum(-2)) ** 2).sum(-1)


class SpatialAttention(nnx.Module):
    """What soft and hard attention share: the weights of the score; equation in `spatial_scores`.

    Args:
        annotation_features: D, size of the annotation of a place.
        state_features: H, size of the decoder's hidden state.
        units: of the hidden layer that scores a place.
        name: the tag of the weights, for `capture` and `intervene`.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a `param_dtype` that is not floating.
    """

    def __init__(
        self,
        annotation_features: int,
        state_features: int,
        units: int,
        *,
        name: str = "attention",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.annotation_features = annotation_features
        self.state_features = state_features
        self.name = name
        check_sizes(
            annotation_features=annotation_features, state_features=state_features, units=units
        )
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"param_dtype must be floating, got {param_dtype}")
        draw = initializers.glorot_uniform()
        self.annotation = nnx.Param(draw(rngs.params(), (annotation_features, units), param_dtype))
        self.state = nnx.Param(draw(rngs.params(), (state_features, units), param_dtype))
        self.bias = nnx.Param(jnp.zeros(units, param_dtype))
        self.score = nnx.Param(draw(rngs.params(), (units, 1), param_dtype)[:, 0])

    def weights(self) -> SpatialWeights:
        """The weights, ready for the pure functions."""
        return SpatialWeights(*(getattr(self, name)[...] for name in SpatialWeights._fields))

    def keys(self, annotations: Float[Array, "L D"]) -> Float[Array, "L units"]:
        """The part of one picture's scores that is the same at every step."""
        return spatial_keys(self.weights(), annotations)

    def attend(
        self,
        keys: Float[Array, "L units"],
        hidden: Float[Array, " H"],
        mask: Bool[Array, " L"] | None = None,
    ) -> Float[Array, " L"]:
        """The weights of one picture's places at one step, tagged."""
        return tag(masked_softmax(spatial_scores(self.weights(), keys, hidden), mask), self.name)

    def _checked(
        self, annotations: ArrayLike, hidden: ArrayLike, mask: ArrayLike | None
    ) -> tuple[Array, Array, Array | None]:
        """The inputs in the dtype to which they and the weights promote, zero where masked."""
        annotations, hidden = jnp.asarray(annotations), jnp.asarray(hidden)
        for name, array in (("annotations", annotations), ("hidden", hidden)):
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
        if annotations.ndim < 2 or annotations.shape[-1] != self.annotation_features:
            shape = f"(..., L, {self.annotation_features})"
            raise ValueError(f"annotations must have shape {shape}, got {annotations.shape}")
        if hidden.shape != (*annotations.shape[:-2], self.state_features):
            wanted = (*annotations.shape[:-2], self.state_features)
            raise ValueError(
                f"hidden must have shape {wanted} for annotations of shape {annotations.shape}, "
                f"got {hidden.shape}"
            )
        if mask is not None:
            mask = checked_mask(mask, annotations.shape[:-1])
            annotations = jnp.where(mask[..., None], annotations, 0)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(annotations, hidden, self.bias[...])
        return annotations.astype(dtype), hidden.astype(dtype), mask


class SoftSpatialAttention(SpatialAttention):
    r"""Reads all places: $z = \beta \sum_i \alpha_i a_i$, gated by $\beta = \sigma(w_b h + b_b)$.

    Arguments and errors: see `SpatialAttention`; `gated=False` leaves out the gate $\beta$.
    """

    def __init__(
        self,
        annotation_features: int,
        state_features: int,
        units: int,
        *,
        gated: bool = True,
        name: str = "attention",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            annotation_features,
            state_features,
            units,
            name=name,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.gated = gated
        if gated:
            draw = initializers.glorot_uniform()
            self.gate = nnx.Param(draw(rngs.params(), (state_features, 1), param_dtype)[:, 0])
            self.gate_bias = nnx.Param(jnp.zeros((), param_dtype))

    def context(
        self,
        weights: Float[Array, " L"],
        annotations: Float[Array, "L D"],
        hidden: Float[Array, " H"],
    ) -> Float[Array, " D"]:
        """The gated sum of one picture's annotations at one step."""
        read = weights @ annotations
        if not self.gated:
            return read
        return jax.nn.sigmoid(hidden @ self.gate[...] + self.gate_bias[...]) * read

    def __call__(
        self,
        annotations: Float[ArrayLike, "*batch L D"],
        hidden: Float[ArrayLike, "*batch H"],
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Read the annotations for one step of the decoder.

        What stands at masked places changes nothing, NaN included, and its gradient is zero. The
        dtype is the one to which the inputs and the weights promote.

        Args:
            annotations: one vector for each place, (L, D), or a batch (..., L, D).
            hidden: the decoder's hidden state, (H,) or (..., H).
            mask: True at places that may be read; broadcasts to (..., L). None: all.

        Returns:
            The context (..., D) and the weights (..., L).

        Raises:
            ValueError: inputs of other shapes, a mask that does not broadcast.
            TypeError: inputs that are not floating, a mask that is not boolean.
        """
        annotations, hidden, mask = self._checked(annotations, hidden, mask)

        def read(annotations: Array, hidden: Array, mask: Array | None) -> Attended:
            weights = self.attend(self.keys(annotations), hidden, mask)
            return Attended(self.context(weights, annotations, hidden), weights)

        for _ in hidden.shape[:-1]:
            read = jax.vmap(read)
        with jax.numpy_dtype_promotion("standard"):
            return read(annotations, hidden, mask)


class HardSpatialAttention(SpatialAttention):
    r"""Reads one place, drawn by its weight: $s \sim \mathrm{Cat}(\alpha)$, $z = a_s$.

    How it learns: see `models.hard_caption_loss`. Arguments and errors: see `SpatialAttention`.
    """

    def __call__(
        self,
        annotations: Float[ArrayLike, "*batch L D"],
        hidden: Float[ArrayLike, "*batch H"],
        mask: Bool[ArrayLike, "..."] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Fixation:
        """Read one annotation for one step of the decoder.

        Args:
            annotations: one vector for each place, (L, D), or a batch (..., L, D).
            hidden: the decoder's hidden state, (H,) or (..., H).
            mask: True at places that may be read; broadcasts to (..., L). None: all.
            key: draws the place; every example of a batch draws its own. None: the most likely.

        Returns:
            The context (..., D), the weights (..., L), and the place (...).

        Raises:
            ValueError: as soft attention.
            TypeError: as soft attention.
        """
        annotations, hidden, mask = self._checked(annotations, hidden, mask)

        def read(annotations: Array, hidden: Array, mask: Array | None, key: Any) -> Fixation:
            weights = self.attend(self.keys(annotations), hidden, mask)
            position = choose_position(weights, key)
            return Fixation(read_position(annotations, position), weights, position)

        for _ in hidden.shape[:-1]:
            read = jax.vmap(read)
        keys = None if key is None else jax.random.split(key, hidden.shape[:-1])
        with jax.numpy_dtype_promotion("standard"):
            return read(annotations, hidden, mask, keys)
