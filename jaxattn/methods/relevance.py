"""Layer-wise relevance propagation (LRP) and deep Taylor decomposition."""

import operator
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.capture import with_constants
from jaxattn.jaxpr.propagation.layer_rules import Kind, LRPRule
from jaxattn.jaxpr.propagation.lrp import Options, Relevance
from jaxattn.jaxpr.propagation.score import send_back
from jaxattn.jaxpr.propagation.selection import Where
from jaxattn.jaxpr.structure.graph import Structure

Gates: TypeAlias = Literal["all", "half", "proportional"]
AttentionRule: TypeAlias = Literal["cp_lrp", "attnlrp"]
Choice: TypeAlias = Literal["first", "second", "half", "proportional"]
#: Pairs of a place and the rule that holds there.
Composite: TypeAlias = Sequence[tuple[Where, str | LRPRule]]

_Z_PLUS = LRPRule("alpha_beta", alpha=1.0)
_ALPHA2_BETA1 = LRPRule("alpha_beta", alpha=2.0)
_EPSILON_PLUS = (("conv", _Z_PLUS), ("dense", "epsilon"))
_EPSILON_ALPHA2_BETA1 = (("conv", _ALPHA2_BETA1), ("dense", "epsilon"))

#: Composites of LRP rules by name, as pairs `(where, rule)`; see `rule` of `jaxattn.lrp`. A rule
#: given by name takes its parameters (`epsilon`, `gamma`, `alpha`, `low`, `high`) from the call.
#:
#: * `"epsilon_plus"` (Zennit's EpsilonPlus, iNNvestigate's sequential preset A): z+ in
#:   convolutions, epsilon in dense layers.
#: * `"epsilon_plus_flat"` (EpsilonPlusFlat, preset A flat): the same, flat in the first layer.
#: * `"epsilon_alpha2_beta1"` (EpsilonAlpha2Beta1, preset B): alpha-beta with alpha 2 and beta 1 in
#:   convolutions, epsilon in dense layers.
#: * `"epsilon_alpha2_beta1_flat"` (EpsilonAlpha2Beta1Flat, preset B flat): the same, flat in the
#:   first layer.
#: * `"epsilon_gamma_box"` (EpsilonGammaBox): z^B in the first layer, gamma in convolutions, epsilon
#:   in dense layers; it needs `low` and `high`.
#: * `"alpha_beta_flat"`: flat in the first layer, alpha-beta in all others.
#: * `"sequential_preset_a"`, `"sequential_preset_a_flat"`, `"sequential_preset_b"` and
#:   `"sequential_preset_b_flat"`: other names of the first four.
LRP_PRESETS: Mapping[str, Composite] = types.MappingProxyType(
    {
        "epsilon_plus": _EPSILON_PLUS,
        "epsilon_plus_flat": (("input", "flat"), *_EPSILON_PLUS),
        "epsilon_alpha2_beta1": _EPSILON_ALPHA2_BETA1,
        "epsilon_alpha2_beta1_flat": (("input", "flat"), *_EPSILON_ALPHA2_BETA1),
        "epsilon_gamma_box": (("input", "bounded"), ("conv", "gamma"), ("dense", "epsilon")),
        "alpha_beta_flat": (("input", "flat"), ("*", "alpha_beta")),
        "sequential_preset_a": _EPSILON_PLUS,
        "sequential_preset_a_flat": (("input", "flat"), *_EPSILON_PLUS),
        "sequential_preset_b": _EPSILON_ALPHA2_BETA1,
        "sequential_preset_b_flat": (("input", "flat"), *_EPSILON_ALPHA2_BETA1),
    }
)


