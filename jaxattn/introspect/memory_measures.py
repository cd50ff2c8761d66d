"""How long a recurrent layer remembers: derivatives of states with respect to earlier ones."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from jaxattn._types import Inputs
from jaxattn.engine.intermediates import Reemitted
from jaxattn.introspect.observation import Observation, observe
from jaxattn.introspect.results import MemoryReach, StateJacobians
from jaxattn.jaxpr.recurrence.observed_runs import Run, step_jacobians
from jaxattn.jaxpr.recurrence.polynomials import size_of

#: What is computed of the Jacobian dh_t/dh_s.
StateReduction: TypeAlias = Literal["norm", "spectral", "singular_values"] | None


def state_jacobians(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
    reduction: StateReduction = "norm",
) -> StateJacobians:
    """Compute the derivatives of the states of a recurrent layer with respect to earlier states.

    The Jacobian dh_t/dh_s is a block of the product of the Jacobians of the steps s + 1 to t, with
    respect to all carried values; the inputs, and for an LSTM the cell state at s, are constants.
    dc_t/dc_s is the block of the cell states.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.
        reduction: "norm" for the Frobenius norm, "spectral" for the largest singular value,
            "singular_values" for all of them, or None for the Jacobians.

    Returns:
        Arrays `(T, T)`, `(T, T, H)` for all singular values, or `(T, T, H, H)` for the Jacobians,
        by the time steps t and s of the layer's input. A layer of an unknown kind has the Jacobians
        of all carried values.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, or `reduction` is
            unknown.

    Reference:
        Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks,
        arXiv:1211.5063.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> rnn = ja.nn.RNN(3, 4, rngs=nnx.Rngs(0))
        >>> norms = ja.introspect.state_jacobians(rnn, jnp.ones((5, 3))).hidden
        >>> norms.shape, float(norms[0, 0])
        ((5, 5), 2.0)
    """
    if reduction is not None and reduction not in get_args(get_args(StateReduction)[0]):
        raise ValueError(
            f'`reduction` must be "norm", "spectral", "singular_values" or None, got {reduction!r}.'
        )
    result: StateJacobians = _StateJacobians(model, (layer, reduction))(x, *args)
    return result


def memory_reach(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
    fraction: float = 0.1,
    state: Literal["hidden", "cell"] = "hidden",
) -> MemoryReach:
    """Compute how many time steps the memory of a recurrent layer reaches.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.
        fraction: The part of its value at k = 1 below which the norm of dh_t/dh_(t-k) counts as
            forgotten.
        state: "hidden", or for an LSTM "cell".

    Returns:
        The mean norms for each k, and the least k below the fraction.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, its gates are not
            recognised, it has no cell state, or `fraction` does not lie between 0 and 1.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> rnn = ja.nn.RNN(1, 4, rngs=nnx.Rngs(0))
        >>> reach = ja.introspect.memory_reach(rnn, jnp.ones((9, 1)))
        >>> reach.norms.shape
        (9,)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must lie between 0 and 1, got {fraction}.")
    if state not in ("hidden", "cell"):
        raise ValueError(f'`state` must be "hidden" or "cell", got {state!r}.')
    result: MemoryReach = _MemoryReach(model, (layer, fraction, state))(x, *args)
    return result


