"""The colour and the line style of each method, the same in all charts."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from jaxattn.plot import style


class LineStyle(NamedTuple):
    """The colour and the line style of a curve."""

    colour: str
    line: str


BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, _, BLACK = style.PALETTE
BROWN, WINE, GREY, TEAL, INDIGO, OLIVE, FOREST = (
    "#8c510a", "#882255", "#888888", "#44aa99", "#332288", "#999933", "#00441b",
)  # fmt: skip
LINES = ("-", "--", ":", "-.")
# Related methods share a colour. No two methods share both colour and line style.
FAMILIES = {
    WINE: ("attention", "attention_rollout", "attention_flow", "gradient_x_attention"),
    BLUE: ("occlusion", "feature_ablation", "augmented_occlusion", "feature_permutation"),
    VERMILION: ("lrp", "lrp_half_to_gates", "lrp_biases_shared", "deep_taylor"),
    GREEN: (
        "integrated_gradients", "input_x_gradient", "smooth_input_x_gradient", "expected_gradients",
    ),
    PURPLE: ("deep_lift", "deep_lift_reveal_cancel", "deep_shap", "integrated_hessians"),
    ORANGE: ("gradient", "smooth_grad", "jacobian", "guided_backprop"),
    SKY: ("saliency", "deconvnet", "temporal_saliency_rescaling", "value_zeroing"),
    BROWN: (
        "temporal_output_score", "temporal_output_score_forward", "temporal_output_score_backward",
        "time_forward",
    ),
    BLACK: ("learned_mask", "contextual_decomposition", "dynamask", "extremal_mask"),
    TEAL: ("shapley_values", "shapley_value_sampling", "kernel_shap", "lime"),
    INDIGO: ("fit", "windowed_fit", "time_shap", "contra_mask"),
    OLIVE: ("layer_conductance", "internal_influence", "rise", "guided_grad_cam"),
    GREY: ("grad_cam", "grad_cam_plus_plus", "random", "pattern_net"),
    FOREST: ("pattern_attribution",),
}  # fmt: skip
STYLES = {
    name: LineStyle(colour, LINES[i])
    for colour, names in FAMILIES.items()
    for i, name in enumerate(names)
}
SIGNS = {"×": "x", "++": "_plus_plus"}
SPELLINGS = {
    "deeplift": "deep_lift", "smoothgrad": "smooth_grad", "temporal_score": "temporal_output_score",
}  # fmt: skip


def identifier(name: str) -> str:
    """Return a method's name as it is written in code: "LRP, half to gates" as lrp_half_to_gates.

    Args:
        name: The name of a method, as in a legend or in code.

    Returns:
        The name in lower case, its words joined by underscores.

    Examples:
        >>> identifier("input × gradient")
        'input_x_gradient'
    """
    words = name.lower()
    for sign, letters in SIGNS.items():
        words = words.replace(sign, letters)
    words = re.sub(r"\W+", "_", words).strip("_")
    for spelling, standard in SPELLINGS.items():
        words = re.sub(rf"^{spelling}(?=_|$)", standard, words)
    return words


def line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return a line style for each name: its own for a method, one that is free for other names.

    Args:
        names: The names of the curves of one chart.

    Returns:
        By name, in the same order, line styles of which no two are equal as long as some are free.

    Examples:
        >>> styles = line_styles(["LRP", "my method"])
        >>> styles["LRP"] == STYLES["lrp"], styles["my method"].line
        (True, '-')
    """
    names = list(names)
    known = {name: STYLES[identifier(name)] for name in names if identifier(name) in STYLES}
    every = [LineStyle(colour, line) for line in LINES for colour in style.PALETTE]
    free = [each for each in every if each not in known.values()] or every
    others = (name for name in names if name not in known)
    chosen = {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: known.get(name) or chosen[name] for name in names}
