"""jaxattn: functional explainers for recurrent and attention networks in JAX."""

from jaxattn import metrics as metrics
from jaxattn import models as models
from jaxattn import nn as nn
from jaxattn import plot as plot
from jaxattn._callable import unbatched as unbatched
from jaxattn._callable import without_softmax as without_softmax
from jaxattn._explain import explain as explain
from jaxattn._types import Attribution as Attribution
from jaxattn.methods.gradients import gradient as gradient
from jaxattn.methods.gradients import input_x_gradient as input_x_gradient
from jaxattn.methods.gradients import saliency as saliency
from jaxattn.methods.gradients import smooth_grad as smooth_grad
from jaxattn.methods.integrated import integrated_gradients as integrated_gradients
from jaxattn.methods.jacobian import jacobian as jacobian
from jaxattn.methods.occlusion import occlusion as occlusion
from jaxattn.methods.masks import learned_mask as learned_mask
from jaxattn.methods.temporal import temporal_output_score as temporal_output_score
