"""Methods of feature groups that are measured by `benchmarks.speed`, on the image and long series.

The groups of the image are patches of 4 x 4, those of the long series windows of 8 steps.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.cells import IMAGE, LONG, Cell

#: The options of each method, and the required ratio to Captum on the image and the long series.
#: KernelSHAP of Captum fixes the sum of the values by large weights, in float32.
_METHODS: Mapping[str, tuple[str, dict[str, Any], tuple[float, float], float]] = {
    "shapley": ("shapley_value_sampling", {"num_samples": 25, "antithetic": False}, (3, 6), 1e-4),
    "kernel": ("kernel_shap", {"num_samples": 512}, (3, 6), 1e-2),
    "lime": ("lime", {"num_samples": 512}, (3, 6), 1e-3),
    "ablation": ("feature_ablation", {}, (3, 6), 1e-4),
}
_NETWORKS = {"image": (IMAGE, (4, 4)), "long": (LONG, (8,))}

CELLS: Mapping[str, Cell] = {
    f"{place}-{name}": Cell(
        method,
        network,
        16,
        {**options, "groups": size},
        at_least={"captum": at_least[place == "long"]},
        tolerance=tolerance,
    )
    for place, (network, size) in _NETWORKS.items()
    for name, (method, options, at_least, tolerance) in _METHODS.items()
} | {
    f"{place}-gradient-shap": Cell("expected_gradients", network, 16, {"num_samples": 25})
    for place, (network, _) in _NETWORKS.items()
}
