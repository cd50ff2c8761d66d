"""PatternNet and PatternAttribution: what neurons listen for, learned from data."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

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

Patterns = Sequence[Shaped[Array | np.ndarray, "..."]]


def fit_patterns(
    fn: Callable[..., Any],
    xs: Inputs,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    batch_size: int | None = None,
    rule: Literal["relu", "linear"] = "relu",
) -> list[Shaped[Array, "..."]]:
    """The pattern of every neuron: in which direction its inputs vary with what it answers.

    The weights of a neuron y = w v + b say how it tells its signal from what distracts; its
    pattern a says what the signal is. With E the mean over all examples, and over all places and
    steps at which the neuron is computed, and E+ that over those with y > 0,

        a = (E+[v y] - E+[v] E[y]) / (w E+[v y] - w E+[v] E[y]),

    and with the rule `"linear"` a = cov(v, y) / var(y). A neuron is a cell of a whole affine map,
    in however many steps it was written, and v is what the map is given: a normalisation with
    running statistics before or after the weights is a part of the neuron, a pool is not. Only sums
    are kept of the data, over which this goes twice: once for the means.

    Args:
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: examples such as the network was trained on, each leaf with a leading axis of length B.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        at: the name of the intermediate that will be explained instead of the input, if one will.
        batch_size: how many evaluations of `fn` are in flight.
        rule: `"relu"`, for neurons that matter where they are above zero; or `"linear"`.

    Returns:
        an array of the shape of the weights for each matrix product and convolution with constant
        weights on the ways from `xs` to the output, in the order in which they are computed; inside
        of a loop one for all its steps. The pattern of a neuron that never varies is zero.

    Raises:
        TypeError: if `xs` holds integers only.
        ValueError: for an unknown rule, no examples, lengths that differ, numbers that are not
            finite, a function with no differentiable path, side effects, a loop whose length
            depends on the data, or one that takes other weights at each of its steps.

    Reference:
        Kindermans et al. 2018, Learning how to explain neural networks: PatternNet and
        PatternAttribution, arXiv:1705.05598; Haufe et al. 2014 (the linear rule).
    """
    if rule not in ("relu", "linear"):
        raise ValueError(f'rule must be "relu" or "linear", got {rule!r}')
    size = DEFAULT if batch_size is None else batch_size
    work = prepare(_sums, fn, xs, args=args, at=at, batch_size=size, rule=rule)
    plan = Plan(single=True, examples=1, inside=1, mesh=None)
    size = work.plan.examples

    def total(means: list[Any] | None) -> list[Any]:
        sums: Any = None
        for start, (x, _, args, _, _) in zip(range(0, work.batch, size), work.parts(), strict=True):
            more = {"valid": np.arange(start, start + size) < work.batch, "means": means}
            part = run_part(work.binding, (x, None, args, None, more), plan).values
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
        return [quotient(a, b) for a, b in zip(*sums, strict=True)]

    return total(total(None))


def _sums(
    fn: Callable[..., Any],
    xs: Any,
    target: None,
    *,
    args: Any,
    key: None,
    batch_size: int,
    rule: str,
    valid: Any,
    means: list[Any] | None,
    at: str | None = None,
) -> Attribution:
    """Numerators and denominators, summed over a chunk: of the means, then of the patterns.

    It has the form of a method, so that the engine binds and compiles it.
    """

    def zeros(x: Any, args: Any) -> Any:
        weights = _network(fn, x, args, at).weights
        numbers = [jnp.zeros(w.units, wide(w.dtype)) for w in weights]
        if means is None:
            return numbers, numbers
        return [jnp.zeros(w.shape, wide(w.dtype)) for w in weights], numbers

    def absorbed(probes: Any) -> Any:
        def one(x: Any, args: Any) -> Any:
            network = Network(fn, x, args, at)
            if means is None:
                rules: Sums = MeanSums(network, probes)
            else:
                rules = PatternSums(network, probes, means, rule == "relu")

            def seed(outputs: list[Runs]) -> list[Any]:
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
    patterns: Patterns | None = None,
) -> Attribution:
    """The signal that the network found in the input: the gradient, by patterns, not by weights.

    Where the gradient goes back through a neuron by its weights, this goes by its pattern, from
    what each output answered, times its slope in the explained number. All else has its ordinary
    derivative: activations, products of two values, pools, softmaxes, and layers whose weights
    depend on the example.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`. A logit is better
            than a probability; see `jaxattn.without_softmax`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        patterns: what `jaxattn.fit_patterns` answered for `fn` and the same `at`. Must be given.

    Returns:
        values of the shape of `x`, and for a linear `fn` in units of `x`.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if patterns are missing or those of another network, the target does not fit the
            output, and as `jaxattn.fit_patterns`.

    Reference:
        Kindermans et al. 2018, Learning how to explain neural networks: PatternNet and
        PatternAttribution, arXiv:1705.05598.
    """
    return _back(fn, x, target, args, at, patterns, attribution=False)


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
    patterns: Patterns | None = None,
) -> Attribution:
    """How much the signal in each cell adds to the explained number: weights times patterns.

    As `jaxattn.pattern_net`, but by the product of each weight with its pattern.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`. A logit is better
            than a probability; see `jaxattn.without_softmax`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        patterns: what `jaxattn.fit_patterns` answered for `fn` and the same `at`. Must be given.

    Returns:
        values of the shape of `x`, in units of the output. For a linear `fn` they sum to the
        explained number.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if patterns are missing or those of another network, the target does not fit the
            output, and as `jaxattn.fit_patterns`.

    Reference:
        Kindermans et al. 2018, Learning how to explain neural networks: PatternNet and
        PatternAttribution, arXiv:1705.05598.
    """
    return _back(fn, x, target, args, at, patterns, attribution=True)


def _network(fn: Callable[..., Any], x: Inputs, args: tuple[Any, ...], at: str | None) -> Network:
    network = Network(fn, x, args, at)
    floating_leaves(network.inputs[0], "patterns")
    return network


def _back(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target,
    args: tuple[Any, ...],
    at: str | None,
    patterns: Patterns | None,
    *,
    attribution: bool,
) -> Attribution:
    network = _network(fn, x, args, at)
    if patterns is None:
        raise ValueError("patterns are missing: give what jaxattn.fit_patterns answers")
    got, want = [jnp.shape(p) for p in patterns], [w.shape for w in network.weights]
    if got != want:
        raise ValueError(
            f"patterns must be those of this network, shaped like its weights {want}, got {got}"
        )

    def seed(outputs: list[Runs]) -> list[Any]:
        values = [value for (value,) in outputs]
        answer = jax.tree.unflatten(network.treedef, values)
        score, pull = jax.vjp(lambda answer: select(answer, target), answer)
        slopes = jax.tree.leaves(pull(jnp.ones_like(score)))
        return [
            value * slope if is_floating(value) else None
            for value, slope in zip(values, slopes, strict=True)
        ]

    output, shares, _ = network.send_back(PatternNet(network, patterns, attribution), seed)
    leaves, treedef = jax.tree.flatten(network.inputs[0])
    dtype = select(output, target).dtype
    values = [
        jnp.zeros(leaf.shape, leaf.dtype if is_floating(leaf) else dtype)
        if share is None
        else share.astype(leaf.dtype)
        for leaf, share in zip(leaves, shares, strict=True)
    ]
    return Attribution(jax.tree.unflatten(treedef, values), output)