@method(per_example=("low", "high"), for_logits=True)
def lrp(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    rule: str | LRPRule | Composite = "epsilon",
    epsilon: ArrayLike = 1e-3,
    gamma: ArrayLike = 0.25,
    alpha: ArrayLike = 2.0,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    ignore_bias: bool = False,
    conserve_bias: bool = False,
    gates: Gates = "all",
    attention: AttentionRule = "cp_lrp",
    products: Choice | Mapping[str, Choice] | None = None,
    constants: str | Sequence[str] = (),
) -> Attribution:
    """Compute layer-wise relevance propagation (LRP).

    The relevance of the output is the target itself, so a logit is a better target than a
    probability (see `jaxattn.without_softmax`), and a warning is shown for the latter. It is
    redistributed from each layer to its inputs by a rule. A layer is a whole affine map, in however
    many equations it was written. Activations pass relevance on, also those that are products, such
    as SiLU. In a product of a gate and a signal the signal receives it; a gate is a factor that is
    bounded between 0 and 1 by the operation that computes it. Mean and variance of a normalisation
    are treated as constants, and so are indices, masks and choices (`top_k`, `sort`, `argmax`);
    sums and average pools use the epsilon rule. A complex value is a pair of two real signals, and
    a Fourier transform is a dense layer. Logarithms that are added and exponentiated (`logaddexp`,
    `cumlogsumexp`) receive the relevance of their exponentials. Calls, branches and loops of known
    length (`scan`, `fori_loop` with constant bounds) are supported.

    Cost: one evaluation of `fn` and one backward pass per example; rules other than epsilon apply
    each layer up to four times. Deterministic.

    Args:
        rule: the rule of all layers, a preset, or pairs `(where, rule)`. Rules: `"epsilon"`
            (LRP-epsilon) and `"z"` (LRP-0), proportional to contributions; `"gamma"` (LRP-gamma),
            which favours positive weights; `"alpha_beta"`, which treats positive and negative
            contributions separately; `"z_plus"`, positive contributions only; `"w_square"` and
            `"flat"`, independent of the inputs; `"bounded"` or `"z_b"` (the z^B rule), for inputs
            between `low` and `high`; or a `jaxattn.LRPRule`. Presets: the names in
            `jaxattn.LRP_PRESETS`, such as `"epsilon_plus_flat"`. In pairs, `where` is `"input"`
            (the first layer), `"conv"`, `"dense"`, `"*"`, a depth (0 for the first layer, -1 for
            the last), or the name of a layer or a tag: whole, a part of its path between slashes,
            or with wildcards. The first pair that matches a layer holds; a layer without a match
            uses `"epsilon"`.
        epsilon: the stabiliser of denominators, in units of a pre-activation.
        gamma: the additional weight of positive weights in `"gamma"`.
        alpha: the weight of positive contributions in `"alpha_beta"`; the weight of negative ones
            is `1 - alpha`.
        low: the lower bound of the inputs for `"bounded"`; broadcasts to `x`.
        high: the upper bound.
        ignore_bias: whether `"alpha_beta"` leaves biases out of its denominators.
        conserve_bias: whether the relevance that biases and epsilon would absorb is distributed
            equally over the inputs of each pre-activation.
        gates: the rule of gated products: `"all"` (LRP-all), the signal receives all relevance;
            `"half"` (LRP-half), gate and signal one half each; `"proportional"` (LRP-prop), each in
            proportion to its value. Both also propagate through the pre-activations of gates, and
            divide by them: over 20 steps of an LSTM, values may reach 1e8 (half) and 1e35
            (proportional) times the target. A `jaxattn.AttributionWarning` is shown from 1e4 times
            the output on; a larger `epsilon` lessens it.
        attention: the rule of attention: `"cp_lrp"` (CP-LRP) treats the weights of a softmax as
            constants, that is, as gates; `"attnlrp"` (AttnLRP) gives one half to each factor of
            products with these weights and of queries and keys, and propagates through the softmax
            by its Taylor expansion.
        products: the rule of a product of two signals, which is otherwise an error: `"first"`,
            `"second"`, `"half"` or `"proportional"`; or a dict of these by the name of the product:
            its tag, its layer's path, or its line of code. The error gives a name that is the
            product's alone. A name of several products, such as the path of a block, decides only
            those of them that need a choice: where a gate, attention weights or a normalisation
            decides, only the tag of the product or a name that is its alone overrides it.
        constants: names of intermediates that receive no relevance: tags or layers, as in
            `jaxattn.capture`. They keep their values and are treated as weights, biases or scales
            that do not depend on `x`. `constants=("dt", "B", "C")` with `products="half"` and
            `rule="z"` is MambaLRP, for a selective state-space model that tags its step sizes and
            its input and output matrices; `constants=("q", "k")` makes retention and linear
            attention linear in their values.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["absorbed"]` is the
        relevance absorbed by constants: biases and epsilon unless `conserve_bias`, and initial
        states. Values and absorbed relevance sum to the target.

    Raises:
        TypeError: if no leaf of `x` is floating, a leaf is complex, or a rule has a wrong type.
        ValueError: for an unknown rule or option, an `alpha` below 1, a name that matches nothing,
            a product of two signals without a choice, a primitive without a rule, a loop whose
            length depends on the data, side effects, or no differentiable path from `x` to the
            target.

    Reference:
        Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions; Arras et
        al. 2017, arXiv:1706.07206, and 2019, arXiv:1909.12114 (recurrent networks); Montavon et al.
        2019 (composites); Achtibat et al. 2024, AttnLRP, arXiv:2402.05602; Ali et al. 2022,
        arXiv:2202.07304 (CP-LRP); Rezaei Jafari et al. 2024, arXiv:2406.07592 (MambaLRP).

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jax.nn.relu(x @ jnp.array([[1.0, 1.0], [2.0, -1.0]])).sum()
        >>> x = jnp.array([3.0, 1.0])
        >>> print(ja.lrp(fn, x, rule="z").values)
        [6. 1.]
        >>> print(ja.lrp(fn, x, rule=(("input", "flat"), ("*", "z")), epsilon=0.0).values)
        [3.5 3.5]

        A linear recurrence whose decay depends on the input:

        >>> def recurrence(x):
        ...     def step(h, row):
        ...         decay = ja.tag(jnp.exp(-row[0]), "decay")
        ...         return decay * h + row[1], None
        ...     return jax.lax.scan(step, 0.0, x)[0]
        >>> x = jnp.array([[0.0, 4.0], [0.0, 1.0]])
        >>> print(ja.lrp(recurrence, x, constants="decay", rule="z").values)
        [[0. 4.]
         [0. 1.]]
    """
    floating, merge = floating_leaves(x, "relevance")
    check_bool("conserve_bias", conserve_bias)
    if isinstance(rule, str) and rule == "z":
        epsilon = 0.0  # in sums and products too
    rules = _rules(rule, LRPRule("epsilon", epsilon, gamma, alpha, low, high, ignore_bias))
    _check_choices(gates, attention, products)
    names = _constant_names(constants)
    if names:
        fn = with_constants(fn, names)
    walks: list[Relevance] = []

    def score(*leaves: Array) -> tuple[Array, PyTree]:
        return scored(fn, target, args)(merge(list(leaves)))

    def walk(structure: Structure) -> Relevance:
        fact = structure.fact(structure.flat.outputs[0])
        options = Options(rules, epsilon, conserve_bias, gates, attention, products, fact.depth)
        walks.append(Relevance(options, structure))
        return walks[0]

    shares, absorbed, ((_, output),) = send_back(score, [floating], walk)
    if not isinstance(rule, str):
        _check_matched("rule", [where for where, _ in rules], walks[0])
    if isinstance(products, Mapping):
        _check_matched("products", list(products), walks[0])
    dtype = absorbed.dtype
    values = merge(shares, lambda leaf: jnp.zeros(leaf.shape, dtype))
    return Attribution(values, output, {"absorbed": absorbed})


