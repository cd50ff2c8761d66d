"""Attention across layers: attention rollout and attention flow."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.method import method
from jaxattn.methods.attention_weights import Located, Names, locate

Heads: TypeAlias = Literal["mean", "max", "min"]


class _Mixing(NamedTuple):
    """The matrices (L, T, T) of all layers, the output of the network, and the method's info."""

    layers: Float[Array, "L T T"]
    output: PyTree
    info: dict[str, Array]


def _mixing_matrices(
    fn: Callable[..., Any],
    inputs: tuple[Any, ...],
    at: Names,
    heads: Heads,
    residual: ArrayLike,
) -> _Mixing:
    """Return the matrix of each layer with the residual path, rows normalised.

    Raises:
        TypeError: for a `residual` that is not a number.
        ValueError: for weights that are not (..., T, T) with one T, an unknown `heads`, or a
            negative `residual`.
    """
    if heads not in get_args(Heads):
        raise ValueError(f'`heads` must be "mean", "max" or "min", got {heads!r}.')
    located = locate(fn, inputs, at)
    layers = _in_call_order(located)
    shapes = [layer.shape for layer in layers]
    square = all(len(s) > 1 and s[-2:] == (shapes[0][-1],) * 2 and 0 not in s for s in shapes)
    if not square:
        raise ValueError(f"`at` must name weights (..., T, T) with one T in all, got {shapes}.")
    mixing = jnp.stack([
        getattr(jnp, heads)(layer.reshape(-1, *layer.shape[-2:]), axis=0) for layer in layers
    ])  # fmt: skip
    identity = jnp.eye(mixing.shape[-1], dtype=mixing.dtype)[None]
    mixing = mixing + jnp.asarray(residual, mixing.dtype) * identity
    total = mixing.sum(-1, keepdims=True)
    mixing = mixing / jnp.where(total > 0, total, 1)  # a row without weights stays zero
    return _Mixing(mixing, located.output, located.info | {"layers": mixing})


def _in_call_order(located: Located) -> list[Array]:
    """Return the weights in the order of the calls; each step of a scan over layers is a call.

    Raises:
        ValueError: if several matrices come out of scans, whose steps would have to be interleaved.
    """
    rest = {
        name: iter(each if isinstance(each, list) else [each])
        for name, each in located.weights.items()
    }
    layers: list[Array] = []
    stacks = 0
    for place in located.fn.places:
        if located.names.get(place.name) is place.is_tag:
            for leaf in jax.tree.leaves(next(rest[place.name])):
                # Rows of one matrix that a scan computes are not layers.
                axes = max(0, min(place.steps, leaf.ndim - 2))
                layers += list(leaf.reshape(-1, *leaf.shape[axes:])) if axes else [leaf]
                stacks += axes > 0
    if stacks > 1:
        raise ValueError(
            f"`at` must name at most one tag inside a scan, got {list(located.names)}."
        )
    return layers


@method(
    keeps_input=True,
    backward=False,
    per_example=(),
    numbers={"residual": "finite and not negative"},
)
def attention_rollout(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: Names = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    heads: Heads = "mean",
    residual: ArrayLike = 1.0,
) -> Attribution:
    """Compute attention rollout: the product of the attention matrices of all layers.

    With A_l the weights of layer l, heads combined, M_l is A_l + I with normalised rows, and the
    rollout is M_L ... M_2 M_1: the fraction of each input token in each token of the last layer if
    layers only mix tokens. It does not depend on `target`. Layers are ordered as they are called;
    each step of a scan over layers is one layer, in the order in which the steps are stacked.

    Cost: one evaluation of `fn` and L products of T x T matrices per example. Deterministic.

    Args:
        at: the name of the weights (..., T, T) of the layers, or several, as for
            `jaxattn.attention`; all by default.
        heads: how the heads of a layer are combined.
        residual: the weight of the residual path, the identity in M_l; 0 leaves it out.

    Returns:
        values (T, T), from token of the output to token of the input; rows sum to 1, or with
        `residual=0` to less where rows of weights are zero. `info["layers"]` holds M_1 ... M_L,
        (L, T, T).

    Raises:
        TypeError: if a matched intermediate is not a floating array, or `residual` not a number.
        ValueError: as `jaxattn.attention`, or if weights are not square and of one size, `heads` is
            unknown, or `residual` is negative.

    Reference:
        Abnar and Zuidema 2020, Quantifying attention flow in transformers, arXiv:2005.00928.

    Examples:
        Both tokens read the first token only, in one layer with a residual path.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     weights = ja.tag(jnp.array([[1.0, 0.0], [1.0, 0.0]]), "attention")
        ...     return (x + weights @ x).sum()
        >>> print(ja.attention_rollout(fn, jnp.ones((2, 3))).values)
        [[1.  0. ]
         [0.5 0.5]]
    """
    layers, output, info = _mixing_matrices(fn, (x, *args), at, heads, residual)
    values = functools.reduce(lambda below, layer: layer @ below, layers)
    return Attribution(values, output, info)


