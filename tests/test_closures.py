"""Test functions that close over nnx modules which change their own state as they run."""

import functools
import threading
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja

T, D, H = 4, 2, 3
X = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)
PLAIN = nnx.initializers.normal()  # orthogonal initialization is slow to compile


class Drops(nnx.Module):
    """A recurrent layer, which counts random numbers, with dropout."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        cell = nnx.SimpleCell(D, H, recurrent_kernel_init=PLAIN, rngs=rngs)
        self.rnn = nnx.RNN(cell, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.rnn(x))


RNN = Drops()


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The layers of nnx rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def states(x, module=None):
    """Compute what the module computes in inference mode, from its weights."""
    cell = (module or RNN).rnn.cell
    w, u, b = cell.dense_i.kernel[...], cell.dense_h.kernel[...], cell.dense_i.bias[...]
    h, hs = jnp.zeros(H), []
    for row in x:
        h = jnp.tanh(row @ w + h @ u + b)
        hs.append(h)
    return jnp.stack(hs)


def of_states(hs):
    return (hs[1] - hs[2]).sum()


EXPECTED = jax.jit(jax.grad(lambda x: of_states(states(x))))(X)


def same(fn, expected=EXPECTED):
    np.testing.assert_allclose(ja.gradient(fn, X).values, expected, atol=1e-6)


class Pair(NamedTuple):
    module: nnx.Module
    scale: float


class Explained:
    """An object that holds a module, with a method that calls it."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return self.difference(x)

    def difference(self, x):
        return of_states(self.module(x))


def closure(module):
    return lambda x: of_states(module(x))


def default(x, module=RNN):
    return of_states(module(x))


def keyword(x, *, module=RNN):
    return of_states(module(x))


def reads_a_global(x):
    return of_states(RNN(x))


def calls_a_function_of_globals(x):
    return 1 * reads_a_global(x)


def in_containers(modules):
    return lambda x: of_states(modules["all"][0][0](x))


def recursive(module):
    def last(x):
        return of_states(module(x))

    def count_down(x, n=2):
        return count_down(x, n - 1) if n else last(x)

    return count_down


def in_a_nested_function(module):
    def fn(x):
        return (lambda x: of_states(module(x)))(x)

    return fn


def of_two(module, x, scale):
    return of_states(scale * module(x))


FUNCTIONS = {
    "closure": closure(RNN),
    "default": default,
    "keyword": keyword,
    "global": reads_a_global,
    "function of globals": calls_a_function_of_globals,
    "containers": in_containers({"all": [(RNN, 1)]}),
    "named tuple": (lambda pair: lambda x: of_states(pair.module(x)))(Pair(RNN, 1.0)),
    "namespace": (lambda box: lambda x: of_states(box.module(x)))(
        types.SimpleNamespace(module=RNN)
    ),
    "object": Explained(RNN),
    "closure over an object": (lambda held: lambda x: held(x))(Explained(RNN)),
    "method of an object": Explained(RNN).difference,
    "method of a module": (lambda call: lambda x: of_states(call(x)))(RNN.__call__),
    "partial": functools.partial(of_two, RNN, scale=np.float32(1)),
    "partial function": functools.partial(lambda x, module: of_states(module(x)), module=RNN),
    "recursive": recursive(RNN),
    "nested": in_a_nested_function(RNN),
    "unbatched": ja.unbatched(lambda xs: jax.vmap(of_states)(RNN(xs))),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.representatives("closure", "recursive", "containers", "partial", "object")
def test_modules_in_a_closure_run_in_inference_mode(kind):
    same(FUNCTIONS[kind])


def test_batches_and_intermediates_of_closures():
    xs = np.stack([X, 2 * X])
    got = ja.explain(ja.gradient, lambda x: RNN(x), xs, lambda hs: of_states(hs))
    np.testing.assert_allclose(got.values[0], EXPECTED, atol=1e-6)
    output, values = ja.capture(lambda x: of_states(RNN(x)), "RNN/rnn")(X)
    np.testing.assert_allclose(output, of_states(states(X)), atol=1e-6)
    np.testing.assert_allclose(values["RNN/rnn"], states(X), atol=1e-6)
    zero = ja.intervene(closure(RNN), {"module/rnn": jnp.zeros((T, H))})
    assert zero(X) == 0


def test_targets_may_close_over_a_module():
    other = Drops()  # explained are the states of the states
    twice = ja.gradient(lambda x: RNN(x), X, lambda hs: of_states(other(hs[:, :D])))
    expected = jax.jit(jax.grad(lambda x: of_states(states(states(x)[:, :D], other))))(X)
    np.testing.assert_allclose(twice.values, expected, atol=1e-6)


def test_closures_under_transformations_of_the_user():
    fn = closure(RNN)

    def of_input(x):
        return ja.gradient(fn, x).values

    np.testing.assert_allclose(jax.jit(of_input)(X), EXPECTED, atol=1e-6)
    both = jax.vmap(of_input)(jnp.stack([X, X]))
    np.testing.assert_allclose(both, [EXPECTED, EXPECTED], atol=1e-6)

    def of_scale(scale):  # a closure over a tracer, too
        return ja.gradient(lambda x: scale * fn(x), X).values.sum()

    np.testing.assert_allclose(jax.grad(of_scale)(jnp.float32(2)), EXPECTED.sum(), rtol=1e-5)


def test_attention_that_sows_its_weights():
    layer = nnx.MultiHeadAttention(
        2, 4, dropout_rate=0.5, deterministic=False, decode=False, rngs=nnx.Rngs(0)
    )

    def fn(x):
        layer(x, sow_weights=True)
        return layer.attention_weights[0]

    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    with pytest.warns(DeprecationWarning, match="sow"):
        weights = ja.gradient(fn, x, lambda w: w[0, 0, 1]).output
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 3)), rtol=1e-6)
    assert not hasattr(layer, "attention_weights")


