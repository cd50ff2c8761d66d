"""Functions are traced again exactly when something that they read has changed."""

import dataclasses
import functools
import gc
import types
import weakref
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn._static import UnkeyableError
from jaxattn.engine import callable as engine_callable
from jaxattn.engine.environment import Environment
from jaxattn.engine.memo import MEMOS

D = 3
X = np.arange(1.0, D + 1, dtype=np.float32)

SCALE = 2.0
SCALES = {"all": [2.0]}
ARRAY = jnp.full(D, 2.0)


@pytest.fixture
def traces(monkeypatch):
    """The number of functions that have been traced."""
    counted = []

    def trace(*args):
        counted.append(args)
        return original(*args)

    MEMOS.traces.clear()
    original = engine_callable.trace
    monkeypatch.setattr(engine_callable, "trace", trace)
    return counted


class Linear(nnx.Module):
    def __init__(self, scale, power=1):
        self.w = nnx.Param(jnp.full(D, scale))
        self.power = power

    def __call__(self, x):
        return (x * self.w[...]).sum() * self.power


class Scaled:
    bias = 0.0

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return (self.factor() * x).sum()

    def factor(self):
        return self.scale + self.bias


@dataclasses.dataclass(frozen=True)
class Settings:
    scale: float


@dataclasses.dataclass
class Held:
    module: object
    scale: float = 1.0

    def score(self, x):
        return self.scale * self.module(x)


class Named(NamedTuple):
    module: object


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        kernel = self.param("kernel", linen.initializers.ones, (D,))
        return SCALE * (x * kernel).sum()


def reads_globals(x):
    return (SCALE * x).sum()


def calls_a_function_of_globals(x):
    return 1 * reads_globals(x)


def reads_a_container(x):
    return (SCALES["all"][0] * x).sum()


def reads_an_array(x):
    return (ARRAY * x).sum()


def slope(fn):
    return float(ja.gradient(fn, X).values[1])


def closure(value):
    return lambda x: (value * x).sum()


def in_closure():
    cell = 2.0

    def change():
        nonlocal cell
        cell = 3.0

    return (lambda x: (cell * x).sum()), change


def of_weights(weights, x):
    return (weights * x).sum()


def global_scale():
    global SCALE
    SCALE = 3.0


def global_array():
    global ARRAY
    ARRAY = jnp.full(D, 3.0)


def attribute_of_a_dataclass():
    held = Held(closure(2.0))
    return lambda x: held.score(x), lambda: setattr(held, "module", closure(3.0))


def attribute_of_a_named_tuple():
    named = Named(Linear(2.0))
    return lambda x: named.module(x), lambda: named.module.w.set_value(jnp.full(D, 3.0))


def numpy_array():
    array = np.full(D, 2, np.float32)
    return closure(array), lambda: array.fill(3)


def list_of_arrays():
    box = [jnp.full(D, 2.0)]
    return lambda x: (box[0] * x).sum(), lambda: box.__setitem__(0, jnp.full(D, 3.0))


def weights_of_a_module():
    model = Linear(2.0)
    return lambda x: model(x), lambda: model.w.set_value(jnp.full(D, 3.0))


def attribute_of_a_module():
    model = Linear(1.0, 2)
    return lambda x: model(x), lambda: setattr(model, "power", 3)


def attribute_of_an_object():
    held = Scaled(2.0)
    return held, lambda: setattr(held, "scale", 3.0)


def attribute_of_a_class():
    held = Scaled(2.0)
    return lambda x: held(x), lambda: setattr(Scaled, "bias", 1.0)


def method_of_a_class():
    return Scaled(2.0).__call__, lambda: setattr(Scaled, "factor", lambda self: 3.0)


def namespace():
    space = types.SimpleNamespace(scale=2.0)
    return lambda x: (space.scale * x).sum(), lambda: setattr(space, "scale", 3.0)


def global_of_a_class():
    apply, params = Dense().apply, {"params": {"kernel": jnp.ones(D)}}
    return Partial(lambda params, x: apply(params, x), params), global_scale


def default_argument():
    def fn(x, scale=2.0):
        return (scale * x).sum()

    return fn, lambda: setattr(fn, "__defaults__", (3.0,))


#: Functions with slope 2, and what changes the slope to 3.
CHANGES = {
    "cell": in_closure,
    "numpy array": numpy_array,
    "list of arrays": list_of_arrays,
    "weights of a module": weights_of_a_module,
    "attribute of a module": attribute_of_a_module,
    "attribute of an object": attribute_of_an_object,
    "attribute of a class": attribute_of_a_class,
    "attribute of a dataclass": attribute_of_a_dataclass,
    "attribute of a named tuple": attribute_of_a_named_tuple,
    "method of a class": method_of_a_class,
    "namespace": namespace,
    "global": lambda: (reads_globals, global_scale),
    "global of a function": lambda: (lambda x: calls_a_function_of_globals(x), global_scale),
    "global of a class": global_of_a_class,
    "global container": lambda: (reads_a_container, lambda: SCALES["all"].__setitem__(0, 3.0)),
    "global array": lambda: (reads_an_array, global_array),
    "default": default_argument,
}