@method(
    keeps_input=True,
    backward=False,
    per_example=(),
    numbers={"residual": "finite and not negative"},
)
def attention_flow(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: Names = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    heads: Heads = "mean",
    residual: ArrayLike = 1.0,
) -> Attribution:
    """Compute attention flow: the maximum flow between tokens through the attention graph.

    The nodes are the tokens of each layer, the capacities of the edges the matrices M_l of
    `jaxattn.attention_rollout`. The flow does not depend on `target`.

    Cost: one evaluation of `fn` and T^2 maximum-flow problems with L T^2 edges per example, which
    run one after the other on the host. Deterministic.

    Args:
        at: the name of the weights (..., T, T) of the layers, or several, as for
            `jaxattn.attention`; all by default.
        heads: how the heads of a layer are combined.
        residual: the weight of the residual path, the identity in M_l; 0 leaves it out.

    Returns:
        values (T, T), from token of the output to token of the input, each between 0 and 1; NaN
        where a weight is negative or NaN. `info["layers"]` holds the capacities (L, T, T).

    Raises:
        TypeError: if a matched intermediate is not a floating array, or `residual` not a number.
        ValueError: as `jaxattn.attention`, or if weights are not square and of one size, `heads` is
            unknown, or `residual` is negative.

    Reference:
        Abnar and Zuidema 2020, Quantifying attention flow in transformers, arXiv:2005.00928.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     weights = ja.tag(jnp.array([[1.0, 0.0], [1.0, 0.0]]), "attention")
        ...     return (x + weights @ x).sum()
        >>> print(ja.attention_flow(fn, jnp.ones((2, 3))).values)
        [[1.  0. ]
         [0.5 0.5]]
    """
    layers, output, info = _mixing_matrices(fn, (x, *args), at, heads, residual)
    return Attribution(_flow(layers), output, info)


@jax.custom_vjp
def _flow(layers: Float[Array, "L T T"]) -> Float[Array, "T T"]:
    """Compute the maximum flow between each token above the last layer and each below the first."""

    def flows(layers: Array | np.ndarray) -> np.ndarray:
        capacity = np.asarray(layers, np.float64)
        rows = [[(cut * capacity).sum() for cut in row] for row in _cuts(capacity)]
        return np.asarray(rows).astype(layers.dtype)

    shape = jax.ShapeDtypeStruct(layers.shape[1:], layers.dtype)
    flow: Array = jax.pure_callback(flows, shape, layers, vmap_method="sequential")
    return flow


def _flow_forward(layers: Array) -> tuple[Array, Array]:
    return _flow(layers), layers


def _flow_backward(layers: Array, cotangent: Array) -> tuple[Array]:
    """Transpose the derivative: a flow grows with the capacities of its minimum cut alone."""

    def gradient(layers: Array | np.ndarray, cotangent: Array | np.ndarray) -> np.ndarray:
        total = np.zeros(layers.shape)
        cuts = _cuts(np.asarray(layers, np.float64))
        for row, slopes in zip(cuts, np.asarray(cotangent, np.float64), strict=True):
            for cut, slope in zip(row, slopes, strict=True):
                total += cut * slope
        return total.astype(layers.dtype)

    shape = jax.ShapeDtypeStruct(layers.shape, layers.dtype)
    return (jax.pure_callback(gradient, shape, layers, cotangent, vmap_method="sequential"),)


_flow.defvjp(_flow_forward, _flow_backward)


def _cuts(capacity: np.ndarray) -> Iterator[Iterator[np.ndarray]]:
    """Yield for each output token a row of the minimum cuts (L, T, T) from all input tokens.

    The flows are computed in integers; the capacities of their minimum cuts, in full precision, are
    the maximum flows.
    """
    depth, width, _ = capacity.shape
    if not (capacity >= 0).all():  # NaN among them
        unknown = np.full(capacity.shape, np.nan)
        return (iter([unknown] * width) for _ in range(width))
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
