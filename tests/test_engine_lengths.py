"""Test batches of many lengths: few programs, the same attributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compiles
from jax.sharding import Mesh

import jaxattn as ja
from jaxattn.engine.explain import prepare
from jaxattn.engine.lengths import Lengths, part_sizes
from jaxattn.engine.memo import MEMOS

N = 3
X = np.random.default_rng(0).normal(size=(40, N)).astype(np.float32)
Y = np.arange(40) % 2


def fn(x, bias=0.0):
    return jnp.stack([jnp.sin(x).sum(), jnp.cos(x).prod() + bias])


@pytest.fixture(autouse=True)
def nothing_seen():
    MEMOS.clear()


def gradients(batch):
    """Return the gradient of the entry of the target, in closed form."""
    product = np.cos(batch).prod(-1, keepdims=True)
    return np.where((np.arange(len(batch)) % 2)[:, None], -product * np.tan(batch), np.cos(batch))


@pytest.mark.representatives("mixed-False")
@pytest.mark.parametrize("order, on_device", [("up", True), ("down", False), ("mixed", False)])
def test_forty_lengths_compile_at_most_six_programs(order, on_device):
    power = {"up": 1, "down": 2, "mixed": 3}[order]  # another program each time
    xs = jnp.asarray(X) if on_device else X
    batches = [(n, xs[:n]) for n in range(1, 41)]
    batches = batches[::-1] if order == "down" else batches
    if order == "mixed":
        np.random.default_rng(1).shuffle(batches)

    def powers(x):
        return fn(x) ** power

    found = {}
    ja.gradient(jnp.sum, X[0])  # JAX compiles some programs once
    with compiles(6, at_most=True):
        for n, batch in batches:
            found[n] = ja.explain(ja.gradient, powers, batch, Y[:n])
    outputs = np.stack([np.sin(X).sum(-1), np.cos(X).prod(-1)], 1)[np.arange(40), Y]
    right = power * outputs[:, None] ** (power - 1) * gradients(X)
    for n, attribution in found.items():
        assert attribution.values.shape == (n, N) and attribution.output.shape == (n, 2)
        np.testing.assert_allclose(attribution.values, right[:n], rtol=1e-4, atol=1e-5)


def test_parts_are_filled_up_by_a_quarter_at_most():
    for batch, most, workers in itertools.product(range(1, 300), (1, 3, 16, 45, 100), (1, 2, 3)):
        sizes = list(part_sizes(batch, most, workers, (7,)))
        assert batch <= sum(sizes) <= batch + max(1, batch / 4)
        assert max(sizes) <= most
        assert sum(sizes) - sizes[-1] < batch  # no part is empty
    powers = {4, *(2**i for i in range(3, 9))}
    assert all(list(part_sizes(size, 1000, 1)) == [size] for size in powers)


def test_first_length_and_repeated_lengths_are_compiled_as_they_are():
    lengths = Lengths()
    assert lengths.is_exact(23)
    lengths.exact[23] = 23
    assert [lengths.is_exact(n) for n in (5, 6, 5, 23, 6, 6, 6, 6)] == [
        *(False, False, False, True),
        *(False, False, True, True),
    ]
    for n in (6, 7, 8):
        lengths.exact[n] = n
    assert not any(lengths.is_exact(9) for _ in range(10))


def test_repeated_length_has_one_part():
    sizes = [
        [plan.examples for plan in prepare(ja.gradient, fn, X[:n], 0).plans]
        for n in (10, 21, 21, 21, 21, 10, 9)
    ]
    assert sizes == [[10], [16, 8], [16, 8], [21], [21], [10], [10]]


METHODS = {
    "occlusion": (ja.occlusion, {}),
    "integrated gradients": (ja.integrated_gradients, {"num_steps": 3, "baseline": X[::-1] * 0.5}),
    "smooth gradient": (ja.smooth_grad, {"num_samples": 3, "key": jax.random.PRNGKey(2)}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, batch_size",
    [("occlusion", 6), ("integrated gradients", None), ("smooth gradient", 6)],
)
def test_results_do_not_depend_on_the_parts(name, batch_size):
    method, options = METHODS[name]
    args = (np.arange(40, dtype=np.float32),)

    def run(n):
        own = {k: v[:n] if k == "baseline" else v for k, v in options.items()}
        call = {**own, "args": (args[0][:n],), "batch_size": batch_size}
        return ja.explain(method, fn, X[:n], Y[:n], **call)

    whole = run(40)
    for n in (1, 11, 25):
        part = run(n)
        assert jax.tree.structure(part) == jax.tree.structure(whole)
        for got, right in ((part.values, whole.values), (part.output, whole.output)):
            assert isinstance(got, jax.Array) and got.dtype == right.dtype
            np.testing.assert_allclose(got, right[:n], rtol=1e-4, atol=1e-5)


def test_mesh():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    for n in (40, 3, 11, 39, 26):
        got = ja.explain(ja.gradient, fn, X[:n], Y[:n], mesh=mesh).values
        np.testing.assert_allclose(got, gradients(X[:n]), rtol=1e-4, atol=1e-5)
        assert len(got) == n


def test_committed_and_traced_batches():
    other = jax.devices()[1]
    for n in (8, 5, 7):
        batch = jax.device_put(X[:n], other)
        got = ja.explain(ja.gradient, fn, batch, Y[:n]).values
        assert got.devices() == {other}
        np.testing.assert_allclose(got, gradients(X[:n]), rtol=1e-4, atol=1e-5)
        traced = jax.jit(lambda b, y: ja.explain(ja.gradient, fn, b, y).values)(X[:n], Y[:n])
        np.testing.assert_allclose(traced, gradients(X[:n]), rtol=1e-4, atol=1e-5)


def test_filling_up_adds_no_number_that_is_not_finite():
    """The last example is repeated: it is checked, and no other is made up."""
    ja.explain(ja.gradient, lambda x: jnp.log(x).sum(), np.abs(X))
    got = ja.explain(ja.gradient, lambda x: jnp.log(x).sum(), np.abs(X[:31]))
    np.testing.assert_allclose(got.values, 1 / np.abs(X[:31]), rtol=1e-5)
    with jax.debug_nans(True):
        ja.explain(ja.gradient, lambda x: jnp.log(x).sum(), np.abs(X[:37]))
