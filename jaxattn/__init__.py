"""jaxattn: functional explainers for recurrent and attention networks in JAX.

A method (`gradient`, `saliency`, `integrated_gradients`, `occlusion`, ...) explains one example;
`explain` runs a method over a batch. `metrics` evaluate attributions, `plot` draws them, `nn` and
`models` hold networks.
"""

import importlib
from typing import TYPE_CHECKING

from jaxattn import metrics as metrics, models as models, nn as nn
from jaxattn._types import (
    Attribution as Attribution,
    AttributionWarning as AttributionWarning,
    ConvergenceWarning as ConvergenceWarning,
)
from jaxattn.engine.benchmark import Benchmark as Benchmark, benchmark as benchmark
from jaxattn.engine.callable import unbatched as unbatched, without_softmax as without_softmax
from jaxattn.engine.explain import explain as explain
from jaxattn.engine.intermediates import capture as capture, intervene as intervene
from jaxattn.engine.method import method as method
from jaxattn.jaxpr.capture import tag as tag
from jaxattn.jaxpr.propagation.layer_rules import LRPRule as LRPRule
from jaxattn.methods.attention_weights import (
    attention as attention,
    gradient_x_attention as gradient_x_attention,
    value_zeroing as value_zeroing,
)
from jaxattn.methods.backprop import deconvnet as deconvnet, guided_backprop as guided_backprop
from jaxattn.methods.contextual import (
    contextual_decomposition as contextual_decomposition,
)
from jaxattn.methods.contra_mask import contra_mask as contra_mask
from jaxattn.methods.differences import deep_lift as deep_lift
from jaxattn.methods.dynamask import dynamask as dynamask
from jaxattn.methods.extremal_mask import extremal_mask as extremal_mask
from jaxattn.methods.gradients import (
    gradient as gradient,
    input_x_gradient as input_x_gradient,
    saliency as saliency,
    smooth_grad as smooth_grad,
)
from jaxattn.methods.integrated import integrated_gradients as integrated_gradients
from jaxattn.methods.jacobian import jacobian as jacobian
from jaxattn.methods.layers import grad_cam as grad_cam, layer_conductance as layer_conductance
from jaxattn.methods.masks import learned_mask as learned_mask
from jaxattn.methods.occlusion import occlusion as occlusion
from jaxattn.methods.pattern_methods import (
    fit_patterns as fit_patterns,
    pattern_attribution as pattern_attribution,
    pattern_net as pattern_net,
)
from jaxattn.methods.relevance import (
    LRP_PRESETS as LRP_PRESETS,
    deep_taylor as deep_taylor,
    lrp as lrp,
)
from jaxattn.methods.rollout import (
    attention_flow as attention_flow,
    attention_rollout as attention_rollout,
)
from jaxattn.methods.temporal import temporal_output_score as temporal_output_score

if TYPE_CHECKING:
    from jaxattn import plot as plot

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
    "benchmark",
    "capture",
    "contextual_decomposition",
    "contra_mask",
    "deconvnet",
    "deep_lift",
    "deep_taylor",
    "dynamask",
    "explain",
    "extremal_mask",
    "fit_patterns",
    "grad_cam",
    "gradient",
    "gradient_x_attention",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "intervene",
    "jacobian",
    "layer_conductance",
    "learned_mask",
    "lrp",
    "method",
    "metrics",
    "models",
    "nn",
    "occlusion",
    "pattern_attribution",
    "pattern_net",
    "plot",
    "saliency",
    "smooth_grad",
    "tag",
    "temporal_output_score",
    "unbatched",
    "value_zeroing",
    "without_softmax",
]


def __getattr__(name: str) -> object:
    """Import `plot` on first use: matplotlib takes longer to import than everything else."""
    if name == "plot":
        return importlib.import_module("jaxattn.plot")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the public API."""
    return [*__all__, "__version__"]
