"""Glimpses: patches of an image at several resolutions, and the choice of their location."""

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
    r"""Extract a glimpse of an image, the sensor $\rho(x, l)$ of Mnih et al. (2014).

    The patches have the same centre. The first is `size` pixels wide, each next one twice as wide
    as the one before, and average pooling reduces them to `size` x `size`. The image is zero beyond
    its edges, and at a location of NaN. A NaN anywhere in the image propagates to the patches.

    Args:
        image: Image of shape `(H, W)` or `(H, W, C)`.
        location: Row and column of the centre: (-1, -1) is the top left corner of the image, (1, 1)
            the bottom right one.
        size: g, width of the first patch in pixels.
        scales: S, number of patches.

    Returns:
        The patches, shape `(S, g, g)` or `(S, g, g, C)`, the sharpest first.

    Raises:
        ValueError: If `size` or `scales` is below 1, or `image` has another rank or is smaller than
            the first patch.
        TypeError: If `size` or `scales` is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> ja.nn.glimpse(jnp.ones((28, 28)), jnp.zeros(2), size=8, scales=2).shape
        (2, 8, 8)
    """
    image = jnp.asarray(image)
    _check_sizes(size, scales, image.shape)
    if image.ndim not in (2, 3):
        raise ValueError(f"`image` must have shape (H, W) or (H, W, C), got {image.shape}.")
    boxes = glimpse_boxes(location, image.shape, size, scales)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(jnp.result_type(float))
    pools = 2 ** jnp.arange(scales, dtype=jnp.int32)[:, None, None]
    cells = jnp.arange(size, dtype=jnp.int32)[None, :, None]

    def averages(starts: Array, length: int) -> Array:
        """Return the weight of each pixel in each cell of a patch, shape `(S, g, length)`."""
        pixels = jnp.arange(length, dtype=jnp.int32)[None, None] - starts[:, None, None]
        return (pixels // pools == cells).astype(image.dtype) / pools.astype(image.dtype)

    # Two products with these weights: a slice at a computed place is four times slower on a CPU,
    # and relevance propagation has no rule for it.
    rows, columns = averages(boxes[:, 0], image.shape[0]), averages(boxes[:, 1], image.shape[1])
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("sah,hw...,sbw->sab...", rows, image, columns, precision=precision)


def glimpse_boxes(
    locations: Float[ArrayLike, "*batch 2"], shape: tuple[int, ...], size: int, scales: int = 1
) -> Int[Array, "*batch S 4"]:
    """Compute the boxes of pixels in the patches of glimpses.

    Args:
        locations: Rows and columns of the centres, shape `(..., 2)`, as in `glimpse`.
        shape: Shape of the image, H and W first.
        size: g, width of the first patch in pixels.
        scales: S, number of patches.

    Returns:
        Top, left, bottom and right of each patch, shape `(..., S, 4)`. A patch is
        `image[top:bottom, left:right]`; it may extend beyond the image.

    Raises:
        ValueError: If `size` or `scales` is below 1, or the image is smaller than the first patch.
        TypeError: If `size` or `scales` is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> ja.nn.glimpse_boxes(jnp.zeros(2), (28, 28), size=8).tolist()
        [[10, 10, 18, 18]]
    """
    _check_sizes(size, scales, shape)
    locations = jnp.asarray(locations)
    boxes = []
    for width in (size * 2**i for i in range(scales)):
        start = _starts(locations, shape, width)
        boxes.append(jnp.concatenate([start, start + width], -1))
    return jnp.stack(boxes, -2)


class GlimpseSensor(nnx.Module):
    """Layer without weights that extracts glimpses; see `glimpse`.

    Args:
        size: g, width of the first patch in pixels.
        scales: S, number of patches, each twice as wide as the one before.

    Raises:
        ValueError: If `size` or `scales` is below 1.
        TypeError: If `size` or `scales` is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> sensor = ja.nn.GlimpseSensor(8, scales=2)
        >>> sensor(jnp.ones((3, 28, 28)), jnp.zeros((3, 2))).shape
        (3, 2, 8, 8)
    """

    def __init__(self, size: int, scales: int = 1):
        _check_sizes(size, scales)
        self.size = size
        self.scales = scales

    def __call__(
        self, image: Real[ArrayLike, "..."], location: Float[ArrayLike, "*batch 2"]
    ) -> Float[Array, "..."]:
        """Extract a glimpse of each image.

        Args:
            image: Image of shape `(H, W)` or `(H, W, C)`, or one per location, `(..., H, W[, C])`.
            location: Row and column of the centre in [-1, 1], shape `(..., 2)`.

        Returns:
            The patches, shape `(..., S, g, g[, C])`.

        Raises:
            ValueError: If an array has another shape, or an image is smaller than g x g.
        """
        image, location = jnp.asarray(image), jnp.asarray(location)
        if not location.ndim or location.shape[-1] != 2:
            raise ValueError(f"`location` must have shape (..., 2), got {location.shape}.")
        batch = location.shape[:-1]
        if image.shape[: len(batch)] != batch:
            shape = f"({', '.join(map(str, batch))}, H, W) or with channels"
            raise ValueError(f"`image` must have shape {shape}, got {image.shape}.")

        def single(image: Array, location: Array) -> Array:
            return glimpse(image, location, self.size, self.scales)

        for _ in batch:
            single = jax.vmap(single)
        return single(image, location)


class GlimpseNetwork(nnx.Module):
    """Network that embeds a glimpse: relu(Lin relu(Lin patches) + Lin relu(Lin location)).

    Args:
        in_features: D, number of elements of the patches.
        features: Size of the embedding.
        patch_features: Units of the layer of the patches.
        location_features: Units of the layer of the location.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> network = ja.nn.GlimpseNetwork(64, 32, rngs=nnx.Rngs(0))
        >>> network(jnp.ones(64), jnp.zeros(2)).shape
        (32,)
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
        """Compute the embedding of a glimpse.

        Args:
            patches: Flattened patches, shape `(..., D)`.
            location: Row and column of their centre, shape `(..., 2)`.

        Returns:
            The embedding, shape `(..., features)`.

        Raises:
            ValueError: If `patches` has another size.
        """
        patches, location = jnp.asarray(patches), jnp.asarray(location)
        width = self.read_patches.in_features
        if patches.shape[-1:] != (width,):
            raise ValueError(f"`patches` must have shape (..., {width}), got {patches.shape}.")
        what = self.join_patches(jax.nn.relu(self.read_patches(patches)))
        where = self.join_location(jax.nn.relu(self.read_location(location)))
        return jax.nn.relu(what + where)


class Located(NamedTuple):
    """The location of the next glimpse.

    Attributes:
        location: Row and column, each in [-1, 1] unless set by `at`.
        sample: The draw before it is clamped to the image, to which the log density belongs.
        mean: The mean of the draw. Gradients reach the weights through it alone; a location set by
            `at` keeps its own gradient.
    """

    location: Float[Array, "*batch 2"]
    sample: Float[Array, "*batch 2"]
    mean: Float[Array, "*batch 2"]


class LocationNetwork(nnx.Module):
    r"""Network that chooses a location, $l \sim N(\tanh(h W + b), \sigma^2)$, clamped to [-1, 1].

    Gradients do not propagate to the hidden state: a loss of the locations trains only the weights
    of this network. They start at zero, and the first location is the centre of the image.

    Args:
        in_features: H, size of the hidden state.
        std: $\sigma$ of the draw.
        name: Tag of the locations for `jaxattn.capture` and `jaxattn.intervene`.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1, or `std` is not positive.
        TypeError: If a size is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> network = ja.nn.LocationNetwork(16, rngs=nnx.Rngs(0))
        >>> network(jnp.ones(16)).location.tolist()
        [0.0, 0.0]
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
            raise ValueError(f"`std` must be positive, got {std}.")
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
            hidden: Hidden states, shape `(..., H)`.
            key: Key of the draw; the location is the mean by default.
            at: Locations of shape `(..., 2)` to use instead.

        Returns:
            The location, the draw and its mean, each of shape `(..., 2)`.
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
        """Compute the log density of draws without the constant of the normal density.

        Args:
            sample: Draws before they are clamped, shape `(..., 2)`.
            mean: Their means, shape `(..., 2)`.

        Returns:
            The log densities, shape `(...)`.
        """
        return -jnp.sum(((jnp.asarray(sample) - mean) / self.std) ** 2, -1) / 2


def _starts(location: Array, shape: tuple[int, ...], width: int) -> Array:
    """Return the first row and column of patches, which may lie outside of the image."""
    lengths = jnp.broadcast_to(jnp.array(shape[:2], location.dtype), location.shape)
    start = jnp.floor((location + 1) * lengths / 2 - width / 2 + 0.5)
    # The comparison is false for NaN too. Beyond these ends all pixels of a patch are zero.
    inside = jnp.where(start > -width, jnp.minimum(start, lengths), -width)
    return jax.lax.stop_gradient(inside).astype(jnp.int32)


def _check_sizes(size: int, scales: int, shape: tuple[int, ...] | None = None) -> None:
    check_sizes(size=size, scales=scales)
    if shape is not None and len(shape) > 1 and min(shape[:2]) < size:
        raise ValueError(
            f"`image` must be at least as large as a glimpse of {size} x {size}, got shape {shape}."
        )
