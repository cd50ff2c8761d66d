"""Randomisation: whether explanations change with the parameters, and with the class."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_sum
from jaxattn.engine.explain import explain
from jaxattn.engine.inputs import check_key
from jaxattn.engine.method import method as make_method
from jaxattn.engine.numbers import check_number
from jaxattn.engine.options import count
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.metrics.direction import metric
from jaxattn.metrics.explanation_changes import check_options, inner_count
from jaxattn.metrics.parameters_by_layer import Parameters
from jaxattn.metrics.rankings import flat
from jaxattn.metrics.similarities import Similarity, check_choice, similarity_of

#: Which layers are drawn anew at a step: one alone, or all from the output or the input up to one.
Order: TypeAlias = Literal["independent", "top_down", "bottom_up"]


class Randomisation(NamedTuple):
    """Similarities of explanations of a model and of models with layers drawn anew.

    Attributes:
        mean: the mean similarity over the steps, for each example.
        similarity: the similarity at each step.
        layers: the layer that is drawn anew at each step.
        control: the similarity of the explanations of two independently trained models, for each
            example, if a second one was given.
    """

    mean: Float[Array, " B"]
    similarity: Float[Array, "B steps"]
    layers: tuple[str, ...]
    control: Float[Array, " B"] | None = None


@metric(better="lower", low=-1, high=1)
def mprt(
    method: Method,
    model: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    order: Order = "top_down",
    similarity: Similarity = "spearman",
    control: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Randomisation:
    """Compute the model parameter randomisation test (MPRT).

    Layers of the model are drawn anew, step by step, and the explanations are compared with those
    of the model. Lower similarities are better: an explanation that stays the same does not depend
    on what the model has learned. Similarities need a control: explanations of recurrent networks
    are similar for any parameters, since the last time steps matter most. `control` compares two
    networks that were trained independently.

    Each array of a layer is drawn from a normal distribution with its own mean and standard
    deviation; one that is constant stays as it is. All steps share one compiled program.

    Cost: one more explanation per example than the model has layers. Draws: `key` is required.

    Args:
        method: any method of jaxattn, whose values are compared.
        model: a model with parameters: an `nnx.Module`, an equinox module, or
            `jax.tree_util.Partial(apply, params)`.
        xs: the examples, each leaf with a leading axis of length B.
        targets: the entry of the output that is explained, as for `jaxattn.explain`.
        key: a random key, such as `jax.random.key(0)`, for the parameters, and for a method that
            draws.
        order: `"top_down"` draws anew all layers from the output down to one, `"bottom_up"` from
            the input up to one, and `"independent"` one layer alone. The order is that in which the
            model uses its layers.
        similarity: `"spearman"` for rank correlation, `"pearson"` or `"cosine"`.
        control: another model, trained independently of the first.
        args: further inputs of the model, each leaf with a leading axis of length B.
        batch_size: how many evaluations of the model are in flight.
        mesh: devices over which the examples are distributed.
        **options: options of `method`.

    Returns:
        a `Randomisation`; similarities are NaN where an explanation is constant.

    Raises:
        TypeError: for a model without parameters, or for an option that `method` does not have.
        ValueError: for an unknown order or similarity, and as `jaxattn.explain`.

    Reference:
        Adebayo et al. 2018, Sanity checks for saliency maps, arXiv:1810.03292.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def apply(weights, x):
        ...     return jnp.tanh(x @ weights["hidden"]) @ weights["readout"]
        >>> shapes = {"hidden": (3, 4), "readout": (4,)}
        >>> weights = {k: jax.random.normal(jax.random.key(1), s) for k, s in shapes.items()}
        >>> model = jax.tree_util.Partial(apply, weights)
        >>> found = ja.metrics.mprt(ja.gradient, model, jnp.ones((2, 3)), key=jax.random.key(0))
        >>> print(found.layers, found.similarity.shape)
        ('readout', 'hidden') (2, 2)
    """
    of_model, of_method = _split(key)
    explained = functools.partial(
        _explained, method, xs, targets, args, of_method, batch_size, mesh, options
    )
    return _randomised(explained, model, xs, args, of_model, order, similarity, control)


@metric(better="lower", low=-1, high=1)
def smooth_mprt(
    method: Method,
    model: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    order: Order = "top_down",
    similarity: Similarity = "spearman",
    control: Callable[..., Any] | None = None,
    num_samples: int = 50,
    noise: ArrayLike = 0.1,
    args: tuple[Any, ...] = (),
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Randomisation:
    """Compute the smooth model parameter randomisation test (sMPRT).

    As `mprt`, for explanations that are averaged over noisy copies of the input, so that the noise
    of gradients does not lower the similarity. Lower is better. Further arguments, results and
    errors are those of `mprt`.

    Cost: `num_samples` times that of `mprt`. Draws: `key` is required.

    Args:
        method: as for `mprt`.
        model: as for `mprt`.
        xs: as for `mprt`.
        targets: as for `mprt`.
        key: as for `mprt`; also for the noise.
        order: as for `mprt`.
        similarity: as for `mprt`.
        control: as for `mprt`.
        num_samples: the number of noisy copies of each example.
        noise: the standard deviation of the noise, as a fraction of the range of each leaf.
        args: as for `mprt`.
        batch_size: as for `mprt`.
        mesh: as for `mprt`.
        **options: options of `method`.

    Raises:
        TypeError: if `num_samples` is not an int, or no leaf of `xs` is floating.
        ValueError: for fewer than one sample, or negative noise.

    Reference:
        Hedström et al. 2024, A fresh look at sanity checks for saliency maps, arXiv:2405.02383.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def apply(weights, x):
        ...     return jnp.tanh(x @ weights["hidden"]).sum()
        >>> model = jax.tree_util.Partial(apply, {"hidden": jnp.eye(3)})
        >>> xs, key = jnp.ones((2, 3)), jax.random.key(0)
        >>> found = ja.metrics.smooth_mprt(ja.gradient, model, xs, key=key, num_samples=4)
        >>> print(found.mean.shape)
        (2,)
    """
    check_options(method, options)
    check_count("num_samples", num_samples)
    check_number("noise", noise)
    own = {"method": method, "num_samples": num_samples, "noise": jnp.asarray(noise)}
    of_model, of_method = _split(key)
    explained = functools.partial(
        _explained, _averaged, xs, targets, args, of_method, batch_size, mesh, options | own
    )
    return _randomised(explained, model, xs, args, of_model, order, similarity, control)


@metric(better="higher")
def efficient_mprt(
    method: Method,
    model: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    num_bins: int = 100,
    args: tuple[Any, ...] = (),
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute the efficient model parameter randomisation test (eMPRT).

    It is the relative increase of the complexity of the explanation when all layers are drawn anew.
    The complexity is the entropy of the histogram of the values, between the lowest and the
    highest. Higher is better: an explanation of a model that has learned nothing has no structure.
    Further arguments and errors are those of `mprt`.

    Cost: two explanations per example. Draws: `key` is required.

    Args:
        method: as for `mprt`.
        model: as for `mprt`.
        xs: as for `mprt`.
        targets: as for `mprt`.
        key: as for `mprt`.
        num_bins: the number of bins of the histogram.
        args: as for `mprt`.
        batch_size: as for `mprt`.
        mesh: as for `mprt`.
        **options: options of `method`.

    Returns:
        one number per example; NaN if the explanation of the model is constant.

    Raises:
        TypeError: if `num_bins` is not an int.
        ValueError: for fewer than two bins.

    Reference:
        Hedström et al. 2024, A fresh look at sanity checks for saliency maps, arXiv:2405.02383.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def apply(weights, x):
        ...     return x @ weights["readout"]
        >>> model = jax.tree_util.Partial(apply, {"readout": jnp.array([0.0, 0.0, 0.0, 1.0])})
        >>> xs, key = jnp.ones((1, 4)), jax.random.key(0)
        >>> print(ja.metrics.efficient_mprt(ja.gradient, model, xs, key=key)[0] > 0.5)
        True
    """
    check_count("num_bins", num_bins, least=2)
    of_model, of_method = _split(key)
    explained = functools.partial(
        _explained, method, xs, targets, args, of_method, batch_size, mesh, options
    )
    parameters = Parameters.of(model)
    before, after = (
        _histogram_entropy(explained(each), num_bins=num_bins)
        for each in (model, parameters.randomised(parameters.layers, of_model))
    )
    return (after - before) / jnp.where(before > 0, before, jnp.nan)


