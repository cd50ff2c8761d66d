"""Explanations of the target compared with those of another class."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method as make_method
from jaxattn.engine.target import index, single_output
from jaxattn.metrics.direction import metric
from jaxattn.metrics.explanation_changes import check_options, inner_count
from jaxattn.metrics.rankings import flat
from jaxattn.metrics.similarities import Similarity, check_choice, similarity_of


@metric(better="lower", low=-1, high=1)
def random_logit(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    *,
    key: RandomKey,
    similarity: Similarity = "spearman",
    args: tuple[Any, ...] = (),
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute the random logit test: the similarity of the explanations of two classes.

    The explanation of the target is compared with that of another class, which is drawn from all
    others along the last axis of the output. Lower is better: an explanation that is the same for
    all classes does not depend on what it explains. Of two classes with opposite logits the
    explanations are opposite, with similarity -1. Further arguments and errors are those of `mprt`.

    Cost: two explanations per example. Draws the class: `key` is required.

    Args:
        method: as for `mprt`.
        fn: maps one example to at least two outputs, as for `jaxattn.explain`.
        xs: as for `mprt`.
        targets: indices of entries of the output, as for `jaxattn.explain`.
        key: as for `mprt`. Example i draws with `fold_in(key, i)`.
        similarity: as for `mprt`.
        args: as for `mprt`.
        batch_size: as for `mprt`.
        mesh: as for `mprt`.
        **options: options of `method`.

    Returns:
        one number per example; NaN where an explanation is constant.

    Raises:
        ValueError: for targets that are not indices, or an output of fewer than two classes.

    Reference:
        Sixt et al. 2020, When explanations lie: why many modified BP attributions fail,
        arXiv:1912.09818.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> weights = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        >>> xs, key = jnp.ones((1, 3)), jax.random.key(0)
        >>> print(ja.metrics.random_logit(ja.gradient, lambda x: weights @ x, xs, 0, key=key))
        [-1.]
    """
    check_choice("similarity", similarity, Similarity)
    check_options(method, options)
    found = explain(
        _of_two_classes,
        fn,
        xs,
        targets,
        args=args,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        method=method,
        **options,
    )
    return similarity_of(found.values, found.info["other"], kind=similarity)


def _twice(what: str, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    inner = inner_count(what, ("method",), x, output, options)
    return 2 * inner if what == "evaluations" else inner


@make_method(
    draws=True,
    evaluations=functools.partial(_twice, "evaluations"),
    in_flight=functools.partial(_twice, "in_flight"),
)
def _of_two_classes(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    method: Method,
    **options: Any,
) -> Attribution:
    """Compute the explanations of the target and, in `info`, of a random other class."""
    if key is None:
        raise ValueError("`key` is missing: a class is drawn, give key=jax.random.key(0).")
    shape = single_output(jax.eval_shape(fn, x, *args), "targets").shape
    are_indices = target is not None and not callable(target)
    if not are_indices or not shape or shape[-1] < 2:
        got = "None" if target is None else "a callable"
        got = f"an output of shape {shape}" if are_indices else got
        raise ValueError(
            f"`targets` must be indices of at least two classes for random_logit, got {got}."
        )
    *row, label = (jnp.asarray(i, jnp.int32) for i in index(target))
    of_class, of_method = jax.random.split(key)
    # A step of 1 to n - 1 around the circle of n classes.
    other = (label + jax.random.randint(of_class, (), 1, shape[-1], jnp.int32)) % shape[-1]
    shared = {"args": args, "key": of_method, "batch_size": batch_size, **options}
    found = method(fn, x, jnp.stack([*row, label]), **shared)
    compared = method(fn, x, jnp.stack([*row, other]), **shared)
    return Attribution(flat(found.values), found.output, {"other": flat(compared.values)})