_compiled: list[str] = []


def _listen(event: str, duration: float, **rest: object) -> None:
    if event.endswith("backend_compile_duration"):
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


def test_weights_changed_in_place_take_effect_without_compilation():
    module = Drops()
    fn = closure(module)
    same(fn)
    bias = module.rnn.cell.dense_i.bias
    bias[...] = bias[...] + 1
    expected = jax.jit(jax.grad(lambda x: of_states(states(x, module))))(X)
    count = len(_compiled)
    got = ja.gradient(closure(module), X).values
    assert len(_compiled) == count
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert abs(expected - EXPECTED).max() > 1e-3


def test_function_and_module_are_left_as_they_are():
    module = Drops()
    fn, held = recursive(module), Explained(module)
    cells = [cell.cell_contents for cell in fn.__closure__]
    state = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.RngCount)))
    scope = dict(globals())
    same(fn)
    same(held)
    same(reads_a_global)
    assert [cell.cell_contents for cell in fn.__closure__] == cells
    assert held.module is module and type(module) is Drops
    assert all(globals()[name] is value for name, value in scope.items())
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.RngCount)))
    assert jax.tree.map(np.array_equal, state, after)
    assert not module.dropout.deterministic


def test_variables_that_hold_no_module_are_shared():
    module, seen, total = Drops(), [], 0

    def fn(x):
        nonlocal total
        total += 1
        seen.append(x.shape)
        return of_states(module(x))

    same(fn)
    assert seen == [X.shape] * total and total > 0


def test_module_in_two_variables_is_one_module():
    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Variable(jnp.float32(0))

        def __call__(self, x):
            self.count[...] = self.count[...] + x.sum()
            return self.count[...]

    one = other = Counter()
    box = [other]

    def fn(x):
        one(x)
        return box[0](2 * x)

    np.testing.assert_allclose(ja.gradient(fn, X).values, np.full_like(X, 3))
    assert one.count[...] == 0


def test_threads_may_explain_one_closure():
    fn = closure(RNN)
    results = [None] * 4

    def work(i):
        results[i] = ja.gradient(fn, X).values

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result, EXPECTED, atol=1e-6)


def test_module_that_cannot_be_found_raises():
    class Holder:
        module = Drops()

    for fn in (lambda x: of_states(Holder.module(x)), jax.jit(closure(RNN))):
        with pytest.raises(ValueError, match="`fn` uses an nnx module that changes its own state"):
            ja.gradient(fn, X)


def test_jitted_functions_keep_their_traces():
    traced = []
    layer = nnx.Linear(D, H, rngs=nnx.Rngs(0))

    @jax.jit
    def fn(x):
        traced.append(x)
        return of_states(layer(x))

    for _ in range(3):
        ja.gradient(lambda x: fn(x), X)
    assert len(traced) == 1
