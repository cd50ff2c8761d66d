"""Interactions of features: integrated Hessians."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_map, chunked_sum
from jaxattn.engine.convergence import convergence
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves, is_floating
from jaxattn.engine.target import scored
from jaxattn.methods.quadrature import Quadrature, QuadratureRule


@functools.cache
def product_points(rule: QuadratureRule, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of a quadrature over the product t of two uniform numbers.

    The density of t is -ln t on [0, 1]. So the double integral over both numbers of a function of
    their product is a single one. `"midpoint"` has a node at the mean of t over each of equal
    intervals; `"gauss_legendre"` is the Gaussian rule of the density, exact for polynomials of
    degree `2 * num_steps - 1`.

    Raises:
        ValueError: for fewer than one step or an unknown rule.
    """
    check_count("num_steps", num_steps)
    if rule == "midpoint":
        edges = np.arange(num_steps + 1) / num_steps
        logs = np.log(np.where(edges == 0, 1, edges))
        weights = np.diff(edges - edges * logs)
        return np.diff(edges**2 / 4 - edges**2 / 2 * logs) / weights, weights
    if rule != "gauss_legendre":
        raise ValueError(f'`quadrature` must be "midpoint" or "gauss_legendre", got {rule!r}.')
    # Products of the nodes for both numbers have the moments of the density. Lanczos' algorithm
    # makes the Gaussian rule of these points.
    points, masses = np.polynomial.legendre.leggauss(num_steps)
    nodes = np.outer((points + 1) / 2, (points + 1) / 2).ravel()
    basis = np.sqrt(np.outer(masses / 2, masses / 2)).reshape(1, -1)
    diagonal, beside = [], []
    for _ in range(num_steps):
        rest = nodes * basis[-1]
        diagonal.append(rest @ basis[-1])
        if len(diagonal) < num_steps:
            for _ in range(2):  # once leaves errors of rounding that grow
                rest = rest - (basis @ rest) @ basis
            beside.append(np.linalg.norm(rest))
            basis = np.vstack([basis, rest / beside[-1]])
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return values, vectors[0] ** 2


def _size(x: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(x) if is_floating(leaf))


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    return _size(x) * check_count("num_steps", options.get("num_steps", 64))


