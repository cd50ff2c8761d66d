"""Test how names select intermediates: full names, ends of paths, globs, and what is refused."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

rng = np.random.default_rng(0)
TABLE = jnp.asarray(rng.normal(size=(10, 4)), jnp.float32)
W = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
IDS = np.arange(3)
X = rng.normal(size=(3, 4)).astype(np.float32)


def tied(ids):
    """A language model that uses its embedding again as its head."""
    with jax.named_scope("backbone"), jax.named_scope("token_embedding"):
        embedded = TABLE[ids] * 1.0
    h = jnp.tanh(embedded @ W)
    with jax.named_scope("token_embedding"):
        return h @ TABLE.T


def layer(name, function, x):
    with jax.named_scope(name):
        return function(x)


def blocks(x):
    """Two blocks with equal parts, and a part of the same name at the top."""
    for i in range(2):
        with jax.named_scope(f"blocks/{i}"):
            x = layer("mlp", jnp.tanh, layer("norm", jnp.sin, x))
    return layer("norm", jnp.cos, x).sum()


def names(fn, *patterns, x=X):
    return set(ja.capture(fn, *patterns)(x)[1])


AT = {
    "gradient": ja.gradient,
    "integrated_gradients": functools.partial(ja.integrated_gradients, num_steps=2),
    "occlusion": functools.partial(ja.occlusion, window=(1, 4)),
    "grad_cam": ja.grad_cam,
    "lrp": ja.lrp,
}


@pytest.mark.parametrize("name", AT)
@pytest.mark.representatives("gradient", "grad_cam")
def test_an_ambiguous_name_is_refused_with_the_full_names_and_shapes(name):
    message = (
        r"at='token_embedding' must name one array, got backbone/token_embedding \[\(3, 4\)\]; "
        r"token_embedding \[\(3, 10\)\]\. A leading slash selects a full name, such as "
        r"'/backbone/token_embedding'\."
    )
    with pytest.raises(ValueError, match=message):
        AT[name](tied, IDS, (2, 7), at="token_embedding")


def test_layer_conductance_refuses_an_ambiguous_name():
    with pytest.raises(ValueError, match="at='norm' must name one array, got blocks/0/norm"):
        ja.layer_conductance(blocks, X, at="norm", num_steps=2)


@pytest.mark.parametrize("at", ["backbone/token_embedding", "/backbone/token_embedding"])
def test_a_longer_path_selects_the_embedding(at):
    def from_embedding(embedded):
        return jnp.tanh(embedded @ W) @ TABLE.T

    got = ja.gradient(tied, IDS, (2, 7), at=at).values
    expected = ja.gradient(from_embedding, TABLE[IDS], (2, 7)).values
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_leading_slash_selects_the_full_name_alone():
    got = ja.gradient(tied, IDS, (2, 7), at="/token_embedding").values
    expected = np.zeros((3, 10))
    expected[2, 7] = 1
    np.testing.assert_array_equal(got, expected)
    assert names(blocks, "norm") == {"norm", "blocks/0/norm", "blocks/1/norm"}
    assert names(blocks, "/norm") == {"norm"}
    assert names(blocks, "/*/norm") == {"blocks/0/norm", "blocks/1/norm"}
    with pytest.raises(ValueError, match="no intermediate '/mlp'"):
        names(blocks, "/mlp")


def test_dots_equal_slashes():
    assert names(blocks, "blocks.1.norm") == {"blocks/1/norm"}
    assert names(blocks, "blocks.*.mlp") == {"blocks/0/mlp", "blocks/1/mlp"}
    assert names(blocks, "1.mlp") == {"blocks/1/mlp"}
    assert names(lambda x: ja.tag(x, "layer.1").sum(), "layer.1") == {"layer.1"}


def test_a_glob_matches_full_names_and_their_ends():
    assert names(blocks, "n*m") == {"norm", "blocks/0/norm", "blocks/1/norm"}
    assert names(blocks, "blocks/?") == {"blocks/0", "blocks/1"}


def test_intervene_refuses_an_ambiguous_name_and_takes_a_glob():
    message = r"intervene: 'norm' must name one intermediate, got blocks/0/norm .*; norm "
    with pytest.raises(ValueError, match=message):
        ja.intervene(blocks, {"norm": lambda v: 0 * v})(X)
    np.testing.assert_allclose(ja.intervene(blocks, {"/norm": lambda v: 0 * v})(X), 0)
    got = ja.intervene(blocks, {"blocks/*/norm": lambda v: 0 * v})(X)
    np.testing.assert_allclose(got, X.size)


def test_a_name_that_occurs_twice_is_refused_with_a_way_out():
    def twice(x):
        return layer("dense", jnp.sin, layer("dense", jnp.sin, x)).sum()

    message = r"got dense \[\(3, 4\)\]; dense \[\(3, 4\)\]\. Use `jaxattn.tag` to name one"
    with pytest.raises(ValueError, match=message):
        ja.gradient(twice, X, at="dense")


def test_a_tag_of_the_name_precedes_layers_but_not_other_tags():
    def fn(x):
        x = layer("attention", lambda x: ja.tag(jnp.sin(x), "attention") * 2, x)
        return layer("decoder", lambda x: layer("attention", jnp.cos, x), x).sum()

    np.testing.assert_allclose(
        ja.gradient(fn, X, at="attention").values, -2 * np.sin(2 * np.sin(X)), rtol=1e-5
    )

    def tags(x):
        return ja.tag(jnp.sin(ja.tag(x, "encoder/out")), "out").sum()

    with pytest.raises(ValueError, match=r"at='out' must name one array, got encoder/out .*; out"):
        ja.gradient(tags, X, at="out")
    np.testing.assert_array_equal(ja.gradient(tags, X, at="/out").values, np.ones_like(X))


def test_names_that_match_nothing_raise_with_similar_ones():
    with pytest.raises(
        ValueError, match=r"no intermediate 'block/\*/nrm'. Is it .*'blocks/1/norm'"
    ):
        names(blocks, "block/*/nrm")
    with pytest.raises(
        ValueError, match=r"no intermediate 'token_embeding'\. Is it 'token_embedding'"
    ):
        ja.saliency(tied, IDS, (2, 7), at="token_embeding")

    def deep(x):
        for i in range(60):
            x = layer(f"layer_{i}", jnp.sin, x)
        return x.sum()

    with pytest.raises(ValueError, match=r"'layer_49'\] and 10 more"):
        names(deep, "nothing")


def test_formulas_and_scopes_of_jax_are_no_layers():
    def fn(x):
        with jax.named_scope("dense"):
            h = jnp.einsum("ti,ij->tj", x, W)
        return jnp.einsum("ti,tj", h, x).sum()

    assert names(fn, "*") == {"dense"}
    with pytest.raises(ValueError, match=r"the layers \['dense'\]\."):
        names(fn, "ti,ij->tj")

    def slope(x):
        return jax.grad(jax.checkpoint(lambda x: layer("sine", jnp.sin, x).sum()))(x)

    with pytest.raises(ValueError) as refusal:
        names(slope, "nothing")
    assert "rematted" not in str(refusal.value)
    with pytest.raises(ValueError) as refusal:
        ja.lrp(lambda x: jnp.einsum("ti,ti->t", x, jnp.tanh(x)).sum(), X)
    assert "->" not in str(refusal.value)
    with pytest.raises(ValueError) as refusal:
        ja.lrp(fn, X, rule=[("nothing", "gamma"), ("*", "epsilon")], products="half")
    assert "dense" in str(refusal.value) and "->" not in str(refusal.value)


def refused_in(at, fn):
    with pytest.raises(ValueError) as refusal:
        ja.lrp(fn, X, at=at)
    return str(refusal.value)


def test_refusals_keep_file_and_line_behind_an_intermediate():
    def plain(x):
        h = ja.tag(jnp.sin(x), "h")
        with jax.named_scope("block"):
            return (h * h[::-1]).sum()  # the refused line

    def looped(x):
        def step(carry, row):
            carry = ja.tag(carry + row, "h")
            return carry, (carry * carry[::-1]).sum()  # the refused line

        return jax.lax.scan(step, jnp.zeros(4), x)[1].sum()

    lines = Path(__file__).read_text().splitlines()
    for fn in (plain, looped, jax.jit(plain), jax.checkpoint(looped)):
        first = fn.__wrapped__.__code__.co_firstlineno if fn not in (plain, looped) else 0
        first = first or fn.__code__.co_firstlineno
        line = next(i for i in range(first, len(lines)) if "# the refused line" in lines[i]) + 1
        for at in (None, "h"):
            assert f"test_names.py, line {line}" in refused_in(at, fn)


def test_layer_conductance_of_token_ids_says_what_to_use():
    with pytest.raises(
        TypeError, match=r"use jaxattn\.integrated_gradients with at='backbone/token"
    ):
        ja.layer_conductance(tied, IDS, (2, 7), at="backbone/token_embedding")
    got = ja.grad_cam(tied, IDS, (2, 7), at="backbone/token_embedding", relu=False)
    gradient = ja.gradient(tied, IDS, (2, 7), at="backbone/token_embedding").values
    expected = (TABLE[IDS] * gradient.mean(0, keepdims=True)).sum(-1)
    np.testing.assert_allclose(got.values, expected, rtol=1e-5)
    with pytest.raises(TypeError, match="must hold floating-point numbers for a gradient"):
        ja.grad_cam(lambda ids: tied(ja.tag(ids[:, None], "ids")[:, 0]), IDS, (2, 7), at="ids")