@method(per_example=("low", "high"), for_logits=True)
def deep_taylor(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> Attribution:
    """Compute deep Taylor decomposition (DTD).

    This is `jaxattn.lrp` with the z+ rule in hidden layers and, in the first layer, the z^B rule if
    bounds are given and the w^2 rule otherwise.

    Cost: one evaluation of `fn` and one backward pass per example, in which each layer is applied
    up to four times. Deterministic.

    Args:
        low: the lower bound of the inputs; broadcasts to `x`.
        high: the upper bound.

    Returns:
        values of the shape of `x`, in units of the output. `info["absorbed"]` as for `jaxattn.lrp`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if only one bound is given, and as `jaxattn.lrp`.

    Reference:
        Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor
        decomposition, arXiv:1512.02479.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jax.nn.relu(x @ jnp.array([1.0, 2.0, -1.0]))
        >>> x = jnp.array([3.0, 3.0, 3.0])
        >>> print(ja.deep_taylor(fn, x).values)
        [1. 4. 1.]
    """
    if (low is None) != (high is None):
        raise ValueError(
            f"`low` and `high` must both be given or both be left out, got {low} and {high}."
        )
    first = "w_square" if low is None else "bounded"
    rule = (("input", first), ("*", "z_plus"))
    return lrp(fn, x, target, args=args, rule=rule, low=low, high=high)


def _rules(rule: str | LRPRule | Composite, defaults: LRPRule) -> list[tuple[Where, LRPRule]]:
    """Return a rule, a preset or a composite as pairs of a place and a checked rule.

    Args:
        rule: the option of `lrp`.
        defaults: the parameters of a rule given by name.
    """
    if isinstance(rule, str):
        rule = _by_name(rule)
    if isinstance(rule, (str, LRPRule)):
        return [("*", _checked(rule, defaults))]
    try:
        if any(isinstance(part, (str, LRPRule)) for part in rule):
            raise ValueError(f"write (({rule!r}),) for one pair.")
        return [
            (where if isinstance(where, str) else operator.index(where), _checked(kind, defaults))
            for where, kind in rule
        ]
    except (TypeError, ValueError) as error:
        raise type(error)(f"`rule` must hold pairs of (where, rule): {error}") from error


def _by_name(name: str) -> str | Composite:
    """Return the preset of a name, or the name of a rule itself."""
    if name in LRP_PRESETS:
        return LRP_PRESETS[name]
    if name not in get_args(Kind):
        known = ", ".join(map(repr, (*get_args(Kind), *LRP_PRESETS)))
        raise ValueError(f"`rule` must be one of {known}, or pairs of (where, rule), got {name!r}.")
    return name


def _checked(rule: str | LRPRule, defaults: LRPRule) -> LRPRule:
    """Return a rule, or the rule of a name, once its parameters are checked."""
    if isinstance(rule, str):
        rule = defaults._replace(kind=rule)  # type: ignore[arg-type]  # checked below
    if not isinstance(rule, LRPRule):
        raise TypeError(f"`rule` must be a name or a jaxattn.LRPRule, got {rule!r}.")
    return rule.check()


def _check_choices(
    gates: Gates, attention: AttentionRule, products: Choice | Mapping[str, Choice] | None
) -> None:
    """Raise an error for an unknown rule of gates, attention or products."""
    choices = list(products.values() if isinstance(products, Mapping) else [products])
    checks: list[tuple[str, object, object]] = [
        ("gates", gates, Gates),
        ("attention", attention, AttentionRule),
    ]
    checks += [("products", choice, Choice) for choice in choices if choice is not None]
    for name, value, known in checks:
        if value not in get_args(known):
            expected = ", ".join(map(repr, get_args(known)))
            raise ValueError(f"`{name}` must be one of {expected}, got {value!r}.")


def _constant_names(constants: str | Sequence[str]) -> list[str]:
    """Return the names of constants as a list."""
    names = [constants] if isinstance(constants, str) else constants
    if not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"`constants` must be a name or a sequence of names, got {constants!r}.")
    return list(names)


def _check_matched(argument: str, names: Sequence[Where], walk: Relevance) -> None:
    """Raise an error for names that matched no layer or product."""
    selected = walk.selected
    for where in names:
        is_sort = isinstance(where, str) and where in ("*", "input", "conv", "dense")
        if is_sort or where in selected.matched:
            continue
        if where in selected.decided:
            raise ValueError(
                f"`{argument}` names {where!r}, where no product needs a choice: gates, attention "
                "weights and normalisations decide. To override one of these, use the product's "
                f"tag or a name that is its alone. The names are {sorted(selected.names)}."
            )
        raise ValueError(
            f"`{argument}` names {where!r}, which matches nothing on the path of relevance. "
            f"Its names are {sorted(selected.names)}. Use `jaxattn.tag` to name others."
        )
