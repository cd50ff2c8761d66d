"""Glimpses: a small sharp patch of an image within wider blurred ones, and where to look next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key, Real

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attention_layer import check_sizes


def glimpse(
    image: Real[ArrayLike, "H W *C"],
    location: Float[ArrayLike, "2"],
    size: int,
    scales: int = 1,
) -> Float[Array, "S g g *C"]:
    r"""Look at one place of an image: the sensor $\rho(x, l)$ of Mnih et al. (2014).

    The first patch is `size` pixels wide, each next one twice as wide as the one before; all have
    the same centre, and average pooling brings them to `size` x `size`. Beyond its edges the image
    is zero, however far away; a location that is NaN sees only zeros. NaN anywhere in the image is
    passed on.

    Args:
        image: one image, (H, W) or (H, W, C).
        location: the row and the column of the centre: (-1, -1) is the top left corner of the
            image, (1, 1) the bottom right one.
        size: g, width of the first patch in pixels.
        scales: S, number of patches.

    Returns:
        The patches (S, g, g) or (S, g, g, C), the sharpest first.

    Raises:
        ValueError: a size or number of scales below 1, an image of another rank or smaller than
            the first patch.
        TypeError: a size or number of scales that is not an integer.
    """
    image = jnp.asarray(image)
    _check_sizes(size, scales, image.shape)
    if image.ndim not in (2, 3):
        raise ValueError(f"image must have shape (H, W) or (H, W, C), got {image.shape}")
    boxes = glimpse_boxes(location, image.shape, size, scales)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(jnp.result_type(float))
    pools = 2 ** jnp.arange(scales, dtype=jnp.int32)[:, None, None]
    cells = jnp.arange(size, dtype=jnp.int32)[None, :, None]

    def averages(starts: Array, length: int) -> Array:
        """The weight of each pixel in each cell of a patch, (S, g, length)."""
        pixels = jnp.arange(length, dtype=jnp.int32)[None, None] - starts[:, None, None]
        return (pixels // pools == cells).astype(image.dtype) / pools.astype(image.dtype)

    # Two products with such weights: a slice at a place that is computed is four times slower on a
    # CPU, and relevance propagation has no rule for it.
    rows, columns = averages(boxes[:, 0], image.shape[0]), averages(boxes[:, 1], image.shape[1])
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("sah,hw...,sbw->sab...", rows, image, columns, precision=precision)


def glimpse_boxes(
    locations: Float[ArrayLike, "*batch 2"], shape: tuple[int, ...], size: int, scales: int = 1
) -> Int[Array, "*batch S 4"]:
    """Return the pixels that glimpses read.

    Args:
        locations: rows and columns of the centres, as in `glimpse`.
        shape: of the image, H and W first.
        size: g, width of the first patch in pixels.
        scales: S, number of patches.

    Returns:
        Top, left, bottom and right (..., S, 4) of every patch, which reads
        `image[top:bottom, left:right]`: a box may hang over the edge, or lie outside.

    Raises:
        ValueError: a size or number of scales below 1, a shape smaller than the first patch.
        TypeError: a size or number of scales that is not an integer.
    """
    _check_sizes(size, scales, shape)
    locations = jnp.asarray(locations)
    boxes = []
    for width in (size * 2**i for i in range(scales)):
        start = _starts(locations, shape, width)
        boxes.append(jnp.concatenate([start, start + width], -1))
    return jnp.stack(boxes, -2)


class GlimpseSensor(nnx.Module):
    """`glimpse` as a layer without weights, for one image or a batch.

    Args:
        size: g, width of the first patch in pixels.
        scales: S, number of patches, each twice as wide as the one before.

    Raises:
        ValueError: a size or number of scales below 1.
        TypeError: one that is not an integer.
    """

    def __init__(self, size: int, scales: int = 1):
        _check_sizes(size, scales)
        self.size = size
        self.scales = scales

    def __call__(
        self, image: Real[ArrayLike, "..."], location: Float[ArrayLike, "*batch 2"]
    ) -> Float[Array, "..."]:
        """Look at each image at its own place.

        Args:
            image: one image (H, W) or (H, W, C), or one for each location (..., H, W[, C]).
            location: the row and the column of the centre, each in [-1, 1], (..., 2).

        Returns:
            The patches (..., S, g, g[, C]).

        Raises:
            ValueError: an `image` or `location` of another shape, or an image smaller than g x g.
        """
        image, location = jnp.asarray(image), jnp.asarray(location)
        if not location.ndim or location.shape[-1] != 2:
            raise ValueError(f"location must have shape (..., 2), got {location.shape}")
        batch = location.shape[:-1]
        if image.shape[: len(batch)] != batch:
            wanted = f"({', '.join(map(str, batch))}, H, W) or with channels"
            raise ValueError(f"image must have shape {wanted}, got {image.shape}")

        def look(image: Array, location: Array) -> Array:
            return glimpse(image, location, self.size, self.scales)

        for _ in batch:
            look = jax.vmap(look)
        return look(image, location)


class GlimpseNetwork(nnx.Module):
    """Join what is seen with where: relu(Lin relu(Lin patches) + Lin relu(Lin location)).

    From "Recurrent Models of Visual Attention" (Mnih et al. 2014).

    Args:
        in_features: D, how many numbers the patches hold.
        features: size of the glimpse's vector.
        patch_features: units of the layer that reads the patches.
        location_features: units of the layer that reads the location.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a size that is not an integer.
    """

    def __init__(
        self,
        in_features: int,
        features: int = 256,
        *,
        patch_features: int = 128,
        location_features: int = 128,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(
            in_features=in_features,
            features=features,
            patch_features=patch_features,
            location_features=location_features,
        )

        def linear(rows: int, columns: int) -> nnx.Linear:
            return nnx.Linear(rows, columns, param_dtype=param_dtype, rngs=rngs)

        self.read_patches = linear(in_features, patch_features)
        self.read_location = linear(2, location_features)
        self.join_patches = linear(patch_features, features)
        self.join_location = linear(location_features, features)

    def __call__(
        self, patches: Float[ArrayLike, "*batch D"], location: Float[ArrayLike, "*batch 2"]
    ) -> Float[Array, "*batch features"]:
        """Return the vector of a glimpse.

        Args:
            patches: what the sensor sees, flat: (..., D).
            location: where it looks (..., 2).

        Returns:
            The vector (..., features).

        Raises:
            ValueError: patches of another width.
        """
        patches, location = jnp.asarray(patches), jnp.asarray(location)
        width = self.read_patches.in_features
        if patches.shape[-1:] != (width,):
            raise ValueError(f"patches must have shape (..., {width}), got {patches.shape}")
        what = self.join_patches(jax.nn.relu(self.read_patches(patches)))
        where = self.join_location(jax.nn.relu(self.read_location(location)))
        return jax.nn.relu(what + where)


class Located(NamedTuple):
    """Where to look next.

    Attributes:
        location: row and column, each in [-1, 1] unless it was given.
        sample: the draw, before it was clamped to the image: the log density is that of the draw.
        mean: the mean that it was drawn around; gradients reach the weights through it alone. What
            is given `at` is location and sample as it is, and keeps its own gradient.
    """

    location: Float[Array, "*batch 2"]
    sample: Float[Array, "*batch 2"]
    mean: Float[Array, "*batch 2"]


class LocationNetwork(nnx.Module):
    r"""Choose where to look: $l \sim N(\tanh(h W + b), \sigma^2)$, clamped to [-1, 1].

    The hidden state is read without a gradient (Mnih et al. 2014), so that a loss of the locations
    trains these weights alone. They start at zero: the gaze starts at the centre, whatever the size
    of the hidden state, rather than where a random projection has it stare.

    Args:
        in_features: H, size of the hidden state.
        std: $\sigma$ of the draw.
        name: the tag of the locations, under which `capture` finds and `intervene` replaces them.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1, or a `std` that is not positive.
        TypeError: a size that is not an integer.
    """

    def __init__(
        self,
        in_features: int,
        *,
        std: float = 0.17,
        name: str = "locations",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_features=in_features)
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.std = std
        self.name = name
        self.linear = nnx.Linear(
            in_features, 2, kernel_init=initializers.zeros, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self,
        hidden: Float[ArrayLike, "*batch H"],
        *,
        key: Key[Array, ""] | None = None,
        at: Float[ArrayLike, "*batch 2"] | None = None,
    ) -> Located:
        """Choose a location for each hidden state.

        Args:
            hidden: hidden states (..., H).
            key: draws the location; None: it is the mean.
            at: where to look instead.

        Returns:
            The location, the draw and its mean, each (..., 2).
        """
        mean = jnp.tanh(self.linear(jax.lax.stop_gradient(jnp.asarray(hidden))))
        if at is not None:
            sample = location = jnp.asarray(at, mean.dtype)
        else:
            noise = 0 if key is None else jax.random.normal(key, mean.shape, mean.dtype)
            sample = jax.lax.stop_gradient(mean + self.std * noise)
            location = jnp.clip(sample, -1, 1)
        return Located(tag(location, self.name), sample, mean)

    def log_density(
        self, sample: Float[ArrayLike, "*batch 2"], mean: Float[ArrayLike, "*batch 2"]
    ) -> Float[Array, "*batch"]:
        """Return the log density of draws, but for the constant of a normal density.

        Args:
            sample: draws before they were clamped (..., 2).
            mean: their means (..., 2).

        Returns:
            The log densities (...).
        """
        return -jnp.sum(((jnp.asarray(sample) - mean) / self.std) ** 2, -1) / 2


def _starts(location: Array, shape: tuple[int, ...], width: int) -> Array:
    """The first row and column of patches of this width; outside of the image if it must be."""
    lengths = jnp.broadcast_to(jnp.array(shape[:2], location.dtype), location.shape)
    start = jnp.floor((location + 1) * lengths / 2 - width / 2 + 0.5)
    # The comparison is false for NaN too. Beyond these ends a patch holds nothing but zeros.
    inside = jnp.where(start > -width, jnp.minimum(start, lengths), -width)
    return jax.lax.stop_gradient(inside).astype(jnp.int32)


def _check_sizes(size: int, scales: int, shape: tuple[int, ...] | None = None) -> None:
    check_sizes(size=size, scales=scales)
    if shape is not None and len(shape) > 1 and min(shape[:2]) < size:
        raise ValueError(
            f"image must be at least as large as a glimpse of {size} x {size}, got shape {shape}"
        )
