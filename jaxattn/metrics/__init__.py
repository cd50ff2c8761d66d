"""Metrics of attributions.

Each metric is a function whose first parameters say what it compares: attributions alone, with the
true features, or with what a network returns for changed inputs; or the explanations of a method.
`properties` tells in which direction a metric is better, and `table` compares methods.
"""

from jaxattn.metrics.conciseness import (
    complexity as complexity,
    effective_complexity as effective_complexity,
    sparseness as sparseness,
)
from jaxattn.metrics.direction import (
    Properties as Properties,
    metric as metric,
    properties as properties,
)
from jaxattn.metrics.faithfulness import (
    completeness as completeness,
    deletion as deletion,
    insertion as insertion,
)
from jaxattn.metrics.feature_effects import (
    faithfulness_estimate as faithfulness_estimate,
    monotonicity_correlation as monotonicity_correlation,
    non_sensitivity as non_sensitivity,
)
from jaxattn.metrics.flipping import (
    irof as irof,
    monotonicity as monotonicity,
    pixel_flipping as pixel_flipping,
    region_perturbation as region_perturbation,
)
from jaxattn.metrics.imputation import (
    road as road,
)
from jaxattn.metrics.linear_models import (
    infidelity as infidelity,
)
from jaxattn.metrics.localisation import (
    pointing_game as pointing_game,
    relevance_mass as relevance_mass,
    relevance_rank as relevance_rank,
    top_k_intersection as top_k_intersection,
)
from jaxattn.metrics.method_table import (
    Comparison as Comparison,
    table as table,
)
from jaxattn.metrics.perturbation import (
    accuracy as accuracy,
    comprehensiveness as comprehensiveness,
    cross_entropy as cross_entropy,
    log_odds as log_odds,
    mae as mae,
    mse as mse,
    sufficiency as sufficiency,
)
from jaxattn.metrics.random_class import (
    random_logit as random_logit,
)
from jaxattn.metrics.randomisation import (
    Randomisation as Randomisation,
    efficient_mprt as efficient_mprt,
    mprt as mprt,
    smooth_mprt as smooth_mprt,
)
from jaxattn.metrics.replacements import (
    channel_mean as channel_mean,
    moving_average as moving_average,
    uniform_noise as uniform_noise,
)
from jaxattn.metrics.robustness import (
    average_sensitivity as average_sensitivity,
    input_invariance as input_invariance,
    local_lipschitz as local_lipschitz,
    max_sensitivity as max_sensitivity,
    relative_input_stability as relative_input_stability,
    relative_output_stability as relative_output_stability,
)
from jaxattn.metrics.score_curves import (
    Curve as Curve,
)
from jaxattn.metrics.subset_effects import (
    faithfulness_correlation as faithfulness_correlation,
    sensitivity_n as sensitivity_n,
)
from jaxattn.metrics.truth import (
    aup as aup,
    auprc as auprc,
    aur as aur,
    auroc as auroc,
    entropy as entropy,
    information as information,
)

__all__ = [
    "Comparison",
    "Curve",
    "Properties",
    "Randomisation",
    "accuracy",
    "aup",
    "auprc",
    "aur",
    "auroc",
    "average_sensitivity",
    "channel_mean",
    "completeness",
    "complexity",
    "comprehensiveness",
    "cross_entropy",
    "deletion",
    "effective_complexity",
    "efficient_mprt",
    "entropy",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "information",
    "input_invariance",
    "insertion",
    "irof",
    "local_lipschitz",
    "log_odds",
    "mae",
    "max_sensitivity",
    "metric",
    "monotonicity",
    "monotonicity_correlation",
    "moving_average",
    "mprt",
    "mse",
    "non_sensitivity",
    "pixel_flipping",
    "pointing_game",
    "properties",
    "random_logit",
    "region_perturbation",
    "relative_input_stability",
    "relative_output_stability",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sensitivity_n",
    "smooth_mprt",
    "sparseness",
    "sufficiency",
    "table",
    "top_k_intersection",
    "uniform_noise",
]
