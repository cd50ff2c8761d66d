"""Test the order of imports and the absence of private JAX APIs."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each module, or each package as a whole, may import those before it.
ORDER = """
_static _reductions _types

jaxpr.interpreter jaxpr.flat jaxpr.literals jaxpr.program jaxpr.names jaxpr.relu jaxpr.flops
jaxpr.lapack jaxpr.rows jaxpr.pair_arithmetic jaxpr.real_pairs

jaxpr.structure.primitive_classes jaxpr.structure.bounds jaxpr.structure.facts
jaxpr.structure.producers jaxpr.structure.axes jaxpr.structure.equality
jaxpr.structure.factors jaxpr.structure.softmaxes jaxpr.structure.graph
jaxpr.structure.logarithms jaxpr.structure.normalisations jaxpr.structure.affine
jaxpr.structure.analysis jaxpr.structure.hoisted jaxpr.structure.activations

jaxpr.attention.sites jaxpr.attention.axis_sources jaxpr.attention.origins jaxpr.attention.readings
jaxpr.attention.discovery jaxpr.attention.exposed

jaxpr.capture jaxpr.attention.weights_by_name

jaxpr.readout

jaxpr.propagation.walk jaxpr.propagation.loop_plans jaxpr.propagation.loops
jaxpr.propagation.reverse jaxpr.propagation.windowed_layer jaxpr.propagation.modified_layer
jaxpr.propagation.layer_rules jaxpr.propagation.selection jaxpr.propagation.products
jaxpr.propagation.score jaxpr.propagation.lrp jaxpr.propagation.secants
jaxpr.propagation.two_runs jaxpr.propagation.deep_lift
jaxpr.propagation.patterns jaxpr.propagation.decomposed_values jaxpr.propagation.decomposition

jaxpr.reuse.extents jaxpr.reuse.extent_rules jaxpr.reuse.step_values jaxpr.reuse.loop_split
jaxpr.reuse.loop_schedule jaxpr.reuse.rerun jaxpr.reuse.reuse_plan jaxpr.reuse.incremental
jaxpr.reuse.coalition_plan jaxpr.reuse.coalition_runs jaxpr.reuse.coalition_loop
jaxpr.reuse.coalition_tree jaxpr.reuse.affine_prefix jaxpr.reuse.causal_steps

jaxpr.recurrence.affine_maps jaxpr.recurrence.polynomials jaxpr.recurrence.cells
jaxpr.recurrence.time_axis jaxpr.recurrence.recurrent_layers jaxpr.recurrence.observed_runs
jaxpr.recurrence.cell_weights

engine.numbers engine.batch engine.perturb engine.background engine.inputs engine.scopes
engine.nnx_modules engine.equinox_modules engine.closures engine.environment engine.lengths
engine.memo
engine.callable engine.target engine.each engine.options engine.feature_groups
engine.coalitions
engine.intermediates engine.compiled engine.placement engine.threads engine.memory
engine.examples engine.window_groups engine.coalition_reuse engine.checks engine.diagnosis
engine.binding engine.launch engine.plan engine.convergence engine.result_checks engine.parts
engine.call engine.method engine.explain engine.benchmark

groups methods metrics nn models introspect plot
reporting
""".split()

# Parts that may import only some of the preceding parts.
MAY_IMPORT_ONLY = {
    "_types": {"_reductions"},
    "groups": set(),
    "metrics": {"_static", "_types", "jaxpr", "engine"},
    "nn": {"jaxpr.capture"},
    "models": {"nn"},
    "introspect": {"_types", "engine", "jaxpr", "nn"},
    "plot": set(),
}

# External packages that a part may import; other parts are not restricted.
MAY_IMPORT_FROM_OUTSIDE = {"plot": {"numpy", "matplotlib", "jaxtyping", *sys.stdlib_module_names}}

BANNED = ("jax._src", "jax.core", "jax.experimental.shard_map")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def imports(module: str, source: str) -> Iterator[str]:
    """Yield the full dotted name of every import in the file.

    A package has the name of its file (`jaxattn.nn.__init__`), so that relative imports resolve as
    in other modules.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = [*parent, node.module] if node.module else parent
            yield from (".".join([*base, alias.name]) for alias in node.names)


def part_of(path: str) -> str | None:
    """Return the entry of `ORDER` that a module below `jaxattn` belongs to."""
    return next((part for part in ORDER if within(path, part)), None)


def allowed_parts(part: str) -> set[str]:
    """Return the parts that may be imported by a part, including itself."""
    before = set(ORDER[: ORDER.index(part)])
    return {part} | MAY_IMPORT_ONLY.get(part, before)


