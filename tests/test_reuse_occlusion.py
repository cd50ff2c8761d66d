"""Occlusion with reuse equals occlusion without, on networks of every library."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn.models import SequenceClassifier, SignalClassifier
from jaxattn.nn import SeqSelfAttention

T, D, H, K, B = 7, 3, 3, 2, 2
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(B, T, D))
LENGTHS = np.array([T, 4], np.int32)


@pytest.fixture(autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def check_occlusion(model, xs, target, *, atol=1e-12, **options):
    """Return the occlusion with reuse, after comparing it to that without reuse."""
    got, want = (
        ja.explain(ja.occlusion, model, xs, target, reuse=reuse, **options)
        for reuse in (True, False)
    )
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert not want.info["flops_saved"].any()

    def compare(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=atol)

    jax.tree.map(compare, (got.values, got.output), (want.values, want.output))
    return got


def network(x, args=None, *, weights=None):
    """Return the last state of a tanh network; steps after the length `args` are not used."""
    w, u = (jnp.asarray(a, x.dtype) for a in (WEIGHTS if weights is None else weights))
    valid = jnp.arange(x.shape[0]) < (x.shape[0] if args is None else args)

    def advance(h, inputs):
        row, ok = inputs
        return jnp.where(ok, jnp.tanh(row @ w + h @ u), h), None

    return jax.lax.scan(advance, jnp.zeros(K, x.dtype), (ja.tag(x, "rows"), valid))[0]


WEIGHTS = RNG.normal(size=(D, K)) / 2, RNG.normal(size=(K, K)) / 2


WIDER = RNG.normal(size=(2, D)).astype(np.float32)


class Attending(nnx.Module):
    """Self-attention over an LSTM."""

    def __init__(self):
        options = {"param_dtype": "float64", "rngs": nnx.Rngs(0)}
        self.recurrent = ja.nn.LSTM(D, H, **options)
        self.attention = SeqSelfAttention(H, units=2, **options)
        self.head = nnx.Linear(H, K, **options)

    def __call__(self, x):
        return self.head(self.attention(self.recurrent(x)[0]).values.sum(0))


class Flax(nnx.Module):
    """A network with nnx.RNN, which mutates its own state."""

    def __init__(self):
        options = {"param_dtype": "float64", "rngs": nnx.Rngs(0)}
        self.rnn = nnx.RNN(nnx.GRUCell(D, H, **options))
        self.head = nnx.Linear(H, K, **options)

    def __call__(self, x):
        return self.head(self.rnn(x)[-1])


CLASSIFIERS = {
    "lstm": {"cell": "lstm"},
    "gru, both ways": {"cell": "gru", "bidirectional": True, "readout": "mean"},
    "rnn, steps": {"cell": "rnn", "readout": "steps", "bidirectional": True},
    "lstm, stacked": {"num_layers": 2, "bidirectional": True},
    "left": {"cell": "gru", "padding": "left"},
    "left, mean": {"readout": "mean", "padding": "left", "bidirectional": True},
}


@pytest.mark.slow
@pytest.mark.representatives("True-lstm")
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("padded", [False, True])
def test_classifiers(name, padded, x64):
    settings = CLASSIFIERS[name]
    model = SequenceClassifier(D, H, K, param_dtype="float64", rngs=nnx.Rngs(0), **settings)
    target = (3, 1) if settings.get("readout") == "steps" else 1
    got = check_occlusion(model, XS, target, args=(LENGTHS,) if padded else (), window=2, stride=2)
    assert (got.info["flops_saved"] > 0).all()
    assert got.info["flops_saved"].shape == (B,)
    if padded:
        padding = got.values[1, :2] if settings.get("padding") == "left" else got.values[1, 5:]
        assert not padding.any()


@pytest.mark.parametrize("attention", ["self", "weighted"])
@pytest.mark.slow
def test_attention_over_a_series(attention, x64):
    options = {"hidden_features": H, "units": 2, "param_dtype": "float64", "rngs": nnx.Rngs(0)}
    model = SignalClassifier(D, T, K, attention=attention, **options)
    check_occlusion(model, XS, 1, args=(LENGTHS,), window=2)


@pytest.mark.slow
def test_self_attention_on_an_lstm(x64):
    check_occlusion(Attending(), XS, 1, window=3, stride=2)


@pytest.mark.slow
def test_flax_modules(x64):
    check_occlusion(Flax(), XS, 1, window=2)
    model = linen.RNN(linen.LSTMCell(H, dtype="float64", param_dtype="float64"))
    params = model.init(jax.random.key(0), XS[0])
    got = check_occlusion(Partial(model.apply, params), XS, lambda y: y[-1, 0], window=2)
    assert (got.info["flops_saved"] > 0).all()


@pytest.mark.slow
def test_keras_models():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Input((T, D)),
        keras.layers.Bidirectional(keras.layers.LSTM(H, return_sequences=True)),
        keras.layers.LSTM(H),
        keras.layers.Dense(K),
    ]
    got = check_occlusion(keras.Sequential(layers), XS.astype(np.float32), 1, atol=1e-6, window=2)
    assert (got.info["flops_saved"] > 0).all()


@pytest.mark.slow
def test_tokens_and_their_embeddings(x64):
    table, ids = RNG.normal(size=(5, D)), np.array([[3, 1, 4, 1, 0, 2, 2]])

    def model(ids):
        return network(ja.tag(jnp.asarray(table)[ids], "embedding"))

    assert (
        check_occlusion(model, ids, 1, baseline=0).values[0, 4] == 0
    )  # this token is the baseline
    check_occlusion(model, ids, 1, at="embedding", window=2)


@pytest.mark.slow
def test_windows_per_leaf(x64):
    tree = {"series": XS, "spare": XS + 1, "scale": np.ones((B, 2))}

    def model(x):
        return network(x["series"]) * x["scale"]

    got = check_occlusion(model, tree, 1, window={"series": 2, "spare": 2, "scale": None})
    assert not got.values["spare"].any()
    assert (got.info["flops_saved"] > 0).all()


@pytest.mark.parametrize(
    "window, stride",
    [(1, 1), (T, 1), (3, 2), (4, 3), ((2, 2), (1, 1)), ((T, 1), (1, 1)), ((5, 2), 5)],
)
@pytest.mark.representatives("window4-stride4", "4-3", "1-1")
def test_windows(window, stride, x64):
    check_occlusion(network, XS, 1, window=window, stride=stride)


@pytest.mark.representatives("2", "3")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batch_sizes(batch_size, x64):
    check_occlusion(network, XS, 1, batch_size=batch_size)


@pytest.mark.representatives("shape0")
@pytest.mark.parametrize("shape", [(2,), (8,), (1, 2)])
def test_devices(shape, x64):
    names = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    check_occlusion(network, XS, 1, mesh=mesh, window=2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, atol", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_dtypes(dtype, atol):
    got = check_occlusion(network, jnp.asarray(XS, dtype), 1, atol=atol, window=2)
    assert got.info["flops_saved"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.representatives("float32")
def test_irrelevant_windows_are_exactly_zero(dtype):
    """A window equal to the baseline, a window in the padding, and unused steps."""
    xs = jnp.asarray(XS, dtype).at[:, 2].set(0.5)

    def values(fn, **options):
        got = ja.explain(ja.occlusion, fn, xs, 1, baseline=0.5, **options)
        assert (got.info["flops_saved"] > 0).all()
        return np.asarray(got.values, np.float32)

    got = values(network, args=(LENGTHS,))
    assert not got[:, 2].any()
    assert not got[1, 4:].any()
    assert got[1, :2].any()
    assert not values(lambda x: network(x[3:]))[:, :3].any()
    if dtype == "float32":  # bfloat16 rounds some of the others to zero
        got = values(lambda x: network(x[:, ::2] @ WIDER), window=(2, 1), stride=(2, 1))
        assert not got[..., 1].any()
        assert got[:, 3:, 0].all()


@pytest.mark.slow
def test_derivatives_match(x64):
    """Also where a window equals the baseline: its value is zero, but its derivative is not."""
    x, recurrent = jnp.asarray(XS).at[:, 2:4].set(0.0), jnp.asarray(WEIGHTS[1])

    def total(x, u, reuse):
        options = {"window": 2, "reuse": reuse}
        values = ja.occlusion(lambda x: network(x, weights=(WEIGHTS[0], u)), x, 1, **options).values
        return jnp.sum(jnp.sin(values))

    slope = jax.grad(total, argnums=(0, 1))
    got, want = (
        jax.jit(jax.vmap(lambda x, reuse=reuse: slope(x, recurrent, reuse)))(x)
        for reuse in (True, False)
    )
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-13), got, want)


def test_functions_with_effects_run_without_reuse(capfd):
    def model(x):
        jax.debug.print("{}", x[0, 0])
        return network(x)

    got = ja.explain(ja.occlusion, model, XS[:1].astype(np.float32), 1)
    jax.effects_barrier()
    assert len(capfd.readouterr().out.split()) >= T
    assert not got.info["flops_saved"].any()


def test_functions_with_mutable_references(x64):
    def model(x):
        memory = jax.new_ref(jnp.zeros(K))
        memory[...] = network(x)
        memory[...] = memory[...] + x[0, 0]
        return memory[...]

    check_occlusion(model, XS, 1)


def test_flops_saved_do_not_overflow():
    def saved(x, u):
        def model(x):
            return jax.lax.scan(
                lambda h, row: (jnp.tanh(h @ u + row.sum()), None), jnp.zeros(2048), x
            )[0]

        return ja.occlusion(model, x, 0, window=2).info["flops_saved"]

    shapes = (
        jax.ShapeDtypeStruct((64, 1), np.float32),
        jax.ShapeDtypeStruct((2048,) * 2, np.float32),
    )
    assert jax.eval_shape(saved, *shapes).dtype == np.float32


@jax.custom_vjp
def cell(row, h):
    return jnp.tanh(row @ WEIGHTS[0] + h @ WEIGHTS[1])


def _cell_backward(inputs, ct):
    """Return other cotangents than those of the function itself."""
    return 2 * ct @ WEIGHTS[0].T, ct @ WEIGHTS[1].T


cell.defvjp(lambda row, h: (cell(row, h), (row, h)), _cell_backward)


@pytest.mark.slow
def test_custom_derivatives_of_an_occlusion(x64):
    def total(x, v, reuse):
        def model(x):
            h = jax.lax.scan(lambda h, row: (cell(row, h), None), jnp.zeros(K), x)[0]
            return (h * v).sum() + (jnp.arange(3) * 2)[1]  # closes over integers too

        found = ja.occlusion(model, x, window=2, baseline=v.sum(), reuse=reuse)
        return jnp.sum(jnp.sin(found.values)), found.info["flops_saved"]

    got, want = (
        jax.jit(jax.vmap(jax.grad(lambda x, r=r: total(x, jnp.arange(1.0, 3), r)[0]), in_axes=0))(
            XS
        )
        for r in (True, False)
    )
    assert total(XS[0], jnp.arange(1.0, 3), True)[1] > 0
    np.testing.assert_allclose(got, want, rtol=1e-10)
    by_v = [
        jax.grad(lambda v, r=r: total(XS[0], v, r)[0])(jnp.arange(1.0, 3)) for r in (True, False)
    ]
    np.testing.assert_allclose(*by_v, rtol=1e-10)
