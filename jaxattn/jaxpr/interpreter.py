"""Evaluation of a jaxpr as JAX code, with a rule that may replace each equation."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
from jax.extend.source_info_util import user_context
from jaxtyping import PyTree

#: The value of a variable: an array, a literal's scalar, a token or a mutable reference. These have
#: no common class: a traced `jax.Ref` is no `jax.Array`.
Value: TypeAlias = Any
#: The values of variables.
Env: TypeAlias = MutableMapping[jex.Var, Value]
#: An operand of an equation.
JaxprAtom: TypeAlias = jex.Var | jex.Literal
#: Computes an equation's outputs from its operands; `None` leaves it to the equation itself.
Rule: TypeAlias = Callable[[jex.JaxprEqn, Sequence[Value]], Sequence[Value] | None]
#: Called where a named scope ends, with its path, its equations and all values so far.
Leave: TypeAlias = Callable[[tuple[str, ...], Sequence[jex.JaxprEqn], Env], None]
#: A jaxpr as a function of a pytree and of its operands, to its outputs and a further pytree.
Body: TypeAlias = Callable[..., tuple[tuple[Value, ...], PyTree]]

#: The equations whose inner jaxprs can be replaced.
_REEMITTED = frozenset("jit scan while cond checkpoint remat2 remat closed_call core_call".split())
#: Formulas of einsum, what `jax.checkpoint` opens, and the classes of layers in equinox.
_OF_LIBRARIES = re.compile(r"->|,|^rematted_computation$|^checkpoint$|^eqx\.nn\.\w+$")


def sub_jaxprs(eqn: jex.JaxprEqn) -> list[jex.ClosedJaxpr]:
    """Return the jaxprs that an equation runs: bodies, branches, called functions."""
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, jex.ClosedJaxpr):
                found.append(part)
            elif isinstance(part, jex.Jaxpr):
                found.append(jex.ClosedJaxpr(part, ()))
    return found


def struct_of(atom: JaxprAtom) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an operand."""
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def scopes(eqn: jex.JaxprEqn) -> list[tuple[str, int, int]]:
    """Return the named scopes in which an equation was traced.

    Returns:
        The label of each scope, the identity of the entry in the name stack and the number of
        labels that follow in it. Each call of a layer has an entry of its own: two calls of one
        layer have the same labels, not the same identity. The scopes that libraries open for what
        is no layer of the user, such as the formula of an `einsum`, are left out.
    """
    found, wrap = [], ""
    for element in eqn.source_info.name_stack.stack:
        if type(element).__name__ == "Transform":  # a vmapped layer is still that layer
            wrap += "" if element.name == "vmap" else f"{element.name}("
            continue
        if _OF_LIBRARIES.search(element.name):
            continue
        first, *rest = element.name.split("/")
        labels = [wrap + first + ")" * wrap.count("("), *rest]
        last = len(labels) - 1
        found += [(label, id(element), last - i) for i, label in enumerate(labels)]
        wrap = ""
    return found


def by_scope(
    eqns: Sequence[jex.JaxprEqn], depth: int
) -> Iterator[tuple[str | None, list[jex.JaxprEqn]]]:
    """Group consecutive equations by their named scope of a given depth.

    Yields:
        The label of the scope, `None` for equations outside of any, and its equations.
    """
    for scope, part in itertools.groupby(eqns, lambda eqn: scopes(eqn)[depth : depth + 1]):
        yield scope[0][0] if scope else None, list(part)


def evaluate(
    closed: jex.ClosedJaxpr,
    args: Sequence[Value],
    rule: Rule,
    leave: Leave = lambda path, eqns, values: None,
    number: Callable[[jex.Literal], Value] = lambda literal: literal.val,
) -> list[Value]:
    """Evaluate a jaxpr, with a rule for its equations.

    Args:
        closed: the jaxpr. Its named scopes are entered again.
        args: its inputs.
        rule: computes the outputs of an equation, or returns `None`.
        leave: called at the end of each named scope. It may change the values that later equations
            read.
        number: returns the value of a literal.
    """
    values: dict[jex.Var, Value] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def read(atom: JaxprAtom) -> Value:
        return number(atom) if isinstance(atom, jex.Literal) else values[atom]

    def run(eqns: Sequence[jex.JaxprEqn], path: tuple[str, ...]) -> None:
        for name, part in by_scope(eqns, len(path)):
            if name is not None:
                with jax.named_scope(name):
                    run(part, (*path, name))
                    leave((*path, name), part, values)
                continue
            for eqn in part:
                inputs = [read(atom) for atom in eqn.invars]
                # What is emitted keeps the line of code, which error messages name.
                with user_context(eqn.source_info.traceback):
                    outputs = rule(eqn, inputs)
                    if outputs is None:
                        outputs = bind(eqn, inputs)
                values.update(zip(eqn.outvars, outputs, strict=True))

    run(closed.jaxpr.eqns, ())
    return [read(atom) for atom in closed.jaxpr.outvars]


