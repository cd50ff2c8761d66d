"""DeepLIFT: what the difference of an input from a baseline makes of the score."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.propagation.deep_lift import DeepLift
from jaxattn.jaxpr.propagation.score import send_back


@method
def deep_lift(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    baseline: Any = 0.0,
    rule: Literal["rescale", "reveal_cancel"] = "rescale",
) -> Attribution:
    """What each cell's difference from a baseline adds to the explained number.

    It goes through any JAX function, recurrences included, and misses nothing: through an
    activation by the slope of its secant, through a product of two values by the mean of each.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation at the input and one at the baseline are needed.
        baseline: what `x` is compared with; a number or an array that broadcasts to `x`, or a
            pytree of such. Integer leaves stay what they are in `x`.
        rule: `"rescale"`; or `"reveal_cancel"`, which follows positive and negative contributions
            to a pre-activation apart, so that those that cancel do not hide each other.

    Returns:
        values of the shape of `x`, in units of the output. `info["delta"]` is their sum less the
        difference of the scores at `x` and at the baseline: 0 but for rounding, and for what
        `jax.lax.stop_gradient` holds back.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output, the baseline does not broadcast, for an
            unknown rule, a primitive without a rule, a loop whose length or a branch whose choice
            depends on the data, side effects, or a function that no difference can go through.

    Reference:
        Shrikumar et al. 2017, Learning important features through propagating activation
        differences, arXiv:1704.02685; Lundberg & Lee 2017, arXiv:1705.07874 (products).
    """
    if rule not in ("rescale", "reveal_cancel"):
        raise ValueError(f'rule must be "rescale" or "reveal_cancel", got {rule!r}')
    start = broadcast_baseline(baseline, x, keep_integers=True)
    floating, merge = floating_leaves(x, "a difference")
    start_leaves, _ = floating_leaves(start, "a difference")

    def score(*leaves: Any) -> Any:
        return scored(fn, target, args)(merge(list(leaves)))

    multipliers, _, ((at_x, output), (at_start, _)) = send_back(
        score,
        [floating, start_leaves],
        lambda structure: DeepLift(rule == "reveal_cancel", structure.flat.outputs[0].aval.dtype),
    )
    values = [m * (a - b) for m, a, b in zip(multipliers, floating, start_leaves, strict=True)]
    total = sum(leaf.sum().astype(at_x.dtype) for leaf in values)
    merged = merge(values, lambda leaf: jnp.zeros(leaf.shape, at_x.dtype))
    return Attribution(merged, output, {"delta": total - (at_x - at_start)})
