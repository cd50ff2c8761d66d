"""Test the paths of modules of nnx and equinox, which carry no such names of their own."""

import pickle
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compiles
from flax import nnx

import jaxattn as ja

T, D = 4, 2
X = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)
PLAIN = nnx.initializers.normal()  # orthogonal initialization is slow to compile


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The layers of nnx rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Scale(nnx.Module):
    """Multiply by a number, so that the value of each module is known."""

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.float32(factor))

    def __call__(self, x):
        return self.factor[...] * x

    def twice(self, x):
        return 2 * x


class Block(nnx.Module):
    def __init__(self, factor):
        self.attn, self.drop = Scale(factor), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.drop(jnp.sin(self.attn(x)))


class Model(nnx.Module):
    """Blocks in every container, a module without a call, and a shared module."""

    def __init__(self):
        self.layers = nnx.List([Block(2), Block(3)])
        self.named = nnx.Dict(first=Scale(5))
        self.plain = nnx.data([{"inner": Scale(7)}])
        self.steps = nnx.Sequential(Scale(11), jnp.tanh, Scale(13))
        self.shared = Scale(17)
        self.user = nnx.data({"shared": self.shared})

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        x = self.named.first(x) + self.plain[0]["inner"](x)
        x = self.layers[0].attn.twice(self.steps(x))
        return self.shared(self.shared(x)).sum(0)


MODEL = Model()


def values(fn, *names, x=X):
    return ja.capture(fn, *names)(x)[1]


def equal(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_modules_are_captured_by_path():
    first = np.sin(2 * X)
    second = np.sin(3 * first)
    sum_of_two = 12 * second
    steps = 13 * np.tanh(11 * sum_of_two)
    expected = {
        "layers/0/attn": 2 * X,
        "layers/0": first,
        "layers/1/attn": 3 * first,
        "layers/1": second,
        "named/first": 5 * second,
        "plain/0/inner": 7 * second,
        "steps/layers/0": 11 * sum_of_two,
        "steps/layers/2": steps,
        "steps": steps,
        "shared": [17 * 2 * steps, 17 * 17 * 2 * steps],
    }
    got = values(MODEL, "*")
    assert len(got.pop("shared")) == 2
    expected.pop("shared")
    equal(got, expected)


@pytest.mark.parametrize("at", ["layers.0.attn", "layers/0/attn", "0/attn", "/layers/0/attn"])
@pytest.mark.representatives("layers.0.attn")
def test_gradient_at_a_module(at):
    got = ja.explain(ja.gradient, MODEL, X[None], 1, at=at)

    def rest(h):
        return (17 * 17 * 2 * 13 * jnp.tanh(11 * 12 * jnp.sin(3 * jnp.sin(h)))).sum(0)[1]

    np.testing.assert_allclose(got.values[0], jax.grad(rest)(2 * X), rtol=1e-4, atol=1e-3)


def test_replaced_modules():
    cut = ja.intervene(MODEL, {"layers/*/attn": lambda v: 0 * v})
    np.testing.assert_array_equal(cut(X), np.zeros(D))
    with pytest.raises(ValueError, match=r"at='attn' must name one array, got layers/0/attn"):
        ja.gradient(MODEL, X, 0, at="attn")


def test_modules_in_a_closure_start_with_its_variable():
    model, head = Model(), Scale(3)

    def fn(x):
        return head(model(x))

    got = values(fn, "*/attn", "head", "model")
    np.testing.assert_allclose(got["model/layers/0/attn"], 2 * X)
    np.testing.assert_allclose(got["head"], 3 * got["model"])


class Encoder(nnx.Module):
    """A module that is called by a method of another name, with a part that it is given."""

    def __init__(self, table):
        self.table, self.out = table, Scale(2)

    def encode(self, x, norm):
        return self.out(norm(self.table(x)))


class Tied(nnx.Module):
    def __init__(self):
        table = Scale(3)
        self.encoder, self.decoder, self.norm = Encoder(table), Block(2), Scale(5)
        self.decoder.table = table

    def __call__(self, x):
        h = self.encoder.encode(x, self.norm)
        return self.decoder.table(self.decoder(h)).sum()


def test_modules_behind_other_methods_and_shared_modules():
    got = values(Tied(), "*")
    # The path of a shared module that is called outside of its owners is the first one.
    assert set(got) == {"decoder/table", "norm", "encoder/out", "decoder/attn", "decoder"}
    assert len(got["decoder/table"]) == 2
    np.testing.assert_allclose(got["encoder/out"], 30 * X, rtol=1e-5)


class Owner(nnx.Module):
    def __init__(self, table):
        self.table = table

    def __call__(self, x):
        return jnp.sin(self.table(x))


class Owners(nnx.Module):
    def __init__(self):
        table = Scale(3)
        self.first, self.second = Owner(table), Owner(table)

    def __call__(self, x):
        return self.second(self.first(x)).sum()


def test_a_shared_module_has_the_path_of_the_owner_that_calls_it():
    first = np.sin(3 * X)
    expected = {"first/table": 3 * X, "first": first, "second/table": 3 * first}
    equal(values(Owners(), "*"), expected | {"second": np.sin(3 * first)})


class Stack(nnx.Module):
    """Layers whose weights are stacked."""

    def __init__(self, transform):
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(factor):
            return Block(factor)

        self.layers, self.transform = create(jnp.arange(1.0, 4)), transform

    def __call__(self, x):
        call = Block.__call__ if self.transform == "remat" else lambda layer, x: layer(x)
        if self.transform == "vmap":
            return nnx.vmap(call, in_axes=(0, None))(self.layers, x).sum()
        if self.transform == "remat":
            call = nnx.remat(lambda layer, x: layer(x))
        return nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x).sum()


