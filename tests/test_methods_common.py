"""Properties of every public method; new methods are included automatically."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attributions import close
from jax.sharding import AxisType
from jax.tree_util import Partial

import jaxattn as ja

T, D, H, K, B = 5, 3, 4, 3, 5


def last_step(x, key):
    """Return a Gaussian around the last step, for each step: the generator of FIT."""
    return x, 0.5 * jnp.tile(jnp.eye(D, dtype=x.dtype), (x.shape[0], 1, 1))


METHODS = {n: f for n, f in vars(ja).items() if callable(f) and hasattr(f, "traits")}
PATTERNS = [np.random.default_rng(2).normal(size=shape) / 2 for shape in [(D, H), (H, H), (H, K)]]
BACKGROUND = np.random.default_rng(3).normal(size=(4, T, D)).astype(np.float32)
GROUPS = ja.groups.windows((T, D), (2, 2))
OPTIONS = {
    "gradient": {},
    "saliency": {},
    "input_x_gradient": {},
    "smooth_grad": {"num_samples": 5},
    "integrated_gradients": {"num_steps": 6, "baseline": 0.5},
    "jacobian": {"mode": "forward"},
    "occlusion": {"window": (3, 2), "stride": (2, 1), "baseline": 0.5},
    "temporal_output_score": {"steps": (0, 2, 4)},
    "feature_ablation": {"groups": GROUPS, "baseline": 0.5},
    "feature_permutation": {"background": BACKGROUND},
    "shapley_values": {"groups": GROUPS, "baseline": 0.5},
    "shapley_value_sampling": {"num_samples": 4},
    "kernel_shap": {"groups": GROUPS, "num_samples": 20},
    "lime": {"groups": GROUPS, "num_samples": 20},
    "rise": {"num_samples": 6, "grid": 3},
    "time_shap": {"num_samples": 20, "tolerance": 0.0},
    "guided_backprop": {},
    "deconvnet": {},
    "deep_taylor": {},
    "contextual_decomposition": {},
    "lrp": {"conserve_bias": True, "epsilon": 0.1},
    "deep_lift": {"baseline": -1.0},
    "pattern_net": {"patterns": PATTERNS},
    "pattern_attribution": {"patterns": PATTERNS},
    "grad_cam": {"at": "rows", "relu": False},
    "attention": {"at": "mixing"},
    "attention_flow": {"at": "mixing"},
    "attention_rollout": {"at": "mixing"},
    "gradient_x_attention": {"at": "mixing"},
    "value_zeroing": {"at": "mixing"},
    "grad_cam_plus_plus": {"at": "rows", "relu": False},
    "guided_grad_cam": {"at": "rows"},
    "internal_influence": {"at": "rows", "num_steps": 6, "baseline": 0.5},
    "integrated_hessians": {"num_steps": 3, "baseline": 0.5},
    "layer_conductance": {"at": "rows", "num_steps": 6, "baseline": 0.5},
    "learned_mask": {"num_steps": 4, "jitter": 1, "l1": 0.01, "coarseness": 2},
    "expected_gradients": {"background": BACKGROUND, "num_samples": 5},
    "deep_shap": {"background": BACKGROUND},
    "augmented_occlusion": {"background": BACKGROUND, "num_samples": 3, "window": 2, "stride": 2},
    "time_forward": {"method": ja.occlusion, "baseline": 0.5},
    "temporal_saliency_rescaling": {"baseline": 0.5},
    "fit": {"generator": last_step, "num_samples": 2},
    "windowed_fit": {"generator": last_step, "num_samples": 2, "window": 2},
    # Adam moves all features alike at first: rounding would decide which are the largest.
    "dynamask": {
        "num_steps": 4,
        "area": (0.25, 0.5),
        "smoothness_weight": 0.1,
        "optimizer": optax.sgd(0.5),
    },
    "extremal_mask": {"num_steps": 4, "num_units": 2, "error": "cross_entropy"},
    "contra_mask": {"num_steps": 4, "num_units": 2, "background": BACKGROUND},
}
SHAPES = {
    "jacobian": (T, D),
    "contextual_decomposition": (T,),
    "temporal_output_score": (3,),
    "grad_cam": (T,),
    "grad_cam_plus_plus": (T,),
    "integrated_hessians": (T, D, T, D),
    "attention": (T, T),
    "attention_flow": (T, T),
    "attention_rollout": (T, T),
    "gradient_x_attention": (T, T),
    "value_zeroing": (T,),
}
#: Methods that vary attention weights.
VARIES_WEIGHTS = {"gradient_x_attention", "value_zeroing"}
#: Methods that train a mask, with penalties on all leaves.
TRAINED = {"learned_mask", "dynamask", "extremal_mask", "contra_mask"}
WEIGHT_METHODS = {n for n in METHODS if "attention" in n} | {"value_zeroing"}
KEY = jax.random.key(7)
every_method = pytest.mark.parametrize("name", METHODS)
REPRESENTATIVES = "gradient integrated_gradients occlusion lrp smooth_grad jacobian".split()
representatives = pytest.mark.representatives(*REPRESENTATIVES, "attention")
feature_representatives = pytest.mark.representatives(*REPRESENTATIVES)
without_feature_values = (
    "contextual_decomposition",
    "temporal_output_score",
    "grad_cam",
    "grad_cam_plus_plus",
    "guided_grad_cam",
    "integrated_hessians",
    "internal_influence",
    "layer_conductance",
    "attention",
    "attention_flow",
    "attention_rollout",
    "gradient_x_attention",
    "value_zeroing",
    # these take series of one length only
    "time_forward",
    "temporal_saliency_rescaling",
    "fit",
    "windowed_fit",
)
#: Methods whose fits and random masks spread rounding and noise over all features.
SPREADING = {"kernel_shap", "lime", "rise", "time_shap"}
feature_methods = pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in without_feature_values]
)


def network(weights, x, scale=None):
    """Return a tanh network's logits; of a pytree only the leaf `"series"` is used.

    The rows of the series are tagged `"rows"`, and attention weights `"mixing"`. The logits depend
    on the latter if there are weights for what they mix.
    """
    rows = ja.tag(x if hasattr(x, "ndim") else x["series"], "rows")
    mixing = ja.tag(jax.nn.softmax(rows @ rows.T), "mixing")

    def advance(h, row):
        return jnp.tanh(row @ weights["input"] + h @ weights["recurrent"]), None

    h, _ = jax.lax.scan(advance, jnp.zeros(H, rows.dtype), rows)
    logits = (h + jax.nn.relu(h)) @ weights["readout"]
    if "mixed" in weights:
        logits += (mixing @ rows)[-1] @ weights["mixed"]
    return logits if scale is None else scale * logits


def make(dtype=np.float32, name=None):
    """Return the network that a method explains, and its inputs."""
    rng = np.random.default_rng(0)
    shapes = {"input": (D, H), "recurrent": (H, H), "readout": (H, K)}
    weights = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
    xs = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    if name in VARIES_WEIGHTS:
        weights["mixed"] = rng.normal(size=(D, K))
    return Partial(network, {key: jnp.asarray(w, dtype) for key, w in weights.items()}), xs


def zero(tree):
    return all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))


def explain(name, model, xs, targets=1, **options):
    return ja.explain(METHODS[name], model, xs, targets, key=KEY, **OPTIONS[name] | options)


@functools.cache
def explained(name):
    """Return a method's attribution of the whole batch."""
    with jax.enable_x64(False):
        return explain(name, *make(name=name))


