"""Figures of attributions, with matplotlib.

Every function takes arrays, or an `Attribution`, of one example, and returns what it drew on: the
Axes of a single panel, an array of Axes for several; `text` returns a `Text`. `ax` takes the same,
to draw into a figure of yours. Nothing is shown and no global setting changes. Colours diverge from
zero: red speaks for the output, blue against it, in a map that colour-blind readers can tell apart.
"""

from jaxattn.plot._attention import attention, attention_heads
from jaxattn.plot._captions import captions
from jaxattn.plot._comparison import comparison, comparison_grid
from jaxattn.plot._curves import curve, score_over_time
from jaxattn.plot._features import features_0d, features_1d, features_2d, features_hist
from jaxattn.plot._glimpses import glimpses
from jaxattn.plot._image import image, images
from jaxattn.plot._jacobian import jacobian, temporal_jacobian
from jaxattn.plot._series import series
from jaxattn.plot._text import Text, text
from jaxattn.plot._window import window

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