def violations(module: str, source: str) -> list[str]:
    """Return the forbidden imports, attributes and names of a module."""
    imported = set(imports(module, source))
    attributes = {n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
    banned = BANNED if within(module, "jaxattn.jaxpr") else (*BANNED, "jax.extend")
    problems = {
        name
        for name in imported | {ast.unparse(attribute) for attribute in attributes}
        if any(within(name, prefix) for prefix in banned)
    }
    _, *path = module.split(".")
    problems |= {name for name in path if VAGUE & set(name.split("_"))}
    problems |= {f"{name} starts with an underscore" for name in path[1:] if is_private(name)}
    if path == ["__init__"]:  # the public API may import everything
        return sorted(problems)
    inside = ".".join(path).removesuffix(".__init__")
    part = part_of(inside)
    if part is None and not source_is_docstring(source):
        problems.add(f"{inside} is not in ORDER")
    allowed = allowed_parts(part) if part else set()
    for name in imported:
        package, _, target = name.partition(".")
        if package == "jaxattn":
            problems |= set() if any(within(target, other) for other in allowed) else {name}
        elif package not in MAY_IMPORT_FROM_OUTSIDE.get(path[0], {package}):
            problems.add(name)
    return sorted(problems)


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"


def source_is_docstring(source: str) -> bool:
    """Return whether a file, such as a package's `__init__`, contains no code."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(source).body)


def cycle(sources: dict[str, str]) -> list[str]:
    """Return the modules of one import cycle, or an empty list."""
    modules = {name.removesuffix(".__init__"): name for name in sources}
    graph: dict[str, set[str]] = {}
    for module, name in modules.items():
        owners = (
            max((other for other in modules if within(imported, other)), key=len, default=module)
            for imported in imports(name, sources[name])
        )
        graph[module] = set(owners) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for path in sorted((ROOT / "jaxattn").rglob("*.py"))
}


@pytest.mark.parametrize("module", SOURCES)
def test_module_follows_the_architecture(module):
    assert violations(module, SOURCES[module]) == []


def test_imports_are_acyclic():
    assert SOURCES
    assert cycle(SOURCES) == []


def test_file_names_are_unique():
    names = [module.rpartition(".")[2] for module in SOURCES]
    assert sorted({name for name in names if names.count(name) > 1}) == ["__init__"]


@pytest.mark.parametrize(
    ("module", "source", "name"),
    [
        ("_types", "from jaxattn import _static", "jaxattn._static"),
        ("_types", "from . import _static", "jaxattn._static"),
        ("_static", "import jaxattn._types", "jaxattn._types"),
        (
            "engine.batch",
            "from jaxattn.engine.target import select",
            "jaxattn.engine.target.select",
        ),
        (
            "engine.explain",
            "from jaxattn.methods.gradients import g",
            "jaxattn.methods.gradients.g",
        ),
        ("engine.explain", "def f():\n    from ..methods import g", "jaxattn.methods.g"),
        (
            "jaxpr.structure.facts",
            "from jaxattn.engine.callable import f",
            "jaxattn.engine.callable.f",
        ),
        (
            "jaxpr.interpreter",
            "from jaxattn.jaxpr.structure.facts import f",
            "jaxattn.jaxpr.structure.facts.f",
        ),
        ("jaxpr.__init__", "from ..engine.explain import f", "jaxattn.engine.explain.f"),
        ("methods.masks", "import jaxattn as ja", "jaxattn"),
        ("methods.masks", "from jaxattn.metrics import f", "jaxattn.metrics.f"),
        ("nn.recurrent", "from jaxattn.jaxpr import interpreter", "jaxattn.jaxpr.interpreter"),
        ("models.captioner", "from jaxattn._types import Array", "jaxattn._types.Array"),
        ("plot.style", "from jaxattn._types import Attribution", "jaxattn._types.Attribution"),
        ("plot.style", "import jax.numpy as jnp", "jax.numpy"),
        ("methods.masks", "import jax\njax.core.Tracer", "jax.core.Tracer"),
        ("methods.masks", "from jax import core", "jax.core"),
        ("jaxpr.flat", "from jax._src.lax import scan", "jax._src.lax.scan"),
        (
            "engine.explain",
            "from jax.experimental.shard_map import f",
            "jax.experimental.shard_map.f",
        ),
        ("methods.masks", "import jax.extend.core as jex", "jax.extend.core"),
        ("methods.utils", "", "utils"),
        ("methods._masks", "", "_masks starts with an underscore"),
        ("novelty", "x = 1", "novelty is not in ORDER"),
    ],
)
def test_checker_detects_violations(module, source, name):
    assert name in violations(f"jaxattn.{module}", source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__init__", "from jaxattn.methods import gradient\nfrom . import plot"),
        ("jaxpr.flat", "import jax.extend.core as jex\nfrom .interpreter import evaluate"),
        ("nn.recurrent", "import jax\nfrom jaxattn.jaxpr.capture import tag\nfrom . import gates"),
        ("nn.recurrent", "from jaxattn.jaxpr import capture"),
        ("plot.style", "import math\nimport matplotlib.pyplot as plt\nfrom numpy import nan"),
    ],
)
def test_checker_accepts_allowed_imports(module, source):
    assert violations(f"jaxattn.{module}", source) == []


def test_checker_detects_cycles():
    sources = {
        "jaxattn.__init__": "from jaxattn.nn import cell",
        "jaxattn.nn.__init__": "from .cell import LSTM",
        "jaxattn.nn.cell": "def f():\n    from jaxattn.nn import gates",
        "jaxattn.nn.gates": "",
    }
    assert cycle(sources) == []
    assert set(cycle(sources | {"jaxattn.nn.gates": "from . import cell"})) == {
        "jaxattn.nn.cell",
        "jaxattn.nn.gates",
    }