@pytest.mark.parametrize("transform", ["scan", "remat", "vmap"])
@pytest.mark.representatives("scan", "remat")
def test_stacked_layers(transform):
    got = values(Stack(transform), "*")
    inputs = [X, np.sin(X), np.sin(2 * np.sin(X))] if transform != "vmap" else [X, X, X]
    attn = np.stack([(i + 1) * x for i, x in enumerate(inputs)])
    equal(got, {"layers/attn": attn, "layers": np.sin(attn)})


def test_recurrent_layers():
    rngs = nnx.Rngs(0)
    cells = [nnx.SimpleCell(D, 3, recurrent_kernel_init=PLAIN, rngs=rngs) for _ in range(2)]
    both = nnx.Bidirectional(*[nnx.RNN(cell, rngs=rngs) for cell in cells], rngs=rngs)
    output, got = ja.capture(both, "forward_rnn", "backward_rnn", "forward_rnn.cell.dense_i")(X)
    np.testing.assert_allclose(got["forward_rnn"], output[:, :3], atol=1e-6)
    np.testing.assert_allclose(got["backward_rnn"], output[:, 3:], atol=1e-6)
    dense = cells[0].dense_i
    projected = X @ dense.kernel[...] + dense.bias[...]
    np.testing.assert_allclose(got["forward_rnn/cell/dense_i"], projected, atol=1e-6)


def test_attention_of_nnx_has_the_names_of_its_parts():
    layer = nnx.MultiHeadAttention(
        2, 4, dropout_rate=0.5, deterministic=False, decode=False, rngs=nnx.Rngs(0)
    )
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    assert set(values(layer, "*", x=x)) == {"query", "key", "value", "out"}


def test_modules_of_the_user_are_left_as_they_are():
    model = Model()
    attributes = {name: sorted(vars(part)) for name, part in nnx.iter_modules(model)}
    ja.saliency(model, X, 0, at="layers/0/attn")
    assert {name: sorted(vars(part)) for name, part in nnx.iter_modules(model)} == attributes
    assert type(model) is Model and type(model.layers[0].attn) is Scale
    assert not model.layers[0].drop.deterministic
    assert isinstance(pickle.loads(pickle.dumps(nnx.to_pure_dict(nnx.state(model)))), dict)


class Inspecting(nnx.Module):
    """A module that looks at its parts as the program runs."""

    def __init__(self):
        self.part, self.parts = Scale(2), nnx.Dict(a=Scale(3))
        self.view = None

    def __call__(self, x):
        assert isinstance(self.part, Scale) and type(self.part).__name__ == "Scale"
        assert list(self.parts) == ["a"]
        graphdef, state = nnx.split(self.part)
        assert isinstance(nnx.merge(graphdef, state), Scale)
        assert nnx.clone(self.part)(x).shape == x.shape
        leaves, treedef = jax.tree.flatten(self.part)
        return jax.tree.unflatten(treedef, leaves)(x).sum()


def test_modules_keep_their_type_and_contents_as_they_run():
    assert set(values(Inspecting(), "*")) == {"part"}
    np.testing.assert_allclose(ja.gradient(Inspecting(), X).values, np.full_like(X, 2))


class NeedsArguments(nnx.Module):
    """A class whose subclasses need an argument."""

    def __init_subclass__(cls, *, kind, **options):
        super().__init_subclass__(**options)


class Needy(NeedsArguments, kind="special"):
    def __call__(self, x):
        return 2 * x


class NoPytree(nnx.Module, pytree=False):
    def __init__(self):
        self.scale = Scale(3)

    def __call__(self, x):
        return self.scale(x)


