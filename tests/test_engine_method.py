"""Test `ja.method`, which turns a function into an attribution method."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.engine.options import static_method

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
KEY = jax.random.key(0)


def fn(x):
    return jnp.stack([(ja.tag(x, "h") ** 2).sum(), x.sum()])


@ja.method
def halved(fn, x, target=None, *, args=(), key=None, batch_size=None):
    """Compute half of the gradient.

    Returns:
        values of the shape of `x`.
    """
    slope = ja.gradient(fn, x, target, args=args)
    return ja.Attribution(slope.values / 2, slope.output)


@ja.method(
    evaluations=lambda x, output, options: options.get("times", 2),
    per_example=("offset",),
    draws=True,
)
def shifted(
    fn,
    x,
    target=None,
    *,
    args=(),
    at=None,
    key=None,
    batch_size=None,
    check_finite=True,
    times=2,
    offset=0.0,
):
    """Compute the input times a number, plus an offset.

    Args:
        times: the number.
        offset: the offset.
    """
    return ja.Attribution(times * x + offset, fn(x, *args))


@ja.method(keeps_input=True)
def named(fn, x, target=None, *, args=(), at="h", key=None, batch_size=None):
    names = (at,) if isinstance(at, str) else at
    output, got = ja.capture(fn, *names)(x, *args)
    return ja.Attribution([got[name] for name in names], output)


def test_single_example_and_batch():
    values = ja.explain(halved, fn, X, 0).values
    np.testing.assert_allclose(values, X, rtol=1e-6)
    np.testing.assert_array_equal(halved(fn, X[1], 0).values, values[1])


def test_at_and_check_finite():
    np.testing.assert_allclose(halved(fn, X[0], 0, at="h").values, X[0], rtol=1e-6)
    bad = np.array([np.nan, 1, 2], np.float32)
    with pytest.raises(ValueError, match="`x` holds 1 NaN"):
        halved(fn, bad, 1)
    assert halved(jnp.sum, bad, check_finite=False).values.sum() == 1.5


def test_method_in_smooth_grad_and_benchmark():
    got = ja.smooth_grad(fn, X[0], 1, method=halved, key=KEY, num_samples=3)
    np.testing.assert_allclose(got.values, np.full(3, 0.5))
    measured = ja.benchmark(shifted, fn, X, 0, repeats=1, times=3)
    assert (measured.method, measured.evaluations) == ("shifted", 3 * len(X))


def test_options_per_example():
    offset = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_allclose(ja.explain(shifted, fn, X, 0, offset=offset).values, 2 * X + offset)
    with pytest.raises(TypeError, match="shifted has no option 'ofset'; its options are times"):
        shifted(fn, X[0], 0, ofset=1)


def test_keeps_input_accepts_one_or_several_names():
    def tagged(x):
        return (ja.tag(x, "h") * ja.tag(2 * x, "g")).sum()

    h, g = X[0], 2 * X[0]
    for at, expected in ((None, [h]), ("g", [g]), (["h", "g"], [h, g]), (("g",), [g])):
        for got in (named(tagged, X[0], at=at), ja.explain(named, tagged, X, at=at)[0]):
            for value, expected_value in zip(got.values, expected, strict=True):
                np.testing.assert_array_equal(value, expected_value)
    with pytest.raises(TypeError, match=r"`at` must be the name of an intermediate, got \['h'"):
        halved(tagged, X[0], at=["h", "g"])
    with pytest.raises(TypeError, match="name of an intermediate or a sequence of names, got 3"):
        named(tagged, X[0], at=3)


def test_shared_arguments_are_documented_once():
    doc = halved.__doc__
    assert doc.splitlines()[0] == "Compute half of the gradient."
    assert doc.index("\n    Args:\n        fn: maps") < doc.index(
        "\n    Returns:\n        values of"
    )
    names = ["fn", "x", "target", "args", "at", "key", "batch_size", "check_finite"]
    assert [doc.count(f"\n        {name}: ") for name in names] == [1] * 8
    assert "key: not used." in doc
    assert "batch_size: not used: the method evaluates `fn` once." in doc
    doc = inspect.getdoc(shifted)
    assert [doc.count(f"\n    {name}: ") for name in [*names, "times", "offset"]] == [1] * 10
    assert doc.index("check_finite: ") < doc.index("times: ")
    assert "key: a random key" in doc
    assert "batch_size: the maximum number of evaluations" in doc
    assert named.__doc__ is None


def test_signature_adds_the_shared_arguments():
    listed = list(inspect.signature(halved).parameters)
    assert listed == ["fn", "x", "target", "args", "key", "batch_size", "at", "check_finite"]
    assert list(inspect.signature(shifted).parameters) == [
        *["fn", "x", "target", "args", "at", "key", "batch_size", "check_finite", "times", "offset"]
    ]


def test_options_are_prepared_outside_of_jit():
    """`prepare` gets the abstract input of one example, and whole options."""
    seen = []

    def prepare(x, options):
        seen.append((x.shape, jnp.shape(options["scale"])))
        return {"scale": options["scale"], "most": int(np.max(options["scale"]))}

    @ja.method(prepare=prepare, per_example=("scale",))
    def scaled(fn, x, target=None, *, args=(), key=None, batch_size=None, scale=0, most=0):
        return ja.Attribution(most * scale, fn(x))

    got = ja.explain(scaled, jnp.sum, X, scale=2 * X).values
    np.testing.assert_allclose(got, int(2 * X.max()) * 2 * X, rtol=1e-6)
    assert seen == [((3,), (4, 3))]
    assert scaled(jnp.sum, X[0], scale=np.ones(3, np.float32)).values.shape == (3,)


def test_equal_local_methods_share_a_program():
    def local(factor):
        @ja.method
        def scaled(fn, x, target=None, *, args=(), key=None, batch_size=None):
            return ja.Attribution(factor * x, fn(x))

        return scaled

    assert static_method(local(2)) == static_method(local(2))
    assert static_method(local(2)) != static_method(local(3))
    assert static_method(local(2)) != static_method(ja.method(draws=True)(local(2).__wrapped__))
    np.testing.assert_allclose(ja.explain(local(3), jnp.sum, X).values, 3 * X)


def test_non_function_raises():
    with pytest.raises(TypeError, match="`method` must decorate a function, got int"):
        ja.method(3)
