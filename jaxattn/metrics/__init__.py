"""Metrics of attributions: faithfulness and completeness."""

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
from jaxattn.metrics.localisation import (
    pointing_game as pointing_game,
    relevance_mass as relevance_mass,
    relevance_rank as relevance_rank,
    top_k_intersection as top_k_intersection,
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
from jaxattn.metrics.replacements import (
    channel_mean as channel_mean,
    moving_average as moving_average,
    uniform_noise as uniform_noise,
)
from jaxattn.metrics.score_curves import Curve as Curve
from jaxattn.metrics.truth import (
    aup as aup,
    auprc as auprc,
    aur as aur,
    auroc as auroc,
    entropy as entropy,
    information as information,
)

__all__ = [
    "Curve",
    "Properties",
    "accuracy",
    "aup",
    "auprc",
    "aur",
    "auroc",
    "channel_mean",
    "completeness",
    "complexity",
    "comprehensiveness",
    "cross_entropy",
    "deletion",
    "effective_complexity",
    "entropy",
    "information",
    "insertion",
    "log_odds",
    "mae",
    "metric",
    "moving_average",
    "mse",
    "pointing_game",
    "properties",
    "relevance_mass",
    "relevance_rank",
    "sparseness",
    "sufficiency",
    "top_k_intersection",
    "uniform_noise",
]
