"""The propagation that all rules share: with derivatives as rules it computes gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.jaxpr.propagation.loop_plans import Planner
from jaxattn.jaxpr.propagation.reverse import propagate
from jaxattn.jaxpr.propagation.score import structure_of
from jaxattn.jaxpr.propagation.walk import Rules
from jaxattn.jaxpr.structure.facts import Fact

T, D = 4, 3
RNG = np.random.default_rng(0)
X, W, U = RNG.normal(size=(T, D)), RNG.normal(size=(D, D)), RNG.normal(size=(D, D))


@pytest.fixture(autouse=True)
def float64(x64):
    pass


class Derivative(Rules):
    """The ordinary derivative of each step."""

    def __call__(self, visit):
        return visit.transpose()


def recurrence(x, reverse=False):
    def advance(h, row):
        h = jnp.tanh(row @ W + h @ U)
        return h, h * row

    return jax.lax.scan(advance, jnp.zeros(D), x, reverse=reverse)


def backwards(x):
    h, ys = recurrence(x, reverse=True)
    return h.sum() + (ys**2).sum()


def nested(x):
    def outer(h, row):
        def inner(h, i):
            return jnp.sin(h @ U + row * i), h

        h, hs = jax.lax.scan(inner, h, jnp.arange(3.0))
        return h, hs.sum(0) * row

    h, ys = jax.lax.scan(outer, x[0], x)
    return (h**2).sum() + ys.max()


def branches(x):
    def advance(h, inputs):
        row, i = inputs
        update = jax.lax.switch(
            i % 3, [lambda v: jnp.tanh(v @ W), lambda v: v * v, lambda v: jnp.ones(D)], row
        )
        return h * 0.5 + update, None

    return (jax.lax.scan(advance, jnp.ones(D), (x, jnp.arange(T)))[0] ** 3).sum()


def without_steps(x):
    h, _ = jax.lax.scan(lambda h, row: (h * row, None), x[0], x[:0])
    return (h**2).sum()


def delayed(x):
    """The cotangent of the first carry comes from the last carry, after three steps."""

    def advance(carry, row):
        a, b, c = carry
        return (a * row, b + jnp.sin(a), c + b * row), None

    zeros = jnp.zeros(D)
    return jax.lax.scan(advance, (jnp.ones(D), zeros, zeros), x)[0][2].sum()


def dtype():
    return jnp.dtype(jnp.float64)


@pytest.mark.parametrize(
    "fn", [lambda x: recurrence(x)[0].sum(), backwards, nested, branches, without_steps, delayed]
)
@pytest.mark.representatives("nested", "branches", "delayed")
def test_derivatives_as_rules_give_the_gradient(fn):
    structure, _ = structure_of(fn, [X], [Fact(active=True, depends_on_input=True)])

    @jax.jit
    def gradient(x):
        return propagate(Derivative(dtype()), structure, [(x,)], lambda _: [jnp.ones(())]).inputs[0]

    np.testing.assert_allclose(gradient(X), jax.grad(fn)(X), rtol=1e-12, atol=1e-12)


def planned(fn):
    """Return the only loop plan of a function and the structure of the loop's body."""
    structure, _ = structure_of(fn, [X], [Fact(active=True, depends_on_input=True)])
    planner = Planner(Derivative(dtype()))
    jax.eval_shape(lambda x: planner(structure, [(x,)], lambda _: [jnp.ones(())]), X)
    ((step, plan),) = planner.plans.loops.items()
    return plan, structure.inner[step][0]


def test_plan_propagates_cotangents_between_carries():
    plan, _ = planned(delayed)
    assert plan.reached.carry == [True, True, True]
    assert plan.reached.xs == [True]


def test_plan_omits_carries_without_cotangents():
    def fn(x):
        def advance(carry, row):
            i, h, largest = carry
            return (i + 1, h * row, jnp.maximum(largest, h)), None

        return jax.lax.scan(advance, (0, jnp.ones(D), jnp.zeros(D)), x)[0][1].sum()

    plan, _ = planned(fn)
    assert plan.reached.carry == [False, True, False]


def test_plan_stores_only_active_values():
    weights = jnp.asarray(U)

    def fn(x):
        def advance(h, row):
            return h @ jnp.exp(weights) + row, None

        return jax.lax.scan(advance, jnp.ones(D), x)[0].sum()

    plan, body = planned(fn)
    assert all(body.facts[var].active for var in plan.stored)
    assert len(plan.consts) == 1  # the weights: their exponential is recomputed
