"""Methods that learn which part of the input can go."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import scored


def total_variation(mask: Float[Array, "..."], beta: float) -> Float[Array, ""]:
    """The sum over all axes of |difference of neighbours|^beta."""
    total = jnp.zeros((), mask.dtype)
    for axis in range(mask.ndim):
        # The square keeps the gradient finite at 0 for beta below 2.
        squares = jnp.square(jnp.diff(mask, axis=axis))
        differs = squares > 0
        total += jnp.where(differs, jnp.where(differs, squares, 1) ** (beta / 2), 0).sum()
    return total


@method(
    evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 300)) + 2,
    in_flight=lambda x, output, options: 1,
)
def learned_mask(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    baseline: Any = 0.0,
    l1: float = 0.05,
    tv: float = 0.01,
    tv_beta: float = 3.0,
    num_steps: int = 300,
    optimizer: optax.GradientTransformation | None = None,
    initial: float = 0.5,
    coarseness: int | Sequence[int] = 1,
    jitter: int = 0,
    softmax: bool = False,
) -> Attribution:
    """The smallest smooth deletion that destroys the score, found by gradient descent.

    Minimises, over a mask m in [0, 1] that keeps where it is 1 and deletes where it is 0,
    f(m x + (1 - m) x0) + l1 sum |1 - m| + tv sum |neighbours' difference|^tv_beta.

    Args:
        fn: maps `x` to an output.
        x: one example. Integer leaves are never deleted.
        target: which number of the output is destroyed; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: the random key of the jitter.
        batch_size: not used: one evaluation is in flight.
        baseline: x0, what deleted cells become; a number or an array that broadcasts to `x`, or a
            pytree of such; a blurred `x` for photographs.
        l1: the price of a deleted cell, in units of the score. The defaults of `l1` and `tv` were
            chosen by the deletion score of digits of 28 x 28 cells.
        tv: the weight of the total variation.
        tv_beta: its exponent.
        num_steps: iterations.
        optimizer: any optax optimiser; `optax.adam(0.1)` by default.
        initial: where every cell of the mask starts. From 1, an untouched input, descent can stay
            where it is: a certain network answers the same without the first few cells.
        coarseness: how many cells share a number of the mask along each axis, which is then
            interpolated; axes that are not named have 1. 8 suits photographs.
        jitter: the largest random shift of the input, in cells along each axis longer than one.
        softmax: whether f is a probability, the softmax over the output's last axis, instead of the
            output itself. A certain network's probability hardly moves with the first cells, so
            logits are easier to destroy; `l1` and `tv` are then much smaller.

    Returns:
        values 1 - m of the shape of `x`, in [0, 1]. `info["losses"]`, of shape (num_steps,), is the
        objective before each iteration, `info["score"]` the score of the masked input.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output, the baseline does not broadcast, or an
            option lies outside of its range; for jitter without a key.

    Reference:
        Fong and Vedaldi 2017, Interpretable explanations of black boxes by meaningful perturbation,
        arXiv:1704.03296.
    """
    check_count("num_steps", num_steps)
    if isinstance(initial, (int, float)) and not 0 <= initial <= 1:
        raise ValueError(f"initial must lie in [0, 1], got {initial}")
    check_count("jitter", jitter, 0)
    if jitter and key is None:
        raise ValueError(f"key is missing: jitter={jitter} is drawn, give key=jax.random.key(0)")
    floating, merge = floating_leaves(x, "a mask")
    replacements, _ = floating_leaves(broadcast_baseline(baseline, x, keep_integers=True), "a mask")
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must be one of optax's, such as optax.adam(0.1), got {optimizer!r}"
        )

    def fine(mask: Any, leaf: Any) -> Any:
        return jax.image.resize(mask, leaf.shape, "linear")

    def masked(masks: list[Any], shifts: Any = None) -> Inputs:
        def part(mask: Any, leaf: Any, replacement: Any) -> Any:
            m = fine(mask, leaf)
            mixed = m * leaf + (1 - m) * replacement
            axes = [a for a in range(leaf.ndim) if leaf.shape[a] > 1]
            return mixed if shifts is None else jnp.roll(mixed, [shifts[a] for a in axes], axes)

        return merge(list(map(part, masks, floating, replacements)))

    score_of = scored(fn, target, args, softmax=softmax)

    def objective(masks: list[Any], shifts: Any) -> Any:
        score, _ = score_of(masked(masks, shifts))
        for m, leaf in zip(masks, floating, strict=True):
            full = fine(m, leaf)
            price = l1 * jnp.abs(1 - full).sum() + tv * total_variation(full, tv_beta)
            score += price.astype(score.dtype)
        return score

    def step(state: Any, step_key: Any) -> tuple[Any, Any]:
        masks, moments = state
        shifts = None
        if jitter:
            rank = max(leaf.ndim for leaf in floating)
            shifts = jax.random.randint(step_key, (rank,), -jitter, jitter + 1)
        loss, slope = jax.value_and_grad(objective)(masks, shifts)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its step count
            updates, moments = optimizer.update(slope, moments, masks)
        masks = jax.tree.map(lambda m, u: jnp.clip(m + u, 0, 1), masks, updates)
        return (masks, moments), loss

    masks = [jnp.full(_coarse(leaf.shape, coarseness), initial, leaf.dtype) for leaf in floating]
    keys = None if key is None else jax.random.split(key, num_steps)
    (masks, _), losses = jax.lax.scan(step, (masks, optimizer.init(masks)), keys, length=num_steps)
    deleted = [1 - fine(mask, leaf) for mask, leaf in zip(masks, floating, strict=True)]
    values = merge(deleted, lambda leaf: jnp.zeros(leaf.shape, losses.dtype))
    score, _ = score_of(masked(masks))
    return Attribution(values, fn(x, *args), {"losses": losses, "score": score})


def _coarse(shape: tuple[int, ...], coarseness: int | Sequence[int]) -> tuple[int, ...]:
    cells = tuple(coarseness) if isinstance(coarseness, (tuple, list)) else (coarseness,)
    for cell in cells:
        check_count("coarseness", cell)
    if len(cells) > len(shape):
        raise ValueError(f"coarseness {cells} names {len(cells)} axes, x has shape {shape}")
    padded = cells + (1,) * (len(shape) - len(cells))
    return tuple(math.ceil(size / cell) for size, cell in zip(shape, padded, strict=True))
