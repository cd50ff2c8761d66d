"""Test configuration: strict JAX, eight virtual devices, fast compilation, run-time type checks.

Compiling takes most of the time of the tests, so by default programs are compiled without
optimization. Mark a test or a module with `optimized` where it measures or inspects compiled
programs, or where XLA's results differ without optimization.
"""

import functools
import gc
import hashlib
import os
import sys
import types
from pathlib import Path

from xla_flags import supported

# The environment must be complete before jax, keras and matplotlib are imported.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # The older emitter of fusions compiles small programs three times as fast.
        *supported(
            ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
        ),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"

from typing import Any

import beartype
import beartype.roar
import jax
import jaxlib
import jaxtyping
import matplotlib
import pytest
from matplotlib.figure import Figure

matplotlib.rcParams.update({"figure.dpi": 50, "savefig.dpi": 50})
Figure.savefig = functools.partialmethod(
    lambda self, save, *args, **options: save(self, *args, **options | {"dpi": 50}), Figure.savefig
)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Each saves about a tenth of the time: fewer garbage collections of a large heap, and programs
# without the locations of their operations in the source.
gc.set_threshold(50_000, 20, 100)
jax.config.update("jax_traceback_in_locations_limit", 0)


check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # ints are floats


def check_after_call(fn):
    """Check types after `fn` has returned, so that the library's own errors are raised first.

    jaxtyping checks the arguments alone (with `-> Any`), calls `fn`, then checks the arguments
    again together with the result.
    """
    if fn.__annotations__.get("return") is Any:
        return fn
    try:
        return check(fn)
    except beartype.roar.BeartypeDecorHintPep3119Exception:  # a Protocol without isinstance
        return fn


def jaxtyped(fn=None, *, typechecker, decorate=jaxtyping.jaxtyped):
    """Decorate only functions with annotations, and no results that JAX fills with placeholders."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if isinstance(fn, type) and fn.__module__ == "jaxattn.introspect.results":
        return fn
    if isinstance(fn, types.FunctionType) and not fn.__annotations__:
        return fn
    return decorate(fn, typechecker=typechecker)


jaxtyping.jaxtyped = jaxtyped  # the import hook looks it up
# Type checks of internal functions double the time of tracing: CI has them, `make test` does not.
PUBLIC = [f"jaxattn.{name}" for name in ("methods", "metrics", "models", "nn", "plot")]
CHECKED = "jaxattn" if os.environ.get("CHECK_TYPES") == "all" else PUBLIC
jaxtyping.install_import_hook(CHECKED, f"{__name__}.check_after_call")

# Workers and later runs with the same versions and flags share compiled programs.
FLAGS = sorted(set(os.environ["XLA_FLAGS"].split()))
VERSIONS = jax.__version__, jaxlib.__version__, sys.version, FLAGS
CACHE = hashlib.sha256(repr(VERSIONS).encode()).hexdigest()[:12]
jax.config.update(
    "jax_compilation_cache_dir",
    str(Path(__file__).parents[1] / ".pytest_cache" / f"xla-{CACHE}"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser):
    """Add the number of random networks (`tests/fuzz`)."""
    parser.addoption("--networks", type=int, default=24, help="number of random networks")


# Workers start these files first, the slowest of both tiers. A long group at the end would leave
# the other workers idle.
LONGEST = (
    "test_fuzz",
    "test_methods_common", "test_method_pages", "test_examples", "test_example_dates", "test_front",
    "test_jacobian", "test_engine_mesh", "test_relevance", "test_example_glimpses", "test_planted",
    "test_reuse_occlusion", "test_callable", "test_models_glimpses", "test_models_captioner",
    "test_relevance_recurrent", "test_doctests", "test_example_captions",
)  # fmt: skip
# The parameter whose values divide a file's tests into groups; other files are one group.
DIVIDED_BY = {"test_methods_common": "name", "test_examples": "run"}


def group(item):
    """Return the name of the group of tests that share programs and fixtures in one process."""
    stem = item.path.stem
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return f"{stem}-{params.get(DIVIDED_BY.get(stem), '')}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Divide tests into tiers and groups, the longest groups first."""
    missing = {}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
        quick = item.get_closest_marker("representatives")
        if quick is not None:
            case = item.callspec.id
            found = {each for each in quick.args if each == case or each in case.split("-")}
            if not found:
                item.add_marker(pytest.mark.slow)
            test = item.path.stem, item.originalname
            missing[test] = missing.get(test, set(quick.args)) - found
    wrong = {test: ids for test, ids in missing.items() if ids}
    if wrong and not any("::" in str(arg) for arg in config.args):
        raise pytest.UsageError(f"representatives that are no test's parameters: {wrong}")
    rank = {stem: i for i, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup(item):
    """Set the level of optimization before any fixture of the test is set up."""
    plain = item.get_closest_marker("optimized") is None
    if plain != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", plain)
        jax.clear_caches()


#: Linux limits a process to 65,530 memory mappings. XLA uses several for each program and crashes
#: beyond the limit.
MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Clear the compiled programs after a file if there are many memory mappings."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
