"""The recurrent attention model, which classifies an image by a few glimpses."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Integer, Key, PyTree, Real

from jaxattn import nn
from jaxattn.nn.attention_layer import check_sizes


class Glimpses(NamedTuple):
    """The result of the recurrent attention model for each glimpse.

    Attributes:
        logits: Logits of the classes after each glimpse; the last ones are the prediction.
        locations: Location of each glimpse, row and column in [-1, 1].
        boxes: Top, left, bottom and right of each patch in pixels; see
            `jaxattn.nn.glimpse_boxes`.
        samples: Draws of the locations before they are clamped.
        means: Means of the draws.
        baselines: Expected reward before each glimpse.
    """

    logits: Float[Array, "*batch n K"]
    locations: Float[Array, "*batch n 2"]
    boxes: Int[Array, "*batch n S 4"]
    samples: Float[Array, "*batch n 2"]
    means: Float[Array, "*batch n 2"]
    baselines: Float[Array, "*batch n"]


class RecurrentAttention(nnx.Module):
    r"""The recurrent attention model (Mnih et al. 2014).

    Each step draws a location from the state $h$, $l \sim N(\tanh(h W + b), \sigma^2)$, computes
    the embedding $g$ of the glimpse there with `jaxattn.nn.GlimpseSensor` and
    `jaxattn.nn.GlimpseNetwork`, and the next state relu(Lin h + Lin g). The initial state is zero,
    and a linear layer computes the logits. Gradients do not propagate through locations;
    `glimpse_loss` trains them.

    Args:
        num_classes: K, number of classes.
        size: g, width in pixels of the sharpest patch of a glimpse.
        scales: S, number of patches, each twice as wide as the one before.
        num_glimpses: n, number of glimpses.
        channels: C, channels of images of shape (..., H, W, C). None for images (..., H, W).
        hidden_features: Units of the recurrent layer and of the glimpse embedding; the layers of
            patches and of locations have half as many.
        std: $\sigma$ of the locations.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size or number is below 1, `hidden_features` is below 2, or `std` is not
            positive.
        TypeError: If a size or number is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.RecurrentAttention(10, num_glimpses=3, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((28, 28))).shape
        (10,)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        size: int = 8,
        scales: int = 1,
        num_glimpses: int = 6,
        channels: int | None = None,
        hidden_features: int = 256,
        std: float = 0.17,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(
            num_classes=num_classes,
            num_glimpses=num_glimpses,
            channels=channels,
            hidden_features=hidden_features,
        )
        if hidden_features < 2:
            raise ValueError(f"`hidden_features` must be at least 2, got {hidden_features}.")
        self.num_glimpses = num_glimpses
        self.channels = channels

        def linear(rows: int, columns: int) -> nnx.Linear:
            return nnx.Linear(rows, columns, param_dtype=param_dtype, rngs=rngs)

        self.sensor = nn.GlimpseSensor(size, scales)
        self.glimpse = nn.GlimpseNetwork(
            scales * size**2 * (channels or 1),
            hidden_features,
            patch_features=hidden_features // 2,
            location_features=hidden_features // 2,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.from_state = linear(hidden_features, hidden_features)
        self.from_glimpse = linear(hidden_features, hidden_features)
        self.location = nn.LocationNetwork(
            hidden_features, std=std, param_dtype=param_dtype, rngs=rngs
        )
        self.baseline = linear(hidden_features, 1)
        self.classifier = linear(hidden_features, num_classes)

    def __call__(self, image: Real[ArrayLike, "..."]) -> Float[Array, "*batch K"]:
        """Compute the logits after the last glimpse, with glimpses at the mean locations.

        Args:
            image: Image of shape `(H, W)`, with channels `(H, W, C)`, or a batch of any rank.

        Returns:
            The logits, shape `(..., K)`.

        Raises:
            ValueError: If `image` has another shape, or is smaller than a glimpse.
        """
        return self.look(image).logits[..., -1, :]

    def look(
        self,
        image: Real[ArrayLike, "..."],
        *,
        key: Key[Array, ""] | None = None,
        locations: Float[ArrayLike, "*batch n 2"] | None = None,
    ) -> Glimpses:
        """Compute the logits and the locations of all glimpses.

        Args:
            image: Image of shape `(H, W)`, with channels `(H, W, C)`, or a batch of any rank. A NaN
                anywhere in an image makes its logits NaN.
            key: Key of the draws; locations are the means by default.
            locations: Locations of shape `(..., n, 2)` to use instead; outside of [-1, 1] the image
                is zero.

        Returns:
            Logits, locations and boxes of all glimpses, and the terms of the loss.

        Raises:
            ValueError: If an array has another shape, or an image is smaller than a glimpse.
        """
        image = jnp.asarray(image)
        rank = 2 if self.channels is None else 3
        if image.ndim < rank or (self.channels and image.shape[-1] != self.channels):
            end = "" if rank == 2 else f", {self.channels}"
            raise ValueError(f"`image` must have shape (..., H, W{end}), got {image.shape}.")
        batch = image.shape[: image.ndim - rank]
        if locations is not None:
            locations = jnp.asarray(locations)
            if locations.shape != (expected := (*batch, self.num_glimpses, 2)):
                raise ValueError(f"`locations` must have shape {expected}, got {locations.shape}.")
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(image.dtype, self.classifier.kernel.dtype)
        keys = None if key is None else jax.random.split(key, batch)
        graph, state = nnx.split(self)
        return _look(graph, jax.tree.map(lambda w: w.astype(dtype), state), image.astype(dtype),
                     keys, locations, len(batch))  # fmt: skip

    def probabilities(
        self, image: Real[ArrayLike, "..."], *, key: Key[Array, ""], num_samples: int = 10
    ) -> Float[Array, "*batch K"]:
        """Compute the probabilities of the classes, averaged over drawn paths of glimpses.

        Args:
            image: Image or batch, as in `look`.
            key: Key of the draws.
            num_samples: Number of paths.

        Returns:
            The probabilities, shape `(..., K)`.

        Raises:
            ValueError: As `look`; if `num_samples` is below 1.
            TypeError: If `num_samples` is not an integer.
        """
        check_sizes(num_samples=num_samples)

        def once(key: Array) -> Array:
            return jax.nn.softmax(self.look(image, key=key).logits[..., -1, :])

        return jax.vmap(once)(jax.random.split(key, num_samples)).mean(0)

    def _path(self, image: Array, key: Array | None, locations: Array | None) -> Glimpses:
        """Compute the glimpses of one image."""

        def step(
            hidden: Array, inputs: tuple[Array | None, Array | None]
        ) -> tuple[Array, tuple[nn.Located, Array, Array]]:
            key, at = inputs
            located = self.location(hidden, key=key, at=at)
            patches = self.sensor(image, located.location).reshape(-1)
            embedded = self.glimpse(patches, located.location)
            new = jax.nn.relu(self.from_state(hidden) + self.from_glimpse(embedded))
            return new, (located, hidden, new)

        keys = None if key is None else jax.random.split(key, self.num_glimpses)
        initial = jnp.zeros(self.from_state.in_features, image.dtype)
        _, (located, before, after) = jax.lax.scan(
            step, initial, (keys, locations), length=self.num_glimpses
        )
        return Glimpses(
            logits=self.classifier(after),
            locations=located.location,
            boxes=nn.glimpse_boxes(
                located.location, image.shape, self.sensor.size, self.sensor.scales
            ),
            samples=located.sample,
            means=located.mean,
            baselines=self.baseline(jax.lax.stop_gradient(before))[:, 0],
        )


class GlimpseLoss(NamedTuple):
    """The loss and its parts, each a mean over images and paths.

    Attributes:
        loss: Sum of the next three, of the first two if locations are set by the caller.
        cross_entropy: Cross entropy of the prediction; trains the classifier, the recurrent layer
            and the glimpse network.
        baseline: Squared error of the expected reward; trains the baseline.
        reinforce: Term whose gradient is the negative REINFORCE estimate; trains the location
            network.
        reward: Fraction of correct predictions.
    """

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    baseline: Float[Array, ""]
    reinforce: Float[Array, ""]
    reward: Float[Array, ""]


def glimpse_loss(
    model: RecurrentAttention,
    images: Real[ArrayLike, "B ..."],
    labels: Integer[ArrayLike, "B"],
    *,
    key: Key[Array, ""],
    num_samples: int = 1,
    locations: Float[ArrayLike, "M B n 2"] | None = None,
) -> GlimpseLoss:
    r"""Compute the hybrid loss of the recurrent attention model (Mnih et al. 2014).

    With $R = 1$ for a correct prediction and 0 otherwise, and the baseline $b_t$ before glimpse
    $t$, it is
    $-\log p(y) + \frac1n \sum_t (R - b_t)^2 - \sum_t (R - b_t) \log N(l_t; \mu_t, \sigma^2)$.
    Gradients do not propagate through $l_t$, through $R - b_t$ in the last term, or from $b_t$ and
    $\mu_t$ to the state. The last term trains the location network, and nothing else.

    Args:
        model: Recurrent attention model.
        images: B images, shaped as the model requires.
        labels: Their classes in [0, K), shape `(B,)`. Traced labels are not checked; the loss of
            one above the range is NaN.
        key: Key of the draws.
        num_samples: M, number of paths drawn for each image.
        locations: Locations of shape `(M, B, n, 2)` to use instead of draws. `loss` is then the sum
            of the first two terms, and `reinforce` treats the locations as draws.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: If labels lie outside [0, K), `num_samples` is below 1, or an array has another
            shape.
        TypeError: If `num_samples` is not an integer.

    Reference:
        Mnih, Heess, Graves and Kavukcuoglu 2014, Recurrent models of visual attention,
        arXiv:1406.6247.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.RecurrentAttention(10, num_glimpses=3, rngs=nnx.Rngs(0))
        >>> images, labels, key = jnp.ones((2, 28, 28)), jnp.array([3, 7]), jax.random.key(0)
        >>> ja.models.glimpse_loss(model, images, labels, key=key).loss.shape
        ()
    """
    check_sizes(num_samples=num_samples)
    _check_labels(labels, model.classifier.out_features)
    labels = jnp.asarray(labels)
    places = None if locations is None else jnp.asarray(locations)
    expected = (num_samples, len(labels), model.num_glimpses, 2)
    if places is not None and places.shape != expected:
        raise ValueError(f"`locations` must have shape {expected}, got {places.shape}.")

    def once(key: Array, locations: Array | None) -> tuple[Array, ...]:
        path = model.look(images, key=key, locations=locations)
        log_p = jax.nn.log_softmax(path.logits[:, -1])
        correct = (log_p.argmax(-1).astype(labels.dtype) == labels).astype(log_p.dtype)
        log_likelihood = jnp.take_along_axis(log_p, labels[:, None], -1)
        advantage = correct[:, None] - path.baselines
        density = model.location.log_density(path.samples, path.means)
        score = jnp.sum(jax.lax.stop_gradient(advantage) * density, -1)
        return -log_likelihood.mean(), jnp.mean(advantage**2), -score.mean(), correct.mean()

    parts = jax.vmap(once)(jax.random.split(key, num_samples), places)
    entropy, baseline, reinforce, reward = (part.mean() for part in parts)
    loss = entropy + baseline + (reinforce if locations is None else 0)
    return GlimpseLoss(loss, entropy, baseline, reinforce, reward)


def _check_labels(labels: ArrayLike, num_classes: int) -> None:
    try:
        concrete = np.asarray(labels)
    except jax.errors.TracerArrayConversionError:
        return  # traced labels are not checked
    if concrete.size and not 0 <= concrete.min() <= concrete.max() < num_classes:
        got = f"{concrete.min()} to {concrete.max()}"
        raise ValueError(f"`labels` must lie in [0, {num_classes}), got {got}.")


# A scan compiles at every eager call unless it is inside of a jitted function that persists.
@partial(jax.jit, static_argnums=(0, 5))
def _look(
    graph: nnx.GraphDef,
    state: PyTree[Array],
    image: Array,
    keys: Array | None,
    locations: Array | None,
    batch_rank: int,
) -> Glimpses:
    run = nnx.merge(graph, state)._path
    for _ in range(batch_rank):
        run = jax.vmap(run)
    return run(image, keys, locations)
