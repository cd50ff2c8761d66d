"""Strict JAX, eight virtual devices, and run-time type checks: for the tests only."""

import os
from pathlib import Path

# All of this must be in the environment before jax, keras and matplotlib are imported.
os.environ["XLA_FLAGS"] = " ".join(
    filter(None, [os.environ.get("XLA_FLAGS"), "--xla_force_host_platform_device_count=8"])
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"

from typing import Any

import beartype.roar
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def check_after_call(fn):
    """Check types once `fn` has returned: a wrong argument must meet our own error first.

    jaxtyping checks the arguments alone (with `-> Any`), calls, then checks them with the result.
    """
    if fn.__annotations__.get("return") is Any:
        return fn
    try:
        return beartype.beartype(fn)
    except beartype.roar.BeartypeDecorHintPep3119Exception:  # a Protocol without isinstance
        return fn


jaxtyping.install_import_hook("jaxattn", f"{__name__}.check_after_call")


#: Linux lets a process map 65,530 pieces of memory, and XLA maps several for each program: beyond
#: them it does not fail, but crashes.
MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget a file's compiled programs where they have become many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
