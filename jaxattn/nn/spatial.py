"""Soft and hard attention over the places of an image (Xu et al. 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, checked_mask, masked_softmax
from jaxattn.nn.attention_layer import check_sizes
from jaxattn.nn.places import (
    SpatialWeights,
    choose_position,
    read_position,
    spatial_keys,
    spatial_scores,
)


class Fixation(NamedTuple):
    """The result of hard attention.

    Attributes:
        values: Annotation of the chosen place; zero if all places are masked.
        weights: Probability of each place.
        position: Index of the chosen place.
    """

    values: Float[Array, "*batch D"]
    weights: Float[Array, "*batch L"]
    position: Integer[Array, "*batch"]


class SpatialAttention(nnx.Module):
    """Base class of soft and hard attention; the equation of the scores is in `spatial_scores`.

    Matrices are drawn by Glorot's uniform initialiser, biases start at 0.

    Args:
        annotation_features: D, size of the annotation of a place.
        state_features: H, size of the hidden state of the decoder.
        units: Size of the hidden layer of the scores.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.
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
            raise TypeError(f"`param_dtype` must be floating, got {param_dtype}.")
        draw = initializers.glorot_uniform()
        self.annotation = nnx.Param(draw(rngs.params(), (annotation_features, units), param_dtype))
        self.state = nnx.Param(draw(rngs.params(), (state_features, units), param_dtype))
        self.bias = nnx.Param(jnp.zeros(units, param_dtype))
        self.score = nnx.Param(draw(rngs.params(), (units, 1), param_dtype)[:, 0])

    def weights(self) -> SpatialWeights:
        """Return the weights of the scores for the pure functions."""
        return SpatialWeights(*(getattr(self, name)[...] for name in SpatialWeights._fields))

    def keys(self, annotations: Float[Array, "L D"]) -> Float[Array, "L units"]:
        """Compute the part of the scores that is the same at every step; see `spatial_keys`."""
        return spatial_keys(self.weights(), annotations)

    def attend(
        self,
        keys: Float[Array, "L units"],
        hidden: Float[Array, " H"],
        mask: Bool[Array, " L"] | None = None,
    ) -> Float[Array, " L"]:
        """Compute the attention weights of one image at one step, tagged.

        Args:
            keys: Keys of the annotations, shape `(L, units)`.
            hidden: Hidden state of the decoder, shape `(H,)`.
            mask: True at places that may be attended to, shape `(L,)`. All by default.

        Returns:
            The weights, shape `(L,)`.
        """
        return tag(masked_softmax(spatial_scores(self.weights(), keys, hidden), mask), self.name)

    def _checked(
        self, annotations: ArrayLike, hidden: ArrayLike, mask: ArrayLike | None
    ) -> tuple[Array, Array, Array | None]:
        """Return checked inputs, zero where masked, in the dtype to which all arrays promote."""
        annotations, hidden = jnp.asarray(annotations), jnp.asarray(hidden)
        for name, array in (("annotations", annotations), ("hidden", hidden)):
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise TypeError(f"`{name}` must be floating, got dtype {array.dtype}.")
        if annotations.ndim < 2 or annotations.shape[-1] != self.annotation_features:
            shape = f"(..., L, {self.annotation_features})"
            raise ValueError(f"`annotations` must have shape {shape}, got {annotations.shape}.")
        if hidden.shape != (*annotations.shape[:-2], self.state_features):
            expected = (*annotations.shape[:-2], self.state_features)
            raise ValueError(
                f"`hidden` must have shape {expected} for annotations of shape "
                f"{annotations.shape}, got {hidden.shape}."
            )
        if mask is not None:
            mask = checked_mask(mask, annotations.shape[:-1])
            annotations = jnp.where(mask[..., None], annotations, 0)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(annotations, hidden, self.bias[...])
        return annotations.astype(dtype), hidden.astype(dtype), mask


