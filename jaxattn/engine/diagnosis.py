"""Why `fn` does not accept its input, and what to pass instead."""

import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import TraceContextError
from jaxtyping import PyTree

from jaxattn.engine.callable import as_function, is_keras
from jaxattn.engine.checks import Request
from jaxattn.engine.closures import is_library
from jaxattn.engine.examples import example_structs
from jaxattn.engine.inputs import NUMBERS
from jaxattn.jaxpr.program import Signature


def diagnose(request: Request, inputs: tuple[PyTree, ...], error: Exception) -> Exception | None:
    """Return a clearer error for a call that failed as it was traced, `None` if there is none.

    Args:
        request: the call.
        inputs: of `fn`, for one example.
        error: how the call failed.
    """
    if isinstance(error, TraceContextError):
        return ValueError(
            "`fn` uses an nnx module that changes its own state as it runs, such as nnx.RNN, and "
            "does not hold it in a variable but, say, in a jitted function or a class: pass the "
            "module, or one of its methods, as fn itself."
        )
    fn, structs = as_function(request.fn), Signature.of(inputs).structs()
    failure = _failure(fn, structs)
    if failure is None:
        return _wrong_output(request, structs)
    message = _not_traceable("fn", request.fn, failure)
    if message is not None:
        return TypeError(message + _place(request.fn, failure))
    message = (_several_examples if request.batched else _one_example)(request, structs)
    return None if message is None else ValueError(message + _place(request.fn, failure))


def _failure(fn: Callable[..., Any], structs: PyTree) -> Exception | None:
    """Return the error of `fn` for abstract inputs; an output of any kind is none."""

    def run(*inputs: PyTree) -> None:
        fn(*inputs)

    try:
        jax.eval_shape(run, *structs)
    except Exception as error:
        return error
    return None


def _accepts(request: Request, *inputs: PyTree) -> bool:
    return _failure(as_function(request.fn), Signature.of(inputs).structs()) is None


def _several_examples(request: Request, structs: PyTree) -> str | None:
    """Return what is wrong with the examples of `jaxattn.explain`, if that can be told."""
    xs, args = request.x, request.args
    shape, one = _shapes(xs), _shapes(structs[0])
    first = _first_of_list(xs)
    if first is not None and _accepts(request, first, *args):
        return (
            f"`xs` is a {type(xs).__name__} of {len(xs)} arrays, which is read as {len(xs)} inputs "
            "of fn, each with a leading axis of examples; for a batch of examples pass "
            "np.stack(xs)."
        )
    unbatched = _accepts(request, *_leading_one(structs))
    if _accepts(request, xs, *args):
        count = jnp.shape(jax.tree.leaves(xs)[0])[0]
        takes_batches = unbatched and not is_keras(request.fn)  # whose batch axis is added
        hint = " If fn takes only batches, wrap it in jaxattn.unbatched." if takes_batches else ""
        return (
            f"`xs` of shape {shape} was read as {count} examples of shape {one}, which fn does not "
            "accept; for one example pass xs[None], that is X[:1] instead of X[0], or call the "
            f"method itself.{hint}"
        )
    return _batches_only("xs", one) if unbatched else None


def _one_example(request: Request, structs: PyTree) -> str | None:
    """Return what is wrong with the example of a method, if that can be told."""
    x, name = request.x, getattr(request.method, "__name__", "method")
    call = f"jaxattn.explain({name}, fn, xs, targets)"
    first = _first_of_list(x)
    if first is not None and _accepts(request, first, *request.args):
        return (
            f"`x` is a {type(x).__name__} of {len(x)} arrays, which is read as one example with "
            f"{len(x)} inputs; for a batch of examples call {call} with xs=np.stack(x)."
        )
    leaves = jax.tree.leaves(structs)
    if all(leaf.shape[:1] and leaf.shape[0] == leaves[0].shape[0] for leaf in leaves):
        rows = example_structs(structs)
        if _accepts(request, *rows):
            return (
                f"`x` must be one example, got shape {_shapes(x)}: fn does not accept it, but "
                f"accepts each of its {leaves[0].shape[0]} rows of shape {_shapes(rows[0])}; for a "
                f"batch call {call}."
            )
    return _batches_only("x", _shapes(x)) if _accepts(request, *_leading_one(structs)) else None


