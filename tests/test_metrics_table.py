"""Tables of methods, reductions of attributions, and their global importance."""

import doctest
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich
from hypothesis import given, settings

import jaxattn as ja
from jaxattn import metrics

KEY = jax.random.key(0)
XS = jnp.array([[1.0, 2, -1], [0.5, -1, 2]])
TRUTH = np.array([[0, 0, 1], [0, 0, 1]], bool)


def fn(x):
    return jnp.stack([x[0] + 5 * x[2] ** 2, x[1]])


@pytest.fixture(scope="module")
def found():
    methods = {
        "gradient": ja.gradient,
        "given": ja.Attribution(XS, XS),
        "smooth": functools.partial(ja.smooth_grad, num_samples=3),
    }
    measures = [
        metrics.auroc,
        metrics.deletion,
        functools.partial(metrics.sufficiency, fraction=[0.3, 0.6]),
        metrics.completeness,
        functools.partial(metrics.infidelity, num_samples=5),
        metrics.sparseness,
    ]
    return metrics.table(methods, fn, XS, 0, measures, truth=TRUTH, key=KEY, show=False)


@pytest.mark.slow
def test_table_holds_the_numbers_of_the_metrics(found):
    assert found.values.shape == (3, 6, 2)
    assert found.metrics == (
        "auroc", "deletion", "sufficiency", "completeness", "infidelity", "sparseness"
    )  # fmt: skip
    assert found.better == ("higher", "lower", "lower", "zero", "lower", "higher")
    values = ja.explain(ja.gradient, fn, XS, 0)
    rows = found.values[found.methods.index("gradient")]
    np.testing.assert_allclose(rows[0], metrics.auroc(values, TRUTH), rtol=1e-5)
    np.testing.assert_allclose(rows[1], metrics.deletion(fn, XS, 0, values).auc, rtol=1e-5)
    fractions = metrics.sufficiency(fn, XS, 0, values, fraction=[0.3, 0.6])
    np.testing.assert_allclose(rows[2], fractions.mean(1), rtol=1e-5)
    np.testing.assert_allclose(rows[3], metrics.completeness(fn, XS, 0, values), rtol=1e-5)
    np.testing.assert_allclose(found.mean, found.values.mean(2))
    np.testing.assert_allclose(found.standard_error, abs(found.values @ [1, -1]) / 2, atol=1e-12)


def test_table_sorts_by_the_first_metric_and_marks_the_best(found):
    assert (np.diff(found.mean[:, 0]) <= 0).all()
    signs = np.array([1, -1, -1, 0, -1, 1])
    merits = np.where(signs, signs * found.mean, -abs(found.values).mean(2))
    np.testing.assert_array_equal(found.best, merits == merits.max(0))


def test_markdown_and_printed_table():
    values = np.array([[[1.0, 3], [0.5, np.nan]], [[4.0, 4], [np.nan, np.nan]]])
    comparison = metrics.Comparison(("a", "b"), ("x", "y"), ("lower", "zero"), values)
    assert comparison.to_markdown() == (
        "| method | x ↓ | y →0 |\n| --- | --- | --- |\n"
        "| a | **2 ± 1** | **0.5** |\n| b | 4 ± 0 | nan |"
    )
    table = comparison.__rich__()
    assert [column.header for column in table.columns] == ["method", "x ↓", "y →0"]
    assert table.row_count == 2


def test_errors_of_opposite_sign_do_not_cancel():
    values = np.array([[[5.0, -5]], [[0.1, 0.1]]])
    found = metrics.Comparison(("a", "b"), ("completeness",), ("zero",), values)
    np.testing.assert_array_equal(found.best[:, 0], [False, True])


def test_names_are_not_markup(capsys):
    values = np.ones((1, 1, 2))
    rich.print(metrics.Comparison(("ig[zeros]",), ("size[all]",), ("lower",), values))
    printed = capsys.readouterr().out
    assert "ig[zeros]" in printed
    assert "size[all]" in printed


def test_logarithms_of_a_probability_keep_their_score():
    options = {"targets": 0, "metrics": [metrics.cross_entropy, metrics.log_odds], "show": False}
    found = metrics.table([ja.gradient], fn, XS, score="probability", **options)
    default = metrics.table([ja.gradient], fn, XS, **options)
    np.testing.assert_array_equal(found.values, default.values)


