"""Figures of attributions, with matplotlib.

Every function takes arrays, or an `Attribution`, of one example, and returns what it drew on: the
Axes of a single panel, an array of Axes for several; `text` returns a `Text`. `ax` takes the same,
to draw into a figure of yours. Nothing is shown and no global setting changes. Colours diverge from
zero: red speaks for the output, blue against it, in a map that colour-blind readers can tell apart.
"""

from jaxattn.plot.attention_maps import attention, attention_heads
from jaxattn.plot.caption_panels import captions
from jaxattn.plot.comparisons import comparison, comparison_grid
from jaxattn.plot.curves import curve, score_over_time
from jaxattn.plot.features import features_0d, features_1d, features_2d, features_hist
from jaxattn.plot.glimpse_paths import glimpses
from jaxattn.plot.jacobians import jacobian, temporal_jacobian
from jaxattn.plot.pictures import image, images
from jaxattn.plot.text_pages import Text, text
from jaxattn.plot.time_series import series
from jaxattn.plot.windows import window

__all__ = [
    "Text",
    "attention",
    "attention_heads",
    "captions",
    "comparison",
    "comparison_grid",
    "curve",
    "features_0d",
    "features_1d",
    "features_2d",
    "features_hist",
    "glimpses",
    "image",
    "images",
    "jacobian",
    "score_over_time",
    "series",
    "temporal_jacobian",
    "text",
    "window",
]
