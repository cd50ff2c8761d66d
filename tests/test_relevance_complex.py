"""Relevance through complex numbers: as through their real and imaginary parts."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
import state_space as models
from relevance_reference import compiled

import jaxattn as ja
from jaxattn.jaxpr.real_pairs import with_real_pairs

T, D, E = 6, 4, 5


@pytest.fixture(autouse=True)
def float64():
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


X, BASELINE = draw(T, D), draw(T, D, seed=5)
W = draw(D, E, seed=1) + 1j * draw(D, E, seed=2)
K = draw(T, D, seed=1) + 1j * draw(T, D, seed=2)
DECAY = np.exp(-0.3 + 1j * draw(D, seed=3))


def recurrence(h, row):
    h = DECAY * h + row
    return h, h


def associative(a, b):
    return a[0] * b[0], b[0] * a[1] + b[1]


FUNCTIONS = {
    "product with weights": lambda x: x @ W,
    "of two that depend on x": lambda x: jnp.einsum("ij,kj->ik", x * K, x + K),
    "numbers": lambda x: (1j * x + 2 - 3j) * K / 2j - 1,
    "quotient": lambda x: K / (x * K + 1) / (1j * x) + 1 / (x + 0j),
    "powers": lambda x: (x * K) ** 3 + (x * K) ** -2 + (x * K) ** 0 + jnp.square(x * K),
    "exponential": lambda x: jnp.exp(x * K) + jnp.exp(1j * x) + jnp.exp(x + 0j),
    "logarithm": lambda x: jnp.log(x * K) + jnp.log(x + 0j),
    "size": lambda x: jnp.abs(x * K) + jnp.abs(1j * x) + jnp.linalg.norm(x * K),
    "angle": lambda x: jnp.angle(x * K),
    "parts": lambda x: (x * K).real + (x * K).imag + (1j * x).real + jnp.conj(x * K),
    "fft": lambda x: jnp.fft.fft(x) + jnp.fft.ifft(x * K),
    "rfft": lambda x: jnp.fft.rfft(x, axis=0),
    "irfft": lambda x: jnp.fft.irfft(x * K),
    "irfft of odd length": lambda x: jnp.fft.irfft(x * K, n=5, axis=0),
    "fft2": lambda x: jnp.fft.fft2(x) + jnp.fft.ifft2(x * K),
    "rfft2": lambda x: jnp.fft.rfft2(x),
    "irfft2": lambda x: jnp.fft.irfft2(x * K),
    "selected": lambda x: jnp.where(x > 0, x * K, 1j) + jnp.where(x * K == x * K, x, 1j),
    "moved": lambda x: jnp.pad(jnp.flip(jnp.roll(x * K, 1)).T, 1, constant_values=1j)[::2],
    "written": lambda x: jnp.zeros((T, D), complex).at[2:4].set((x * K)[2:4]),
    "gathered": lambda x: (x * K)[jnp.array([1, 2])],
    "convolution": lambda x: jnp.convolve((x * K)[:, 0], K[:, 1]),
    "scan": lambda x: jax.lax.scan(recurrence, np.zeros(D, complex), x * K),
    "scan, real carry": lambda x: jax.lax.scan(
        lambda h, row: (h + row.real, jnp.exp(1j * h)), jnp.zeros(D), x * K
    ),
    "associative scan": lambda x: jax.lax.associative_scan(
        associative, (jnp.broadcast_to(DECAY, (T, D)), x * K)
    ),
    "branch": lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x * K, lambda x: K + 0, x),
    "while": lambda x: jax.lax.while_loop(
        lambda h: jnp.abs(h).sum() < 100, lambda h: h * K + 1, x + 0j
    ),
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.exp(x * K))(x),
    "constants": lambda x: x * jnp.sqrt(K) + jnp.sinh(K),
    "stopped": lambda x: jax.lax.stop_gradient(x * K) + ja.tag(x * K, "k"),
    "real": lambda x: jnp.tanh(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.representatives("rfft", "scan", "branch", "while", "constants")
def test_functions_in_real_and_imaginary_parts(name):
    closed = jax.make_jaxpr(FUNCTIONS[name])(X)
    parts = with_real_pairs(closed)
    for got, want in zip(*(jex.jaxpr_as_fun(each)(X) for each in (parts, closed)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
        assert got.dtype == want.dtype


def test_complex_inputs_are_split():
    closed = jax.make_jaxpr(lambda z: jnp.exp(z) * z)(K)
    (got,) = jex.jaxpr_as_fun(with_real_pairs(closed))(K)
    np.testing.assert_allclose(got, np.exp(K) * K, rtol=1e-12)


def relevance(fn, x=X, **options):
    found = compiled(lambda x: ja.lrp(fn, x, **{"rule": "z"} | options))(x)
    total = found.values.sum() + found.info["absorbed"]
    np.testing.assert_allclose(total, found.output, rtol=1e-9)
    return found.values


@pytest.mark.slow
def test_s5_equals_the_model_in_real_parts_and_its_reference():
    x = models.draw(models.T, models.D, seed=3)
    score, want = models.reference(models.s5, x)
    np.testing.assert_allclose(compiled(models.s5_in_real_parts)(x), score, rtol=1e-12)
    np.testing.assert_allclose(relevance(models.s5, x), want, rtol=1e-8)
    options = {"conserve_bias": True, "epsilon": 0.1, "rule": "epsilon"}
    got, parts = (relevance(f, x, **options) for f in (models.s5, models.s5_in_real_parts))
    np.testing.assert_allclose(got, parts, rtol=1e-8)


@pytest.mark.slow
def test_s5_by_an_associative_scan_equals_its_reference():
    def model(x):
        decay, b, c = models.s5_parameters()
        rows = x @ b.T
        h = jax.lax.associative_scan(associative, (jnp.broadcast_to(decay, rows.shape), rows))[1]
        y = (h @ c.T).real + models.draw(models.D, seed=8) * x
        return models.readout(jax.nn.silu(y) + x)

    x = models.draw(models.T, models.D, seed=3)
    want = models.reference(models.s5, x)[1]
    np.testing.assert_allclose(relevance(model, x), want, rtol=1e-8)


@pytest.mark.slow
def test_fourier_layers_are_linear():
    def spectral(x):
        """A global filter in the frequency domain, a readout of a real signal."""
        y = jnp.fft.irfft(jnp.fft.rfft(x, axis=0) * K[:4], axis=0)
        return (jax.nn.relu(y) @ W.real).sum()

    kept = lambda y: y * jax.lax.stop_gradient(y > 0)  # noqa: E731
    slope = jax.grad(
        lambda x: (kept(jnp.fft.irfft(jnp.fft.rfft(x, axis=0) * K[:4], axis=0)) @ W.real).sum()
    )(X)
    np.testing.assert_allclose(relevance(spectral), slope * X, rtol=1e-8, atol=1e-10)


def test_size_of_a_complex_number_divides_by_squares():
    """|z|^2 = re^2 + im^2: each part receives its share, and passes it on."""
    fn = lambda x: jnp.abs(jax.lax.complex(x[0], x[1])).sum()  # noqa: E731
    size = np.hypot(X[0], X[1])
    np.testing.assert_allclose(relevance(fn)[:2], X[:2] ** 2 / size, rtol=1e-10)


@pytest.mark.slow
def test_deep_lift_through_complex_numbers_sums_to_the_difference():
    def fn(x):
        h = jax.lax.scan(recurrence, np.zeros(D, complex), x * K)[1]
        return (jnp.tanh(h.real) @ W.real + jnp.abs(jnp.fft.fft(h)) @ W.imag).sum()

    for model, inputs in ((fn, (X, BASELINE)), (models.s5, (X[:, :3], BASELINE[:, :3]))):
        x, baseline = inputs
        found = ja.deep_lift(model, x, baseline=baseline)
        high, low = map(compiled(model), inputs)
        np.testing.assert_allclose(found.values.sum(), high - low, rtol=1e-9)


@pytest.mark.slow
def test_contextual_decomposition_of_complex_states():
    x, phrase = models.draw(models.T, models.D, seed=3), jnp.arange(models.T) < 3
    got, want = (
        compiled(lambda x, f=f: ja.contextual_decomposition(f, x, phrase=phrase).values)(x)
        for f in (models.s5, models.s5_in_real_parts)
    )
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_parts_of_a_complex_input_and_a_complex_output():
    """Relevance of a linear map to one coefficient, of the parts of the signal."""
    matrix = np.exp(-2j * np.pi / T * np.outer(np.arange(T), np.arange(T)))
    parts = jnp.stack([K.real[:, 0], K.imag[:, 0]])
    fn = lambda parts: jnp.fft.fft(jax.lax.complex(*parts))  # noqa: E731
    found = ja.lrp(fn, parts, lambda y: y[1].real, rule="z")
    assert jnp.iscomplexobj(found.output)
    np.testing.assert_allclose(found.values[0], matrix[1].real * parts[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.values[1], -matrix[1].imag * parts[1], rtol=1e-9, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match=r"`sqrt` of complex numbers .*complex.py, line \d+"):
        ja.lrp(lambda x: jnp.sqrt(x * K).real.sum(), X)
    with pytest.raises(ValueError, match=r"no rule for `atan2`.*`constants`"):
        ja.lrp(lambda x: jnp.angle(x @ W).sum(), X)
    with pytest.raises(TypeError, match="real and imaginary parts"):
        ja.lrp(lambda z: jnp.abs(z).sum(), K)
