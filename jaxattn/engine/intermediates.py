"""Named intermediates of a function: read, and replaced."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxattn._static import is_array, is_concrete
from jaxattn.engine.callable import Recipe, Wrapper, as_function, bind
from jaxattn.jaxpr.capture import captured, intervened, split_at
from jaxattn.jaxpr.program import Program, Signature

_NUMBERS = (int, float, complex, np.generic)


class Reemitted(Wrapper):
    """The traced program with changes, compiled if it is called eagerly.

    Without compilation the loops of the changed program would be compiled at every call.
    """

    change: Callable[[Callable[..., Any], PyTree], Callable[..., Any]]

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Run the changed program."""
        leaves = jax.tree.leaves(inputs)
        disabled = getattr(jax.config, "jax_disable_jit")  # noqa: B009  # made at run time
        if leaves and all(map(is_concrete, leaves)) and not disabled:
            arrays, recipe = bind(self, [Signature.of(inputs)])
            return _run(recipe, arrays, inputs)
        options = jax.tree.map(
            lambda part: as_function(part) if callable(part) else part,
            self.options,
            is_leaf=callable,
        )
        return self.change(as_function(self.fn), options)(*inputs)


class Capture(Reemitted):
    """The result of `capture`: `fn` and the values of the names that are its options."""

    change = staticmethod(captured)


class Intervene(Reemitted):
    """The result of `intervene`: `fn` with the replacements that are its options."""

    change = staticmethod(intervened)


def _up_to(fn: Callable[..., Any], names: tuple[str]) -> Callable[..., Any]:
    return lambda *inputs: split_at(fn, inputs, names[0]).value


class Intermediate(Reemitted):
    """The result of `intermediate`: `fn` up to the name that is its option."""

    change = staticmethod(_up_to)


@functools.partial(jax.jit, static_argnums=0)
def _run(recipe: Recipe | Program, arrays: list[Any], inputs: tuple[PyTree, ...]) -> PyTree:
    return recipe.rebuild(arrays)(*inputs)


def capture(fn: Callable[..., Any], *names: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Make a function return named intermediates in addition to its output.

    A name is a tag, given by `jaxattn.tag` anywhere in the function, or the path of a layer, such
    as `"M/RNN_0"` in linen, and `"layers/0/attn"` for `model.layers[0].attn` in nnx and equinox.
    Names of modules that a function closes over start with the name of the variable, as in
    `"model/layers/0/attn"`. The value of a layer is what later layers read of it. A name that
    matches no tag and no layer may be that of attention weights, as `jaxattn.attention` finds and
    names them, laid out as (heads, queries, keys).

    Args:
        fn: the function or model, of any kind that can be explained; models run in inference mode.
        *names: which intermediates. A name selects all that match in the first of these ways that
            finds any: as a full name or the end of one; as a glob (`*`, `?`, `[...]`) of either; as
            a part of a name. A leading slash, as in `"/head"`, selects the full name alone. A dot
            equals a slash: `"layers.0.attn"`. A tag precedes layers of its name. Without names, all
            tags.

    Returns:
        a callable `(x, *args) -> (out, {name: value})`, with full names. A value is an array; a
        tuple for a layer with several outputs, in the order in which they are computed; a list, in
        call order, for a name that occurs more than once. Inside of a `scan` it is stacked over the
        steps, aligned with the inputs of the scan, also in reverse. In code under `jax.vmap` the
        batch axis lies where `vmap` puts it.

    Raises:
        TypeError: if `fn` cannot be called, or a name is no string.
        ValueError: when called, for a name that matches nothing; for one inside of a `while`, which
            has no fixed number of steps; and for one that does not occur equally often and with one
            shape in all branches of a `cond`.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return ja.tag(2 * x, "doubled").sum()
        >>> ja.capture(fn, "doubled")(jnp.array([1.0, 3.0]))
        (Array(8., dtype=float32), {'doubled': Array([2., 6.], dtype=float32)})
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`names` must be strings, got {name!r}.")
    return Capture(fn, names)


def intermediate(fn: Callable[..., Any], at: str) -> Callable[..., Any]:
    """Make a function return a named intermediate instead of its output.

    Any method explains a unit of the intermediate with it (neuron attribution), with the index of
    the unit as target, or many units with `jaxattn.each`. It also gives the values of a background
    set or a baseline for a method with the same `at`.

    Args:
        fn: the function or model, of any kind that can be explained.
        at: the name of the intermediate, found as by `jaxattn.capture`; one that matches several is
            refused.

    Returns:
        a callable `(x, *args) -> value`; inside of a `scan` the value is stacked over the steps.

    Raises:
        TypeError: if `fn` cannot be called, or the name is no string.
        ValueError: when called, for a name that matches nothing or several intermediates.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return ja.tag(x**2, "squares").sum()
        >>> ja.gradient(ja.intermediate(fn, "squares"), jnp.array([1.0, 3.0]), 1).values
        Array([0., 6.], dtype=float32)
    """
    if not isinstance(at, str):
        raise TypeError(f"`at` must be the name of an intermediate, got {at!r}.")
    return Intermediate(fn, (at,))


def intervene(fn: Callable[..., Any], replacements: dict[str, Any]) -> Callable[..., Any]:
    """Make a function continue with replaced intermediates, as in activation patching.

    The equations after a replaced tag, or after a replaced layer, read the new value. A custom
    derivative rule around it is dropped.

    Args:
        fn: the function or model, of any kind that can be explained.
        replacements: by name, as `jaxattn.capture` finds them, but only a glob may match several
            full names: an array of the value's shape; or a function from the value to one of equal
            shape and dtype; a tuple of arrays for a layer with several outputs; or a list of these,
            one for each call. Anything but a list is used for every call. Inside of a `scan` an
            array has the stacked shape, or that of one step, and is then used for every step; a
            function receives the value of one step.

    Returns:
        a callable with the output of `fn`, which every method and `jaxattn.explain` take.

    Raises:
        TypeError: for an `fn` or replacement of a wrong kind.
        ValueError: when called, for a name as in `jaxattn.capture`, for one that matches several
            full names or is replaced twice, and for a shape that differs.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return ja.tag(2 * x, "doubled").sum()
        >>> ja.intervene(fn, {"doubled": lambda h: h + 1})(jnp.array([1.0, 3.0]))
        Array(10., dtype=float32)
    """
    if not isinstance(replacements, dict):
        raise TypeError(
            f"`replacements` must be a dict by name, got {type(replacements).__name__}."
        )
    for name, replacement in replacements.items():
        if not isinstance(name, str):
            raise TypeError(f"`replacements` must have names as keys, got {name!r}.")
        for part in jax.tree.leaves(replacement, is_leaf=callable):
            if not (callable(part) or is_array(part) or isinstance(part, _NUMBERS)):
                raise TypeError(
                    f"`replacements` must be arrays or functions, got {type(part).__name__} for "
                    f"{name!r}."
                )
    # Arrays are traced, so other numbers do not recompile.
    return Intervene(
        fn,
        jax.tree.map(
            lambda part: np.asarray(part) if isinstance(part, _NUMBERS) else part,
            replacements,
            is_leaf=callable,
        ),
    )
