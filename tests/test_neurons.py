"""Attribution of a unit of a named intermediate, by any method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

X, BASELINE = np.array([1.0, -2.0, 0.5]), np.ones(3)
W = np.sin(np.arange(12) * 1.7 + 0.3).reshape(3, 4)


def network(x):
    hidden = ja.tag(jax.nn.relu(x @ W + 0.1), "hidden")
    return jnp.sort(hidden) ** 3  # has no rule of LRP, and is not reached


def hidden(x):
    return jax.nn.relu(x @ W + 0.1)


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (ja.gradient, {}),
        (ja.integrated_gradients, {"num_steps": 5}),
        (ja.occlusion, {}),
        (ja.lrp, {"epsilon": 0.1}),
        (ja.deep_lift, {"baseline": 0.5}),
        (ja.guided_backprop, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_method_explains_a_unit(method, options, x64):
    got = method(ja.intermediate(network, "hidden"), X, 2, **options)
    want = method(hidden, X, 2, **options)
    close(got.values, want.values)
    close(got.output, hidden(X))
    assert np.any(want.values)


def test_units_agree_with_captum(x64):
    """NeuronIntegratedGradients ("riemann_middle") computes its points in float32."""
    unit = ja.intermediate(network, "hidden")
    options = {"baseline": BASELINE, "num_steps": 50}
    got = ja.integrated_gradients(unit, X, 1, **options)
    close(got.values, [0, -1.6494664470863187, -0.05064421544875225], 1e-7)
    got = ja.deep_lift(unit, X, 1, baseline=BASELINE)
    close(got.values, [0, -1.651268720655662, -0.05069955136122543])


def test_each_unit_of_a_batch(x64):
    got = ja.explain(ja.gradient, ja.intermediate(network, "hidden"), X[None], ja.each())
    close(got.values[0], jax.jacobian(hidden)(X))


def test_capture_selects_a_unit_with_a_callable(x64):
    got = ja.gradient(ja.capture(network, "hidden"), X, lambda out: out[1]["hidden"][2])
    close(got.values, W[:, 2])


def test_values_of_the_intermediate(x64):
    unit = ja.intermediate(network, "hidden")
    close(unit(X), hidden(X))
    close(jax.vmap(unit)(X[None])[0], hidden(X))

    def loop(x):
        return jax.lax.scan(lambda h, row: (h + row, ja.tag(h * row, "state")), 0.0, x)[0]

    close(ja.intermediate(loop, "state")(X), [0, -2, -0.5])


def test_invalid_names_raise():
    with pytest.raises(TypeError, match="`at` must be the name of an intermediate, got 3"):
        ja.intermediate(network, 3)
    with pytest.raises(TypeError, match="`fn` must be callable"):
        ja.intermediate(3, "hidden")
    with pytest.raises(ValueError, match="pool"):
        ja.intermediate(network, "pool")(X)