def bind(eqn: jex.JaxprEqn, inputs: Sequence[Value], **changed: object) -> Sequence[Value]:
    """Compute an equation's outputs.

    Args:
        eqn: the equation.
        inputs: its operands.
        **changed: parameters of the equation to replace.
    """
    params = eqn.primitive.get_bind_params(eqn.params | changed)
    # The line of the user's code that the equation comes from is part of error messages.
    with eqn.ctx.manager, user_context(eqn.source_info.traceback):
        outputs = eqn.primitive.bind(*inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def descend(
    eqn: jex.JaxprEqn,
    inputs: Sequence[Value],
    rule: Rule,
    prepare: Callable[[jex.ClosedJaxpr], jex.ClosedJaxpr] = lambda closed: closed,
) -> Sequence[Value] | None:
    """Evaluate a call or a control-flow equation with a rule for the equations inside.

    Args:
        eqn: the equation.
        inputs: its operands.
        rule: applied to each equation inside.
        prepare: applied to each inner jaxpr first.

    Returns:
        The outputs; `None` for an equation without inner jaxprs, or with a custom derivative rule.
    """

    def inside(closed: jex.ClosedJaxpr) -> Body:
        return lambda _, *args: (tuple(evaluate(prepare(closed), args, rule)), ())

    results = reemit(eqn, inputs, inside)
    return None if results is None else results[0]


def is_reemitted(eqn: jex.JaxprEqn) -> bool:
    """Return whether `reemit` evaluates an equation, which has inner jaxprs then."""
    return eqn.primitive.name in _REEMITTED


def reemit(
    eqn: jex.JaxprEqn,
    inputs: Sequence[Value],
    inside: Callable[[jex.ClosedJaxpr], Body],
    more: PyTree = (),
) -> tuple[Sequence[Value], PyTree] | None:
    """Evaluate a call or a control-flow equation with other functions for its inner jaxprs.

    Args:
        eqn: the equation.
        inputs: its operands.
        inside: maps each inner jaxpr to the function that takes its place.
        more: a pytree that each of these functions takes as well. In a scan each step takes its
            slice.

    Returns:
        The outputs and what the functions return besides: stacked by a scan, `()` for a while
        loop. `None` for an equation without inner jaxprs, or with a custom derivative rule.
    """
    params = eqn.params
    match eqn.primitive.name:
        case "jit":
            return jax.jit(inside(params["jaxpr"]), inline=params["inline"])(more, *inputs)
        case "scan":
            return _scan(params, inputs, inside(params["jaxpr"]), more)
        case "while":
            n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
            for_cond, for_body = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
            cond, body = inside(params["cond_jaxpr"]), inside(params["body_jaxpr"])
            last = jax.lax.while_loop(
                lambda carry: cond((), *for_cond, *carry)[0][0],
                lambda carry: body((), *for_body, *carry)[0],
                tuple(inputs[n_cond + n_body :]),
            )
            return last, ()
        case "cond":
            branches = [inside(branch) for branch in params["branches"]]
            return jax.lax.switch(inputs[0], branches, more, *inputs[1:])
        case "checkpoint" | "remat2" | "remat":
            body = inside(jex.ClosedJaxpr(params["jaxpr"], ()))
            options = {name: params[name] for name in ("prevent_cse", "policy")}
            return jax.checkpoint(body, **options)(more, *inputs)
        case "closed_call" | "core_call":
            return inside(params["call_jaxpr"])(more, *inputs)
    return None


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of a scan's operands that are constants and that are carried."""
    if "ft_in" in params:  # jax >= 0.12 counts operands by a tree
        of_consts, of_carry, _ = params["ft_in"].unpack()
        return len(list(of_consts)), len(list(of_carry))
    return params["num_consts"], params["num_carry"]


def _scan(
    params: Mapping[str, Any], inputs: Sequence[Value], body: Body, more: PyTree
) -> tuple[Sequence[Value], PyTree]:
    n_consts, n_carry = scan_counts(params)
    consts, init, xs = (
        tuple(inputs[:n_consts]),
        tuple(inputs[n_consts : n_consts + n_carry]),
        tuple(inputs[n_consts + n_carry :]),
    )

    def step(
        carry: tuple[Value, ...], x: tuple[PyTree, tuple[Value, ...]]
    ) -> tuple[tuple[Value, ...], tuple[tuple[Value, ...], PyTree]]:
        outputs, besides = body(x[0], *consts, *carry, *x[1])
        return outputs[:n_carry], (outputs[n_carry:], besides)

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, besides) = jax.lax.scan(step, init, (more, xs), **options)
    return (*carry, *ys), besides
