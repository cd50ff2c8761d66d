"""The decorator that makes a method of a pure function of one example."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, overload

import jax

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.call import prepare_request
from jaxattn.engine.callable import as_function
from jaxattn.engine.checks import SHARED, Request, check_at
from jaxattn.engine.compiled import in_engine
from jaxattn.engine.each import Each, checked_targets, over_targets
from jaxattn.engine.numbers import Condition
from jaxattn.engine.options import (
    Count,
    Prepare,
    Selection,
    Traits,
    check_numbers,
    selected_part,
)
from jaxattn.engine.parts import compute
from jaxattn.jaxpr.capture import split_at

P = ParamSpec("P")


@overload
def method(core: Callable[P, Attribution], /) -> Callable[P, Attribution]: ...


@overload
def method(
    *,
    evaluations: Count | None = None,
    in_flight: Count | None = None,
    selects_from: Selection | None = None,
    per_example: Sequence[str] = ("baseline",),
    sizes: Sequence[str] = (),
    takes_at: bool = True,
    needs_at: bool = False,
    keeps_input: bool = False,
    backward: bool = True,
    shares_states: bool = False,
    draws: bool = False,
    for_logits: bool = False,
    remedy: str = "",
    numbers: Mapping[str, Condition] | None = None,
    prepare: Prepare | None = None,
) -> Callable[[Callable[P, Attribution]], Callable[P, Attribution]]: ...


def method(
    core: Callable[..., Attribution] | None = None,
    /,
    *,
    evaluations: Count | None = None,
    in_flight: Count | None = None,
    selects_from: Selection | None = None,
    per_example: Sequence[str] = ("baseline",),
    sizes: Sequence[str] = (),
    takes_at: bool = True,
    needs_at: bool = False,
    keeps_input: bool = False,
    backward: bool = True,
    shares_states: bool = False,
    draws: bool = False,
    for_logits: bool = False,
    remedy: str = "",
    numbers: Mapping[str, Condition] | None = None,
    prepare: Prepare | None = None,
) -> Callable[..., Any]:
    """Make a method of a pure function of one example.

    The function takes `(fn, x, target=None, *, args=(), key=None, batch_size=None, **options)` and
    returns an `Attribution`. The method takes `at` and `check_finite` in addition, whether or not
    the function lists them. Called with arrays, a method runs through the compiled entry point of
    the engine. Called while JAX traces an explanation, it is the function itself, so methods can
    call each other.

    Args:
        core: the function. Without it, `method(...)` returns a decorator.
        evaluations: `(x, output, options) -> int`, the number of evaluations of `fn` that one
            example takes; `x` and `output` are abstract, `options` include `target`. By default 1.
        in_flight: likewise, how many of these can run at once. By default all.
        selects_from: `(output, options) -> part`, the part of the abstract output that a target
            selects from, such as the output at one time step. By default all of it.
        per_example: names of options that `jaxattn.explain` takes with a leading axis of examples.
        sizes: names of options that shapes depend on. A numpy array is converted to a tuple.
        takes_at: whether `at` may name an intermediate that is explained instead of `x`.
        needs_at: whether `at` must be given.
        keeps_input: whether the function receives `x` as it is, and `at` if it is given: a name or
            a sequence of names. Otherwise it receives the intermediate as `x`.
        backward: whether the function propagates back from the target, so that each of several
            targets (`jaxattn.each`) counts as an evaluation of its own.
        shares_states: whether evaluations of one example share the states of loops in `fn`. The
            memory of these states does not depend on the evaluations in flight.
        draws: whether the function draws random numbers with `key`.
        for_logits: whether a warning is shown for an `fn` that ends in a softmax or a sigmoid.
        remedy: the advice in the warning that is shown if `info["relative_delta"]` exceeds 1 %.
        numbers: what must hold for options that are one number each, traced or not: "not negative",
            "positive", "finite and not negative", "in (0, 1)" or "in [0, 1]".
        prepare: `(x, options) -> options`, called before anything is traced, with the abstract
            input of one example and the options of the call, which may have a leading axis of
            examples: for what must be known outside of `jit`, such as the number of groups.

    Returns:
        the method. Its docstring documents the arguments that all methods share.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn as ja
        >>> @ja.method
        ... def gradient_sign(fn, x, target=None, *, args=(), key=None, batch_size=None):
        ...     slope = ja.gradient(fn, x, target, args=args)
        ...     return ja.Attribution(jax.tree.map(jnp.sign, slope.values), slope.output)
        >>> gradient_sign(lambda x: x[0] - 2 * x[1], jnp.ones(2)).values
        Array([ 1., -1.], dtype=float32)
    """
    traits = Traits(
        evaluations=evaluations,
        in_flight=in_flight or evaluations,
        selects_from=selects_from,
        per_example=tuple(per_example),
        sizes=tuple(sizes),
        takes_at=takes_at,
        needs_at=needs_at,
        keeps_input=keeps_input,
        backward=backward,
        shares_states=shares_states,
        draws=draws,
        for_logits=for_logits,
        remedy=remedy,
        numbers=numbers or {},
        prepare=prepare,
    )
    if core is None:
        return lambda core: _method(core, traits)
    return _method(core, traits)


def _method(core: Callable[..., Attribution], traits: Traits) -> Callable[..., Attribution]:
    if not callable(core):
        raise TypeError(f"`method` must decorate a function, got {type(core).__name__}.")

    @functools.wraps(core)
    def method(
        fn: Callable[..., Any],
        x: Inputs,
        target: Target = None,
        *,
        args: tuple[Any, ...] = (),
        at: str | Sequence[str] | None = None,
        key: RandomKey | None = None,
        batch_size: int | None = None,
        check_finite: bool = True,
        **options: Any,
    ) -> Attribution:
        if in_engine.get():
            check_numbers(method, options)
            if at is not None:  # else `x` may be the intermediate already
                check_at(method, at)
            function = as_function(fn)
            if at is not None and traits.keeps_input:
                options["at"] = at
            elif isinstance(at, str):
                x, function = split_at(function, (x, *args), at)
                args = ()
            if isinstance(target, Each):
                output = jax.eval_shape(function, x, *args)
                target = checked_targets(target, selected_part(method, output, options), None)

            def one(target: Target, batch_size: int | None) -> Attribution:
                shared = {"args": args, "key": key, "batch_size": batch_size}
                return core(function, x, target, **shared, **options)

            return over_targets(one, target, batch_size, backward=traits.backward)
        request = Request(
            method,
            fn,
            x,
            target,
            args,
            at,
            key,
            batch_size,
            None,
            check_finite,
            options,
            batched=False,
        )
        return compute(prepare_request(request))

    method.__doc__ = _documented(core.__doc__, traits)
    vars(method).update(traits=traits, __signature__=_signature(core))
    return method


def _signature(core: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of `core` with `at` and `check_finite`, which every method takes."""
    own = inspect.signature(core)
    shown = dict(own.parameters)
    for name, default, annotation in (("at", None, str | None), ("check_finite", True, bool)):
        keyword = inspect.Parameter.KEYWORD_ONLY
        shown.setdefault(
            name, inspect.Parameter(name, keyword, default=default, annotation=annotation)
        )
    # `**options` comes last.
    return own.replace(parameters=sorted(shown.values(), key=lambda parameter: parameter.kind))


