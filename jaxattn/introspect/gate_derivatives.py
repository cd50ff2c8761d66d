"""Derivatives through single gates of a recurrent layer, and with respect to what is inside it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from jaxattn._types import Inputs, Target
from jaxattn.engine.intermediates import Reemitted
from jaxattn.engine.target import select, single_output
from jaxattn.introspect.observation import Observation, observe
from jaxattn.introspect.results import GateGradients, Gates, Weights
from jaxattn.jaxpr.recurrence.cell_weights import layer_inputs, projections
from jaxattn.jaxpr.recurrence.observed_runs import Changes, Run, no_changes, own_preactivations


def gate_gradients(
    model: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> GateGradients:
    """Compute the gradients of a score with respect to what is inside of a recurrent layer.

    The gradient with respect to `x` is divided by gates: each part is the derivative of the score
    through the pre-activation of one gate alone, where that pre-activation is a function of the
    input of the layer at the same time step. What a gate changes in later states counts to this
    gate. The parts sum to the gradient through the layer, which is the whole gradient if all paths
    from `x` to the score pass through the input of the layer.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        target: The score: an entry of the output, or a function of the output to a number, such as
            a loss.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        The gradients, by the time steps of the layer's input.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, its gates are not
            recognised, or the target does not fit the output.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.SequenceClassifier(3, 4, 2, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((5, 3))
        >>> gradients = ja.introspect.gate_gradients(model, x, 1)
        >>> total = sum(part for _, part in gradients.inputs.items())
        >>> bool(jnp.allclose(total, ja.gradient(model, x, 1).values, atol=1e-6))
        True
    """
    result: GateGradients = _GateGradients(model, (layer, target))(x, *args)
    return result


def gate_jacobians(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> Gates[Any]:
    """Compute the Jacobian of the output with respect to `x` through each gate alone.

    Args:
        model: The model, of any kind that can be explained; its output is one array.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        Jacobians of the output's shape followed by that of `x`, by gate. They sum to the Jacobian
        through the layer; see `gate_gradients`.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, its gates are not
            recognised, or the output is not one array.
        TypeError: If `x` holds integers.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.SequenceClassifier(3, 4, 2, rngs=nnx.Rngs(0))
        >>> ja.introspect.gate_jacobians(model, jnp.ones((5, 3))).forget.shape
        (2, 5, 3)
    """
    result: Gates[Any] = _GateJacobians(model, (layer,))(x, *args)
    return result


def _gate_gradients(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., GateGradients]:
    layer, target = options

    def call(x: PyTree, *args: PyTree) -> GateGradients:
        seen = observe(fn, (x, *args), layer)

        def score_of(changes: Changes) -> Array:
            return select(seen.output(seen.run(changes)), target)

        score, slopes = jax.value_and_grad(score_of)(no_changes(seen.layer))
        activation, preactivation = (
            seen.by_gate({name: seen.in_time(g) for name, g in each.items()})
            for each in (slopes.activation, slopes.preactivation)
        )
        inputs = _through_each_gate(seen, x, slopes.preactivation) if _is_floating(x) else None
        return GateGradients(
            score,
            inputs,
            preactivation,
            activation,
            seen.in_time(slopes.hidden),
            None if slopes.cell is None else seen.in_time(slopes.cell),
            seen.in_time(slopes.output),
            _weight_gradients(seen, seen.run(), slopes.preactivation),
            seen.layer.name,
        )

    return call


def _gate_jacobians(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., Gates[Any]]:
    (layer,) = options

    def call(x: PyTree, *args: PyTree) -> Gates[Any]:
        if not _is_floating(x):
            raise TypeError("`x` must hold floating-point numbers, got integers.")
        seen = observe(fn, (x, *args), layer)

        def output_of(changes: Changes) -> Array:
            return jnp.asarray(single_output(seen.output(seen.run(changes)), "model"))

        output, pull = jax.vjp(output_of, no_changes(seen.layer))
        each = jnp.eye(output.size, dtype=output.dtype).reshape(output.size, *output.shape)
        (slopes,) = jax.vmap(pull)(each)

        def through(slopes: dict[str, Array]) -> Gates[Any]:
            return _through_each_gate(seen, x, slopes)

        parts = jax.vmap(through)(slopes.preactivation)
        return jax.tree.map(lambda part: part.reshape(*output.shape, *part.shape[1:]), parts)

    return call


def _is_floating(x: PyTree) -> bool:
    leaves = jax.tree.leaves(x)
    return all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves)


def _through_each_gate(seen: Observation, x: PyTree, slopes: dict[str, Array]) -> Gates[Any]:
    """Return the gradients with respect to the input through each gate.

    Args:
        seen: the layer.
        x: the input.
        slopes: the gradients with respect to the pre-activations, in the order of the scan.
    """
    leaves, treedef = jax.tree.flatten(x)
    rest = seen.inputs[len(leaves) :]

    def own(leaves: list[Array]) -> dict[str, Array]:
        return own_preactivations(seen.flat, [*leaves, *rest], seen.layer)

    _, pull = jax.vjp(own, seen.inputs[: len(leaves)])
    # One pullback, vectorised over gates: the cotangent of each has those of the others as zero.
    names = list(slopes)
    each = {
        name: jnp.stack([slopes[name] if name == other else 0 * slopes[name] for other in names])
        for name in names
    }
    (parts,) = jax.vmap(pull)(each)
    return seen.by_gate(
        {
            name: jax.tree.unflatten(treedef, [part[i] for part in parts])
            for i, name in enumerate(names)
        }
    )


def _weight_gradients(seen: Observation, run: Run, slopes: dict[str, Array]) -> Weights | None:
    """Return the gradients with respect to the weights: sums over time of outer products."""
    layer = seen.layer
    try:
        projections(seen.flat, layer)
    except ValueError:
        return None
    x = layer_inputs(seen.flat, layer, run, lambda var: seen.over_time(run, var))
    h = seen.hidden_before(run)
    kernel, recurrent, bias = {}, {}, {}
    recurrent_bias = None
    for name, slope in slopes.items():
        kernel[name], bias[name] = x.T @ slope, slope.sum(0)
        recurrent[name] = h.T @ slope
    if layer.cell.kind == "gru":
        reset, new = run.observed.activation["reset"], slopes["new"]
        if layer.cell.resets_product:
            recurrent["new"], recurrent_bias = h.T @ (reset * new), (reset * new).sum(0)
        else:
            recurrent["new"], recurrent_bias = (reset * h).T @ new, jnp.zeros_like(new[0])
    return Weights(
        seen.by_gate(kernel),
        seen.by_gate(recurrent),
        seen.by_gate(bias),
        recurrent_bias,
        layer.name,
        layer.direction,
    )


class _GateGradients(Reemitted):
    change = staticmethod(_gate_gradients)


class _GateJacobians(Reemitted):
    change = staticmethod(_gate_jacobians)
