"""A network that looks at an image through a few glimpses, and learns where to look."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Integer, Key, Real

from jaxattn import nn
from jaxattn.nn.attention_layer import check_sizes


class Glimpses(NamedTuple):
    """What a network saw and thought, glimpse after glimpse.

    Attributes:
        logits: the classes after each glimpse; the last are the answer.
        locations: where it looked, row and column in [-1, 1].
        boxes: top, left, bottom and right of every patch in pixels, see `nn.glimpse_boxes`.
        samples: the locations as drawn, before they were clamped.
        means: the means that they were drawn around.
        baselines: the reward that was expected before each glimpse.
    """

    logits: Float[Array, "*batch n K"]
    locations: Float[Array, "*batch n 2"]
    boxes: Int[Array, "*batch n S 4"]
    samples: Float[Array, "*batch n 2"]
    means: Float[Array, "*batch n 2"]
    baselines: Float[Array, "*batch n"]


class RecurrentAttention(nnx.Module):
    r"""The recurrent attention model (Mnih et al. 2014, "Recurrent Models of Visual Attention").

    Each step chooses a location from the state, $l \sim N(\tanh(h W + b), \sigma^2)$, looks there
    through `nn.GlimpseSensor` and `nn.GlimpseNetwork` ($g$), and goes on to the state
    relu(Lin h + Lin g). The state begins at zero. A linear layer reads the class from it. Nothing
    is differentiated through a location: what moves the gaze is `glimpse_loss`.

    Args:
        num_classes: K.
        size: g, width in pixels of the sharpest patch of a glimpse.
        scales: S, number of patches, each twice as wide as the one before.
        num_glimpses: n.
        channels: C of images (..., H, W, C); None: they are grey, (..., H, W).
        hidden_features: units of the core, and of a glimpse; half as many read patches, half
            locations.
        std: $\sigma$ of the locations.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size or number below 1, fewer than 2 `hidden_features`, or a `std` that is
            not positive.
        TypeError: a size or number that is not an integer.
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
            raise ValueError(f"hidden_features must be at least 2, got {hidden_features}")
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
        """Return the logits after the last glimpse, looking where the means say.

        Args:
            image: one image (H, W), with channels (H, W, C), or a batch of any rank.

        Returns:
            Logits (..., K).

        Raises:
            ValueError: an image of another shape, or smaller than a glimpse.
        """
        return self.look(image).logits[..., -1, :]

    def look(
        self,
        image: Real[ArrayLike, "..."],
        *,
        key: Key[Array, ""] | None = None,
        locations: Float[ArrayLike, "*batch n 2"] | None = None,
    ) -> Glimpses:
        """Look at an image, and tell of every glimpse.

        Args:
            image: one image (H, W), with channels (H, W, C), or a batch of any rank. NaN anywhere
                in an image makes its logits NaN.
            key: draws the locations; None: each is its mean.
            locations: where to look instead (..., n, 2); outside of [-1, 1] the image is zero.

        Returns:
            Logits, locations and boxes of all glimpses, and what their training needs.

        Raises:
            ValueError: an image of another shape or smaller than a glimpse, locations of another
                shape.
        """
        image = jnp.asarray(image)
        rank = 2 if self.channels is None else 3
        if image.ndim < rank or (self.channels and image.shape[-1] != self.channels):
            end = "" if rank == 2 else f", {self.channels}"
            raise ValueError(f"image must have shape (..., H, W{end}), got {image.shape}")
        batch = image.shape[: image.ndim - rank]
        if locations is not None:
            locations = jnp.asarray(locations)
            if locations.shape != (wanted := (*batch, self.num_glimpses, 2)):
                raise ValueError(f"locations must have shape {wanted}, got {locations.shape}")
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(image.dtype, self.classifier.kernel.dtype)
        keys = None if key is None else jax.random.split(key, batch)
        graph, state = nnx.split(self)
        return _look(graph, jax.tree.map(lambda w: w.astype(dtype), state), image.astype(dtype),
                     keys, locations, len(batch))  # fmt: skip

    def probabilities(
        self, image: Real[ArrayLike, "..."], *, key: Key[Array, ""], num_samples: int = 10
    ) -> Float[Array, "*batch K"]:
        """Return the classes' probabilities, averaged over drawn paths.

        Args:
            image: as in `look`.
            key: draws the locations.
            num_samples: how many paths to draw.

        Returns:
            Probabilities (..., K).

        Raises:
            ValueError: as `look`, or a number of samples below 1.
            TypeError: a number of samples that is not an integer.
        """
        check_sizes(num_samples=num_samples)

        def once(key: Array) -> Array:
            return jax.nn.softmax(self.look(image, key=key).logits[..., -1, :])

        return jax.vmap(once)(jax.random.split(key, num_samples)).mean(0)

    def _path(self, image: Array, key: Array | None, locations: Array | None) -> Glimpses:
        """Look at one image."""

        def step(hidden: Array, now: tuple[Array | None, Array | None]) -> tuple[Array, Any]:
            found = self.location(hidden, key=now[0], at=now[1])
            patches = self.sensor(image, found.location).reshape(-1)
            seen = self.glimpse(patches, found.location)
            new = jax.nn.relu(self.from_state(hidden) + self.from_glimpse(seen))
            return new, (found, hidden, new)

        keys = None if key is None else jax.random.split(key, self.num_glimpses)
        initial = jnp.zeros(self.from_state.in_features, image.dtype)
        _, (found, before, after) = jax.lax.scan(
            step, initial, (keys, locations), length=self.num_glimpses
        )
        return Glimpses(
            logits=self.classifier(after),
            locations=found.location,
            boxes=nn.glimpse_boxes(
                found.location, image.shape, self.sensor.size, self.sensor.scales
            ),
            samples=found.sample,
            means=found.mean,
            baselines=self.baseline(jax.lax.stop_gradient(before))[:, 0],
        )