def _documented(doc: str | None, traits: Traits) -> str | None:
    """Insert the documentation of the shared arguments into a docstring in Google style.

    An argument that the docstring itself documents keeps its own text.
    """
    if doc is None:
        return None
    lines = inspect.cleandoc(doc).splitlines()
    if "Args:" not in lines:
        ends = (i for i, line in enumerate(lines) if line in ("Returns:", "Raises:"))
        start = next(ends, len(lines))
        lines[start:start] = ["Args:", ""] if start < len(lines) else ["", "Args:"]
    start = lines.index("Args:") + 1
    rest = lines[start:]
    end = next((i for i, line in enumerate(rest) if line and line[0] != " "), len(rest))
    own = {line.split(":")[0].strip() for line in rest[:end]}
    shared = [f"    {name}: {text}" for name, text in _shared(traits).items() if name not in own]
    lines[start:start] = "\n".join(shared).splitlines()
    return "\n    ".join(lines).replace("\n    \n", "\n\n") + "\n    "


def _shared(traits: Traits) -> Mapping[str, str]:
    """Return the documentation of the arguments that all methods share."""
    at = "name of an intermediate that is explained instead of `x`; see `jaxattn.tag`."
    if not traits.takes_at:
        at = "must be `None`: this method explains `x` alone."
    elif traits.needs_at:
        at = "name of the intermediate, required; see `jaxattn.tag`."
    key = "a random key, such as `jax.random.key(0)`." if traits.draws else "not used."
    batch_size = "not used: the method evaluates `fn` once."
    if traits.evaluations is not None:
        batch_size = (
            "the maximum number of evaluations of `fn` at a time. `None` chooses a\n"
            "        number that suits `fn` and the device."
        )
    texts = {
        "fn": "maps `x` to an output: a function, or a model of any kind that `jaxattn.explain`\n"
        "        takes.",
        "x": "one example, an array or a pytree of arrays.",
        "target": "the entry of the output that is explained; see `jaxattn.explain`.",
        "args": "further inputs of `fn`, which are not explained.",
        "at": at,
        "key": key,
        "batch_size": batch_size,
        "check_finite": "whether to raise an error for NaN and infinity in `x`, outside of `jit`.",
    }
    return {name: texts[name] for name in SHARED}
