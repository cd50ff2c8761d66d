"""LRP of a transformer of four layers equals a dense implementation, layer by layer."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformer_reference as reference

import jaxattn as ja

pytestmark = pytest.mark.usefixtures("x64")

IDS, TARGET = np.array([3, 7, 1, 1, 9, 4]), 5


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True], ids=["layer_norm+gelu", "rms_norm+swiglu"])
@pytest.mark.parametrize("attention", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("epsilon", [0.0, 0.02])
@pytest.mark.representatives("0.02-attnlrp-rms_norm+swiglu")
def test_lrp_equals_dense_implementation(gated, attention, epsilon):
    model = reference.random_transformer(layers=4, gated=gated)

    def fn(ids):
        return reference.logits(model, ja.tag(jnp.asarray(model.embeddings)[ids], "embeddings"))

    found = ja.lrp(
        fn, jnp.asarray(IDS), TARGET, at="embeddings",
        attention=attention, epsilon=epsilon, products="half",
    )  # fmt: skip
    rules = reference.Rules(epsilon, constant_weights=attention == "cp_lrp")
    want = reference.relevance(model, model.embeddings[IDS], TARGET, rules)
    assert found.values.dtype == jnp.float64
    np.testing.assert_allclose(found.values, want, rtol=0, atol=1e-8 * np.abs(want).max())
    score = found.output[TARGET]
    np.testing.assert_allclose(
        found.info["absorbed"], score - want.sum(), atol=1e-8 * np.abs(want).sum()
    )
