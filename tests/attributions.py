"""Comparison of attributions."""

import jax
import numpy as np

import jaxattn as ja


def close(got, expected, atol=1e-5):
    """Assert that attributions are close, except for `flops_saved`.

    The number of saved operations depends on the division into chunks and over devices.
    """
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=0, atol=atol),
        without_flops_saved(got),
        without_flops_saved(expected),
    )


def without_flops_saved(attribution):
    """Return the values, the output and the info without `flops_saved`."""
    if not isinstance(attribution, ja.Attribution):
        return attribution
    info = {name: value for name, value in attribution.info.items() if name != "flops_saved"}
    return attribution.values, attribution.output, info
