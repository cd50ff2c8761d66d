"""Decompositions of matrices in a program, which LAPACK computes on a CPU."""

import math

import jax.extend.core as jex

from jaxattn.jaxpr.interpreter import sub_jaxprs

_PRIMITIVES = frozenset(
    "cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu ormqr schur "
    "svd symmetric_product triangular_solve tridiagonal tridiagonal_solve".split()
)


def takes_batches(jaxpr: jex.Jaxpr) -> bool:
    """Return whether a program decomposes, on a CPU, more than one matrix in one equation."""
    for eqn in jaxpr.eqns:
        shape = getattr(eqn.invars[0].aval, "shape", ()) if eqn.invars else ()
        if eqn.primitive.name in _PRIMITIVES and math.prod(shape[:-2]) > 1:
            return True
        if any(takes_batches(inner.jaxpr) for inner in _on_cpu(eqn)):
            return True
    return False


def _on_cpu(eqn: jex.JaxprEqn) -> list[jex.ClosedJaxpr]:
    """Return the jaxprs inside of an equation, of branches for several platforms that for a CPU."""
    platforms = eqn.params.get("branches_platforms")
    if platforms is None:
        return sub_jaxprs(eqn)
    own = [i for i, names in enumerate(platforms) if names is None or "cpu" in names]
    return [eqn.params["branches"][own[0]]]
