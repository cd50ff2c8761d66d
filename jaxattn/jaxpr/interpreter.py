"""Walks a jaxpr and re-emits it as JAX code, with a chance to step in at every equation."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex

#: Answers an equation's outputs, or `None` for what the equation itself computes.
Rule: TypeAlias = Callable[[jex.JaxprEqn, Sequence[Any]], Sequence[Any] | None]


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


def evaluate(closed: jex.ClosedJaxpr, args: Sequence[Any], rule: Rule) -> list[Any]:
    """The outputs of a jaxpr, each equation's from `rule` where that has an answer."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for eqn in closed.jaxpr.eqns:
        with jax.named_scope(str(eqn.source_info.name_stack)):
            inputs = [read(atom) for atom in eqn.invars]
            outputs = rule(eqn, inputs)
            if outputs is None:
                outputs = bind(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def bind(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """What the equation itself computes."""
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
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
    params = eqn.params

    def inside(closed: jex.ClosedJaxpr) -> Callable[..., tuple[Any, ...]]:
        return lambda *args: tuple(evaluate(prepare(closed), args, rule))

    match eqn.primitive.name:
        case "jit":
            return jax.jit(inside(params["jaxpr"]), inline=params["inline"])(*inputs)
        case "scan":
            return _scan(params, inputs, inside(params["jaxpr"]))
        case "while":
            n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
            for_cond, for_body = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
            cond, body = inside(params["cond_jaxpr"]), inside(params["body_jaxpr"])
            return jax.lax.while_loop(
                lambda carry: cond(*for_cond, *carry)[0],
                lambda carry: body(*for_body, *carry),
                tuple(inputs[n_cond + n_body :]),
            )
        case "cond":
            return jax.lax.switch(inputs[0], [inside(b) for b in params["branches"]], *inputs[1:])
        case "checkpoint" | "remat2" | "remat":
            body = inside(jex.ClosedJaxpr(params["jaxpr"], ()))
            return jax.checkpoint(body, prevent_cse=params["prevent_cse"], policy=params["policy"])(
                *inputs
            )
        case "closed_call" | "core_call":
            return inside(params["call_jaxpr"])(*inputs)
    return None


def _scan(
    params: dict[str, Any], inputs: Sequence[Any], body: Callable[..., tuple[Any, ...]]
) -> tuple[Any, ...]:
    if "ft_in" in params:  # jax >= 0.12 counts operands by a tree
        of_consts, of_carry, _ = params["ft_in"].unpack()
        n_consts, n_carry = len(list(of_consts)), len(list(of_carry))
    else:
        n_consts, n_carry = params["num_consts"], params["num_carry"]
    consts, init, xs = (
        tuple(inputs[:n_consts]),
        tuple(inputs[n_consts : n_consts + n_carry]),
        tuple(inputs[n_consts + n_carry :]),
    )

    def step(carry: tuple[Any, ...], x: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        outputs = body(*consts, *carry, *x)
        return outputs[:n_carry], outputs[n_carry:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, init, xs, **options)
    return *carry, *ys