def _split(key: RandomKey | None) -> Array:
    """Return a key for the parameters and one for the explanations."""
    if key is None:
        raise ValueError("`key` is missing: parameters are drawn, give key=jax.random.key(0).")
    check_key(key)
    return jax.random.split(key)


def _explained(
    method: Method,
    xs: Inputs,
    targets: Target,
    args: tuple[Any, ...],
    key: RandomKey,
    batch_size: int | None,
    mesh: Mesh | None,
    options: dict[str, Any],
    model: Callable[..., Any],
) -> Float[Array, "B n"]:
    """Return the explanations of a model, flat."""
    shared: dict[str, Any] = {"args": args, "key": key, **options}
    shared |= {"batch_size": batch_size, "mesh": mesh}
    return jax.vmap(flat)(explain(method, model, xs, targets, **shared).values)


def _randomised(
    explained: Callable[[Callable[..., Any]], Float[Array, "B n"]],
    model: Callable[..., Any],
    xs: Inputs,
    args: tuple[Any, ...],
    key: RandomKey,
    order: Order,
    similarity: Similarity,
    control: Callable[..., Any] | None,
) -> Randomisation:
    """Compare explanations of a model with those of models with layers drawn anew."""
    check_choice("order", order, Order)
    check_choice("similarity", similarity, Similarity)
    parameters = Parameters.of(model)
    layers = parameters.in_order(xs, args)
    if order == "top_down":
        layers = layers[::-1]
    original = explained(model)
    similarities = []
    for i, layer in enumerate(layers):
        drawn = [layer] if order == "independent" else layers[: i + 1]
        changed = explained(parameters.randomised(drawn, key))
        similarities.append(similarity_of(original, changed, kind=similarity))
    found = jnp.stack(similarities, 1)
    of_control = None
    if control is not None:
        of_control = similarity_of(original, explained(control), kind=similarity)
    return Randomisation(found.mean(1), found, tuple(layers), of_control)


