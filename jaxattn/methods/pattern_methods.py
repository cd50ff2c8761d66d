"""PatternNet and PatternAttribution, and the patterns of neurons, estimated from data."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.batch import DEFAULT, wide
from jaxattn.engine.compiled import Plan
from jaxattn.engine.explain import prepare
from jaxattn.engine.launch import run_part
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.engine.target import select
from jaxattn.jaxpr.propagation.layer_rules import quotient
from jaxattn.jaxpr.propagation.patterns import (
    MeanSums,
    Network,
    PatternNet,
    PatternSums,
    Sums,
)
from jaxattn.jaxpr.propagation.walk import Runs

#: One array of the shape of the weights for each contraction with constant weights.
Patterns: TypeAlias = Sequence[Shaped[Array | np.ndarray, "..."]]
Estimator: TypeAlias = Literal["relu", "linear"]


def fit_patterns(
    fn: Callable[..., Any],
    xs: Inputs,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    batch_size: int | None = None,
    estimator: Estimator = "relu",
) -> list[Shaped[Array, "..."]]:
    """Estimate the pattern of every neuron: the direction of its inputs that covaries with it.

    The weights w of a neuron y = w v + b filter the signal from distractors; its pattern a is the
    direction of the signal itself. With E the mean over all examples, positions and time steps at
    which the neuron is computed, and E+ that over those with y > 0,

        a = (E+[v y] - E+[v] E[y]) / (w E+[v y] - w E+[v] E[y]),

    and with the linear estimator a = cov(v, y) / var(y). A neuron is an entry of a whole affine
    map, in however many equations it was written, and v is the input of that map. A normalisation
    with running statistics before or after the weights is a part of the map, a pool is not.

    Cost: two passes over the data, the first for the means, of one evaluation of `fn` and one
    gradient per example. Only sums over the data are held in memory. Deterministic.

    Args:
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: examples from the distribution of the training data, each leaf with a leading axis of
            length B.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        at: the name of the intermediate that will be explained instead of the input, if any.
        batch_size: how many evaluations of `fn` are in flight.
        estimator: `"relu"` (two-component), for neurons that matter where they are positive; or
            `"linear"`.

    Returns:
        an array of the shape of the weights for each matrix product and convolution with constant
        weights between `xs` and the output, in the order in which they are computed; inside a loop,
        one for all its steps. The pattern of a neuron that is constant is zero.

    Raises:
        TypeError: if no leaf of `xs` is floating.
        ValueError: for an unknown estimator, no examples, lengths that differ, entries that are not
            finite, a function without a differentiable path, side effects, a loop whose length
            depends on the data, or one with different weights at each step.

    Reference:
        Kindermans et al. 2018, Learning how to explain neural networks: PatternNet and
        PatternAttribution, arXiv:1705.05598; Haufe et al. 2014 (the linear estimator).

    Examples:
        The signal is in both features, a distractor only in the first, which has no weight. The
        pattern is the direction of the signal.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x @ jnp.array([0.0, 1.0])
        >>> signal = jnp.array([1.0, 1.0, -1.0, -1.0])
        >>> distractor = jnp.array([1.0, -1.0, 1.0, -1.0])
        >>> xs = jnp.stack([signal + distractor, signal], 1)
        >>> print(ja.fit_patterns(fn, xs, estimator="linear")[0])
        [1. 1.]
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f'`estimator` must be "relu" or "linear", got {estimator!r}.')
    size = DEFAULT if batch_size is None else batch_size
    work = prepare(_sums, fn, xs, args=args, at=at, batch_size=size, estimator=estimator)
    plan = Plan(single=True, examples=1, inside=1, mesh=None)

    def ratios(means: list[Array] | None) -> list[Array]:
        sums: _Ratios | None = None
        for start, of_part, (x, _, args, _, _) in work.parts():
            valid = np.arange(start, start + of_part.examples) < work.batch
            more = {"valid": valid, "means": means}
            part = run_part(work.binding, (x, None, args, None, more), plan).values
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
        assert sums is not None  # a batch holds at least one example
        return [quotient(a, b) for a, b in zip(*sums, strict=True)]

    return ratios(ratios(None))


class _Ratios(NamedTuple):
    """Numerators and denominators, an array each for every contraction."""

    numerators: list[Array]
    denominators: list[Array]


def _sums(
    fn: Callable[..., Any],
    xs: Inputs,
    target: None,
    *,
    args: tuple[Any, ...],
    key: None,
    batch_size: int,
    estimator: Estimator,
    valid: Bool[Array, " B"],
    means: list[Array] | None,
    at: str | None = None,
) -> Attribution:
    """Sum the numerators and denominators of a chunk: of the means, then of the patterns.

    It has the signature of a method: the engine binds and compiles it.
    """

    def zeros(x: Inputs, args: tuple[Any, ...]) -> _Ratios:
        weights = _network(fn, x, args, at).weights
        per_neuron = [jnp.zeros(w.units, wide(w.dtype)) for w in weights]
        if means is None:
            return _Ratios(per_neuron, per_neuron)
        return _Ratios([jnp.zeros(w.shape, wide(w.dtype)) for w in weights], per_neuron)

    def absorbed(probes: _Ratios) -> Array:
        def one(x: Inputs, args: tuple[Any, ...]) -> Array:
            network = Network(fn, x, args, at)
            if means is None:
                rules: Sums = MeanSums(network, probes)
            else:
                rules = PatternSums(network, probes, means, estimator == "relu")

            def seed(outputs: list[Runs]) -> list[Array]:
                return [jnp.zeros_like(value) for (value,) in outputs]

            return network.send_back(rules, seed).absorbed

        return jnp.where(valid, jax.vmap(one)(xs, args), 0).sum()

    shapes = jax.eval_shape(zeros, *jax.tree.map(lambda leaf: leaf[0], (xs, args)))
    probes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return Attribution(jax.grad(absorbed)(probes), ())


