"""Named intermediates of anything that can be explained: read, and replaced."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxattn._static import is_array, is_concrete
from jaxattn.engine.callable import Wrapper, as_function, bind
from jaxattn.jaxpr.capture import captured, intervened
from jaxattn.jaxpr.program import Signature

_NUMBERS = (int, float, complex, np.generic)


class _Reemitted(Wrapper):
    """Runs the traced program with changes, and compiled where it is called eagerly.

    Otherwise the loops of the changed program would be compiled anew at every call.
    """

    change: Callable[[Callable[..., Any], Any], Callable[..., Any]]

    def __call__(self, *inputs: Any) -> Any:
        leaves = jax.tree.leaves(inputs)
        config: Any = jax.config  # its flags are made at run time
        if leaves and all(map(is_concrete, leaves)) and not config.jax_disable_jit:
            arrays, recipe = bind(self, [Signature.of(inputs)])
            return _run(recipe, arrays, inputs)
        options = jax.tree.map(
            lambda part: as_function(part) if callable(part) else part,
            self.options,
            is_leaf=callable,
        )
        return self.change(as_function(self.fn), options)(*inputs)


class Capture(_Reemitted):
    """What `capture` gives: `fn`, answering with the values of the names that are its options."""

    change = staticmethod(captured)


class Intervene(_Reemitted):
    """What `intervene` gives: `fn` with the replacements that are its options."""

    change = staticmethod(intervened)


@functools.partial(jax.jit, static_argnums=0)
def _run(recipe: Any, arrays: list[Any], inputs: tuple[Any, ...]) -> Any:
    return recipe.rebuild(arrays)(*inputs)


def capture(fn: Callable[..., Any], *names: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Makes a function answer intermediates too, found by name in its traced program.

    A name is a tag, given by `jaxattn.tag` anywhere in the function, or the path of a layer, such
    as `"M/RNN_0"`, which models of linen, Keras, haiku and equinox carry by themselves (those of
    nnx do not). The value of a layer is what later layers read of it.

    Args:
        fn: the function or model, of any kind that can be explained; models run in inference mode.
        *names: which intermediates. Of these the first that finds anything counts: an exact name;
            the end of a path; a glob (`*`, `?`, `[...]`) of either; a part of a name. Without
            names, all tags.

    Returns:
        a callable `(x, *args) -> (out, {name: value})`, with full names. A value is an array; a
        tuple for a layer that gives out several, in the order in which they are made; a list, in
        call order, of a name that occurs more than once. Inside of a `scan` it is stacked over the
        steps, aligned with the scan's inputs, also in reverse. In code under `jax.vmap` the batch
        axis lies where that has put it.

    Raises:
        TypeError: if `fn` cannot be called, or a name is no string.
        ValueError: when called, for a name that matches nothing; for one inside of a `while`, which
            has no fixed number of steps; and for one that does not occur equally often and with one
            shape in all branches of a `cond`.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {name!r}")
    return Capture(fn, names)


def intervene(fn: Callable[..., Any], replacements: dict[str, Any]) -> Callable[..., Any]:
    """Makes a function go on with other intermediates than its own.

    The equations after a replaced tag, or after a replaced layer, read the new value. A custom
    derivative rule around it is given up.

    Args:
        fn: the function or model, of any kind that can be explained.
        replacements: by name, as `jaxattn.capture` finds them: an array of the value's shape; or a
            function from the value to one of equal shape and dtype; a tuple of arrays for a layer
            that gives out several; or a list of these, one for each call. What is not a list serves
            every call. Inside of a `scan` an array has the stacked shape, or that of one step,
            which then serves every step; a function gets the value of one step.

    Returns:
        a callable with the output of `fn`, which every method and `jaxattn.explain` take.

    Raises:
        TypeError: for an `fn` or replacement of a wrong kind.
        ValueError: when called, for a name as in `jaxattn.capture`, for one that is replaced
            twice, and for a shape that differs.
    """
    if not isinstance(replacements, dict):
        raise TypeError(f"replacements must be a dict by name, got {type(replacements).__name__}")
    for name, replacement in replacements.items():
        if not isinstance(name, str):
            raise TypeError(f"replacements must have names for keys, got {name!r}")
        for part in jax.tree.leaves(replacement, is_leaf=callable):
            if not (callable(part) or is_array(part) or isinstance(part, _NUMBERS)):
                raise TypeError(
                    f"replacements must be arrays or functions, got {type(part).__name__} "
                    f"for {name!r}"
                )
    # As arrays numbers are traced: others will not be compiled anew.
    return Intervene(
        fn,
        jax.tree.map(
            lambda part: np.asarray(part) if isinstance(part, _NUMBERS) else part,
            replacements,
            is_leaf=callable,
        ),
    )
