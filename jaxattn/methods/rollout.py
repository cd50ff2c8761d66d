"""Attention through several layers: what each output token reads of the input in the end."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.method import method
from jaxattn.jaxpr.names import choose, places
from jaxattn.methods.attention_weights import named_weights, names_of

Heads = Literal["mean", "max", "min"]


def _layers(
    fn: Callable[..., Any],
    inputs: tuple[Any, ...],
    name: str | Sequence[str],
    heads: Heads,
    residual: float,
) -> tuple[Any, Float[Array, "L T T"]]:
    """The output, and each layer's mixing: heads made one, the residual path added, rows sum to 1.

    Raises:
        TypeError: for a `residual` that is no number.
        ValueError: for weights that are not (..., T, T) with one T, an unknown `heads`, or a
            negative `residual`.
    """
    if heads not in ("mean", "max", "min"):
        raise ValueError(f'heads must be "mean", "max" or "min", got {heads!r}')
    if not isinstance(residual, (int, float, np.generic, np.ndarray, jax.Array)):
        raise TypeError(f"residual must be a number, got {residual!r}")
    if isinstance(residual, (int, float)) and not 0 <= residual < math.inf:
        raise ValueError(f"residual must be finite and not negative, got {residual}")
    output, seen = named_weights(fn, inputs, name)
    layers = _by_call(fn, inputs, name, seen)
    shapes = [layer.shape for layer in layers]
    square = all(len(s) > 1 and s[-2:] == (shapes[0][-1],) * 2 and 0 not in s for s in shapes)
    if not square:
        raise ValueError(f"name must find weights (..., T, T) with one T in all, got {shapes}")
    mixing = jnp.stack([
        getattr(jnp, heads)(layer.reshape(-1, *layer.shape[-2:]), axis=0) for layer in layers
    ])  # fmt: skip
    itself = jnp.eye(mixing.shape[-1], dtype=mixing.dtype)[None]
    mixing = mixing + jnp.asarray(residual, mixing.dtype) * itself
    total = mixing.sum(-1, keepdims=True)
    return output, mixing / jnp.where(total > 0, total, 1)  # a row that reads nothing stays zero


def _by_call(
    fn: Callable[..., Any],
    inputs: tuple[Any, ...],
    name: str | Sequence[str],
    seen: dict[str, Any],
) -> list[Array]:
    """What was found in the order of the calls; the steps of a scan over matrices are calls.

    Raises:
        ValueError: if several matrices come out of scans, whose steps would have to be interleaved.
    """
    found = places(jax.make_jaxpr(lambda *args: fn(*args))(*inputs))
    kinds = choose(names_of(name), found, "capture")
    rest = {key: iter(each if isinstance(each, list) else [each]) for key, each in seen.items()}
    layers: list[Array] = []
    stacks = 0
    for place in found:
        if kinds.get(place.name) is place.is_tag:
            for leaf in jax.tree.leaves(next(rest[place.name])):
                # Rows of one matrix that a scan makes are no layers.
                axes = max(0, min(place.steps, leaf.ndim - 2))
                layers += list(leaf.reshape(-1, *leaf.shape[axes:])) if axes else [leaf]
                stacks += axes > 0
    if stacks > 1:
        raise ValueError(f"name must find one tag at most inside of a scan, got {list(seen)}")
    return layers


@method(per_example=())
def attention_rollout(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    name: str | Sequence[str] = "attention",
    heads: Heads = "mean",
    residual: float = 1.0,
) -> Attribution:
    """The share that each input token has in each token of the last layer, if layers only mix.

    With A_l the weights of layer l, its heads averaged, M_l is A_l + I with rows divided by their
    sums, and the rollout is M_L ... M_2 M_1.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: not used: the weights are the same whatever is explained.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is taken for the input; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        name: the tag or layer whose value each layer's weights (..., T, T) are, as for
            `jaxattn.attention`. Layers count in the order in which they are called; of a scan
            over layers each step is one, in the order in which they are stacked.
        heads: how the heads of a layer become one.
        residual: what the residual path weighs beside the attention; 0 leaves it out.

    Returns:
        values (T, T), from token of the output to token of the input; rows sum to 1, or with
        `residual=0` to less where tokens read nothing.
        `info["layers"]` holds M_1 ... M_L, (L, T, T).

    Raises:
        TypeError: if what is found is no floating array.
        ValueError: if nothing has that name, weights are not square and of one size, or `residual`
            is negative.

    Reference:
        Abnar and Zuidema 2020, Quantifying attention flow in transformers, arXiv:2005.00928.
    """
    output, layers = _layers(fn, (x, *args), name, heads, residual)
    values = functools.reduce(lambda below, layer: layer @ below, layers)
    return Attribution(values, output, {"layers": layers})


@method(per_example=())
def attention_flow(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    name: str | Sequence[str] = "attention",
    heads: Heads = "mean",
    residual: float = 1.0,
) -> Attribution:
    """The maximum flow from each token of the last layer to each input token, through attention.

    The capacities are the matrices M_l of `jaxattn.attention_rollout`. There are T^2 flows to be
    found, one after the other and on the CPU, each in a graph of L T^2 edges.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: not used: the weights are the same whatever is explained.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is taken for the input; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        name: the tag or layer whose value each layer's weights (..., T, T) are, as for
            `jaxattn.attention_rollout`.
        heads: how the heads of a layer become one.
        residual: what the residual path weighs beside the attention; 0 leaves it out.

    Returns:
        values (T, T), from token of the output to token of the input, each between 0 and 1;
        NaN where a weight is negative or NaN.
        `info["layers"]` holds the capacities (L, T, T).

    Raises:
        TypeError: if what is found is no floating array.
        ValueError: if nothing has that name, weights are not square and of one size, or `residual`
            is negative.

    Reference:
        Abnar and Zuidema 2020, Quantifying attention flow in transformers, arXiv:2005.00928.
    """
    output, layers = _layers(fn, (x, *args), name, heads, residual)
    return Attribution(_flow(layers), output, {"layers": layers})


@jax.custom_vjp
def _flow(layers: Float[Array, "L T T"]) -> Float[Array, "T T"]:
    """The maximum flow between each token above the last layer and each below the first."""

    def flows(layers: Any) -> np.ndarray:
        capacity = np.asarray(layers, np.float64)
        found = [[(cut * capacity).sum() for cut in row] for row in _cuts(capacity)]
        return np.asarray(found).astype(layers.dtype)

    answer = jax.ShapeDtypeStruct(layers.shape[1:], layers.dtype)
    flow: Array = jax.pure_callback(flows, answer, layers, vmap_method="sequential")
    return flow


def _flow_forward(layers: Array) -> tuple[Array, Array]:
    return _flow(layers), layers


def _flow_backward(layers: Array, slope: Array) -> tuple[Array]:
    """A flow grows with the capacities of its minimum cut, and with no others."""

    def gradient(layers: Any, slope: Any) -> np.ndarray:
        total = np.zeros(layers.shape)
        cuts = _cuts(np.asarray(layers, np.float64))
        for row, slopes in zip(cuts, np.asarray(slope, np.float64), strict=True):
            for cut, value in zip(row, slopes, strict=True):
                total += cut * value
        return total.astype(layers.dtype)

    answer = jax.ShapeDtypeStruct(layers.shape, layers.dtype)
    return (jax.pure_callback(gradient, answer, layers, slope, vmap_method="sequential"),)


_flow.defvjp(_flow_forward, _flow_backward)


def _cuts(capacity: np.ndarray) -> Any:
    """For each output token a row of the minimum cuts (L, T, T) that part it from input tokens.

    The flows are found in whole numbers; their cuts, weighed with the capacities as they are, give
    them with all digits.
    """
    depth, width, _ = capacity.shape
    if not (capacity >= 0).all():  # NaN among them
        return np.broadcast_to(np.nan, (width, width, *capacity.shape))
    # Token j below layer l is node l T + j; an edge goes from above a layer to below it.
    above, below = np.indices((width, width)).reshape(2, -1)
    level = np.repeat(np.arange(depth), width * width)
    start = np.tile(above, depth) + (level + 1) * width
    end = np.tile(below, depth) + level * width
    units = np.rint(capacity.ravel() * 2**30).astype(np.int32)
    nodes = (depth + 1) * width
    graph = csr_array((units, (start, end)), shape=(nodes, nodes))

    def cut(source: int, sink: int) -> np.ndarray:
        flow = maximum_flow(graph, depth * width + source, sink).flow
        rest = graph - flow
        rest.data = np.maximum(rest.data, 0)
        rest.eliminate_zeros()
        reached = np.zeros(nodes, bool)
        reached[breadth_first_order(rest, depth * width + source, return_predecessors=False)] = True
        return (reached[start] & ~reached[end]).reshape(capacity.shape)

    return ((cut(i, j) for j in range(width)) for i in range(width))
