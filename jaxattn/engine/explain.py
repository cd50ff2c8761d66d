"""Explanations of many examples: the public entry point of the engine."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.call import prepare_request
from jaxattn.engine.checks import Request
from jaxattn.engine.parts import Work, compute


def explain(
    method_: Callable[..., Attribution],
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
    """Runs a method over many examples: compiled once, vectorised, chunked, sharded.

    Args:
        method_: any method of jaxattn, or a function with the same signature.
        fn: maps one example to an output: an `nnx.Module`, an equinox module,
            `jax.tree_util.Partial(linen_model.apply, params)`, a Keras model, or a function.
            Modules and Keras models run in inference mode: dropout off, running statistics.
        xs: the examples, each leaf with a leading axis of length B.
        targets: which number of the output is explained: `None` for an output of size 1; an int or
            a tuple, one index for all examples; an array (B,) or (B, rank), one for each; or a
            callable from the output to a scalar.
        args: further inputs of `fn`, each leaf with a leading axis of length B; not explained.
        at: the name of an intermediate that is explained instead of `xs`: a tag or a layer's path,
            found as by `jaxattn.capture`. The values have its shape, stacked over the steps of a
            scan around it; what one step's value does through those of other steps is cut.
        key: a random key for methods that draw; example i draws with `fold_in(key, i)`, whatever
            the chunks and devices.
        batch_size: how many evaluations of `fn` are in flight on a device. `None` chooses from the
            compiled program's memory and the device.
        mesh: devices over which the examples are spread.
        progress: whether to show a progress bar over the chunks.
        check_finite: whether to refuse NaN and infinity in `xs`.
        **options: the method's own. A `baseline` may have a leading axis of length B.

    Returns:
        the method's `Attribution`, every leaf with a leading axis of length B.

    Raises:
        ValueError: for an empty batch, lengths that differ, targets that do not fit the output,
            inputs that are not finite, an `fn` that takes only batches, or examples sharded over
            explicit axes where no `mesh` is given.
        TypeError: for a `fn`, target, `mesh` or `progress` of a wrong kind, or `xs` that is a list
            of numbers.
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
    method_: Callable[..., Attribution],
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
