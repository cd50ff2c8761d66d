"""Metrics of predictions for inputs with replaced features, on cases worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn import metrics

XS = jnp.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])
VALUES = jnp.array([[4.0, 3, 2, 1], [1.0, 4, 3, 2]])
FLIPPING = {
    "pixel_flipping": metrics.pixel_flipping,
    "region_perturbation": functools.partial(metrics.region_perturbation, window=2),
    "irof": functools.partial(metrics.irof, groups=np.array([0, 0, 1, 1])),
    "monotonicity": metrics.monotonicity,
}
FRACTIONS = [
    metrics.comprehensiveness,
    metrics.sufficiency,
    metrics.log_odds,
    metrics.cross_entropy,
    metrics.mse,
    metrics.mae,
]
KEY = jax.random.key(0)


def name(metric):
    return getattr(getattr(metric, "func", metric), "__name__", None)


def total(x):
    return x.sum()


def logits(x):
    return jnp.stack([x.sum(), 2.0 * x[0], jnp.float32(1)])


@pytest.mark.parametrize(
    "metric, one, several",
    [
        # half of the features: 1 and 2, and 3 and 2; of [1/4, 1]: the first, and all
        (metrics.comprehensiveness, [3, 5], [[1, 10], [3, 10]]),
        (metrics.sufficiency, [7, 5], [[9, 0], [7, 0]]),
        (metrics.mse, [9, 25], [[1, 100], [9, 100]]),
        (metrics.mae, [3, 5], [[1, 10], [3, 10]]),
        (metrics.log_odds, [-3, -5], [[-1, -10], [-3, -10]]),
        (metrics.cross_entropy, [-7, -5], [[-9, 0], [-7, 0]]),
    ],
    ids=name,
)
def test_fractions_closed_form(metric, one, several):
    options = {} if metric in (metrics.mse, metrics.mae) else {"score": "logit"}
    got = metric(total, XS, None, VALUES, fraction=0.5, **options)
    np.testing.assert_array_equal(got, one)
    got = metric(total, XS, None, VALUES, fraction=[0.25, 1.0], batch_size=1, **options)
    np.testing.assert_array_equal(got, several)


def test_scores_are_probabilities_by_default():
    def fn(x):
        return logits(x) / 4

    inputs = np.array([[1.0, 2, 3, 4], [0, 0, 3, 4], [1, 2, 0, 0]], np.float32)
    x, without, only = (jax.nn.softmax(fn(jnp.asarray(row)))[0] for row in inputs)
    got = [float(m(fn, XS[:1], 0, VALUES[:1], fraction=0.5)[0]) for m in FRACTIONS[:4]]
    want = [x - without, x - only, jnp.log(without / x), -jnp.log(without)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_errors_of_all_outputs_and_of_the_target():
    before, after = np.array([10.0, 2, 1]), np.array([9.0, 0, 1])
    for metric, size in ((metrics.mse, np.square), (metrics.mae, np.abs)):
        got = metric(logits, XS[:1], None, VALUES[:1], fraction=0.25)
        np.testing.assert_allclose(got, [size(after - before).mean()], rtol=1e-6)
        got = metric(logits, XS[:1], 1, VALUES[:1], fraction=0.25)
        np.testing.assert_allclose(got, [size(2)], rtol=1e-6)


def test_accuracy_closed_form():
    # the class of the largest logit is 0 as long as the sum is above 2 x_0 and 1
    got = metrics.accuracy(logits, XS, np.array([0, 0]), VALUES, fraction=[0.25, 1.0])
    np.testing.assert_array_equal(got, [[1, 0], [0, 0]])
    got = metrics.accuracy(logits, XS, 2, VALUES, fraction=1.0)
    np.testing.assert_array_equal(got, [1, 1])

    def of_steps(x):
        return jnp.stack([x, 2 - x], 1)

    got = metrics.accuracy(of_steps, XS, np.array([[2, 0], [1, 1]]), -VALUES, fraction=0.25)
    np.testing.assert_array_equal(got, [1, 0])


@pytest.mark.slow
def test_a_baseline_equal_to_the_input_changes_nothing():
    def model(x):
        return jnp.tanh(x @ jnp.arange(12.0).reshape(4, 3)) / 3

    for metric in FRACTIONS:
        if metric is not metrics.cross_entropy:
            got = metric(model, XS, 1, VALUES, fraction=[0.2, 0.9], baseline=XS)
            np.testing.assert_array_equal(got, np.zeros((2, 2)))
    for metric, want in (("region_perturbation", 0), ("irof", 0), ("monotonicity", 1)):
        got = FLIPPING[metric](model, XS, 1, VALUES, baseline=XS)
        np.testing.assert_allclose(got, [want] * 2, atol=1e-7)


RANKED = [*FRACTIONS, *(FLIPPING[n] for n in ("pixel_flipping", "region_perturbation", "irof"))]


@pytest.mark.parametrize("metric", RANKED, ids=name)
@pytest.mark.representatives("comprehensiveness", "irof", "pixel_flipping")
def test_a_perfect_ranking_beats_a_random_one(metric):
    rng = np.random.default_rng(0)
    xs = jnp.asarray(np.abs(rng.normal(size=(64, 4))), jnp.float32)
    weights = jnp.asarray([8.0, 4, 1, 0])
    options = {} if name(metric) in ("mse", "mae") else {"score": "logit"}
    if name(metric) == "irof":
        options["baseline"] = 0.0

    def fn(x):
        return x @ weights

    perfect, drawn = (
        metric(fn, xs, None, values, **options)
        for values in (xs * weights[None], jnp.asarray(rng.normal(size=xs.shape), jnp.float32))
    )
    if name(metric) == "pixel_flipping":
        perfect, drawn = perfect.auc, drawn.auc
    sign = {"higher": 1, "lower": -1}[metrics.properties(metric).better]
    assert sign * perfect.mean() > sign * drawn.mean() + 0.05


#: Of time-interpret 0.3, for the network below, the target 1 and a quarter of the features.
PEER = {
    "comprehensiveness": [0.2836039, -0.1065112],
    "sufficiency": [-0.3469445, 0.4306842],
    "log_odds": [-1.3032509, 0.1514770],
    "cross_entropy": [2.2464578, 0.2774014],
    "mse": [1.1085212, 0.1949860],
    "mae": [1.0528634, 0.4415722],
}
X = np.cos(np.arange(24)).reshape(2, 12).astype(np.float32)
A = np.sin(2.0 * np.arange(24)).reshape(2, 12).astype(np.float32)
W = np.sin(np.arange(36) ** 2 / 7).reshape(12, 3).astype(np.float32)


def network(x):
    return jnp.tanh(x.ravel()) @ W


@pytest.mark.parametrize("metric", FRACTIONS, ids=name)
@pytest.mark.representatives("log_odds", "sufficiency")
def test_fractions_equal_those_of_time_interpret(metric):
    got = metric(network, X, 1, A, fraction=0.25)
    np.testing.assert_allclose(got, PEER[metric.__name__], rtol=1e-4)


@pytest.mark.slow
def test_curves_equal_those_of_quantus():
    """Numbers of Quantus 0.6, for the network above and the target 1."""
    flipped = [
        [1.4837576, 1.0038167, 0.4486255, 0.0761743, -0.0322551, -0.0365843],
        [2.9760346, 2.4324007, 2.0575528, 1.4362396, 1.1937407, 1.1726899],
    ]
    curve = metrics.pixel_flipping(network, X, 1, A, score="logit")
    np.testing.assert_allclose(curve.scores[:, 1:7], flipped, atol=1e-5)
    estimate = metrics.faithfulness_estimate(network, X, 1, A)
    np.testing.assert_allclose(estimate, [0.2839718, 0.0855717], rtol=1e-4)
    np.testing.assert_allclose(metrics.sparseness(A), [0.3364855, 0.2587862], rtol=1e-5)
    np.testing.assert_allclose(metrics.complexity(A), [2.2335823, 2.3381050], rtol=1e-5)
    mask = (np.arange(24) % 3 == 0).reshape(2, 12)
    np.testing.assert_allclose(metrics.auroc(A, mask), [0.3125, 0], atol=1e-6)
    np.testing.assert_allclose(metrics.relevance_rank(A, mask), [0, 0])
    np.testing.assert_allclose(metrics.top_k_intersection(A, mask, k=5), [0.2, 0])


def test_pixel_flipping_is_deletion_of_single_features():
    curve = metrics.pixel_flipping(network, X, 1, A)
    deletion = metrics.deletion(network, X, 1, A, num_steps=12)
    for got, want in zip(curve, deletion, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    five = metrics.pixel_flipping(network, X, 1, A, features_per_step=5)
    np.testing.assert_allclose(five.scores, deletion.scores[:, [0, 5, 10, 12]], rtol=1e-6)
    np.testing.assert_allclose(five.fractions, [0, 5 / 12, 10 / 12, 1])


@pytest.mark.slow
def test_region_perturbation_closed_form():
    xs = jnp.arange(15.0).reshape(1, 5, 3)
    values = jnp.zeros((1, 5, 3)).at[0, 4, 0].set(3.0).at[0, 0, 2].set(1.0)
    found = functools.partial(metrics.region_perturbation, total, xs, None, values, score="logit")
    # Rows 4, then 0 and 1, then 2 and 3: the sums of the windows are 0 + 1 + ... + 5, 51 and 39.
    np.testing.assert_allclose(found(window=2), [(0 + 39 + 54 + 105) / 4], rtol=1e-6)
    np.testing.assert_allclose(found(window=2, num_steps=1), [39 / 2], rtol=1e-6)
    # Squares of 2 x 2 and what is left: (4, 0), then (0, 2), then the others in their order.
    np.testing.assert_allclose(
        found(window=(2, 2), num_steps=2), [(0 + 25 + 25 + 7) / 3], rtol=1e-6
    )
    equal = metrics.region_perturbation(
        lambda x: x["a"].sum() + x["b"].sum(),
        {"a": xs[:, :4], "b": xs[:, 4:]},
        None,
        {"a": values[:, :4], "b": values[:, 4:]},
        window=1,
        num_steps=2,
        score="logit",
    )
    np.testing.assert_allclose(equal, found(window=1, num_steps=2), rtol=1e-6)


def test_irof_closed_form():
    xs, groups = jnp.array([[1.0, 2, 3, 4]]), np.array([7, 3, 7, 3])
    options = {"score": "logit", "groups": groups}
    values = jnp.array([[4.0, 0, 0, 1]])
    got = metrics.irof(total, xs, None, values, baseline=0.0, **options)
    # First the group of 1 and 3, then all: the scores are 10, 6 and 0.
    np.testing.assert_allclose(got, [1 - (0.8 + 0.3) / 2], rtol=1e-6)
    got = metrics.irof(total, xs, None, values, **options)  # each feature becomes the mean
    np.testing.assert_allclose(got, [1 - 1.05], rtol=1e-4)


def test_irof_with_groups_of_each_example():
    xs = jnp.array([[1.0, 2, 3, 4], [1.0, 2, 3, 4]])
    groups = np.array([[7, 3, 7, 3], [0, 3, 7, 0]])
    values = jnp.array([[4.0, 0, 0, 1], [3.0, 1, 2, 0]])
    got = metrics.irof(total, xs, None, values, groups=groups, baseline=0.0, score="logit")
    # The means of the second example's groups are 1.5, 1 and 2: 7, then 0, then 3.
    second = 1 - (0.85 + 0.45 + 0.1) / 3
    np.testing.assert_allclose(got, [1 - (0.8 + 0.3) / 2, second], rtol=1e-6)


def test_monotonicity_closed_form():
    xs, values = jnp.array([[1.0, 3], [3.0, 1]]), jnp.array([[1.0, 2], [1.0, 2]])

    def fn(x):
        return x[0] - x[1] ** 2 + 2 * x[0] * x[1]

    # From 0: x_0 = 1 gives 1, then -2; x_0 = 3 gives 3, then 8. From 1: 2, 2, -2 and 2, 8, 8.
    for baseline, want in ((0.0, [0, 1]), (1.0, [0, 1])):
        got = metrics.monotonicity(fn, xs, None, values, baseline=baseline, score="logit")
        np.testing.assert_array_equal(got, want)
    # The other order: -9, then -2; -1, then 8.
    got = metrics.monotonicity(fn, xs, None, -values, score="logit")
    np.testing.assert_array_equal(got, [0, 0])
    at_once = metrics.monotonicity(fn, xs, None, -values, features_per_step=2, score="logit")
    np.testing.assert_array_equal(at_once, [0, 1])


def dense_imputation(x, removed, edges):
    """Return features that are the weighted means of their neighbours, by a dense system."""
    n = x.size
    weights = np.zeros((n, n))
    for i, j, weight in edges:
        weights[i, j] = weights[j, i] = weight
    laplacian = np.diag(weights.sum(1)) - weights
    gone, kept = np.flatnonzero(removed), np.flatnonzero(~removed)
    filled = x.astype(float).copy()
    filled[gone] = np.linalg.solve(
        laplacian[np.ix_(gone, gone)], weights[np.ix_(gone, kept)] @ x[kept]
    )
    return filled


def test_road_solves_the_equations_of_the_neighbours():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 5, 4)).astype(np.float32)
    values = rng.normal(size=(1, 5, 4)).astype(np.float32)
    edges = [
        (4 * r + c, 4 * (r + i) + c + j, 1 / (abs(i) + abs(j)))
        for r in range(5)
        for c in range(4)
        for i, j in ((0, 1), (1, -1), (1, 0), (1, 1))
        if r + i < 5 and 0 <= c + j < 4
    ]
    readout = jnp.asarray(rng.normal(size=20), jnp.float32)
    got = metrics.road(
        lambda x: x.ravel() @ readout,
        image,
        None,
        values,
        key=KEY,
        fraction=[0.3, 0.7],
        noise=0.0,
        axes=(0, 1),
        score="logit",
    )
    order = np.argsort(-values.ravel(), kind="stable")
    want = []
    for count in (6, 14):
        removed = np.zeros(20, bool)
        removed[order[:count]] = True
        want.append(dense_imputation(image.ravel(), removed, edges) @ np.asarray(readout))
    np.testing.assert_allclose(got, [np.mean(want)], rtol=1e-4)


@pytest.mark.slow
def test_road_imputes_channels_of_series_separately():
    series = jnp.array([[[0.0, 5], [9.0, 6], [4.0, 7]]])
    values = jnp.zeros((1, 3, 2)).at[0, 1, 0].set(1)
    options = {"key": KEY, "fraction": 1 / 6, "score": "logit"}
    got = metrics.road(total, series, None, values, noise=0.0, **options)
    np.testing.assert_allclose(got, [2 + 4 + 18], rtol=1e-5)
    drawn = [metrics.road(total, series, None, values, noise=n, **options) for n in (0.1, 0.2)]
    np.testing.assert_allclose(drawn[1] - got, 2 * (drawn[0] - got), rtol=1e-3)
    assert abs(drawn[0] - got) > 1e-4
    everything = metrics.road(total, series, None, values, **options | {"fraction": 1.0})
    assert np.isfinite(everything).all()


@pytest.mark.parametrize("metric", ["comprehensiveness", "irof", "road"])
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"mesh": 2}], ids=str)
@pytest.mark.representatives("{'batch_size': 1}-irof", "{'mesh': 2}-comprehensiveness")
def test_numbers_are_independent_of_batch_size_and_devices(metric, options):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    xs, values = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    model = Partial(lambda w, x: jnp.tanh(x @ w), weights)
    own = {
        "comprehensiveness": {"fraction": [0.3, 0.6]},
        "irof": {"groups": np.array([0, 1, 1, 2])},
        "road": {"key": KEY, "fraction": [0.3, 0.6]},
    }[metric]
    if "mesh" in options:
        auto = (jax.sharding.AxisType.Auto,)
        options = {"mesh": jax.make_mesh((2,), ("data",), axis_types=auto)}
    measure = getattr(metrics, metric)
    whole = measure(model, xs, 1, values, **own)
    np.testing.assert_allclose(measure(model, xs, 1, values, **own, **options), whole, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_monotonicity_of_unsigned_attributions(dtype):
    """The score stays if the first feature is added first, and falls otherwise."""
    values = np.array([[0, 1]], dtype)
    ones = jnp.ones((1, 2))
    got = metrics.monotonicity(
        lambda x: x[0] - (1 - x[0]) * x[1], ones, None, values, score="logit"
    )
    np.testing.assert_array_equal(got, [1])


def test_replacements():
    xs = np.array([[[0.0, 1], [3.0, 1], [6.0, 4], [0.0, 2]]], np.float32)
    near = metrics.moving_average(xs, window=1)
    np.testing.assert_allclose(near[0], [[1.5, 1], [3, 2], [3, 7 / 3], [3, 3]], rtol=1e-6)
    whole = metrics.moving_average(xs, window=9)
    np.testing.assert_allclose(whole, metrics.channel_mean(xs), rtol=1e-6)
    image = np.arange(12.0, dtype=np.float32).reshape(1, 2, 3, 2)
    np.testing.assert_allclose(metrics.channel_mean(image)[0, 0, 1], [5, 6], rtol=1e-6)
    noise = metrics.uniform_noise(np.repeat(xs, 2000, 0), KEY)
    assert noise.min() >= 0 and noise.max() <= 6
    np.testing.assert_allclose(noise.mean(), 3, atol=0.06)  # about 4 standard errors
    got = metrics.comprehensiveness(total, xs, None, xs, baseline=near, fraction=1.0, score="logit")
    np.testing.assert_allclose(got, [17 - (10.5 + 1 + 2 + 7 / 3 + 3)], rtol=1e-5)
    for function in (metrics.channel_mean, functools.partial(metrics.moving_average, window=1)):
        with pytest.raises(TypeError, match="`xs` must hold floating-point numbers, got int"):
            function(np.ones((2, 3), int))
        with pytest.raises(ValueError, match="`xs` must have at least 2 axes"):
            function(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="`window` must be at least 1"):
        metrics.moving_average(xs, 0)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, [], [0.5, 0], np.nan])
def test_bad_fraction_raises(fraction):
    with pytest.raises(ValueError, match="`fraction` must be greater than 0 and at most 1"):
        metrics.sufficiency(total, XS, None, VALUES, fraction=fraction)


def test_bad_arguments_raise():
    shared = (total, XS, None, VALUES)
    with pytest.raises(ValueError, match=r"`attribution` must have the shape of xs, \(2, 4\)"):
        metrics.mse(total, XS, None, VALUES[:, :3])
    with pytest.raises(ValueError, match="`attribution` holds 8 NaN"):
        metrics.mse(total, XS, None, VALUES * np.nan)
    for targets in (None, lambda out: out[0]):
        with pytest.raises(ValueError, match="`targets` must be indices of classes"):
            metrics.accuracy(logits, XS, targets, VALUES)
    with pytest.raises(ValueError, match="`fn` must return at least two classes"):
        metrics.accuracy(lambda x: x.sum()[None], XS, 0, VALUES)
    with pytest.raises(ValueError, match="`score` must be"):
        metrics.comprehensiveness(*shared, score="odds")
    for metric in (metrics.log_odds, metrics.cross_entropy):
        with pytest.raises(ValueError, match='`score` must be "log_probability" or "logit"'):
            metric(*shared, score="probability")
    with pytest.raises(ValueError, match="`features_per_step` must be at least 1"):
        metrics.pixel_flipping(*shared, features_per_step=0)
    with pytest.raises(ValueError, match="`window` must be at least 1"):
        metrics.region_perturbation(*shared, window=9)
    with pytest.raises(ValueError, match="`window` must not cover all of xs, got 4"):
        metrics.region_perturbation(*shared, window=4)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1"):
        metrics.region_perturbation(*shared, window=2, num_steps=0)
    with pytest.raises(ValueError, match="`groups` must hold at least two groups"):
        metrics.irof(*shared, groups=np.zeros(4, int))
    with pytest.raises(TypeError, match="`groups` must hold integers"):
        metrics.irof(*shared, groups=np.zeros(4))
    with pytest.raises(ValueError, match="`groups` must broadcast to the shape"):
        metrics.irof(*shared, groups=np.arange(3))


def test_bad_arguments_of_road_raise():
    shared = (total, XS, None, VALUES)
    with pytest.raises(ValueError, match="`noise` must be a number and not negative"):
        metrics.road(*shared, key=KEY, noise=-0.1)
    with pytest.raises(ValueError, match="`axes` must be axes of an example"):
        metrics.road(*shared, key=KEY, axes=(1,), score="logit")
    for axes in (0, (0, 0)):
        with pytest.raises(ValueError, match="`axes` must be different axes of an example"):
            metrics.road(*shared, key=KEY, axes=axes)
    with pytest.raises(TypeError, match="floating-point"):
        metrics.road(total, np.ones((1, 4), int), None, np.ones((1, 4)), key=KEY, score="logit")


def test_directions_are_declared():
    with pytest.raises(TypeError, match="`function` must be a metric, got gradient"):
        metrics.properties(ja.gradient)
    with pytest.raises(ValueError, match="`better` must be"):
        metrics.metric(better="up")
    assert metrics.properties(metrics.completeness).better == "zero"