class Unusual(nnx.Module):
    def __init__(self):
        self.needy, self.no_pytree = Needy(), nnx.data(NoPytree())

    def __call__(self, x):
        return self.no_pytree(self.needy(x)).sum()


def test_classes_of_unusual_modules():
    got = values(Unusual(), "*")
    assert set(got) == {"no_pytree", "no_pytree/scale"}
    np.testing.assert_allclose(got["no_pytree"], 6 * X)


def test_names_add_no_compilation():
    ja.saliency(Model(), X, 0)
    with compiles(0):
        ja.saliency(Model(), X, 0)

    class Jitted(nnx.Module):
        def __init__(self):
            self.part = Scale(2)

        def __call__(self, x):
            return nnx.jit(lambda part, x: part(x))(self.part, x).sum()

    np.testing.assert_allclose(values(Jitted(), "part")["part"], 2 * X)


def test_names_in_threads():
    results, models = [None] * 4, [Model() for _ in range(4)]

    def work(i):
        results[i] = values(models[i], "layers/1/attn")["layers/1/attn"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result, 3 * np.sin(2 * X), rtol=1e-5)


def test_an_explanation_inside_of_a_module_names_its_parts_from_there():
    class Self(nnx.Module):
        def __init__(self):
            self.model = Model()

        def __call__(self, x):
            return ja.saliency(self.model, x, 0, at="layers/0/attn").values.sum()

    expected = ja.saliency(MODEL, X, 0, at="layers/0/attn").values.sum()
    np.testing.assert_allclose(ja.saliency(Self(), X).output, expected, rtol=1e-4)


def test_lrp_selects_nnx_layers_by_path():
    class Dense(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first, self.second = nnx.Linear(D, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    model, x = Dense(), X[0]
    flat = ja.lrp(model, x, 0, rule=[("first", "flat"), ("*", "epsilon")]).values
    by_kind = ja.lrp(model, x, 0, rule=[(0, "flat"), ("*", "epsilon")]).values
    np.testing.assert_allclose(flat, by_kind)
    with pytest.raises(ValueError, match="first"):
        ja.lrp(model, x, 0, rule=[("third", "flat"), ("*", "epsilon")])


class Tripled(eqx.Module):
    factor: jax.Array

    def __call__(self, x):
        return self.factor * x


class Equinox(eqx.Module):
    """Parts in containers, a part of the library, stacked parts, and a method of another name."""

    first: Tripled
    parts: dict
    linear: eqx.nn.Linear
    stack: Tripled
    activation: object = eqx.field(static=True)

    def __init__(self):
        self.first, self.parts = Tripled(jnp.float32(2)), {"a": [Tripled(jnp.float32(3))]}
        self.linear = eqx.nn.Linear(D, 3, key=jax.random.key(0))
        self.stack, self.activation = Tripled(jnp.arange(1.0, 4)), jnp.sin

    def __call__(self, x):
        x = self.parts["a"][0](self.activation(self.first(x)))
        arrays, rest = eqx.partition(self.stack, eqx.is_array)

        def step(x, arrays):
            return eqx.combine(arrays, rest)(x), None

        x, _ = jax.lax.scan(step, x, arrays)
        return jax.vmap(self.linear)(x).sum(0)

    def method(self, x):
        return self(x)


@pytest.mark.parametrize("kind", ["module", "method", "closure", "partial", "remat"])
@pytest.mark.representatives("module", "closure")
def test_equinox_modules_are_captured_by_path(kind):
    model = Equinox()
    fn = {
        "module": model,
        "method": model.method,
        "closure": lambda x: model(x),
        "partial": eqx.Partial(model),
        "remat": eqx.filter_checkpoint(model),
    }[kind]
    at = "model/" if kind == "closure" else ""
    output, got = ja.capture(fn, "first", "parts.a.0", "stack", "linear")(X)
    second = 3 * np.sin(2 * X)
    stack = np.stack([second, 2 * second, 6 * second])
    linear = 6 * second @ model.linear.weight.T + model.linear.bias
    expected = {"first": 2 * X, "parts/a/0": second, "stack": stack, "linear": linear}
    equal(got, {at + name: value for name, value in expected.items()})
    np.testing.assert_allclose(output, model(jnp.asarray(X)), rtol=1e-5)
    assert type(model.first) is Tripled and jax.tree.structure(model) == jax.tree.structure(
        Equinox()
    )


def test_classes_of_equinox_are_no_names():
    with pytest.raises(ValueError) as refusal:
        values(Equinox(), "eqx.nn.Linear")
    assert "'linear'" in str(refusal.value) and "eqx" not in str(refusal.value).split("layers")[1]