@pytest.fixture
def model(request):
    return make(name=request.node.callspec.params.get("name"))[0]


@pytest.fixture
def xs():
    return make()[1]


def test_all_methods_are_covered():
    assert METHODS.keys() == OPTIONS.keys()


@every_method
def test_signature(name):
    parameters = inspect.signature(METHODS[name]).parameters
    assert list(parameters)[:3] == ["fn", "x", "target"]
    defaults = {"target": None, "args": (), "at": None, "key": None, "batch_size": None}
    defaults["check_finite"] = True
    assert {n: parameters[n].default for n in defaults} == defaults
    for parameter in list(parameters.values())[3:]:
        assert parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)
        assert parameter.kind == parameter.VAR_KEYWORD or parameter.default is not parameter.empty


@every_method
def test_docstring_sections_and_arguments(name):
    doc = METHODS[name].__doc__
    assert doc.splitlines()[0].endswith(".")
    places = [doc.index(f"\n    {part}:\n") for part in ("Args", "Returns", "Raises")]
    assert places == sorted(places)
    for parameter in inspect.signature(METHODS[name]).parameters.values():
        stars = "**" * (parameter.kind == parameter.VAR_KEYWORD)
        assert f"\n        {stars}{parameter.name}: " in doc


@representatives
@every_method
def test_batch_equals_single_examples(name, model, xs):
    got = explained(name)
    assert got.values.shape == (B, *SHAPES.get(name, (T, D)))
    assert got.output.shape == (B, K)
    assert np.ptp(got.values, axis=0).max() > 1e-3
    for i in (0, B - 1):
        key = jax.random.fold_in(KEY, i)
        one = METHODS[name](model, xs[i], 1, key=key, **OPTIONS[name])
        close(one, jax.tree.map(lambda leaf, i=i: leaf[i], got))


