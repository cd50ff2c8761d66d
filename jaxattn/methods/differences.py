"""DeepLIFT: attribution of the difference of the target from its value at a baseline."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.convergence import convergence
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.propagation.deep_lift import DeepLift
from jaxattn.jaxpr.propagation.score import send_back

Multiplier: TypeAlias = Literal["rescale", "reveal_cancel"]


@method(
    remedy=(
        "An index, an order or a stop_gradient may differ between the input and the `baseline`: "
        "choose a baseline that shares them, or compute in float64."
    )
)
def deep_lift(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    baseline: PyTree[ArrayLike] = 0.0,
    multiplier: Multiplier = "rescale",
) -> Attribution:
    """Compute DeepLIFT contributions relative to a baseline.

    The difference of the target from its value at the baseline is propagated back through the
    traced program: through an activation by the slope of its secant, through a product of two
    values by the mean of each, through a softmax by its derivative at the logarithmic means of both
    runs' weights. A normalisation divides by the mean of both runs' scales, so a baseline of zeros
    makes no large numbers. Calls, branches, and loops of known length (`scan`, `fori_loop` with
    constant bounds) are supported, and so are recurrent networks.

    Masks and branches may be computed from the input. Where the input and the baseline take the
    same case, it is propagated alone. Where they differ, each case counts one half (the Shapley
    value), and the effect of the mask itself belongs to the values that it compares. Indices and
    orders (`argmax`, `sort`, `top_k`) are constants; where they differ, their effect is missing in
    the sum.

    Cost: two evaluations of `fn`, at the input and at the baseline, and one backward pass per
    example. Deterministic.

    Args:
        baseline: the reference input: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves keep their values.
        multiplier: how activations are treated. `"rescale"`; or `"reveal_cancel"`, which propagates
            positive and negative contributions to a pre-activation separately, so that
            contributions that cancel each other are not hidden.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["delta"]` is the
        convergence delta: their sum minus the difference between the target at `x` and at the
        baseline; 0 up to rounding, unless `jax.lax.stop_gradient` cuts a path or an index differs
        between the input and the baseline.
        `info["relative_delta"]` is its magnitude relative to that difference; above 0.01 a
        `jaxattn.ConvergenceWarning` is shown, outside of `jit`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output or the baseline does not broadcast to `x`;
            for an unknown multiplier; if `fn` contains a primitive without a rule, a loop whose
            length depends on the data, or side effects; or if no differentiable path leads from `x`
            to the target.

    Reference:
        Shrikumar et al. 2017, Learning important features through propagating activation
        differences, arXiv:1704.02685; Lundberg and Lee 2017, arXiv:1705.07874 (products).

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + jnp.maximum(x[2] - 1, 0)
        >>> lift = ja.deep_lift(fn, jnp.array([1.0, 2.0, 2.0]))
        >>> print(lift.values, lift.info["delta"])
        [1. 1. 1.] 0.0
    """
    if multiplier not in get_args(Multiplier):
        raise ValueError(f'`multiplier` must be "rescale" or "reveal_cancel", got {multiplier!r}.')
    start = broadcast_baseline(baseline, x, keep_integers=True)
    floating, merge = floating_leaves(x, "a difference")
    start_leaves, _ = floating_leaves(start, "a difference")

    def score(*leaves: Array) -> tuple[Array, PyTree]:
        return scored(fn, target, args)(merge(list(leaves)))

    reveals = multiplier == "reveal_cancel"
    multipliers, _, ((at_x, output), (at_start, _)) = send_back(
        score,
        [floating, start_leaves],
        lambda structure: DeepLift(reveals, structure.flat.outputs[0].aval.dtype),
    )
    values = [m * (a - b) for m, a, b in zip(multipliers, floating, start_leaves, strict=True)]
    total = sum(leaf.sum().astype(at_x.dtype) for leaf in values)
    merged = merge(values, lambda leaf: jnp.zeros(leaf.shape, at_x.dtype))
    return Attribution(merged, output, convergence(total, at_x, at_start))