@method(keeps_input=True, per_example=())
def pattern_net(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    patterns: Patterns | None = None,
) -> Attribution:
    """Compute PatternNet: the signal in the input, propagated back by patterns instead of weights.

    The backward pass of the gradient, in which each neuron with constant weights uses its pattern
    in place of its weights. It starts at the output times its derivative in the target, so a logit
    is a better target than a probability (see `jaxattn.without_softmax`). Everything else keeps its
    ordinary derivative: activations, products of two values, pools, softmaxes, and layers whose
    weights depend on the example.

    Cost: one evaluation of `fn` and one backward pass per example. Deterministic.

    Args:
        patterns: the result of `jaxattn.fit_patterns` for `fn` and the same `at`. Required.

    Returns:
        values of the shape of `x`, signed; for a linear `fn` in units of `x`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if `patterns` are missing or those of another network, the target does not fit
            the output, and as `jaxattn.fit_patterns`.

    Reference:
        Kindermans et al. 2018, Learning how to explain neural networks: PatternNet and
        PatternAttribution, arXiv:1705.05598.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x @ jnp.array([0.0, 1.0])
        >>> xs = jnp.array([[2.0, 1.0], [0.0, 1.0], [0.0, -1.0], [-2.0, -1.0]])
        >>> patterns = ja.fit_patterns(fn, xs, estimator="linear")
        >>> print(ja.pattern_net(fn, jnp.array([5.0, 3.0]), patterns=patterns).values)
        [3. 3.]
    """
    return _propagated(fn, x, target, args, at, patterns, attribution=False)


@method(keeps_input=True, per_example=())
def pattern_attribution(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    patterns: Patterns | None = None,
) -> Attribution:
    """Compute PatternAttribution: the contribution of the signal in each feature to the target.

    As `jaxattn.pattern_net`, with the product of each weight and its pattern in place of the
    weight.

    Cost: one evaluation of `fn` and one backward pass per example. Deterministic.

    Args:
        patterns: the result of `jaxattn.fit_patterns` for `fn` and the same `at`. Required.

    Returns:
        values of the shape of `x`, signed, in units of the output. For a linear `fn` they sum to
        the target.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if `patterns` are missing or those of another network, the target does not fit
            the output, and as `jaxattn.fit_patterns`.

    Reference:
        Kindermans et al. 2018, Learning how to explain neural networks: PatternNet and
        PatternAttribution, arXiv:1705.05598.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x @ jnp.array([0.0, 1.0])
        >>> xs = jnp.array([[2.0, 1.0], [0.0, 1.0], [0.0, -1.0], [-2.0, -1.0]])
        >>> patterns = ja.fit_patterns(fn, xs, estimator="linear")
        >>> print(ja.pattern_attribution(fn, jnp.array([5.0, 3.0]), patterns=patterns).values)
        [0. 3.]
    """
    return _propagated(fn, x, target, args, at, patterns, attribution=True)


def _network(fn: Callable[..., Any], x: Inputs, args: tuple[Any, ...], at: str | None) -> Network:
    network = Network(fn, x, args, at)
    floating_leaves(network.inputs[0], "patterns")
    return network


def _propagated(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target,
    args: tuple[Any, ...],
    at: str | None,
    patterns: Patterns | None,
    *,
    attribution: bool,
) -> Attribution:
    """Propagate the output back by patterns, or by products of weights and patterns."""
    network = _network(fn, x, args, at)
    if patterns is None:
        raise ValueError("`patterns` are missing: give the result of jaxattn.fit_patterns.")
    shapes, expected = [jnp.shape(p) for p in patterns], [w.shape for w in network.weights]
    if shapes != expected:
        raise ValueError(
            f"`patterns` must have the shapes of this network's weights, {expected}, got {shapes}."
        )

    def seed(outputs: list[Runs]) -> list[Array | None]:
        values = [value for (value,) in outputs]
        output = jax.tree.unflatten(network.treedef, values)
        score, pullback = jax.vjp(lambda output: select(output, target), output)
        slopes = jax.tree.leaves(pullback(jnp.ones_like(score)))
        return [
            value * slope if is_floating(value) else None
            for value, slope in zip(values, slopes, strict=True)
        ]

    output, signals, _ = network.send_back(PatternNet(network, patterns, attribution), seed)
    leaves, treedef = jax.tree.flatten(network.inputs[0])
    dtype = select(output, target).dtype

    def values_of(leaf: Array, signal: Array | None) -> Array:
        if signal is None:
            return jnp.zeros(leaf.shape, leaf.dtype if is_floating(leaf) else dtype)
        return signal.astype(leaf.dtype)

    return Attribution(jax.tree.unflatten(treedef, map(values_of, leaves, signals)), output)
