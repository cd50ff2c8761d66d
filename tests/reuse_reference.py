"""Compare runs with some changed rows to the function of the whole changed inputs."""

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


def row_index(x, rows):
    """Return the index of the rows."""
    return (slice(None),) * rows.axis + (slice(rows.lo, rows.hi),)


def changed_inputs(x, changes):
    """Return the input of each run and its changed rows."""
    rng, inputs, parts = np.random.default_rng(1), [], []
    for rows in changes:
        new = np.array(x)
        if isinstance(rows, Rows):
            old = new[row_index(x, rows)]
            new_rows = (
                rng.integers(0, 5, old.shape) if x.dtype.kind == "i" else rng.normal(size=old.shape)
            )
            new[row_index(x, rows)] = new_rows
        inputs.append(new)
        parts.append(new[row_index(x, rows)] if isinstance(rows, Rows) else None)
    return np.stack(inputs), parts


def check_reuse(fn, x, *changes, rtol=1e-12):
    """Assert that all runs equal the function of the changed inputs; return their relative cost.

    The cost of each plan is relative to that of as many full runs.
    """
    traced = Traced.of(fn, x)
    assert is_replayable(traced.flat)
    inputs = [changed_inputs(x, each) for each in changes]
    plans = [plan_reuse(traced, each) for each in changes]

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(x, inputs):
        got, clean = [], []
        for plan, (_, parts) in zip(plans, inputs, strict=True):
            run = run_clean(plan, x)
            got.append(run_changed(plan, run, parts))
            clean.append(jax.tree.unflatten(traced.treedef, read(traced.flat.outputs, run.values)))
        return (got, clean), ([jax.vmap(fn)(whole) for whole, _ in inputs], [fn(x)] * len(inputs))

    got, want = both(x, inputs)
    assert jax.tree.structure(got) == jax.tree.structure(want)

    def compare(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-13)

    jax.tree.map(compare, got, want)
    full = traced.flops
    return [(plan.flops - full) / max(1, full * plan.number) for plan in plans]
