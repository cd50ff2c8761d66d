"""Layer-wise relevance propagation: the score itself, shared out layer by layer."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.propagation.layer_rules import Kind, LRPRule
from jaxattn.jaxpr.propagation.lrp import Options, Relevance
from jaxattn.jaxpr.propagation.score import send_back
from jaxattn.jaxpr.propagation.selection import Where
from jaxattn.jaxpr.structure.graph import Structure

Gates = Literal["all", "half", "proportional"]
Attention = Literal["cp_lrp", "attnlrp"]
Choice = Literal["first", "second", "half", "proportional"]

_PLUS = LRPRule("alpha_beta", alpha=1.0)
_ALPHA2_BETA1 = LRPRule("alpha_beta", alpha=2.0)

#: Composites by name, as Zennit and iNNvestigate call them. What is named alone takes its numbers
#: from the call.
PRESETS: dict[str, tuple[tuple[str, str | LRPRule], ...]] = {
    "epsilon_plus": (("conv", _PLUS), ("dense", "epsilon")),
    "epsilon_plus_flat": (("input", "flat"), ("conv", _PLUS), ("dense", "epsilon")),
    "epsilon_alpha2_beta1": (("conv", _ALPHA2_BETA1), ("dense", "epsilon")),
    "epsilon_alpha2_beta1_flat": (
        ("input", "flat"),
        ("conv", _ALPHA2_BETA1),
        ("dense", "epsilon"),
    ),
    "epsilon_gamma_box": (("input", "bounded"), ("conv", "gamma"), ("dense", "epsilon")),
    "alpha_beta_flat": (("input", "flat"), ("*", "alpha_beta")),
}
PRESETS |= {
    "sequential_preset_a": PRESETS["epsilon_plus"],
    "sequential_preset_a_flat": PRESETS["epsilon_plus_flat"],
    "sequential_preset_b": PRESETS["epsilon_alpha2_beta1"],
    "sequential_preset_b_flat": PRESETS["epsilon_alpha2_beta1_flat"],
}


@method(per_example=("low", "high"))
def lrp(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    rule: str | LRPRule | Sequence[tuple[Where, str | LRPRule]] = "epsilon",
    epsilon: Any = 1e-3,
    gamma: Any = 0.25,
    alpha: Any = 2.0,
    low: Any = None,
    high: Any = None,
    ignore_bias: bool = False,
    conserve_bias: bool = False,
    gates: Gates = "all",
    attention: Attention = "cp_lrp",
    products: Choice | Mapping[str, Choice] | None = None,
) -> Attribution:
    """Layer-wise relevance propagation: the explained number, shared out layer by layer.

    It goes through any JAX function. A layer is a whole affine map, in however many steps it was
    written; activations pass relevance on; in a product of a gate and a signal the signal takes it
    all, where a gate is what can only lie between 0 and 1 by what it was computed with; mean and
    variance of a normalisation are constants; sums and average pools share by the epsilon rule.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`. It is the relevance
            that is shared out, so a logit is better than a probability; see
            `jaxattn.without_softmax`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        rule: how a layer shares relevance among its inputs. `"epsilon"` and `"z"`, in proportion to
            their contributions; `"gamma"`, favouring positive weights; `"alpha_beta"`, positive and
            negative contributions apart; `"z_plus"`, positive ones only; `"w_square"` and `"flat"`,
            whatever the inputs; `"bounded"`, or `"z_b"`, for inputs between `low` and `high`. Or a
            `jaxattn.LRPRule`; or a preset, such as `"epsilon_plus_flat"`; or pairs `(where, rule)`,
            of which the first that matches a layer is taken: `"input"`, `"conv"`, `"dense"`,
            `"*"`, a depth (0 for the first layer, -1 for the last), or the name of a layer or a
            tag: whole, a part of its path between slashes, or with wildcards. A layer that none
            matches gets `"epsilon"`.
        epsilon: what is added to the size of a denominator, in units of a pre-activation.
        gamma: how much more `"gamma"` weighs positive weights.
        alpha: the share of positive contributions in `"alpha_beta"`; negative ones get `1 - alpha`.
        low: the least value that an input may have, for `"bounded"`; broadcasts to `x`.
        high: the largest.
        ignore_bias: whether `"alpha_beta"` leaves biases out of its denominators.
        conserve_bias: whether what biases and epsilon would absorb is shared equally among the
            cells that feed a pre-activation.
        gates: what a signal takes in a product with a gate: `"all"`, `"half"`, or a part
            `"proportional"` to its value.
        attention: `"cp_lrp"` takes the weights of a softmax as a gate on what they weigh;
            `"attnlrp"` shares products with them, and of queries and keys, half and half, and goes
            through the softmax by its Taylor expansion.
        products: who takes the relevance of a product of two signals, which is refused otherwise:
            `"first"`, `"second"`, `"half"` or `"proportional"`; or such for each product by its
            name: its tag, its layer's path, its line of code, as the refusal gives it.

    Returns:
        values of the shape of `x`, in units of the output. `info["absorbed"]` is the relevance that
        ended in constants: biases and epsilon, unless they are shared out, and initial states. The
        values and it sum to the explained number.

    Raises:
        TypeError: if `x` holds integers only, or a rule is of a wrong type.
        ValueError: for an unknown rule or option, an `alpha` below 1, a name that nothing has, a
            product of two signals without a choice, a primitive without a rule, a loop whose length
            depends on the data, side effects, or a function that no relevance can go through.

    Reference:
        Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions; Arras et
        al. 2017, arXiv:1706.07206, and 2019, arXiv:1909.12114 (recurrent networks); Montavon et al.
        2019 (composites); Achtibat et al. 2024, AttnLRP, arXiv:2402.05602; Ali et al. 2022,
        arXiv:2202.07304 (attention weights as gates).
    """
    floating, merge = floating_leaves(x, "relevance")
    if not isinstance(conserve_bias, (bool, np.bool_)):
        raise TypeError(f"conserve_bias must be True or False, got {conserve_bias!r}")
    if isinstance(rule, str) and rule == "z":
        epsilon = 0.0  # in sums and products too
    rules = _rules(rule, LRPRule("epsilon", epsilon, gamma, alpha, low, high, ignore_bias))
    _check("gates", gates, Gates)
    _check("attention", attention, Attention)
    for choice in products.values() if isinstance(products, Mapping) else [products]:
        if choice is not None:
            _check("products", choice, Choice)
    found: list[Relevance] = []

    def score(*leaves: Any) -> Any:
        return scored(fn, target, args)(merge(list(leaves)))

    def walk(structure: Structure) -> Relevance:
        fact = structure.fact(structure.flat.outputs[0])
        dtype = structure.flat.outputs[0].aval.dtype
        options = Options(rules, epsilon, conserve_bias, gates, attention, products, fact.depth)
        found.append(Relevance(options, dtype))
        return found[0]

    shares, absorbed, ((_, output),) = send_back(score, [floating], walk)
    if not isinstance(rule, str):
        _check_found("rule", [where for where, _ in rules], found[0])
    if isinstance(products, Mapping):
        _check_found("products", list(products), found[0])
    dtype = absorbed.dtype
    values = merge(shares, lambda leaf: jnp.zeros(leaf.shape, dtype))
    return Attribution(values, output, {"absorbed": absorbed})


@method(per_example=("low", "high"))
def deep_taylor(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    low: Any = None,
    high: Any = None,
) -> Attribution:
    """Deep Taylor decomposition: relevance by positive contributions, and by weights at the input.

    It is `jaxattn.lrp` with the rule `"z_plus"` in hidden layers and, in the first, `"bounded"`
    where bounds are given and `"w_square"` where not.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        low: the least value that an input may have; broadcasts to `x`.
        high: the largest.

    Returns:
        values of the shape of `x`, in units of the output; `info["absorbed"]` as `jaxattn.lrp` has.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if only one bound is given, and as `jaxattn.lrp` does.

    Reference:
        Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor
        decomposition, arXiv:1512.02479.
    """
    if (low is None) != (high is None):
        raise ValueError(f"low and high must both be given or both be left out, got {low}, {high}")
    first = "w_square" if low is None else "bounded"
    rule = (("input", first), ("*", "z_plus"))
    return lrp(fn, x, target, args=args, rule=rule, low=low, high=high)


def _rules(
    rule: str | LRPRule | Sequence[tuple[Where, str | LRPRule]], given: LRPRule
) -> list[tuple[Where, LRPRule]]:
    """A rule by name, a preset, or a composite as pairs of a place and a rule."""

    def one(rule: str | LRPRule) -> LRPRule:
        if isinstance(rule, LRPRule):
            return rule.check()
        if isinstance(rule, str):
            return given._replace(kind=rule).check()  # type: ignore[arg-type]
        raise TypeError(f"rule must be a name or a jaxattn.LRPRule, got {rule!r}")

    if isinstance(rule, str) and rule in PRESETS:
        return [(where, one(preset)) for where, preset in PRESETS[rule]]
    if isinstance(rule, (str, LRPRule)):
        if isinstance(rule, str) and rule not in get_args(Kind):
            known = ", ".join(map(repr, (*get_args(Kind), *PRESETS)))
            raise ValueError(
                f"rule must be one of {known}, or pairs of (where, rule); got {rule!r}"
            )
        return [("*", one(rule))]
    try:
        if any(isinstance(part, (str, LRPRule)) for part in rule):
            raise ValueError(f"write (({rule!r}),) for one pair")
        pairs = [
            (where if isinstance(where, str) else operator.index(where), one(kind))
            for where, kind in rule
        ]
    except (TypeError, ValueError) as error:
        raise type(error)(f"rule must hold pairs of (where, rule): {error}") from error
    return pairs


def _check(name: str, value: Any, known: Any) -> None:
    if value not in get_args(known):
        choices = ", ".join(map(repr, get_args(known)))
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _check_found(argument: str, wanted: list[Where], walk: Relevance) -> None:
    """Refuses names that match no layer."""
    for where in wanted:
        sort = isinstance(where, str) and where in ("*", "input", "conv", "dense")
        if not sort and where not in walk.matched:
            raise ValueError(
                f"{argument} names {where!r}, which matches nothing that relevance comes to; "
                f"there are {sorted(walk.names)}: name more with jaxattn.tag"
            )
