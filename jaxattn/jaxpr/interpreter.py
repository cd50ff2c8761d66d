"""Walks a jaxpr and re-emits it as JAX code, with a chance to step in at every equation."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex

#: Answers an equation's outputs, or `None` for what the equation itself computes.
Rule: TypeAlias = Callable[[jex.JaxprEqn, Sequence[Any]], Sequence[Any] | None]
#: Sees the values by variable where a named scope ends: its path and its equations.
Leave: TypeAlias = Callable[[tuple[str, ...], Sequence[jex.JaxprEqn], dict[Any, Any]], None]


def sub_jaxprs(eqn: jex.JaxprEqn) -> list[jex.ClosedJaxpr]:
    """The closed jaxprs that an equation runs: bodies, branches, called functions."""
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, jex.ClosedJaxpr):
                found.append(part)
            elif isinstance(part, jex.Jaxpr):
                found.append(jex.ClosedJaxpr(part, ()))
    return found


def scopes(eqn: jex.JaxprEqn) -> list[tuple[str, int, int]]:
    """The named scopes in which an equation was traced, each with what tells entries apart.

    A scope is an object made on entry: two calls of one layer share its name, not its identity.
    """
    found, wrap = [], ""
    for element in eqn.source_info.name_stack.stack:
        if type(element).__name__ == "Transform":  # a vmapped layer is still that layer
            wrap += "" if element.name == "vmap" else f"{element.name}("
            continue
        first, *rest = element.name.split("/")
        labels = [wrap + first + ")" * wrap.count("("), *rest]
        found += [(label, id(element), i) for i, label in enumerate(labels)]
        wrap = ""
    return found


def by_scope(
    eqns: Sequence[jex.JaxprEqn], depth: int
) -> Iterator[tuple[str | None, list[jex.JaxprEqn]]]:
    """Parts equations where their scope of that depth changes; its name, or `None` for no scope."""
    for scope, part in itertools.groupby(eqns, lambda eqn: scopes(eqn)[depth : depth + 1]):
        yield scope[0][0] if scope else None, list(part)


def evaluate(
    closed: jex.ClosedJaxpr,
    args: Sequence[Any],
    rule: Rule,
    leave: Leave = lambda path, eqns, values: None,
) -> list[Any]:
    """The outputs of a jaxpr, each equation's from `rule` where that has an answer.

    Named scopes are entered as they once were. `leave` may change the values that the equations
    after a scope read.
    """
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    def run(eqns: Sequence[jex.JaxprEqn], path: tuple[str, ...]) -> None:
        for name, part in by_scope(eqns, len(path)):
            if name is not None:
                with jax.named_scope(name):
                    run(part, (*path, name))
                    leave((*path, name), part, values)
                continue
            for eqn in part:
                inputs = [read(atom) for atom in eqn.invars]
                outputs = rule(eqn, inputs)
                if outputs is None:
                    outputs = bind(eqn, inputs)
                values.update(zip(eqn.outvars, outputs, strict=True))

    run(closed.jaxpr.eqns, ())
    return [read(atom) for atom in closed.jaxpr.outvars]


def bind(eqn: jex.JaxprEqn, inputs: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """What the equation itself computes, or would with some of its parameters changed."""
    params = eqn.primitive.get_bind_params(eqn.params | changed)
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def descend(
    eqn: jex.JaxprEqn,
    inputs: Sequence[Any],
    rule: Rule,
    prepare: Callable[[jex.ClosedJaxpr], jex.ClosedJaxpr] = lambda closed: closed,
) -> Sequence[Any] | None:
    """Re-emits a call or a control-flow equation with `rule` applied inside.

    Args:
        eqn: the equation.
        inputs: its operands.
        rule: what to apply to each equation inside.
        prepare: what to make of each inner jaxpr first.

    Returns:
        the outputs, or `None` where there is no inside, or one with a derivative rule of its own.
    """

    def inside(closed: jex.ClosedJaxpr) -> Callable[..., tuple[Any, Any]]:
        return lambda _, *args: (tuple(evaluate(prepare(closed), args, rule)), ())

    found = reemit(eqn, inputs, inside)
    return None if found is None else found[0]


def reemit(
    eqn: jex.JaxprEqn,
    inputs: Sequence[Any],
    inside: Callable[[jex.ClosedJaxpr], Callable[..., tuple[Any, Any]]],
    more: Any = (),
) -> tuple[Sequence[Any], Any] | None:
    """Re-emits a call or a control-flow equation around functions of our own.

    Args:
        eqn: the equation.
        inputs: its operands.
        inside: makes of each inner jaxpr a function of `more` and of its operands, to its outputs
            and anything else.
        more: a pytree; in a scan each step gets its slice.

    Returns:
        the outputs, and what else came out: stacked from a scan, nothing from a while. Or `None`
        where there is no inside, or one with a derivative rule of its own.
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


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    if "ft_in" in params:  # jax >= 0.12 counts operands by a tree
        of_consts, of_carry, _ = params["ft_in"].unpack()
        return len(list(of_consts)), len(list(of_carry))
    return params["num_consts"], params["num_carry"]


def _scan(
    params: dict[str, Any],
    inputs: Sequence[Any],
    body: Callable[..., tuple[Any, Any]],
    more: Any,
) -> tuple[tuple[Any, ...], Any]:
    n_consts, n_carry = scan_counts(params)
    consts, init, xs = (
        tuple(inputs[:n_consts]),
        tuple(inputs[n_consts : n_consts + n_carry]),
        tuple(inputs[n_consts + n_carry :]),
    )

    def step(carry: tuple[Any, ...], x: tuple[Any, Any]) -> tuple[tuple[Any, ...], tuple[Any, Any]]:
        outputs, other = body(x[0], *consts, *carry, *x[1])
        return outputs[:n_carry], (outputs[n_carry:], other)

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, other) = jax.lax.scan(step, init, (more, xs), **options)
    return (*carry, *ys), other
