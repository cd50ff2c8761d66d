"""jaxattn: functional explainers for recurrent and attention networks in JAX.

A method (`gradient`, `saliency`, `integrated_gradients`, `occlusion`, ...) explains one example;
`explain` runs a method over a batch. `metrics` evaluate attributions, `plot` draws them, `report`
writes a page of them, `introspect` looks inside of recurrent layers, `nn` and `models` hold
networks.
"""

import importlib
from typing import TYPE_CHECKING

from jaxattn import (
    groups as groups,
    introspect as introspect,
    metrics as metrics,
    models as models,
    nn as nn,
)
from jaxattn._types import (
    Attribution as Attribution,
    AttributionWarning as AttributionWarning,
    ConvergenceWarning as ConvergenceWarning,
)
from jaxattn.engine.benchmark import Benchmark as Benchmark, benchmark as benchmark
from jaxattn.engine.callable import unbatched as unbatched, without_softmax as without_softmax
from jaxattn.engine.each import each as each
from jaxattn.engine.explain import explain as explain
from jaxattn.engine.intermediates import (
    capture as capture,
    intermediate as intermediate,
    intervene as intervene,
)
from jaxattn.engine.method import method as method
from jaxattn.jaxpr.capture import tag as tag
from jaxattn.jaxpr.propagation.layer_rules import LRPRule as LRPRule
from jaxattn.methods.ablation import (
    feature_ablation as feature_ablation,
    feature_permutation as feature_permutation,
)
from jaxattn.methods.activation_maps import (
    grad_cam as grad_cam,
    grad_cam_plus_plus as grad_cam_plus_plus,
    guided_grad_cam as guided_grad_cam,
)
from jaxattn.methods.attention_weights import (
    attention as attention,
    gradient_x_attention as gradient_x_attention,
    value_zeroing as value_zeroing,
)
from jaxattn.methods.background_sets import (
    augmented_occlusion as augmented_occlusion,
    deep_shap as deep_shap,
    expected_gradients as expected_gradients,
)
from jaxattn.methods.backprop import deconvnet as deconvnet, guided_backprop as guided_backprop
from jaxattn.methods.contextual import (
    contextual_decomposition as contextual_decomposition,
)
from jaxattn.methods.contra_mask import contra_mask as contra_mask
from jaxattn.methods.differences import deep_lift as deep_lift
from jaxattn.methods.dynamask import dynamask as dynamask
from jaxattn.methods.extremal_mask import extremal_mask as extremal_mask
from jaxattn.methods.fit import fit as fit
from jaxattn.methods.gradients import (
    gradient as gradient,
    input_x_gradient as input_x_gradient,
    saliency as saliency,
    smooth_grad as smooth_grad,
)
from jaxattn.methods.integrated import integrated_gradients as integrated_gradients
from jaxattn.methods.interactions import integrated_hessians as integrated_hessians
from jaxattn.methods.jacobian import jacobian as jacobian
from jaxattn.methods.layers import (
    internal_influence as internal_influence,
    layer_conductance as layer_conductance,
)
from jaxattn.methods.masks import learned_mask as learned_mask
from jaxattn.methods.occlusion import occlusion as occlusion
from jaxattn.methods.pattern_methods import (
    fit_patterns as fit_patterns,
    pattern_attribution as pattern_attribution,
    pattern_net as pattern_net,
)
from jaxattn.methods.prefixes import time_forward as time_forward
from jaxattn.methods.relevance import (
    LRP_PRESETS as LRP_PRESETS,
    deep_taylor as deep_taylor,
    lrp as lrp,
)
from jaxattn.methods.rescaling import (
    temporal_saliency_rescaling as temporal_saliency_rescaling,
)
from jaxattn.methods.rise import rise as rise
from jaxattn.methods.rollout import (
    attention_flow as attention_flow,
    attention_rollout as attention_rollout,
)
from jaxattn.methods.shapley import (
    shapley_value_sampling as shapley_value_sampling,
    shapley_values as shapley_values,
)
from jaxattn.methods.surrogates import (
    kernel_shap as kernel_shap,
    lime as lime,
)
from jaxattn.methods.temporal import temporal_output_score as temporal_output_score
from jaxattn.methods.time_shap import time_shap as time_shap
from jaxattn.methods.windowed_fit import windowed_fit as windowed_fit

if TYPE_CHECKING:
    from jaxattn import plot as plot
    from jaxattn.reporting.page import report as report

__version__ = "0.1.0"
__all__ = [
    "LRP_PRESETS",
    "Attribution",
    "AttributionWarning",
    "Benchmark",
    "ConvergenceWarning",
    "LRPRule",
    "attention",
    "attention_flow",
    "attention_rollout",
    "augmented_occlusion",
    "benchmark",
    "capture",
    "contextual_decomposition",
    "contra_mask",
    "deconvnet",
    "deep_lift",
    "deep_shap",
    "deep_taylor",
    "dynamask",
    "each",
    "expected_gradients",
    "explain",
    "extremal_mask",
    "feature_ablation",
    "feature_permutation",
    "fit",
    "fit_patterns",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "gradient_x_attention",
    "groups",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "integrated_hessians",
    "intermediate",
    "internal_influence",
    "intervene",
    "introspect",
    "jacobian",
    "kernel_shap",
    "layer_conductance",
    "learned_mask",
    "lime",
    "lrp",
    "method",
    "metrics",
    "models",
    "nn",
    "occlusion",
    "pattern_attribution",
    "pattern_net",
    "plot",
    "report",
    "rise",
    "saliency",
    "shapley_value_sampling",
    "shapley_values",
    "smooth_grad",
    "tag",
    "temporal_output_score",
    "temporal_saliency_rescaling",
    "time_forward",
    "time_shap",
    "unbatched",
    "value_zeroing",
    "windowed_fit",
    "without_softmax",
]


def __getattr__(name: str) -> object:
    """Import `plot` and `report` on first use: matplotlib takes longer than everything else."""
    if name == "plot":
        return importlib.import_module("jaxattn.plot")
    if name == "report":
        return importlib.import_module("jaxattn.reporting").report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the public API."""
    return [*__all__, "__version__"]
