"""Test capture and replacement of named intermediates of JAX functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.tree_util import Partial

import jaxattn as ja

rng = np.random.default_rng(0)
T, D = 4, 2
X = rng.normal(size=(T, D)).astype(np.float32)
ONES = np.ones((T, D), np.float32)
SUMS = X.cumsum(0)
TAILS = X[::-1].cumsum(0)[::-1]


def equal(got, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected)
    assert jax.tree.structure(got) == jax.tree.structure(expected)


def intermediates(fn, *names, x=X):
    return ja.capture(fn, *names)(x)[1]


def plain(x):
    doubled = ja.tag(2 * x, "doubled")
    return ja.tag(jnp.sin(doubled), "sine").sum()


def summed(x, reverse=False):
    """The state is a running sum; the output of each step is twice the state."""

    def step(carry, row):
        carry = ja.tag(carry + row, "state")
        return carry, 2 * carry

    return jax.lax.scan(step, jnp.zeros(D), x, reverse=reverse)[1]


def nested(x):
    """Cumulative sums of every row."""

    def row(carry, row):
        return carry, jax.lax.scan(lambda c, n: (ja.tag(c + n, "sum"),) * 2, 0.0 * carry, row)[1]

    return jax.lax.scan(row, jnp.zeros(()), x)[1]


@jax.custom_jvp
def straight(x):
    return ja.tag(jnp.sign(x), "sign")


straight.defjvp(lambda x, t: (straight(*x), t[0]))


@jax.custom_vjp
def reversed_gradient(x):
    return ja.tag(3 * x, "tripled")


reversed_gradient.defvjp(lambda x: (reversed_gradient(x), None), lambda _, g: (-g,))


def in_jit(x):
    return jax.jit(lambda x: jax.jit(plain)(x) + 1)(x)


def in_remat(x):
    return jax.checkpoint(plain)(x)


def in_vmap(x):
    return jax.vmap(plain)(x).sum()


def in_cond(x):
    branches = [lambda x, i=i: ja.tag(i * x, "times") + 1 for i in (2, 3)]
    return jax.lax.switch((x.sum() > -100).astype(jnp.int32), branches, x)


def in_half_a_cond(x):
    return jax.lax.cond(x.sum() > 0, lambda x: ja.tag(x, "half"), lambda x: -x, x)


def in_while(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: ja.tag(x + 1, "grown"), x)


def in_a_solver(x):
    return jax.scipy.sparse.linalg.cg(lambda v: ja.tag(2 * v, "product"), x)[0]


CASES = {
    "plain": (plain, {"doubled": 2 * X, "sine": np.sin(2 * X)}),
    "scan": (summed, {"state": SUMS}),
    "reverse scan": (lambda x: summed(x, reverse=True), {"state": TAILS}),
    "nested scans": (nested, {"sum": X.cumsum(1)}),
    "jit": (in_jit, {"doubled": 2 * X, "sine": np.sin(2 * X)}),
    "remat": (in_remat, {"doubled": 2 * X, "sine": np.sin(2 * X)}),
    "vmap": (in_vmap, {"doubled": 2 * X, "sine": np.sin(2 * X)}),
    "cond": (in_cond, {"times": 3 * X}),
    "custom jvp": (straight, {"sign": np.sign(X)}),
    "custom vjp": (reversed_gradient, {"tripled": 3 * X}),
    "none": (jnp.sin, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.representatives(
    "eager-plain",
    "eager-cond",
    "jit-scan",
    "jit-nested scans",
    "jit-reverse scan",
    "jit-vmap",
    "jit-remat",
    "jit-jit",
    "jit-custom vjp",
    "jit-custom jvp",
    "jit-none",
)
def test_tags_are_captured_in_every_construct(case, wrap):
    fn, expected = CASES[case]
    output, values = wrap(ja.capture(fn))(X)
    equal(output, fn(X))
    equal(values, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.representatives("plain", "cond", "nested scans", "custom vjp")
def test_capture_under_vmap(case):
    fn, expected = CASES[case]
    output, values = jax.vmap(ja.capture(fn))(np.stack([X, X]))
    equal(output, jnp.stack([fn(X), fn(X)]))
    equal(values, {name: np.stack([value, value]) for name, value in expected.items()})


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("custom")])
@pytest.mark.representatives("vmap", "nested scans", "cond", "remat")
def test_capture_preserves_the_gradient(case):
    fn, _ = CASES[case]
    got = jax.grad(lambda x: ja.capture(fn)(x)[0].sum())(X)
    equal(got, jax.grad(lambda x: fn(x).sum())(X))


@pytest.mark.slow
def test_captured_values_are_differentiable():
    equal(
        jax.jacobian(lambda x: intermediates(plain, "sine", x=x)["sine"].sum())(X),
        2 * np.cos(2 * X),
    )
    got = jax.grad(lambda x: intermediates(summed, "state", x=x)["state"][-1].sum())(X)
    equal(got, ONES)


@pytest.mark.parametrize(
    ("case", "replacement", "expected"),
    [
        (plain, {"doubled": X}, np.sin(X).sum()),
        (plain, {"doubled": lambda v: v / 2}, np.sin(X).sum()),
        (plain, {"doubled": X, "sine": lambda v: v + 1}, np.sin(X).sum() + T * D),
        (plain, {"sine": np.ones((T, D), int)}, T * D),
        (summed, {"state": X}, 2 * X),
        (summed, {"state": X[0]}, 2 * np.stack([X[0]] * T)),
        (summed, {"state": lambda v: v + 1}, 2 * (X + 1).cumsum(0)),
        (lambda x: summed(x, reverse=True), {"state": X}, 2 * X),
        (nested, {"sum": X}, X),
        (nested, {"sum": X[0]}, np.stack([X[0]] * T)),
        (nested, {"sum": np.float32(7)}, np.full((T, D), 7)),
        (nested, {"sum": lambda v: v + 1}, (X + 1).cumsum(1)),
        (in_jit, {"doubled": X}, np.sin(X).sum() + 1),
        (in_remat, {"doubled": X}, np.sin(X).sum()),
        (in_vmap, {"doubled": X}, np.sin(X).sum()),
        (in_cond, {"times": X}, X + 1),
        (straight, {"sign": X}, X),
        (reversed_gradient, {"tripled": lambda v: v / 3}, X),
        (plain, {}, np.sin(2 * X).sum()),
        (summed, {"state": Partial(jnp.add, X[0])}, 2 * (X + X[0]).cumsum(0)),
        (nested, {"sum": lambda v: 7.0}, np.full((T, D), 7)),
    ],
)
@pytest.mark.representatives(
    "in_cond",
    "nested-replacement9-expected9",
    "summed-replacement4-expected4",
    "plain-replacement1-expected1",
    "plain-replacement3-8",
    "reversed_gradient",
    "in_vmap",
    "in_jit",
    "straight",
    "in_remat",
    "plain-replacement18-expected18",
)
def test_intermediates_are_replaced(case, replacement, expected):
    changed = ja.intervene(case, replacement)
    np.testing.assert_allclose(changed(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(changed)(X), expected, rtol=1e-5, atol=1e-6)
    batch = jax.vmap(changed)(np.stack([X, X]))
    np.testing.assert_allclose(batch, np.stack([expected] * 2), rtol=1e-5, atol=1e-6)


def test_replacements_are_differentiable():
    got = jax.grad(lambda r: ja.intervene(summed, {"state": r})(X).sum())(X)
    equal(got, 2 * ONES)
    equal(jax.grad(lambda x: ja.intervene(plain, {"doubled": X})(x))(X), 0 * X)
    equal(jax.grad(lambda x: ja.intervene(plain, {"doubled": lambda v: v / 2})(x))(X), np.cos(X))


def test_capture_of_a_closure_over_tracers():
    def captured(w):
        return intermediates(lambda x: ja.tag(w * x, "scaled"))["scaled"]

    equal(jax.jit(captured)(jnp.float32(3)), 3 * X)
    equal(jax.jacobian(captured)(jnp.float32(3)), X)
    with jax.disable_jit():
        equal(captured(jnp.float32(3)), 3 * X)


def test_custom_derivatives_are_kept_unless_a_name_is_inside():
    def fn(x):
        return reversed_gradient(straight(ja.tag(x, "x"))).sum()

    equal(jax.grad(lambda x: ja.capture(fn, "x")(x)[0])(X), -ONES)
    equal(jax.grad(lambda x: ja.capture(fn, "sign")(x)[0])(X), 0 * X)
    equal(jax.grad(lambda x: ja.capture(fn, "tripled")(x)[0])(X), 3 * ONES)


def test_remat_is_preserved():
    jaxpr = jax.make_jaxpr(ja.intervene(in_remat, {"doubled": X}))(X)
    assert "remat" in str(jaxpr) or "checkpoint" in str(jaxpr)


@pytest.mark.parametrize(
    ("fn", "name", "reason"),
    [
        (in_while, "grown", "a `while`, which has no fixed number of steps"),
        (in_half_a_cond, "half", "in every branch of a `cond`"),
        (jax.jit(in_half_a_cond), "half", "in every branch of a `cond`"),
        (in_a_solver, "product", "a `custom_linear_solve`, which is not opened"),
    ],
)
def test_names_without_a_value_raise(fn, name, reason):
    for call in (ja.capture(fn), ja.capture(fn, name), ja.intervene(fn, {name: X})):
        with pytest.raises(ValueError, match=f"'{name}' .*{reason}"):
            call(X)
    with pytest.raises(ValueError, match=f"at: '{name}' .*{reason}"):
        ja.saliency(fn, X, at=name)


def test_branches_with_different_shapes_raise():
    def fn(x):
        ends = [lambda x: ja.tag(x, "part").sum(), lambda x: ja.tag(x[0], "part").sum()]
        return jax.lax.cond(x.sum() > 0, *ends, x) + ja.tag(x, "whole").sum()

    with pytest.raises(ValueError, match="'part' does not occur equally often, with equal shapes"):
        intermediates(fn)
    equal(intermediates(fn, "whole"), {"whole": X})


def many(x):
    for _ in range(3):
        x = ja.tag(x + 1, "again")
    return ja.tag(x, "encoder/out") * ja.tag(x, "decoder/out")


def test_repeated_name_returns_a_list():
    equal(intermediates(many, "again"), {"again": [X + 1, X + 2, X + 3]})
    equal(ja.intervene(many, {"again": [X, lambda v: 2 * v, X + 5]})(X), (X + 5) ** 2, 1e-5)
    equal(ja.intervene(many, {"again": lambda v: 2 * v})(X), (8 * X + 14) ** 2, 1e-3)
    with pytest.raises(ValueError, match="'again' occurs 3 times, got a list of 2"):
        ja.intervene(many, {"again": [X, X]})(X)
    both = intermediates(lambda x: jax.jit(plain)(x) + jax.jit(plain)(2 * x), "sine")
    equal(both, {"sine": [np.sin(2 * X), np.sin(4 * X)]})
    looped = intermediates(lambda x: summed(summed(x)), "state")
    equal(looped, {"state": [SUMS, (2 * SUMS).cumsum(0)]}, 1e-5)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("encoder/out", {"encoder/out"}),
        ("out", {"encoder/out", "decoder/out"}),
        ("coder", {"encoder/out", "decoder/out"}),
        ("*coder*", {"encoder/out", "decoder/out"}),
        ("[ae]*", {"again", "encoder/out"}),
        ("?gain", {"again"}),
        ("gai", {"again"}),
    ],
)
def test_names_match_exactly_or_as_globs_or_substrings(pattern, names):
    assert set(intermediates(many, pattern)) == names


def test_unknown_name_error_lists_existing_names():
    message = r"no intermediate 'nope'.*tags \['again', 'encoder/out', 'decoder/out'\]"
    with pytest.raises(ValueError, match="capture: `fn` has " + message):
        intermediates(many, "again", "nope")
    with pytest.raises(ValueError, match="intervene: `fn` has " + message):
        ja.intervene(many, {"nope": X})(X)
    with pytest.raises(ValueError, match="no intermediate 'agai\\?\\?'"):
        intermediates(many, "agai??")


@pytest.mark.parametrize(
    ("replacement", "error", "message"),
    [
        (X[:3], ValueError, r"shape \(4, 2\) or, the same for all .* \(2,\), got \(3, 2\)"),
        (X[None], ValueError, r"must have shape \(4, 2\) .*, got \(1, 4, 2\)"),
        (X + 1j, TypeError, "must have dtype float32, got complex64"),
        ((X, X), ValueError, "returns 1 arrays, .*got 2"),
        (
            lambda v: v[None],
            ValueError,
            "arrays like its argument's, float32.2., got float32.1, 2.",
        ),
        (lambda v: v > 0, ValueError, "arrays like its argument's, float32.2., got bool.2."),
        (lambda v: (v, v), ValueError, "must return arrays like its argument's"),
    ],
)
def test_mismatched_replacements_raise(replacement, error, message):
    with pytest.raises(error, match=message):
        ja.intervene(summed, {"state": replacement})(X)


def test_arguments_of_wrong_type_raise():
    with pytest.raises(TypeError, match="`fn` must be callable, got int"):
        ja.capture(3)
    with pytest.raises(TypeError, match="`names` must be strings, got 3"):
        ja.capture(plain, 3)
    with pytest.raises(TypeError, match="`replacements` must be a dict by name, got str"):
        ja.intervene(plain, "doubled")
    with pytest.raises(TypeError, match="must be arrays or functions, got str for 'doubled'"):
        ja.intervene(plain, {"doubled": "zero"})
    with pytest.raises(TypeError, match="`replacements` must have names as keys, got 0"):
        ja.intervene(plain, {0: X})
    with pytest.raises(ValueError, match="'doubled' is replaced twice"):
        ja.intervene(plain, {"doubled": X, "doub": X})(X)


def test_capture_composes_with_capture_and_intervene():
    equal(intermediates(ja.capture(plain, "sine"), "doubled"), {"doubled": 2 * X})
    equal(intermediates(ja.capture(plain, "sine"), "sine"), {"sine": np.sin(2 * X)})
    for name, fn in {"doubled": plain, "state": summed}.items():
        equal(intermediates(ja.intervene(fn, {name: X}), name), {name: X})
        nothing = ja.intervene(fn, {name: lambda v: 0 * v})
        equal(intermediates(nothing, name), {name: 0 * X})
        equal(intermediates(ja.intervene(nothing, {name: lambda v: v + 1}), name), {name: ONES})


def test_extra_inputs_and_pytrees():
    def fn(x, scale):
        return {"y": ja.tag(x["a"] * scale, "scaled") + x["b"]}

    output, values = ja.capture(fn, "scaled")({"a": X, "b": X}, np.float32(3))
    equal(output, {"y": 4 * X})
    equal(values, {"scaled": 3 * X})


def test_side_effects_are_preserved():
    calls = []

    def record(value):
        calls.append(float(value))

    def fn(x):
        jax.debug.callback(record, x.sum(), ordered=True)

        def step(carry, row):
            io_callback(record, None, row[0], ordered=True)
            return ja.tag(carry + row, "state"), None

        doubled = jax.pure_callback(lambda x: 2 * np.asarray(x), jax.typeof(x), x)
        return jax.lax.scan(step, jnp.zeros(D), doubled)[0]

    for call in (ja.capture(fn, "state"), ja.intervene(fn, {"state": lambda v: v})):
        output = call(X)
        jax.effects_barrier()
        np.testing.assert_allclose(calls, [X.sum(), *2 * X[:, 0]], rtol=1e-5)
        calls.clear()
    np.testing.assert_allclose(output, 2 * X.sum(0), rtol=1e-5)
    printed = []
    ja.capture(lambda x: (jax.debug.callback(printed.append, x[0, 0]), ja.tag(x, "a"))[1])(X)
    jax.effects_barrier()
    assert printed == [X[0, 0]]


def test_captured_value_as_target():
    got = ja.explain(
        ja.gradient, ja.capture(plain, "sine"), X[None], lambda out: out[1]["sine"][0, 0]
    )
    expected = np.zeros((1, T, D), np.float32)
    expected[0, 0, 0] = 2 * np.cos(2 * X[0, 0])
    np.testing.assert_allclose(got.values, expected, atol=1e-6)


def test_without_softmax_of_an_intervention():
    def fn(x):
        return jax.nn.softmax(ja.tag(x.sum(0), "logits"))

    changed = ja.without_softmax(ja.intervene(fn, {"logits": lambda v: 3 * v}))
    np.testing.assert_allclose(ja.gradient(changed, X, 0).values[:, 0], np.full(T, 3.0))