@pytest.fixture
def unchanged(monkeypatch):
    """Undo the changes of a test."""
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    monkeypatch.setitem(globals(), "ARRAY", ARRAY)
    monkeypatch.setitem(SCALES, "all", [2.0])
    monkeypatch.setattr(Scaled, "bias", 0.0)
    monkeypatch.setattr(Scaled, "factor", Scaled.factor)


@pytest.mark.parametrize("kind", CHANGES)
def test_function_is_traced_again_only_after_a_change(kind, traces, unchanged):
    fn, change = CHANGES[kind]()
    assert [slope(fn) for _ in range(4)] == [2] * 4
    assert len(traces) == 1
    change()
    assert [slope(fn) for _ in range(4)] == [3] * 4
    assert len(traces) == 2


def test_new_function_that_reads_the_same_is_not_traced(traces):
    w, model = jnp.full(D, 2.0), Linear(2.0)
    for _ in range(3):
        assert slope(closure(w)) == slope(closure(2.0)) == slope(closure(Settings(2.0).scale)) == 2
        assert slope(lambda x: model(x)) == 2
        assert slope(Partial(lambda w, x: of_weights(w, x), w)) == 2
        assert slope(functools.partial(of_weights, w)) == 2
    assert len(traces) == 5


def test_equal_numbers_of_other_types_are_not_the_same():
    keys = {Environment(closure(value)).key for value in (1, 1.0, True, 1 + 0j, np.float32(1))}
    assert len(keys) == 5
    assert Environment(closure(0.0)).key != Environment(closure(-0.0)).key
    assert Environment(closure(1.0)).key == Environment(closure(1.0)).key


def test_settings_of_jax_belong_to_what_a_function_reads():
    integers = jnp.arange(D)

    def fn(x):
        return (x * integers).sum()

    with jax.numpy_dtype_promotion("standard"):
        assert slope(fn) == 1
    with jax.numpy_dtype_promotion("strict"), pytest.raises(ValueError, match="promotion"):
        slope(fn)


def test_random_numbers_of_numpy_are_drawn_at_each_call():
    rng = np.random.default_rng(0)
    drawn = {slope(lambda x: (np.random.normal() * x).sum()) for _ in range(3)}  # noqa: NPY002
    assert len(drawn) == 3
    assert len({slope(lambda x: (rng.normal() * x).sum()) for _ in range(3)}) == 3


def imports(x):
    import random

    return random.random() * x


def sets_a_global(x):
    global SCALE
    SCALE = 2.0
    return SCALE * x


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: globals()["SCALE"] * x,
        (lambda iterator: lambda x: next(iterator) * x)(iter(range(3))),
        (lambda large: lambda x: large[0] * x)(np.zeros(2**20)),
        lambda x: gc.get_count()[0] * x,
        imports,
        sets_a_global,
    ],
)
def test_functions_that_may_read_anything_have_no_environment(fn):
    with pytest.raises(UnkeyableError):
        Environment(fn)


@pytest.mark.slow
def test_traces_keep_no_array_and_no_module_alive():
    w, model = jnp.full(D, 2.0), Linear(2.0)
    refs = weakref.ref(w), weakref.ref(model), weakref.ref(model.w.get_raw_value())
    assert slope(closure(w)) == slope(lambda x: model(x)) == slope(model) == 2
    del w, model
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_graph_of_a_module_is_that_of_nnx():
    class Nested(nnx.Module):
        def __init__(self):
            self.first = Linear(1.0)
            self.layers = nnx.List([self.first, Linear(2.0), Linear(3.0)])
            self.same = self.layers[1].w

        def __call__(self, x):
            return sum(layer(x) for layer in self.layers) + (self.same[...] * x).sum()

    model = Nested()
    for _ in range(2):
        assert slope(model) == 1 + 2 + 3 + 2
    model.layers[1].w[...] = jnp.full(D, 5.0)
    assert slope(model) == 1 + 5 + 3 + 5
    model.same = model.layers[2].w
    assert slope(model) == 1 + 5 + 3 + 3
    model.layers[2] = model.first
    assert slope(model) == 1 + 5 + 1 + 3
    model.layers[1].power = 2
    assert slope(model) == 1 + 10 + 1 + 3
