"""ContraLSP: sparse gates with a trend in time, and contrastive replacements."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.background import check_background
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.methods.mask_penalties import mean_of, mean_size
from jaxattn.methods.mask_references import fade
from jaxattn.methods.mask_training import adam, check_optimizer, minimised
from jaxattn.methods.output_errors import OutputError, output_error
from jaxattn.methods.replacement_network import ReplacementNetwork, rows_of

#: The standard deviation of the noise of a gate.
_NOISE = 0.5


class _Gates(NamedTuple):
    """The gates of one array: their location, and a network of the features' trends in time.

    Attributes:
        location: of each gate.
        inner: from the steps of a feature to the units of the network.
        outer: from the units to a trend at each step.
    """

    location: Array
    inner: Float[Array, "steps units"]
    outer: Float[Array, "units steps"]

    @classmethod
    def of(cls, leaf: Array, units: int, key: RandomKey) -> "_Gates":
        """Draw the gates of an array; all are one half at first."""
        steps, dtype = rows_of(leaf).shape[0], wide(leaf.dtype)
        bound = max(1, steps) ** -0.5
        inner = jax.random.uniform(key, (steps, units), dtype, -bound, bound)
        return cls(jnp.ones(leaf.shape, dtype), inner, jnp.zeros((units, steps), dtype))

    def centres(self, leaf: Array) -> Array:
        """Return the gates without noise, not yet clipped to [0, 1]."""
        series = rows_of(leaf).T.astype(self.inner.dtype)
        trend = jnp.tanh(jax.nn.relu(series @ self.inner) @ self.outer).T.reshape(leaf.shape)
        return self.location * jax.nn.sigmoid(trend * self.location)


class _Trained(NamedTuple):
    """What is trained: gates and a network for each floating-point leaf of the input."""

    gates: list[_Gates]
    networks: list[ReplacementNetwork]

    def centres(self, leaves: list[Array]) -> list[Array]:
        """Return the gates without noise, not yet clipped to [0, 1]."""
        return [gate.centres(leaf) for gate, leaf in zip(self.gates, leaves, strict=True)]

    def replacements(self, leaves: list[Array]) -> list[Array]:
        """Return the replacements of all features."""
        return [net(leaf) for net, leaf in zip(self.networks, leaves, strict=True)]


class _Contrast(NamedTuple):
    """The examples of a background whose outputs are near that of `x`, and those far from it."""

    near: list[Array]
    far: list[Array]

    @classmethod
    def of(cls, background: list[Array], distances: Float[Array, " n"], number: int) -> "_Contrast":
        """Return the nearest and the farthest examples, at most half of the background each."""
        order = jnp.argsort(distances)
        number = min(number, len(distances) // 2)
        near, far = order[:number], order[-number:]
        return cls([leaf[near] for leaf in background], [leaf[far] for leaf in background])

    def loss(self, replacements: list[Array], margin: ArrayLike) -> Scalar:
        """Compute the triplet loss of replacements, which are drawn to the far examples."""

        def apart(examples: list[Array]) -> Scalar:
            pairs = zip(examples, replacements, strict=True)
            return mean_size([each - replacement[None] for each, replacement in pairs])

        return jax.nn.relu(apart(self.far) - apart(self.near) + margin)


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    size = len(jax.tree.leaves(check_background(options.get("background"), x))[0])
    return size + check_count("num_steps", options.get("num_steps", 500)) + 2


@method(draws=True, evaluations=_evaluations, in_flight=lambda x, output, options: 1)
def contra_mask(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    background: PyTree = None,
    num_references: int = 5,
    mask_weight: ArrayLike = 1.0,
    replacement_weight: ArrayLike = 1.0,
    contrast_weight: ArrayLike = 1.0,
    margin: ArrayLike = 1.0,
    error: OutputError = "squared",
    num_units: int = 16,
    num_steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
) -> Attribution:
    """Learn sparse gates, and replacements drawn to examples of another output (ContraLSP).

    Minimises

        error + mask_weight mean P(m > 0) + replacement_weight mean |r|
            + contrast_weight max(0, d(far) - d(near) + margin)

    where the error is the distance of the output for m x + (1 - m) r from the output for `x`. The
    gates are m = clip(c + e, 0, 1) with Gaussian noise e of standard deviation 0.5 and
    c = u sigmoid(t u), for numbers u and a trend t in (-1, 1), which a network makes of the course
    of each feature in time; the bound lets gates without effect reach 0.
    A second network, a bidirectional GRU over the first axis and a linear layer, makes the
    replacements r of `x`. d(far) is the mean of |r - b| over the examples b of the background whose
    outputs are the farthest from that of `x`, and d(near) over those with the nearest.

    Each example has networks of its own, so its values do not depend on the other examples of a
    call.

    Cost: `num_steps + 2` evaluations of `fn` and `num_steps` vector-Jacobian products per example,
    one after the other, and one evaluation for each example of the background. Draws the initial
    weights and the noise: `key` is required.

    Args:
        background: examples like `x`, with a leading axis, at least two; the same `args` go with
            all of them.
        num_references: how many examples are near, and how many far; half of the background at
            most.
        mask_weight: the weight of the expected share of gates that are not 0, in units of the
            error.
        replacement_weight: the weight of the replacements, in units of the error per unit of `x`.
        contrast_weight: the weight of the triplet loss, likewise.
        margin: by how much far examples are to be nearer than near ones, in units of `x`.
        error: `"squared"` for the mean of the squared differences of the outputs;
            `"cross_entropy"` for the cross-entropy of their softmaxes over the last axis, less the
            entropy of the unperturbed one. Both compare the whole output, of one number, several or
            one per time step, or the target where it is given. The outputs of the background are
            compared likewise.
        num_units: the units of the GRU in each direction, and of the network of trends.
        num_steps: the number of gradient steps.
        optimizer: any optax optimiser; `optax.adam(0.01, b2=0.9)` by default.

    Returns:
        values clip(c, 0, 1) of the shape of `x`, and 0 for integers. In `info`, `"losses"`, of
        shape (num_steps,), is the objective before each step, `"error"` the error in the end
        without noise, and `"replacement"` r, in the structure of `x`; integers are not replaced.

    Raises:
        TypeError: if no leaf of `x` is floating, or `optimizer` is not one of optax's.
        ValueError: if `key` or `background` is missing, the background has fewer than two examples
            or another structure than `x`, the target does not fit the output, or an option is
            unknown or out of range.

    Reference:
        Liu et al. 2024, Explaining time series via contrastive and locally sparse perturbations,
        arXiv:2401.08552.

    Examples:
        Only two of eight features matter.

        >>> import jax, jax.numpy as jnp
        >>> import jaxattn as ja
        >>> x = jnp.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -2.0], [-2.0, -1.0]])
        >>> def fn(x):
        ...     return x[1:3, 0]
        >>> background = jnp.stack([x, -x, jnp.zeros_like(x), 2 * x])
        >>> mask = ja.contra_mask(
        ...     fn, x, background=background, key=jax.random.key(0), mask_weight=0.1
        ... )
        >>> print((mask.values > 0.5).T.astype(int))
        [[0 1 1 0]
         [0 0 0 0]]
    """
    check_count("num_steps", num_steps)
    check_count("num_units", num_units)
    check_count("num_references", num_references)
    if key is None:
        raise ValueError("`key` is missing: the networks are drawn, give key=jax.random.key(0).")
    optimizer = adam() if optimizer is None else optimizer
    check_optimizer(optimizer)
    background = check_background(background, x)
    floating, merge = floating_leaves(x, "a mask")
    output = fn(x, *args)
    error_of = output_error(fn, target, args, error, output)
    examples, _ = floating_leaves(background, "a mask")
    if len(examples[0]) < 2:
        raise ValueError(f"`background` must hold at least two examples, got {len(examples[0])}.")
    distances = chunked_map(error_of, background, batch_size)
    contrast = _Contrast.of(examples, distances, num_references)

    def mixed(gates: list[Array], replacements: list[Array]) -> Inputs:
        clipped = [jnp.clip(gate, 0, 1) for gate in gates]
        return merge(list(map(fade, clipped, floating, replacements)))

    def objective(trained: _Trained, noise_key: RandomKey) -> Scalar:
        centres, replacements = trained.centres(floating), trained.replacements(floating)
        keys = jax.random.split(noise_key, len(centres))
        noisy = [
            centre + _NOISE * jax.random.normal(k, centre.shape, centre.dtype)
            for centre, k in zip(centres, keys, strict=True)
        ]
        distance = error_of(mixed(noisy, replacements))
        open_ = mean_of([jax.scipy.stats.norm.cdf(centre / _NOISE) for centre in centres])
        penalty = mask_weight * open_ + replacement_weight * mean_size(replacements)
        penalty += contrast_weight * contrast.loss(replacements, margin)
        return distance + penalty.astype(distance.dtype)

    gate_key, network_key, noise_key = jax.random.split(key, 3)
    start = _Trained(
        [
            _Gates.of(leaf, num_units, jax.random.fold_in(gate_key, i))
            for i, leaf in enumerate(floating)
        ],
        [
            ReplacementNetwork.of(leaf, num_units, jax.random.fold_in(network_key, i))
            for i, leaf in enumerate(floating)
        ],
    )
    trained, losses = minimised(
        objective,
        start,
        optimizer,
        num_steps,
        projected=lambda trained: trained,
        each_step=jax.random.split(noise_key, num_steps),
    )
    centres, replacements = trained.centres(floating), trained.replacements(floating)
    masks = [
        jnp.clip(centre, 0, 1).astype(leaf.dtype)
        for centre, leaf in zip(centres, floating, strict=True)
    ]
    values = merge(masks, lambda leaf: jnp.zeros(leaf.shape, masks[0].dtype))
    info = {
        "losses": losses,
        "error": error_of(mixed(centres, replacements)),
        "replacement": merge(replacements),
    }
    return Attribution(values, output, info)
