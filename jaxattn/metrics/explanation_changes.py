"""Explanations of changed inputs, in one program."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.checks import SHARED
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method as make_method
from jaxattn.engine.numbers import check_number
from jaxattn.engine.options import count, name_of
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.metrics.rankings import flat, norm

#: What the change of an explanation is divided by.
Relative: TypeAlias = Literal["explanation", "distance", "input", "output"]

#: The smallest denominator of the relative stabilities.
_EPSILON = 1e-6


def check_options(method: Method, options: dict[str, Any]) -> None:
    """Raise an error for a method that cannot be called, or options that it does not have."""
    if not callable(method):
        raise TypeError(f"`method` must be callable, got {type(method).__name__}.")
    own = inspect.signature(method).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
        return
    for name in options:
        if name not in own:
            known = ", ".join(n for n in own if n not in SHARED) or "none of its own"
            raise TypeError(f"{name_of(method)} has no option {name!r}; its options are {known}.")


def ratios_of_changes(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    args: tuple[Any, ...],
    key: RandomKey,
    radius: ArrayLike,
    num_samples: int,
    batch_size: int | None,
    mesh: Mesh | None,
    relative_to: Relative,
    options: dict[str, Any],
) -> Float[Array, "B samples"]:
    """Return the ratio of the change of the explanation for each changed input."""
    check_options(method, options)
    check_count("num_samples", num_samples)
    check_number("radius", radius, "positive")
    return explain(
        _changes,
        fn,
        xs,
        targets,
        args=args,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        method=method,
        radius=jnp.asarray(radius),
        num_samples=num_samples,
        relative_to=relative_to,
        **options,
    ).values


def inner_count(
    what: str, own: Sequence[str], x: PyTree, output: PyTree, options: dict[str, Any]
) -> int:
    """Return how many evaluations of `fn` the method in the options makes, or has in flight."""
    inner = {name: value for name, value in options.items() if name not in own}
    return count(what, options["method"], x, output, inner)


#: The options of `_changes` itself; all others are passed to its `method`.
_OWN = ("method", "radius", "num_samples", "relative_to")


def _samples_times(what: str, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Count the evaluations of all samples: `what` is `"evaluations"` or `"in_flight"`."""
    return (options["num_samples"] + 1) * inner_count(what, _OWN, x, output, options)


@make_method(
    draws=True,
    evaluations=functools.partial(_samples_times, "evaluations"),
    in_flight=functools.partial(_samples_times, "in_flight"),
)
def _changes(
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
    radius: Shaped[Array, ""],
    num_samples: int,
    relative_to: Relative,
    **options: Any,
) -> Attribution:
    """Compute the relative changes of the explanation of one example.

    A change of zero size is NaN; one that alters the predicted class is -inf for the stabilities.
    """
    if key is None:
        raise ValueError("`key` is missing: changes are drawn, give key=jax.random.key(0).")
    floating_leaves(x, "a change")
    of_changes, of_method = jax.random.split(key)
    inner = count(
        "in_flight", method, x, jax.eval_shape(fn, x, *args), {"target": target, **options}
    )
    shared = {
        "args": args,
        "key": of_method,
        "batch_size": min(inner, batch_size) if batch_size else None,
        **options,
    }

    def explained(x: Inputs) -> tuple[Array, PyTree]:
        found = method(fn, x, target, **shared)
        return flat(found.values), found.output

    # The input itself goes with the changed ones: rounding differs between programs.
    scales = jnp.ones(num_samples + 1, jnp.int32).at[0].set(0)

    def sample(drawn: tuple[RandomKey, Array]) -> tuple[Inputs, Array, PyTree]:
        key, scale = drawn
        moved = _moved(key, x, radius * scale.astype(radius.dtype))
        return moved, *explained(moved)

    keys = jax.random.split(of_changes, num_samples + 1)
    size = max(1, batch_size // inner) if batch_size else None
    moved, values, outputs = chunked_map(sample, (keys, scales), size)
    output = jax.tree.map(lambda leaf: leaf[0], outputs)
    inputs, flat_outputs = jax.vmap(flat)(moved), jax.vmap(flat)(outputs)
    numerators, denominators = _parts(relative_to, values, inputs, flat_outputs)
    ratios = numerators / jnp.where(denominators > 0, denominators, jnp.nan)
    if relative_to in ("input", "output"):
        ratios = jnp.where(_same_class(outputs), ratios, -jnp.inf)
    return Attribution(ratios, output)


def _parts(
    relative_to: Relative,
    values: Float[Array, "samples n"],
    inputs: Float[Array, "samples m"],
    outputs: Float[Array, "samples k"],
) -> tuple[Array, Array]:
    """Return the numerators and denominators of the samples after the first, the unchanged one."""

    def change(of: Array) -> Array:
        return of[1:] - of[:1]

    def relative(of: Array) -> Array:
        return change(of) / jnp.where(of[:1] == 0, _EPSILON, of[:1])

    if relative_to == "explanation":
        return norm(change(values)), jnp.broadcast_to(norm(values[:1]), len(values) - 1)
    if relative_to == "distance":
        return norm(change(values)), norm(change(inputs)).astype(values.dtype)
    of_what = relative(inputs) if relative_to == "input" else change(outputs)
    return norm(relative(values)), jnp.maximum(norm(of_what), _EPSILON).astype(values.dtype)


def _same_class(outputs: PyTree) -> Bool[Array, " samples"]:
    """Return whether the largest outputs are those of the first sample, for the rest of them."""
    same = []
    for leaf in jax.tree.leaves(outputs):
        if leaf.ndim > 1 and leaf.shape[-1] > 1:
            best = leaf.argmax(-1).reshape(len(leaf), -1)
            same.append((best[1:] == best[:1]).all(1))
    return jnp.stack(same).all(0) if same else jnp.ones(len(jax.tree.leaves(outputs)[0]) - 1, bool)


def _moved(key: RandomKey, x: Inputs, radius: Array) -> Inputs:
    """Return the input with a uniform change of each floating-point feature."""
    leaves, treedef = jax.tree.flatten(x)

    def move(key: RandomKey, leaf: Array) -> Array:
        if not is_floating(leaf):
            return leaf
        change = jax.random.uniform(key, leaf.shape, leaf.dtype, minval=-1)
        return leaf + radius.astype(leaf.dtype) * change

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, list(map(move, keys, leaves)))