def _batches_only(name: str, shape: PyTree) -> str:
    return (
        f"`fn` must accept one example, of shape {shape}, but accepts only a batch of them: wrap "
        "fn in jaxattn.unbatched."
    )


def _leading_one(structs: PyTree) -> PyTree:
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), structs)


def _first_of_list(x: PyTree) -> PyTree | None:
    """Return the first of several arrays of one shape in a list, `None` for anything else."""
    if not isinstance(x, list | tuple) or not all(hasattr(part, "shape") for part in x):
        return None
    return x[0] if len({part.shape for part in x}) == 1 else None


def _not_traceable(name: str, function: object, failure: Exception) -> str | None:
    """Return what to do about a function that leaves JAX, if it does."""
    # Keras takes its own frames out of a traceback; the user's code remains, which names `predict`.
    codes = [frame.f_code for frame, _ in traceback.walk_tb(failure.__traceback__)]
    bound = isinstance(function, types.MethodType) and is_keras(function.__self__)
    of_keras = bound and "predict" in getattr(function, "__name__", "")
    if of_keras or ("keras" in sys.modules and any("predict" in code.co_names for code in codes)):
        return (
            f"`{name}` must be traceable by JAX, which `predict` of a Keras model is not: pass the "
            "model itself as fn, or call it inside fn as model(x[None])[0]."
        )
    if isinstance(failure, jax.errors.TracerArrayConversionError):
        return (
            f"`{name}` must be traceable by JAX, but converts a traced array to a numpy array: use "
            f"jax.numpy instead of numpy inside {name}."
        )
    if isinstance(
        failure, jax.errors.ConcretizationTypeError | jax.errors.TracerIntegerConversionError
    ):
        return (
            f"`{name}` must be traceable by JAX, but its Python code depends on the value of a "
            "traced array, as `if`, `float` and `range` do: use jax.numpy.where or jax.lax instead."
        )
    return None


def _wrong_output(request: Request, structs: PyTree) -> Exception | None:
    """Return an error for an output of `fn`, or of a target, that is not an array."""
    refusals: list[str] = []
    target = request.target

    def check(must: str, output: PyTree) -> None:
        for leaf in jax.tree.leaves(output):
            if not isinstance(leaf, NUMBERS):
                refusals.append(f"{must}, got {type(leaf).__name__} {leaf!r}.")

    def run(*inputs: PyTree) -> None:
        output = as_function(request.fn)(*inputs)
        check("`fn` must return arrays", output)
        if not refusals and callable(target):
            check("`target` must return one number of the output", target(output))

    try:
        jax.eval_shape(run, *structs)
    except Exception as failure:  # of the target
        message = _not_traceable("target", target, failure)
        return None if message is None else TypeError(message + _place(target, failure))
    function = target if refusals and refusals[0].startswith("`target`") else request.fn
    return TypeError(refusals[0] + _place(function, None)) if refusals else None


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.shape, tree)


def _place(function: object, failure: Exception | None) -> str:
    """Return where the user's code failed, or where the function is defined, if that is known."""
    frames = [] if failure is None else list(traceback.walk_tb(failure.__traceback__))
    for frame, line in reversed(frames):
        if _is_users(frame.f_code):
            return f" It failed at {frame.f_code.co_filename}, line {line}."
    code = getattr(function, "__code__", None)
    if code is None or not _is_users(code):
        return ""
    return f" See {code.co_filename}, line {code.co_firstlineno}."


def _is_users(code: types.CodeType) -> bool:
    """Return whether code is the user's own, in a file."""
    return not is_library(code.co_filename) and code.co_filename[:1] != "<"