@functools.partial(jax.jit, static_argnames="num_bins")
def _histogram_entropy(values: Float[Array, "B n"], *, num_bins: int) -> Float[Array, " B"]:
    """Return the entropy of the histogram of each explanation, in nats."""

    def entropy(row: Float[Array, " n"]) -> Float[Array, ""]:
        counts, _ = jnp.histogram(row, num_bins)
        return jax.scipy.special.entr(counts.astype(row.dtype) / row.size).sum()

    return jax.vmap(entropy)(values)


#: The options of `_averaged` itself; all others are passed to its `method`.
_OWN = ("method", "num_samples", "noise")


def _samples_times(what: str, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    return options["num_samples"] * inner_count(what, _OWN, x, output, options)


@make_method(
    draws=True,
    evaluations=functools.partial(_samples_times, "evaluations"),
    in_flight=functools.partial(_samples_times, "in_flight"),
)
def _averaged(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    method: Method,
    num_samples: int,
    noise: Shaped[Array | np.ndarray, ""],
    **options: Any,
) -> Attribution:
    """Compute the mean values of a method over noisy copies of the input."""
    if key is None:
        raise ValueError("`key` is missing: noise is drawn, give key=jax.random.key(0).")
    floating_leaves(x, "noise")
    output = fn(x, *args)
    inner = count("in_flight", method, x, output, {"target": target, **options})
    leaves, treedef = jax.tree.flatten(x)

    def noisy(key: RandomKey, leaf: Array) -> Array:
        if not is_floating(leaf) or leaf.size == 0:
            return leaf
        scale = noise.astype(leaf.dtype) * (leaf.max() - leaf.min())
        return leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)

    def sample(key: RandomKey) -> PyTree:
        of_method, *keys = jax.random.split(key, 1 + len(leaves))
        copy = jax.tree.unflatten(treedef, list(map(noisy, keys, leaves)))
        size = min(inner, batch_size) if batch_size else None
        shared = {"args": args, "key": of_method, "batch_size": size}
        return method(fn, copy, target, **shared, **options).values

    size = max(1, batch_size // inner) if batch_size else None
    keys = jax.random.split(key, num_samples)
    return Attribution(chunked_sum(sample, keys, size, num_samples), output)
