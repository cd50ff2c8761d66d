"""Modules with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def with_random_parameters(create, scale=0.6):
    """Return the module of `create()` with normal parameters, so that no bias is zero.

    NumPy draws them: the initializers would compile several programs for each shape.
    """
    module = nnx.eval_shape(create)
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(
        lambda p: jnp.asarray(scale * rng.normal(size=p.shape), p.dtype), nnx.state(module)
    )
    nnx.update(module, drawn)
    return module