def half_life(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> Float[Array, " H"]:
    """Compute the number of time steps in which each unit forgets half of its state.

    It is log 2 / -mean_t log f_t for the forget gate f of an LSTM, or the factor of the old state
    in a GRU. Padding is included.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        The half-lives `(H,)` in time steps.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, or it has no gate
            that forgets.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(1, 2, rngs=nnx.Rngs(0))
        >>> print(ja.introspect.half_life(lstm, jnp.zeros((3, 1))).round(2))
        [2.21 2.21]
    """
    result: Array = _HalfLife(model, (layer,))(x, *args)
    return result


def _state_jacobians(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., StateJacobians]:
    layer, reduction = options

    def call(*inputs: PyTree) -> StateJacobians:
        seen = observe(fn, inputs, layer, gates=False)
        return jacobians(seen, seen.run(), reduction)

    return call


def jacobians(seen: Observation, run: Run, reduction: StateReduction) -> StateJacobians:
    """Return the Jacobians of the states of an observed layer."""
    cell, carries = seen.layer.cell, seen.layer.carries
    if cell.kind == "unknown":
        indices = [i for i, v in enumerate(carries) if v.is_floating]
        blocks = {"state": (0, sum(size_of(carries[i]) for i in indices))}
    else:
        indices = [cell.hidden] + ([cell.cell] if cell.cell >= 0 else [])
        size = size_of(carries[cell.hidden])
        names = ("hidden", "cell")[: len(indices)]
        blocks = {name: (i * size, (i + 1) * size) for i, name in enumerate(names)}
    steps = step_jacobians(seen.layer, run, indices)
    backward = bool(seen.layer.scan.eqn.params["reverse"])
    found = _products(steps[::-1] if backward else steps, blocks, reduction)
    if seen.layer.direction == "backward":
        found = {name: values[::-1, ::-1] for name, values in found.items()}
    hidden, cells, state = (found.get(name) for name in ("hidden", "cell", "state"))
    return StateJacobians(hidden, cells, state, seen.layer.name)


def _products(
    steps: Array, blocks: dict[str, tuple[int, int]], reduction: StateReduction
) -> dict[str, Array]:
    """Return the reduced blocks of the products of the Jacobians of all intervals of steps."""
    length, size, _ = steps.shape
    one = jnp.eye(size, dtype=steps.dtype)

    def step(products: Array, each: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
        jacobian, t = each
        products = (jacobian @ products).at[t].set(one)
        outputs = {
            name: _reduced(products[:, start:stop, start:stop], reduction)
            for name, (start, stop) in blocks.items()
        }
        return products, outputs

    start = jnp.zeros((length, size, size), steps.dtype)
    return jax.lax.scan(step, start, (steps, jnp.arange(length)))[1]


def _reduced(jacobians: Array, reduction: StateReduction) -> Array:
    match reduction:
        case "norm":
            return jnp.sqrt(jnp.square(jacobians).sum((-2, -1)))
        case "spectral":
            return jnp.linalg.svd(jacobians, compute_uv=False)[..., 0]
        case "singular_values":
            return jnp.linalg.svd(jacobians, compute_uv=False)
    return jacobians


def _memory_reach(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., MemoryReach]:
    layer, fraction, state = options

    def call(*inputs: PyTree) -> MemoryReach:
        seen = observe(fn, inputs, layer)
        found = jacobians(seen, seen.run(), "norm")
        values = found.hidden if state == "hidden" else found.cell
        if values is None:
            raise ValueError(
                f'`state` must be "hidden" for {seen.layer.name!r}, which has no cell state, got '
                f"{state!r}."
            )
        if seen.layer.direction == "backward":
            values = values.T  # a step before another in time comes after it
        length = seen.layer.length
        norms = jnp.stack([jnp.diagonal(values, -k).mean() for k in range(length)])
        forgotten = (norms < fraction * norms[min(1, length - 1)]) & (jnp.arange(length) > 1)
        first = forgotten.argmax().astype(norms.dtype)
        least = jnp.where(forgotten.any(), first, jnp.asarray(jnp.inf, norms.dtype))
        return MemoryReach(norms, least, seen.layer.name)

    return call


def _half_life(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., Array]:
    (layer,) = options

    def call(*inputs: PyTree) -> Array:
        seen = observe(fn, inputs, layer)
        cell, gates = seen.layer.cell, seen.run().observed.activation
        if cell.kind == "rnn":
            raise ValueError(
                f"`layer` {seen.layer.name!r} must be an LSTM or a GRU: a simple recurrent network "
                "has no gate that forgets."
            )
        if cell.kind == "lstm":
            kept = gates["forget"]
        else:
            kept = gates["update"] if cell.keeps_update else 1 - gates["update"]
        return jnp.log(2.0).astype(kept.dtype) / -jnp.log(kept).mean(0)

    return call


class _StateJacobians(Reemitted):
    change = staticmethod(_state_jacobians)


class _MemoryReach(Reemitted):
    change = staticmethod(_memory_reach)


class _HalfLife(Reemitted):
    change = staticmethod(_half_life)
