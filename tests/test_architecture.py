"""Imports go one way, and jax's internals stay out."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each may import those before it.
FOUNDATION = (
    "_types _static jaxpr _batch _grouped _callable _intermediates _target _threads _memory "
    "_compiled _placement _examples _options _job _perturb _inputs"
).split()

# What each part may import of jaxattn besides itself. A new part needs a row.
MAY_IMPORT = {part: set(FOUNDATION[:i]) for i, part in enumerate(FOUNDATION)} | {
    "_static": set(),
    "_explain": {*FOUNDATION},
    "methods": {*FOUNDATION, "_explain"},
    "metrics": {*FOUNDATION, "_explain"},
    "_benchmark": {*FOUNDATION, "_explain"} - {"_perturb"},
    "nn": {"jaxpr.capture"},
    "models": {"nn"},
    "introspect": {"_types", "_callable", "jaxpr", "nn"},
    "plot": set(),
}

# What a part may import from elsewhere, where that is not left to its author.
MAY_IMPORT_FROM_OUTSIDE = {"plot": {"numpy", "matplotlib", "jaxtyping", *sys.stdlib_module_names}}

BANNED = ("jax._src", "jax.core", "jax.experimental.shard_map")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def imports(module: str, source: str) -> Iterator[str]:
    """Yield the full dotted name of everything imported, anywhere in the file.

    A package is called by its file, `jaxattn.nn.__init__`: relative imports then all work alike.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = [*parent, node.module] if node.module else parent
            yield from (".".join([*base, alias.name]) for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """Say what a module imports, uses or is called that it must not."""
    imported = set(imports(module, source))
    attributes = {n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
    banned = BANNED if within(module, "jaxattn.jaxpr") else (*BANNED, "jax.extend")
    found = {
        name
        for name in imported | {ast.unparse(attribute) for attribute in attributes}
        if any(within(name, outlaw) for outlaw in banned)
    }
    _, *path = module.split(".")
    found |= {name for name in path if VAGUE & set(name.split("_"))}
    part = path[0]
    if part == "__init__":  # the public API sees everything
        return sorted(found)
    if part not in MAY_IMPORT:
        found.add(f"{part} has no row in MAY_IMPORT")
    for name in imported:
        package, _, target = name.partition(".")
        if package == "jaxattn":
            allowed = {part} | MAY_IMPORT.get(part, set())
            found |= set() if any(within(target, other) for other in allowed) else {name}
        elif package not in MAY_IMPORT_FROM_OUTSIDE.get(part, {package}):
            found.add(name)
    return sorted(found)


def cycle(sources: dict[str, str]) -> list[str]:
    """Return the modules of one import cycle, none if there is none."""
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
def test_a_module_keeps_to_its_place(module):
    assert violations(module, SOURCES[module]) == []


def test_imports_are_acyclic():
    assert SOURCES
    assert cycle(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "source", "name"),
    [
        ("_types", "from jaxattn import _static", "jaxattn._static"),
        ("_types", "from . import _static", "jaxattn._static"),
        ("_static", "import jaxattn._types", "jaxattn._types"),
        ("_callable", "from jaxattn._target import select", "jaxattn._target.select"),
        ("_explain", "from jaxattn.methods.gradients import g", "jaxattn.methods.gradients.g"),
        ("_explain", "def f():\n    from .methods import g", "jaxattn.methods.g"),
        ("jaxpr.rules", "from jaxattn._callable import f", "jaxattn._callable.f"),
        ("jaxpr.__init__", "from .._explain import f", "jaxattn._explain.f"),
        ("methods.masks", "import jaxattn as ja", "jaxattn"),
        ("methods.masks", "from jaxattn.metrics import f", "jaxattn.metrics.f"),
        ("nn.recurrent", "from jaxattn.jaxpr import interpreter", "jaxattn.jaxpr.interpreter"),
        ("models.captioner", "from jaxattn._types import Array", "jaxattn._types.Array"),
        ("plot._image", "from jaxattn._types import Attribution", "jaxattn._types.Attribution"),
        ("plot._image", "import jax.numpy as jnp", "jax.numpy"),
        ("methods.masks", "import jax\njax.core.Tracer", "jax.core.Tracer"),
        ("methods.masks", "from jax import core", "jax.core"),
        ("jaxpr.rules", "from jax._src.lax import scan", "jax._src.lax.scan"),
        ("_explain", "from jax.experimental.shard_map import f", "jax.experimental.shard_map.f"),
        ("methods.masks", "import jax.extend.core as jex", "jax.extend.core"),
        ("methods._utils", "", "_utils"),
        ("novelty", "", "novelty has no row in MAY_IMPORT"),
    ],
)
def test_the_checker_sees_a_violation(module, source, name):
    assert name in violations(f"jaxattn.{module}", source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__init__", "from jaxattn.methods import gradient\nfrom . import plot"),
        ("jaxpr.rules", "import jax.extend.core as jex\nfrom .interpreter import evaluate"),
        ("nn.recurrent", "import jax\nfrom jaxattn.jaxpr.capture import tag\nfrom . import gates"),
        ("nn.recurrent", "from jaxattn.jaxpr import capture"),
        ("plot._image", "import math\nimport matplotlib.pyplot as plt\nfrom numpy import nan"),
    ],
)
def test_the_checker_allows_the_design(module, source):
    assert violations(f"jaxattn.{module}", source) == []


def test_the_checker_sees_a_cycle():
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
