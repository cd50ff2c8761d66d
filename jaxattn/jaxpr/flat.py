"""A function as one flat list of steps: calls are inlined, loops and branches keep bodies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.interpreter import (
    JaxprAtom,
    Value,
    scan_counts,
    scopes,
    struct_of,
    sub_jaxprs,
)

_PACKAGE = str(Path(__file__).parents[1])
_CALLS = ("jit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")

#: Primitives that compute each element from the same element of every operand.
ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg not or pow "
    "reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan "
    "tanh".split()
)


class Var:
    """A variable of a flat function; two calls of one jaxpr have different variables."""

    def __init__(self, aval: Any) -> None:
        self.aval = aval

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.aval.shape)

    @property
    def is_floating(self) -> bool:
        """Return whether the elements are floating-point or complex numbers."""
        return bool(jnp.issubdtype(self.aval.dtype, jnp.inexact))


class Number:
    """A literal: a number that is written in the program."""

    def __init__(self, literal: jex.Literal) -> None:
        self.aval: Any = literal.aval
        self.val = literal.val


#: An operand of a step.
Atom: TypeAlias = Var | Number


@dataclass(eq=False)
class Step:
    """One equation, with the variables of one call of it.

    Attributes:
        eqn: the equation.
        inputs: its operands.
        outputs: its results.
        path: the path of its layer.
        stack: the part of that path that comes from the function's own name stack.
        counts: the numbers of a scan's operands that are constants and that are carried.
        bodies: the bodies of a loop, the branches of a conditional, the function of a custom
            derivative rule.
    """

    eqn: jex.JaxprEqn
    inputs: list[Atom]
    outputs: list[Var]
    path: str
    stack: str
    counts: tuple[int, int] = (0, 0)
    bodies: list["Flat"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the step's primitive."""
        return str(self.eqn.primitive.name)

    @property
    def variables(self) -> list[Var]:
        """The operands that are not literals."""
        return [atom for atom in self.inputs if isinstance(atom, Var)]

    def __str__(self) -> str:
        shapes = " and ".join(str(tuple(v.aval.shape)) for v in self.inputs)
        place = ", ".join(filter(None, (self.path, self.line)))
        return f"`{self._label}` of shapes {shapes}" + (f" ({place})" if place else "")

    @property
    def _label(self) -> str:
        """The name of the primitive, or of the function that has a custom derivative rule."""
        if not has_custom_derivative(self):
            return self.name
        debug_info = getattr(sub_jaxprs(self.eqn)[0].jaxpr, "debug_info", None)
        return str(getattr(debug_info, "func_name", None) or self.name)

    @property
    def line(self) -> str:
        """The file and line of the user's code that the step was traced from, if recorded."""
        return line_of(self.eqn)


def line_of(eqn: jex.JaxprEqn) -> str:
    """Return the file and line of the user's code that an equation was traced from, if recorded."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return ""
    for frame in traceback.frames:
        if not any(part in frame.file_name for part in ("site-packages", _PACKAGE, "<")):
            return f"{Path(frame.file_name).name}, line {frame.line_num}"
    return ""


@dataclass(eq=False)
class Flat:
    """A function as steps.

    Attributes:
        inputs: its inputs.
        constants: the values that it closes over, by variable.
        steps: its steps, in order.
        outputs: its outputs.
        opened: whether a custom derivative rule was inlined.
    """

    inputs: list[Var]
    constants: dict[Var, Value]
    steps: list[Step]
    outputs: list[Atom]
    opened: bool = False


def flatten(closed: jex.ClosedJaxpr, path: str = "", opened: Sequence[str] | None = None) -> Flat:
    """Inline the calls of a jaxpr, also in the bodies of its loops and branches.

    Args:
        closed: the jaxpr.
        path: the path of the layer that it belongs to.
        opened: the primitives to inline. By default all calls, and functions with custom derivative
            rules unless they are elementwise.
    """
    flat = Flat([Var(v.aval) for v in closed.jaxpr.invars], {}, [], [])
    flat.outputs = _open(closed, flat.inputs, flat, _Paths(path, ""), opened)
    return flat


def path_of(prefix: str, eqn: jex.JaxprEqn) -> str:
    """Return the path of an equation's layer, below the path of the function it belongs to."""
    return "/".join(filter(None, (prefix, *(label for label, *_ in scopes(eqn)))))