def test_table_is_printed(capsys):
    metrics.table([ja.gradient], fn, XS, 0, [metrics.sparseness])
    assert "gradient" in capsys.readouterr().out
    found = metrics.table([ja.gradient], fn, XS, 0, truth=TRUTH, show=False)
    assert found.metrics == ("auprc", "auroc", "aup", "aur", "information", "entropy")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_every_metric_fits_the_table():
    """Each public function is a metric whose direction is declared, or one of `others`."""
    others = {"metric", "properties", "table", "moving_average", "channel_mean", "uniform_noise"}
    options = {
        "top_k_intersection": {"k": 2},
        "region_perturbation": {"window": 2},
        "irof": {"groups": np.array([0, 1, 1])},
        "input_invariance": {"shift": 1.0},
        "smooth_mprt": {"num_samples": 2},
    }
    every = [n for n in metrics.__all__ if n[0].islower() and n not in others]
    assert len(every) == 44
    measures = {n: functools.partial(getattr(metrics, n), **options.get(n, {})) for n in every}
    model = jax.tree_util.Partial(lambda w, x: fn(x) * w, jnp.ones(2))
    methods = {"gradient": ja.gradient}
    found = metrics.table(methods, model, XS, 0, measures, truth=TRUTH, key=KEY, show=False)
    assert found.values.shape == (1, 44, 2)
    for name, numbers in zip(every, found.values[0], strict=True):
        limits = metrics.properties(getattr(metrics, name))
        defined = numbers[~np.isnan(numbers)]
        assert ((defined >= limits.low) & (defined <= limits.high)).all(), name


def test_bad_tables_raise():
    with pytest.raises(ValueError, match="`truth` is missing: auroc compares with it"):
        metrics.table([ja.gradient], fn, XS, 0, [metrics.auroc])
    with pytest.raises(ValueError, match="`key` is missing: infidelity draws"):
        metrics.table([ja.gradient], fn, XS, 0, [metrics.infidelity])
    with pytest.raises(TypeError, match="`methods` must hold methods for max_sensitivity"):
        given = {"mine": ja.Attribution(XS, XS)}
        metrics.table(given, fn, XS, 0, [metrics.max_sensitivity], key=KEY)
    with pytest.raises(TypeError, match="`function` must be a metric, got fn"):
        metrics.table([ja.gradient], fn, XS, 0, [fn])
    with pytest.raises(ValueError, match="`methods` must be a dict if names occur twice"):
        metrics.table([ja.gradient, ja.gradient], fn, XS, 0)
    with pytest.raises(TypeError, match="`methods` must be a list or a dict, got gradient"):
        metrics.table(ja.gradient, fn, XS, 0)
    with pytest.raises(ValueError, match="`metrics` must hold at least one"):
        metrics.table([ja.gradient], fn, XS, 0, [])
    with pytest.raises(ValueError, match="`metrics` must return a number per example"):
        pooled = functools.partial(metrics.auroc, pooled=True)
        metrics.table([ja.gradient], fn, XS, 0, [pooled], truth=TRUTH)


VALUES = jnp.array([[[1.0, -2], [3, 4], [0, 5]], [[0.0, 0], [-6, 8], [1, 1]]])


def reduced(*args, **options):
    return ja.Attribution(VALUES, jnp.zeros(2)).reduce(*args, **options).values


def test_reduce_closed_form():
    np.testing.assert_array_equal(reduced(), [[-1, 7, 5], [0, 2, 2]])
    np.testing.assert_array_equal(reduced(-1, "mean"), [[-0.5, 3.5, 2.5], [0, 1, 1]])
    np.testing.assert_allclose(reduced(2, "l2")[:, 1], [5, 10], rtol=1e-6)
    np.testing.assert_array_equal(reduced(-1, "absmax"), [[2, 4, 5], [0, 8, 1]])
    np.testing.assert_array_equal(reduced((1, 2)), [11, 4])
    np.testing.assert_allclose(reduced([1, 2], "l2"), [55**0.5, 102**0.5], rtol=1e-6)


#: The reductions of one axis, by numpy.
REDUCTIONS = {
    "sum": np.sum,
    "mean": np.mean,
    "l2": lambda values, axis: np.sqrt(np.square(values).sum(axis)),
    "absmax": lambda values, axis: np.abs(values).max(axis),
}


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.representatives("mean")
@settings(max_examples=5, deadline=None)
@given(
    spans=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 3)).filter(lambda s: s[0] < s[1]),
        min_size=1,
        max_size=4,
    ),
    axis=st.sampled_from([1, -2]),
)
def test_spans_are_reductions_of_slices(reduction, spans, axis):
    got = reduced(axis, reduction, spans=spans)
    parts = [REDUCTIONS[reduction](VALUES[:, a:b], axis=1) for a, b in spans]
    np.testing.assert_allclose(got, np.stack(parts, 1), rtol=1e-6)