@representatives
@every_method
def test_jit_of_vmap(name, model, xs):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(B))

    def method(x, target, key):
        return METHODS[name](model, x, target, key=key, **OPTIONS[name])

    close(jax.jit(jax.vmap(method))(xs, jnp.full(B, 1), keys), explained(name))


@representatives
@every_method
def test_explain_inside_jit_with_a_callable_target(name, model, xs):
    inside = jax.jit(lambda w, xs: explain(name, Partial(network, w), xs, lambda out: out[1]))
    close(inside(model.args[0], xs), explained(name))


@representatives
@every_method
def test_each_of_several_targets_equals_one_call_for_each(name, model, xs):
    got = explain(name, model, xs, ja.each([0, 1]))
    for i, one in enumerate((explain(name, model, xs, 0), explained(name))):
        selected = jax.tree.map(lambda leaf, i=i: leaf[:, i], (got.values, got.info))
        close(ja.Attribution(selected[0], got.output, selected[1]), one)


@pytest.mark.representatives(
    "3-gradient",
    "3-integrated_gradients",
    "3-occlusion",
    "3-lrp",
    "3-attention",
    "1-smooth_grad",
    "3-jacobian",
)
@every_method
@pytest.mark.parametrize("batch_size", [1, 3, 10_000])
def test_values_are_independent_of_batch_size(name, batch_size, model, xs):
    close(explain(name, model, xs, batch_size=batch_size), explained(name))


SPREAD = [(B, (2,)), (2, (8,)), (1, (2, 2))]
MESHES = [(1, (8,)), (2, (4,)), (B, (2, 2)), (B, (8,))]


@pytest.mark.representatives(
    "gradient-5-(2,)",
    "integrated_gradients-1-(2, 2)",
    "occlusion-1-(2, 2)",
    "occlusion-2-(8,)",
    "smooth_grad-2-(8,)",
    "lrp-2-(8,)",
    "jacobian-1-(2, 2)",
)
@pytest.mark.parametrize(
    "name, batch, shape",
    [(n, *each) for n in METHODS for each in SPREAD]
    + [(n, *each) for n in ("occlusion", "smooth_grad") for each in MESHES],
    ids=str,
)
def test_values_are_independent_of_devices(name, batch, shape, model, xs):
    """With fewer examples than devices, the evaluations of one example are divided over devices."""
    names = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    want = jax.tree.map(lambda leaf: leaf[:batch], explained(name))
    close(explain(name, model, xs[:batch], mesh=mesh, batch_size=4), want)


@representatives
@every_method
def test_args_per_example(name, model, xs):
    got = explain(name, model, xs, args=(jnp.arange(1.0, B + 1),))
    weights = model.args[0]
    tripled = {key: 3 * weights[key] for key in ("readout", "mixed") if key in weights}
    three = explain(name, Partial(network, weights | tripled), xs)
    close(got.values[2], three.values[2])
    close(got.output[2], three.output[2])


@representatives
@every_method
def test_dtype_is_that_of_the_input(name):
    got = explain(name, *make("bfloat16", name))
    assert got.values.dtype == got.output.dtype == jnp.bfloat16
    values = got.values.astype(np.float32)
    assert np.isfinite(values).all()
    if name not in {"smooth_grad", *TRAINED}:  # draws, and clipped steps, differ between dtypes
        close(values, explained(name).values, 0.05)


@representatives
@every_method
def test_gradients_of_a_method_equal_central_differences(name, x64):
    model, xs = make(np.float64, name)
    method, weights = METHODS[name], model.args[0]

    @jax.jit
    def loss(x, weights):
        values = method(Partial(network, weights), x, 1, key=KEY, **OPTIONS[name]).values
        assert values.dtype == np.float64
        return jnp.sum(jnp.sin(values))

    def along(direction, h):
        return loss(*jax.tree.map(lambda a, w: a + h * w, (xs[0], weights), direction))

    rng = np.random.default_rng(1)
    directions = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (xs[0], weights))
    zeros = jax.tree.map(jnp.zeros_like, directions)
    slope = jax.jit(jax.grad(along, argnums=1))
    for direction in ((directions[0], zeros[1]), (zeros[0], directions[1])):
        want = (along(direction, 1e-6) - along(direction, -1e-6)) / 2e-6
        np.testing.assert_allclose(slope(direction, 0.0), want, rtol=1e-5, atol=1e-8)


