"""Test the table of methods on networks of other libraries, and that its checks can fail."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn as ja
from benchmarks import models, zoo

COLUMNS = {column.check.__name__: column for column in models.COLUMNS}
QUICK = ("saliency", "lrp", "capture", "at")


@pytest.fixture(autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def case(name):
    return models.Case(zoo.MODELS[name]())


@pytest.fixture(scope="module")
def attending():
    return case("Keras Attention")


@pytest.mark.parametrize("name", ["linen MLP", "Keras Attention"])
@pytest.mark.representatives("Keras Attention")
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in COLUMNS]
)
def test_cells_of_two_networks(name, method):
    attends = name != "linen MLP"
    expected = "✓" if attends or not COLUMNS[method].attends else "–"
    assert models.cell(case(name), COLUMNS[method]) == models.Cell(expected)


def doctored(method, change):
    """Return a method whose values are changed a little."""

    def wrong(*inputs, **options):
        found = method(*inputs, **options)
        return dataclasses.replace(found, values=jax.tree.map(change, found.values))

    return wrong


@pytest.mark.parametrize(
    "method",
    [
        "saliency",
        "lrp",
        "attention",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "integrated_gradients", "occlusion", "jacobian", "deep_lift",
                "contextual_decomposition", "attention_rollout", "gradient_x_attention",
                "value_zeroing",
            )
        ),
    ],
)  # fmt: skip
def test_wrong_values_are_reported(method, attending, monkeypatch):
    monkeypatch.setattr(ja, method, doctored(getattr(ja, method), lambda v: 1.05 * v + 0.01))
    found = models.cell(attending, COLUMNS[method])
    assert found.mark == "WRONG" and found.is_wrong


@pytest.mark.parametrize("change", [lambda v: v.at[0].set(jnp.nan), lambda v: v[1:]])
def test_other_shapes_and_nan_are_wrong(change, attending, monkeypatch):
    monkeypatch.setattr(ja, "saliency", doctored(ja.saliency, change))
    assert models.cell(attending, COLUMNS["saliency"]).is_wrong


def failing(case, size="small"):
    if size != "large":
        raise ValueError("`size` must be 'large'.")


def test_messages_are_followed(attending):
    column = models.Column("f", failing, "nothing")
    undocumented = models.cell(attending, column, [])
    assert undocumented == models.Cell("WRONG", ("ValueError: `size` must be 'large'.",))
    way = models.Way("`size`", "`size`", lambda case: {"size": "large"})
    assert models.cell(attending, column, [way]) == models.Cell("✓ +", ("`size`",))
    assert models.cell(attending, column, [way._replace(options=lambda case: {})]).is_wrong
    instead = way._replace(options=lambda case: {}, instead=models.saliency)
    assert models.cell(attending, column, [instead]) == models.Cell("refused", ("`size`",))


def test_wrong_cells_are_not_written(monkeypatch, tmp_path, capsys):
    page = tmp_path / "models.md"
    cells = [models.Cell("✓")] * len(models.COLUMNS)
    monkeypatch.setattr(models, "table_row", lambda name: cells)
    monkeypatch.setattr(jax.config, "update", lambda *arguments: None)
    assert models.main(["--page", str(page)]) == 0
    assert all(f"| {name} | ✓ |" in page.read_text() for name in zoo.MODELS)
    page.unlink()
    cells[3] = models.Cell("WRONG", ("0.5 off",))
    assert models.main(["--page", str(page)]) == 1
    assert not page.exists() and "WRONG jacobian: 0.5 off" in capsys.readouterr().out