class GlimpseLoss(NamedTuple):
    """The loss and its parts, each a mean over images and paths.

    Attributes:
        loss: the sum of the next three, to be minimised; of two for locations that are given.
        cross_entropy: of the answer; trains the classifier, the core and the glimpse network.
        baseline: the squared error of the expected reward; trains the baseline.
        reinforce: its gradient is minus REINFORCE's estimate; trains the location network.
        reward: the share of right answers.
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
    r"""The hybrid loss of Mnih et al. (2014).

    With $R = 1$ for a right answer and else 0, and $b_t$ the baseline before glimpse $t$, it is
    $-\log p(y) + \frac1n \sum_t (R - b_t)^2 - \sum_t (R - b_t) \log N(l_t; \mu_t, \sigma^2)$. No
    gradient passes through $l_t$, through $R - b_t$ in the last term, or from $b_t$ and $\mu_t$ to
    the state: the location network learns from the last term alone, and nothing else does.

    Args:
        model: the network.
        images: B images, shaped as the network takes them.
        labels: their classes (B,) in [0, K). Traced ones are not checked: of a label past K the
            loss is NaN.
        key: draws the locations.
        num_samples: M, how many paths to draw for each image.
        locations: where to look instead (M, B, n, 2); `loss` then has no third term, though
            `reinforce` takes these locations for draws.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: labels outside [0, K), a number of samples below 1, locations of another shape,
            images that the network refuses.
        TypeError: a number of samples that is not an integer.
    """
    check_sizes(num_samples=num_samples)
    _check_labels(labels, model.classifier.out_features)
    labels = jnp.asarray(labels)
    given = None if locations is None else jnp.asarray(locations)
    wanted = (num_samples, len(labels), model.num_glimpses, 2)
    if given is not None and given.shape != wanted:
        raise ValueError(f"locations must have shape {wanted}, got {given.shape}")

    def once(key: Array, locations: Array | None) -> tuple[Array, ...]:
        seen = model.look(images, key=key, locations=locations)
        log_p = jax.nn.log_softmax(seen.logits[:, -1])
        correct = (log_p.argmax(-1).astype(labels.dtype) == labels).astype(log_p.dtype)
        likely = jnp.take_along_axis(log_p, labels[:, None], -1)
        advantage = correct[:, None] - seen.baselines
        density = model.location.log_density(seen.samples, seen.means)
        push = jnp.sum(jax.lax.stop_gradient(advantage) * density, -1)
        return -likely.mean(), jnp.mean(advantage**2), -push.mean(), correct.mean()

    parts = jax.vmap(once)(jax.random.split(key, num_samples), given)
    entropy, baseline, reinforce, reward = (part.mean() for part in parts)
    loss = entropy + baseline + (reinforce if locations is None else 0)
    return GlimpseLoss(loss, entropy, baseline, reinforce, reward)


def _check_labels(labels: ArrayLike, num_classes: int) -> None:
    try:
        concrete = np.asarray(labels)
    except jax.errors.TracerArrayConversionError:
        return  # traced labels have no values to check
    if concrete.size and not 0 <= concrete.min() <= concrete.max() < num_classes:
        got = f"{concrete.min()} to {concrete.max()}"
        raise ValueError(f"labels must lie in [0, {num_classes}), got {got}")


# A scan called eagerly compiles anew at every call, unless a stable function is jitted around it.
@partial(jax.jit, static_argnums=(0, 5))
def _look(
    graph: Any, state: Any, image: Array, keys: Any, locations: Any, batch_rank: int
) -> Glimpses:
    run = nnx.merge(graph, state)._path
    for _ in range(batch_rank):
        run = jax.vmap(run)
    return run(image, keys, locations)
