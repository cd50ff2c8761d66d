"""A function as one flat list of steps: calls are opened, loops and branches keep their bodies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.interpreter import scan_counts, sub_jaxprs

_PACKAGE = str(Path(__file__).parents[1])
_CALLS = ("jit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")

#: Primitives that treat every cell alike and alone.
ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg not or pow "
    "reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan "
    "tanh".split()
)


class Var:
    """A value that a step makes or reads; two calls of one function have different ones."""

    def __init__(self, aval: Any) -> None:
        self.aval = aval

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.aval.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the value is no integer and no truth value."""
        return bool(jnp.issubdtype(self.aval.dtype, jnp.inexact))


class Number:
    """A number that is written in the program."""

    def __init__(self, literal: jex.Literal) -> None:
        self.aval: Any = literal.aval
        self.val = literal.val


Atom: TypeAlias = Var | Number


@dataclass(eq=False)
class Step:
    """One equation, with the variables of this very call of it.

    Attributes:
        eqn: the equation.
        inputs: its operands.
        outputs: what it makes.
        path: the path of its layer.
        stack: the part of that path that the function itself gives.
        counts: of a scan, how many operands are constants, and how many are carried.
        bodies: the insides of a loop, a branch, a custom derivative rule.
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
        """What the step computes: the name of its primitive."""
        return str(self.eqn.primitive.name)

    @property
    def variables(self) -> list[Var]:
        """The operands that are no literals."""
        return [atom for atom in self.inputs if isinstance(atom, Var)]

    def __str__(self) -> str:
        shapes = " and ".join(str(tuple(v.aval.shape)) for v in self.inputs)
        place = ", ".join(filter(None, (self.path, self.line)))
        return f"`{self.name}` of shapes {shapes}" + (f" ({place})" if place else "")

    @property
    def line(self) -> str:
        """The user's line of code that the step comes from, where that is known."""
        traceback = self.eqn.source_info.traceback
        frames: list[Any] = [] if traceback is None else traceback.frames
        for frame in frames:
            if not any(part in frame.file_name for part in ("site-packages", _PACKAGE, "<")):
                return f"{Path(frame.file_name).name}, line {frame.line_num}"
        return ""


@dataclass(eq=False)
class Flat:
    """A function: what goes in, the steps in order, what comes out; and if a rule was opened."""

    inputs: list[Var]
    constants: dict[Var, Any]
    steps: list[Step]
    outputs: list[Atom]
    opened: bool = False


def flatten(closed: jex.ClosedJaxpr, path: str = "", opened: Sequence[str] | None = None) -> Flat:
    """Opens the calls of a jaxpr, those of its loops and branches included.

    Args:
        closed: the jaxpr.
        path: the path of the layer that it belongs to.
        opened: the primitives to open. By default all calls, and custom derivative rules but for
            those of single cells.
    """
    flat = Flat([Var(v.aval) for v in closed.jaxpr.invars], {}, [], [])
    flat.outputs = _open(closed, flat.inputs, flat, (path, ""), opened)
    return flat


def primitives(flat: Flat) -> set[str]:
    """The names of all steps, those of loops and branches included."""
    inside = [primitives(body) for step in flat.steps for body in step.bodies]
    return {step.name for step in flat.steps}.union(*inside)


def is_replayable(flat: Flat) -> bool:
    """Whether the steps may be run apart, and as often as one likes.

    Not so if they print or write to memory, nor inside of a `shard_map` that keeps track of what
    varies over its devices.
    """
    values = [*flat.inputs, *flat.constants]
    return not _has_effects(flat) and not any(varying_axes(v.aval) for v in values)


def varying_axes(value: Any) -> frozenset[str]:
    """The axes of a mesh along which a value, abstract or not, is known to vary over devices."""
    aval = jax.typeof(value) if isinstance(value, jax.Array) else value
    return getattr(getattr(aval, "manual_axis_type", None), "varying", frozenset())


def _has_effects(flat: Flat) -> bool:
    # Memory that a function makes for itself is no effect of its loops, but of their steps.
    return any(bool(step.eqn.effects) or any(map(_has_effects, step.bodies)) for step in flat.steps)


def opens_rules(flat: Flat) -> bool:
    """Whether derivative rules were opened, so that the steps may have another derivative."""
    return flat.opened or any(opens_rules(body) for step in flat.steps for body in step.bodies)


def _open(
    closed: jex.ClosedJaxpr,
    args: Sequence[Atom],
    flat: Flat,
    around: tuple[str, str],
    opened: Sequence[str] | None,
) -> list[Atom]:
    env: dict[Any, Atom] = dict(zip(closed.jaxpr.invars, args, strict=True))
    for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        env[var] = constant = Var(var.aval)
        flat.constants[constant] = value

    def read(atom: Any) -> Atom:
        return Number(atom) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        own = str(eqn.source_info.name_stack)
        here, inside = ("/".join(filter(None, (above, own))) for above in around)
        if _is_opened(eqn) if opened is None else eqn.primitive.name in opened:
            (called,) = sub_jaxprs(eqn)[:1]
            flat.opened |= eqn.primitive.name.startswith(_CUSTOM)
            outputs = _open(called, inputs, flat, (here, inside), opened)
            env.update(zip(eqn.outvars, outputs, strict=True))
            continue
        step = Step(eqn, inputs, [Var(v.aval) for v in eqn.outvars], here, inside)
        if step.name == "scan":
            step.counts = scan_counts(eqn.params)
        step.bodies = [flatten(inner, here, opened) for inner in sub_jaxprs(eqn)]
        flat.steps.append(step)
        env.update(zip(eqn.outvars, step.outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _is_opened(eqn: jex.JaxprEqn) -> bool:
    """Whether it is a call, or a custom derivative rule of more than single cells."""
    if eqn.primitive.name in _CALLS:
        return True
    if not eqn.primitive.name.startswith(_CUSTOM):
        return False
    (called,) = sub_jaxprs(eqn)[:1]
    inner = flatten(called)
    around: list[Any] = [*eqn.invars, *eqn.outvars]
    shapes = {v.aval.shape for v in around if v.aval.shape}
    known = all(step.name in ELEMENTWISE or step.name == "broadcast_in_dim" for step in inner.steps)
    return not (known and len(shapes) <= 1 and len(eqn.outvars) == 1)


def is_cellwise(step: Step) -> bool:
    """Whether each cell of the output is a function of one cell of each operand."""
    return is_atomic(step) or step.name in ELEMENTWISE


def is_atomic(step: Step) -> bool:
    """Whether the step is a function of single cells with a derivative rule of its own."""
    return step.name.startswith(_CUSTOM)
