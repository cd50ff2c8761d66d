"""Explanations of many examples: the public entry point of the engine."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target, check_bool
from jaxattn.engine.call import prepare_request
from jaxattn.engine.checks import Request
from jaxattn.engine.parts import Work, compute


def explain(
    method_: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    /,
    targets: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | Sequence[str] | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    check_finite: bool = True,
    **options: Any,
) -> Attribution:
    """Explain many examples with one method.

    The call is compiled once, vectorised, divided into chunks that fit the memory of the device,
    and sharded over the devices of a mesh.

    Args:
        method_: any method of jaxattn, a function made a method by `jaxattn.method`, or a function
            with the same signature.
        fn: maps one example to an output: an `nnx.Module`, an equinox module,
            `jax.tree_util.Partial(linen_model.apply, params)`, a Keras model, or a function.
            Modules and Keras models run in inference mode: dropout off, running statistics.
        xs: the examples, each leaf with a leading axis of length B.
        targets: the entry of the output that is explained: `None` for an output of size 1; an int
            or a tuple, one index for all examples; an array of shape (B,) or (B, rank), one index
            for each; a callable from the output to a scalar; or `jaxattn.each`, many at once.
        args: further inputs of `fn`, each leaf with a leading axis of length B; not explained.
        at: the name of an intermediate that is explained instead of `xs`: a tag or the path of a
            layer, found as by `jaxattn.capture`; one that matches several is refused. The values
            have its shape, stacked over the steps of a scan around it; the effect of a step through
            the values of other steps is cut.
        key: a random key for methods that draw. Example i draws with `fold_in(key, i)`, whatever
            the chunks and devices.
        batch_size: the maximum number of evaluations of `fn` in flight on a device. `None` chooses
            it from the memory of the compiled program and the device.
        mesh: devices over which the examples are spread.
        progress: whether to show a progress bar over the chunks.
        check_finite: whether to raise an error for NaN and infinity in `xs`.
        **options: the method's own. A `baseline` may have a leading axis of length B.

    Returns:
        the method's `Attribution`, every leaf with a leading axis of length B.

    Raises:
        ValueError: for an empty batch, lengths that differ, targets that do not fit the output,
            inputs that are not finite, an `fn` that takes only batches, or examples sharded over
            explicit axes if no `mesh` is given.
        TypeError: for a `fn`, target, `mesh` or `progress` of a wrong kind, or `xs` that is a list
            of numbers.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x.sum(), (x**2).sum()])
        >>> ja.explain(ja.gradient, fn, jnp.array([[1.0, 2.0], [3.0, 4.0]]), 1).values
        Array([[2., 4.],
               [6., 8.]], dtype=float32)
    """
    check_bool("progress", progress)
    work = prepare(
        method_,
        fn,
        xs,
        targets,
        args=args,
        at=at,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        check_finite=check_finite,
        **options,
    )
    return compute(work, progress)


def prepare(
    method_: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    /,
    targets: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | Sequence[str] | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    check_finite: bool = True,
    **options: Any,
) -> Work:
    """Check the arguments of `explain`, and plan; compile to find a batch size if none is given."""
    return prepare_request(
        Request(
            method_,
            fn,
            xs,
            targets,
            args,
            at,
            key,
            batch_size,
            mesh,
            check_finite,
            options,
            batched=True,
        )
    )
