"""Runs with some rows changed against the function of the whole changed inputs."""

from functools import partial

import jax
import numpy as np

from jaxattn.jaxpr.flat import is_replayable
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.incremental import run_changed, run_clean
from jaxattn.jaxpr.reuse.reuse_plan import Traced, plan_reuse
from jaxattn.jaxpr.reuse.step_values import read

T, D, H = 9, 3, 3
RNG = np.random.default_rng(0)
W, U, V = (RNG.normal(size=shape) / 2 for shape in [(D, H), (H, H), (H, 2)])
X = RNG.normal(size=(T, D))
TABLE = RNG.normal(size=(5, D))

WIDE = [Rows(0, 2, 5), UNCHANGED, Rows(0, 0, T), Rows(0, T - 1, T), Rows(0, 3, 4)]
SHORT = [Rows(0, 4, 6), Rows(0, 0, 2), Rows(0, T - 2, T), UNCHANGED]
ACROSS = [Rows(1, 0, 1), UNCHANGED, Rows(1, 1, 3)]


def cells(x, rows):
    """The index of the rows."""
    return (slice(None),) * rows.axis + (slice(rows.lo, rows.hi),)


def changed_inputs(x, changes):
    """The input of each run, and its changed rows."""
    rng, inputs, parts = np.random.default_rng(1), [], []
    for rows in changes:
        new = np.array(x)
        if isinstance(rows, Rows):
            old = new[cells(x, rows)]
            fresh = (
                rng.integers(0, 5, old.shape) if x.dtype.kind == "i" else rng.normal(size=old.shape)
            )
            new[cells(x, rows)] = fresh
        inputs.append(new)
        parts.append(new[cells(x, rows)] if isinstance(rows, Rows) else None)
    return np.stack(inputs), parts


def equal(fn, x, *changes, rtol=1e-12):
    """All runs equal the function of the changed inputs; says which share of its cost is left."""
    traced = Traced.of(fn, x)
    assert is_replayable(traced.flat)
    given = [changed_inputs(x, each) for each in changes]
    plans = [plan_reuse(traced, each) for each in changes]

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(x, given):
        got, clean = [], []
        for plan, (_, parts) in zip(plans, given, strict=True):
            run = run_clean(plan, x)
            got.append(run_changed(plan, run, parts))
            clean.append(jax.tree.unflatten(traced.treedef, read(traced.flat.outputs, run.values)))
        return (got, clean), ([jax.vmap(fn)(whole) for whole, _ in given], [fn(x)] * len(given))

    got, want = both(x, given)
    assert jax.tree.structure(got) == jax.tree.structure(want)

    def compare(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-13)

    jax.tree.map(compare, got, want)
    plain = traced.flops
    return [(plan.flops - plain) / max(1, plain * plan.number) for plan in plans]