@feature_representatives
@feature_methods
def test_pytree_structure_is_kept_and_unused_leaves_are_zero(name, model, xs):
    """The leaves are the series, unused floats and integers."""
    tree = {
        "series": xs,
        "spare": jnp.ones((B, 4, 2)),
        "step": jnp.arange(B * 2, dtype=jnp.int32).reshape(B, 2),
    }
    options = {}
    if "background" in OPTIONS[name]:
        spare = {"spare": np.zeros((4, 4, 2), np.float32), "step": np.zeros((4, 2), np.int32)}
        options["background"] = {"series": BACKGROUND, **spare}
    if name == "augmented_occlusion":
        options["window"] = options["stride"] = {"series": 2, "spare": 2, "step": 1}
    if name == "time_shap":
        pytest.skip("a series is one array")
    if "groups" in OPTIONS[name]:
        spare = {"spare": np.full((4, 2), 100), "step": np.full(2, 101)}
        options["groups"] = {"series": GROUPS, **spare}
        if name in ("feature_ablation", "shapley_values"):
            options["baseline"] = {"series": 0.5, "spare": 0.5, "step": 0}
    if name == "occlusion":
        options["window"] = {"series": (3, 2), "spare": 2, "step": 1}
        options["stride"] = {"series": (2, 1), "spare": 1, "step": 1}
        options["baseline"] = {"series": 0.5, "spare": 0.5, "step": 0}
    got = explain(name, model, tree, **options).values
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, tree)
    if name not in SPREADING - {"rise"}:
        assert zero(got["step"])
    if name not in TRAINED | SPREADING:
        assert zero(got["spare"])
    if name not in {"smooth_grad", "shapley_value_sampling"} | TRAINED | SPREADING:
        close(got["series"], explained(name).values)


@feature_representatives
@feature_methods
def test_constant_function_has_zero_values(name, xs):
    if name == "rise":
        pytest.skip("the values of a constant are the constant")
    if name == "dynamask":
        pytest.skip("its area is given; see test_dynamask")
    options = {
        "extremal_mask": {"num_steps": 60},
        "contra_mask": {"num_steps": 150},
        "learned_mask": {"num_steps": 12},  # enough to move from the initial 0.5 to 0
        "pattern_net": {"patterns": []},
        "pattern_attribution": {"patterns": []},
    }
    got = explain(name, lambda x: jnp.arange(3.0), xs, **options.get(name, {}))
    assert zero(got.values)
    close(got.output, np.tile(np.arange(3.0), (B, 1)), 0)


@feature_representatives
@feature_methods
def test_unused_steps_are_exactly_zero(name, model, xs):
    if name in SPREADING:
        pytest.skip("zero up to rounding or sampling")
    if name == "dynamask":
        pytest.skip("its area is given, also where fewer features are used; see test_dynamask")
    fine = {
        "feature_ablation": {"groups": None},
        "shapley_values": {"groups": ja.groups.windows((T, D), 1)},
        "occlusion": {"window": 1, "stride": 1},
        "augmented_occlusion": {"window": 1, "stride": 1},
        "learned_mask": {"jitter": 0, "coarseness": 1, "num_steps": 12, "tv": 0.0},
        "extremal_mask": {"num_steps": 60},
        "contra_mask": {"num_steps": 150},
    }
    got = explain(name, lambda x: model(x[:3]), xs, **fine.get(name, {}))
    assert zero(got.values[..., 3:, :])
    assert not zero(got.values[..., :3, :])


def test_attribution_is_a_pytree():
    a = ja.Attribution(jnp.ones(2), jnp.zeros(3), {"delta": jnp.ones(())})
    doubled = jax.jit(lambda a: jax.tree.map(lambda leaf: 2 * leaf, a))(a)
    assert isinstance(doubled, ja.Attribution)
    close(
        (doubled.values, doubled.output, doubled.info["delta"]), (2 * a.values, 0 * a.output, 2.0)
    )