@method(
    evaluations=_evaluations,
    for_logits=True,
    remedy=(
        "Increase `num_steps`. Where it does not help, the derivative jumps, as that of a ReLU "
        "does: explain a network with smooth activations, such as softplus."
    ),
)
def integrated_hessians(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    baseline: PyTree[ArrayLike] = 0.0,
    num_steps: int = 64,
    quadrature: QuadratureRule = "midpoint",
) -> Attribution:
    """Compute integrated Hessians: the interactions of pairs of features.

    Integrated gradients of the integrated gradients: value (i, j) is the part of feature i's
    integrated gradient that is due to feature j. Each row sums to the integrated gradient of its
    feature, and all values to the difference of the target between input and baseline. The double
    integral depends on the product of two positions on the path only, and is computed as a single
    one with logarithmic weights.

    Second derivatives of ReLUs are 0, so the values of a network with ReLUs are not complete; use
    smooth activations there.

    Cost: `num_steps + 2` evaluations of `fn` and, for each step, one Hessian-vector product for
    each of the N features. Memory for N x N values per example. Deterministic.

    Args:
        baseline: where the path starts: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves keep their values.
        num_steps: the number of points on the path.
        quadrature: where the points lie: at the means of equal intervals, or those of the Gaussian
            rule, which needs fewer points for a smooth `fn`.

    Returns:
        values of the shape of `x` twice, (features, features), symmetric and signed, in units of
        the output. For a pytree, a pytree of pytrees like `x`, as `jax.hessian` returns. Integer
        leaves get zeros. `info["delta"]` is the convergence delta: their sum minus the difference
        between the target at `x` and at the baseline. `info["relative_delta"]` is its magnitude
        relative to that difference; above 0.01 a `jaxattn.ConvergenceWarning` is shown, outside of
        `jit`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            or for fewer than one step or an unknown quadrature.

    Reference:
        Janizek et al. 2021, Explaining explanations: axiomatic feature interactions for deep
        networks, arXiv:2002.04138.

    Examples:
        A product is shared between four pairs.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 5 * x[2]
        >>> got = ja.integrated_hessians(fn, jnp.array([2.0, 4.0, 1.0]), num_steps=4)
        >>> print(got.values.round(4))
        [[2. 2. 0.]
         [2. 2. 0.]
         [0. 0. 5.]]
    """
    floating, _ = floating_leaves(x, "a gradient")
    start = broadcast_baseline(baseline, x, keep_integers=True)
    starts, merge = floating_leaves(start, "a gradient")
    distances = [leaf - first for leaf, first in zip(floating, starts, strict=True)]
    score_of = scored(fn, target, args)
    slope_of = jax.grad(lambda leaves: score_of(merge(leaves))[0])
    units = _units(distances)
    size = _size(x)
    inside = None if batch_size is None else min(size, batch_size)
    at_once = None if batch_size is None else max(1, batch_size // size)

    def weighted(node: Quadrature) -> tuple[list[Array], list[Array]]:
        def times(factor: Array, leaves: list[Array]) -> list[Array]:
            return [factor.astype(leaf.dtype) * leaf for leaf in leaves]

        steps = times(node.nodes, distances)
        point = [first + step for first, step in zip(starts, steps, strict=True)]
        slope, push = jax.linearize(slope_of, point)
        rows = chunked_map(push, units, inside)
        return times(node.weights, slope), times(node.weights * node.nodes, rows)

    nodes = Quadrature(*map(jnp.asarray, product_points(quadrature, num_steps)))
    slope, rows = chunked_sum(weighted, nodes, at_once)
    score, output = score_of(x)
    score_start, _ = score_of(start)
    of_row = jnp.concatenate([d.reshape(-1).astype(score.dtype) for d in distances])

    def products(row: Array, unit: Array, slope: Array, distance: Array) -> Array:
        """Return the values in all rows of one leaf's features; on the diagonal the gradient's."""
        expanded = of_row.astype(row.dtype).reshape(size, *[1] * distance.ndim)
        return expanded * (row * distance[None]) + unit * (distance * slope)[None]

    columns = [products(*parts) for parts in zip(rows, units, slope, distances, strict=True)]
    total = jnp.stack([leaf.sum().astype(score.dtype) for leaf in columns]).sum()
    values = _by_leaves(x, columns, score.dtype)
    return Attribution(values, output, convergence(total, score, score_start))


def _units(leaves: list[Array]) -> list[Array]:
    """Return the unit vectors of the features of several arrays, along a leading axis."""
    size, end, units = sum(leaf.size for leaf in leaves), 0, []
    for leaf in leaves:
        start, end = end, end + leaf.size
        unit = jnp.eye(size, leaf.size, -start, leaf.dtype)
        units.append(unit.reshape(size, *leaf.shape))
    return units


def _by_leaves(x: Inputs, columns: list[Array], dtype: Any) -> PyTree:
    """Return the values of rows and columns as a pytree of pytrees like `x`."""
    leaves, treedef = jax.tree.flatten(x)
    rest = iter(columns)
    of_leaf = [next(rest) if is_floating(leaf) else None for leaf in leaves]
    end, trees = 0, []
    for row in leaves:
        start, end = end, end + (row.size if is_floating(row) else 0)

        def block(column: Array | None, like: Array, row: Array = row, start: int = start) -> Array:
            shape = (*row.shape, *like.shape)
            if column is None or not is_floating(row):
                return jnp.zeros(shape, dtype)
            return column[start : start + row.size].reshape(shape)

        blocks = [block(column, like) for column, like in zip(of_leaf, leaves, strict=True)]
        trees.append(jax.tree.unflatten(treedef, blocks))
    return jax.tree.unflatten(treedef, trees)