def primitives(flat: Flat) -> set[str]:
    """Return the primitives of all steps, also in the bodies of loops and branches."""
    inside = [primitives(body) for step in flat.steps for body in step.bodies]
    return {step.name for step in flat.steps}.union(*inside)


def is_replayable(flat: Flat) -> bool:
    """Return whether the steps may be evaluated separately, any number of times.

    Steps with effects may not. Neither may those inside a `shard_map` that tracks which values vary
    over its devices.
    """
    values = [*flat.inputs, *flat.constants]
    return not _has_effects(flat) and not any(varying_axes(v.aval) for v in values)


def varying_axes(value: object) -> frozenset[str]:
    """Return the axes of a mesh along which an array, or an abstract value, varies over devices."""
    aval = jax.typeof(value) if isinstance(value, jax.Array) else value
    return getattr(getattr(aval, "manual_axis_type", None), "varying", frozenset())


def _has_effects(flat: Flat) -> bool:
    # A loop over references that the function itself created has no effects; its steps have.
    return any(bool(step.eqn.effects) or any(map(_has_effects, step.bodies)) for step in flat.steps)


def opens_rules(flat: Flat) -> bool:
    """Return whether custom derivative rules were inlined: the steps' derivative may differ."""
    return flat.opened or any(opens_rules(body) for step in flat.steps for body in step.bodies)


class _Paths(NamedTuple):
    """The paths of an equation: of its layer, and from the function's own name stack alone."""

    path: str
    stack: str


def _open(
    closed: jex.ClosedJaxpr,
    args: Sequence[Atom],
    flat: Flat,
    around: _Paths,
    opened: Sequence[str] | None,
) -> list[Atom]:
    """Append the steps of a jaxpr to `flat`, and return its outputs."""
    env: dict[jex.Var, Atom] = dict(zip(closed.jaxpr.invars, args, strict=True))
    for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        env[var] = constant = Var(var.aval)
        flat.constants[constant] = value

    def read(atom: JaxprAtom) -> Atom:
        return Number(atom) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        here = _Paths(*(path_of(above, eqn) for above in around))
        if _is_opened(eqn) if opened is None else eqn.primitive.name in opened:
            (called,) = sub_jaxprs(eqn)[:1]
            flat.opened |= eqn.primitive.name.startswith(_CUSTOM)
            outputs = _open(called, inputs, flat, here, opened)
            env.update(zip(eqn.outvars, outputs, strict=True))
            continue
        step = Step(eqn, inputs, [Var(v.aval) for v in eqn.outvars], here.path, here.stack)
        if step.name == "scan":
            step.counts = scan_counts(eqn.params)
        step.bodies = [flatten(inner, here.path, opened) for inner in sub_jaxprs(eqn)]
        flat.steps.append(step)
        env.update(zip(eqn.outvars, step.outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _is_opened(eqn: jex.JaxprEqn) -> bool:
    """Return whether an equation is a call, or a custom derivative rule that is not elementwise."""
    if eqn.primitive.name in _CALLS:
        return True
    if not eqn.primitive.name.startswith(_CUSTOM):
        return False
    (called,) = sub_jaxprs(eqn)[:1]
    inner = flatten(called)
    shapes = {struct_of(atom).shape for atom in (*eqn.invars, *eqn.outvars)} - {()}
    known = all(step.name in ELEMENTWISE or step.name == "broadcast_in_dim" for step in inner.steps)
    return not (known and len(shapes) <= 1 and len(eqn.outvars) == 1)


def is_elementwise(step: Step) -> bool:
    """Return whether each element of the output depends on one element of each operand."""
    return has_custom_derivative(step) or step.name in ELEMENTWISE


def has_custom_derivative(step: Step) -> bool:
    """Return whether the step is an elementwise function with a custom derivative rule."""
    return step.name.startswith(_CUSTOM)
