"""A square of a few cells decides the class: every method must find it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import planted


@pytest.mark.slow
def test_every_method_finds_the_square():
    digits = planted.backgrounds()
    rng = np.random.default_rng(1)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
        model = planted.train(digits[:4000], num_steps=1000)
    test = planted.plant(digits[4000:], rng)
    assert (jnp.argmax(model(test.xs), -1) == test.labels).mean() > 0.99
    case = planted.plant(digits[4000:4200], rng, classes=planted.NONE)
    shares = {name: planted.found(name, model, case).mean() for name in planted.METHODS}
    # The benchmark trains for longer, and a gradient profits from that; here is less time.
    least = {"saliency": 0.9, "smooth_grad": 0.9}
    assert all(share >= least.get(name, 0.95) for name, share in shares.items()), shares


def test_finding_it_by_chance_is_rare():
    cells = np.stack(np.unravel_index(np.arange(14 * 14), (14, 14)), 1)
    corners = np.tile([[2, 5]], (14 * 14, 1))
    hits = planted.within(cells, corners)
    assert hits.reshape(14, 14)[2:5, 5:8].all()
    assert hits.sum() == 9