def test_reduce_keeps_leaves_output_and_info():
    attribution = ja.Attribution(
        {"a": VALUES, "b": VALUES[..., :1]}, jnp.ones(2), {"d": jnp.ones(2)}
    )
    inside = jax.jit(lambda a: a.reduce(-1))(attribution)
    np.testing.assert_array_equal(inside.values["b"], VALUES[..., 0])
    np.testing.assert_array_equal(inside.info["d"], [1, 1])
    half = ja.Attribution(jnp.full((1, 100), 400.0, jnp.float16), jnp.zeros(1))
    np.testing.assert_allclose(half.reduce(-1, "l2").values, [4000], rtol=1e-2)


def test_importance_closed_form():
    attribution = ja.Attribution(VALUES[:, :, 0], jnp.zeros(2))
    found = attribution.importance()
    np.testing.assert_allclose(found.mean, [0.5, 4.5, 0.5])
    np.testing.assert_allclose(found.standard_error, [0.5, 1.5, 0.5], rtol=1e-6)
    signed = attribution.importance(absolute=False)
    np.testing.assert_allclose(signed.mean, [0.5, -1.5, 0.5])
    assert np.isnan(attribution[:1].importance().standard_error).all()


@pytest.mark.parametrize("output", [jnp.zeros(()), jnp.zeros(3)])
def test_importance_requires_examples(output):
    with pytest.raises(ValueError, match="`values` must have a leading axis of examples"):
        ja.Attribution(VALUES[:, :, 0], output).importance()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ja.metrics.sparseness("abc"), "`attribution` must hold arrays of numbers"),
        (lambda: ja.metrics.sparseness([[1.0, 2.0]]), "`attribution` must hold arrays, got nested"),
        (
            lambda: ja.metrics.table(["gradient"], jnp.sum, VALUES[..., 0], None),
            "`methods` must hold functions or attributions, got 'gradient'",
        ),
    ],
)
def test_text_and_nested_lists_are_named_in_errors(change, message):
    with pytest.raises(TypeError, match=message):
        change()


@pytest.mark.parametrize("function", [ja.Attribution.reduce, ja.Attribution.importance])
def test_docstring_example_of_an_attribution_runs(function):
    runner = doctest.DocTestRunner()
    (example,) = doctest.DocTestFinder().find(function, function.__name__)
    assert runner.run(example).failed == 0


def test_reductions_in_half_precision_do_not_overflow():
    thousands = ja.Attribution(jnp.full((1, 200), 1000, jnp.float16), None)
    np.testing.assert_array_equal(thousands.reduce(-1, "mean", spans=[(0, 200)]).values, [[1000]])
    ones = ja.Attribution(jnp.ones((1, 70_000), jnp.float16), None)
    np.testing.assert_allclose(ones.reduce(-1, "l2").values, [np.sqrt(70_000)], rtol=1e-3)


def test_bad_reductions_raise():
    with pytest.raises(ValueError, match='`reduction` must be "sum", "mean", "l2" or "absmax"'):
        reduced(-1, "max")
    with pytest.raises(
        ValueError, match=r"`axis` must hold axes of the values, of shape \(2, 3, 2\)"
    ):
        reduced(3)
    with pytest.raises(ValueError, match="`axis` must be one axis with spans"):
        reduced((1, 2), spans=[(0, 1)])
    for spans in ([(0, 4)], [(1, 1)], [(-1, 2)]):
        with pytest.raises(ValueError, match="`spans` must not be empty and lie within the axis"):
            reduced(1, spans=spans)
    for spans in (5, [], [(0.5, 1)], [1, 2], [(0, 1), (1,)]):
        with pytest.raises(ValueError, match="`spans` must be pairs of ints"):
            reduced(1, spans=spans)
    with pytest.raises(TypeError, match="`axis` must be an int"):
        reduced(1.5)
    with pytest.raises(ValueError, match="`values` must have a leading axis"):
        ja.Attribution(jnp.float32(1), jnp.zeros(())).importance()
    with pytest.raises(TypeError, match="`absolute` must be a bool"):
        ja.Attribution(VALUES, jnp.zeros(2)).importance(absolute=1)