class SoftSpatialAttention(SpatialAttention):
    r"""Soft attention over places: $z = \beta \sum_i \alpha_i a_i$ with a gate $\beta$.

    The gate is $\beta = \sigma(w_b h + b_b)$; the scores are those of `spatial_scores`.

    Args:
        annotation_features: D, size of the annotation of a place.
        state_features: H, size of the hidden state of the decoder.
        units: Size of the hidden layer of the scores.
        gated: Whether to multiply by the gate $\beta$.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Xu et al. 2015, Show, attend and tell, arXiv:1502.03044.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.SoftSpatialAttention(8, 4, 6, rngs=nnx.Rngs(0))
        >>> values, weights = layer(jnp.ones((9, 8)), jnp.ones(4))
        >>> values.shape, weights.shape
        ((8,), (9,))
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
        """Compute the gated sum of the annotations of one image at one step.

        Args:
            weights: Attention weights, shape `(L,)`.
            annotations: Annotations, shape `(L, D)`.
            hidden: Hidden state of the decoder, shape `(H,)`.

        Returns:
            The context, shape `(D,)`.
        """
        total = weights @ annotations
        if not self.gated:
            return total
        return jax.nn.sigmoid(hidden @ self.gate[...] + self.gate_bias[...]) * total

    def __call__(
        self,
        annotations: Float[ArrayLike, "*batch L D"],
        hidden: Float[ArrayLike, "*batch H"],
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Compute the context for one step of the decoder.

        Masked places, NaN included, do not affect the result and have a gradient of zero. The dtype
        is that to which the inputs and the weights promote.

        Args:
            annotations: Annotations of shape `(L, D)`, or a batch `(..., L, D)`.
            hidden: Hidden state of the decoder, shape `(H,)` or `(..., H)`.
            mask: True at places that may be attended to; broadcasts to `(..., L)`. All by default.

        Returns:
            The context `(..., D)` and the weights `(..., L)`.

        Raises:
            ValueError: If an input has another shape, or `mask` does not broadcast.
            TypeError: If an input is not floating, or `mask` is not boolean.
        """
        annotations, hidden, mask = self._checked(annotations, hidden, mask)

        def single(annotations: Array, hidden: Array, mask: Array | None) -> Attended:
            weights = self.attend(self.keys(annotations), hidden, mask)
            return Attended(self.context(weights, annotations, hidden), weights)

        for _ in hidden.shape[:-1]:
            single = jax.vmap(single)
        with jax.numpy_dtype_promotion("standard"):
            return single(annotations, hidden, mask)


class HardSpatialAttention(SpatialAttention):
    r"""Hard attention to one place: $s \sim \mathrm{Cat}(\alpha)$, $z = a_s$.

    `jaxattn.models.hard_caption_loss` trains it. Arguments and errors are those of
    `SpatialAttention`.

    Reference:
        Xu et al. 2015, Show, attend and tell, arXiv:1502.03044.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.HardSpatialAttention(8, 4, 6, rngs=nnx.Rngs(0))
        >>> fixation = layer(jnp.ones((9, 8)), jnp.ones(4))
        >>> fixation.values.shape, fixation.position.shape
        ((8,), ())
    """

    def __call__(
        self,
        annotations: Float[ArrayLike, "*batch L D"],
        hidden: Float[ArrayLike, "*batch H"],
        mask: Bool[ArrayLike, "..."] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Fixation:
        """Compute the context for one step of the decoder.

        Args:
            annotations: Annotations of shape `(L, D)`, or a batch `(..., L, D)`.
            hidden: Hidden state of the decoder, shape `(H,)` or `(..., H)`.
            mask: True at places that may be attended to; broadcasts to `(..., L)`. All by default.
            key: Key of the draws, one per example; the most likely places by default.

        Returns:
            The context `(..., D)`, the weights `(..., L)`, and the place `(...)`.

        Raises:
            ValueError: If an input has another shape, or `mask` does not broadcast.
            TypeError: If an input is not floating, or `mask` is not boolean.
        """
        annotations, hidden, mask = self._checked(annotations, hidden, mask)

        def single(
            annotations: Array, hidden: Array, mask: Array | None, key: PRNGKeyArray | None
        ) -> Fixation:
            weights = self.attend(self.keys(annotations), hidden, mask)
            position = choose_position(weights, key)
            return Fixation(read_position(annotations, position), weights, position)

        for _ in hidden.shape[:-1]:
            single = jax.vmap(single)
        keys = None if key is None else jax.random.split(key, hidden.shape[:-1])
        with jax.numpy_dtype_promotion("standard"):
            return single(annotations, hidden, mask, keys)
