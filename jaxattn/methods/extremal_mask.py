"""Extremal masks: a mask and the network that makes the replacements, trained together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.batch import wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.methods.mask_penalties import mean_of, mean_size
from jaxattn.methods.mask_references import fade
from jaxattn.methods.mask_training import (
    MaskMode,
    adam,
    check_mode,
    check_optimizer,
    clip,
    minimised,
)
from jaxattn.methods.output_errors import OutputError, output_error
from jaxattn.methods.replacement_network import ReplacementNetwork


class _Trained(NamedTuple):
    """What is trained: a mask and a network for each floating-point leaf of the input."""

    masks: list[Array]
    networks: list[ReplacementNetwork]

    def clipped(self) -> "_Trained":
        """Return the same with masks in [0, 1]."""
        return self._replace(masks=clip(self.masks))


@method(
    draws=True,
    evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 500)) + 2,
    in_flight=lambda x, output, options: 1,
)
def extremal_mask(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    mask_weight: ArrayLike = 0.01,
    replacement_weight: ArrayLike | None = None,
    mode: MaskMode = "preservation",
    baseline: PyTree[ArrayLike] = 0.0,
    error: OutputError = "squared",
    num_units: int = 16,
    num_steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
) -> Attribution:
    """Learn the smallest mask, and replacements of what it leaves out (extremal mask).

    Minimises

        error + mask_weight mean m + replacement_weight mean |r|

    over a mask m in [0, 1], which starts at 0.5, and the weights of a network that makes the
    replacements r of `x`: a bidirectional GRU over the first axis, and a linear layer. The error is
    the distance of the output for m x + (1 - m) r from the output for `x`. In the mode
    `"deletion"` it is the distance of the output for (1 - m) x + m r from that for the baseline,
    and |r - x| replaces |r|.

    Each example has a network of its own, so its values do not depend on the other examples of a
    call. Such a network can copy the features that matter. For the mask to preserve them instead,
    `mask_weight` must be much smaller than `replacement_weight`, and smaller than the error. The
    mask of a feature with a small effect reaches 0 or 1 late; after many steps, few values are left
    in between.

    Cost: `num_steps + 2` evaluations of `fn` and `num_steps` vector-Jacobian products per example,
    one after the other, and one evaluation more for `"deletion"`. Draws the initial weights of the
    network: `key` is required.

    Args:
        mask_weight: the weight of the mask, lambda_1, in units of the error.
        replacement_weight: the weight of the replacements, lambda_2, in units of the error per unit
            of `x`. By default 10 for `"preservation"`, and 0.1 for `"deletion"`, where replacements
            must differ from `x`.
        mode: `"preservation"` or `"deletion"`.
        baseline: the input whose output is the goal of a deletion: a number or an array that
            broadcasts to `x`, or a pytree like `x` of these.
        error: `"squared"` for the mean of the squared differences of the outputs;
            `"cross_entropy"` for the cross-entropy of their softmaxes over the last axis, less the
            entropy of the goal. Both compare the whole output, of one number, several or one per
            time step, or the target where it is given.
        num_units: the units of the GRU in each direction.
        num_steps: the number of gradient steps.
        optimizer: any optax optimiser; `optax.adam(0.01, b2=0.9)` by default, which forgets the
            large slopes of the first steps.

    Returns:
        values m of the shape of `x`, in [0, 1], and 0 for integers. In `info`, `"losses"`, of shape
        (num_steps,), is the objective before each step, `"error"` the error in the end, and
        `"replacement"` r, in the structure of `x`; integers are not replaced.

    Raises:
        TypeError: if no leaf of `x` is floating, or `optimizer` is not one of optax's.
        ValueError: if `key` is missing, the target does not fit the output, the baseline does not
            broadcast to `x`, or an option is unknown or out of range.

    Reference:
        Enguehard 2023, Learning perturbations to explain time series predictions,
        arXiv:2305.18840.

    Examples:
        Only two of eight features matter.

        >>> import jax, jax.numpy as jnp
        >>> import jaxattn as ja
        >>> x = jnp.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -2.0], [-2.0, -1.0]])
        >>> def fn(x):
        ...     return x[1:3, 0]
        >>> mask = ja.extremal_mask(fn, x, key=jax.random.key(0))
        >>> print(mask.values.round(1).T)
        [[0. 1. 1. 0.]
         [0. 0. 0. 0.]]
    """
    check_count("num_steps", num_steps)
    check_count("num_units", num_units)
    check_mode(mode)
    if key is None:
        raise ValueError("`key` is missing: the network is drawn, give key=jax.random.key(0).")
    optimizer = adam() if optimizer is None else optimizer
    check_optimizer(optimizer)
    floating, merge = floating_leaves(x, "a mask")
    output = fn(x, *args)
    preserves = mode == "preservation"
    if replacement_weight is None:
        replacement_weight = 10.0 if preserves else 0.1
    goal = output
    if not preserves:
        goal = fn(broadcast_baseline(baseline, x, keep_integers=True), *args)
    error_of = output_error(fn, target, args, error, goal)

    def replaced(trained: _Trained) -> list[Array]:
        return [net(leaf) for net, leaf in zip(trained.networks, floating, strict=True)]

    def error_with(masks: list[Array], replacements: list[Array]) -> Scalar:
        kept = masks if preserves else [1 - mask for mask in masks]
        return error_of(merge(list(map(fade, kept, floating, replacements))))

    def objective(trained: _Trained, _: None) -> Scalar:
        replacements = replaced(trained)
        moved = replacements
        if not preserves:
            moved = [r - leaf for r, leaf in zip(replacements, floating, strict=True)]
        penalty = mask_weight * mean_of(trained.masks)
        penalty += replacement_weight * mean_size(moved)
        distance = error_with(trained.masks, replacements)
        return distance + penalty.astype(distance.dtype)

    keys = jax.random.split(key, len(floating))
    start = _Trained(
        [jnp.full(leaf.shape, 0.5, wide(leaf.dtype)) for leaf in floating],
        [ReplacementNetwork.of(leaf, num_units, k) for leaf, k in zip(floating, keys, strict=True)],
    )
    trained, losses = minimised(objective, start, optimizer, num_steps, projected=_Trained.clipped)
    replacements = replaced(trained)
    masks = [mask.astype(leaf.dtype) for mask, leaf in zip(trained.masks, floating, strict=True)]
    values = merge(masks, lambda leaf: jnp.zeros(leaf.shape, masks[0].dtype))
    info = {
        "losses": losses,
        "error": error_with(trained.masks, replacements),
        "replacement": merge(replacements),
    }
    return Attribution(values, output, info)
