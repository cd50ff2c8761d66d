"""Figures of attributions, attention and features, with matplotlib.

Attributions of images and series:
    image, images: An attribution over its image.
    series: An attribution along a time series.
    window: The most important window of an image or a series.
    comparison, comparison_grid: Several methods beside one another.
    jacobian, temporal_jacobian: The derivative of every output.

Attention:
    attention, attention_heads: Attention matrices with their tokens.
    captions: The attention of a captioning network, word by word.
    glimpses: The path of glimpses over an image.

Text:
    text: Words or characters coloured by their values; returns a `Text`.

Scores and features:
    curve: Deletion and insertion curves.
    score_over_time: The temporal output score.
    features_0d, features_1d, features_2d, features_hist: The features of a layer.
    features_hist_v2, hist_clipped: Histograms in rows and columns, and with clipped peaks.

Inside of a recurrent layer, from the results of `jaxattn.introspect`:
    rnn_heatmap, rnn_histogram: Weights or gradients by gate.
    gate_activations: Gates over time.
    state_trajectories: The path of the hidden state.
    memory_reach: How the influence of a state decays.

Each function takes the arrays, or the `Attribution`, of one example; the plural ones take several.
Those that draw one panel return its `matplotlib.axes.Axes`, those that draw several return
`Panels`, an object array of Axes. Both have the attribute `figure`, and `Text.draw` returns Axes::

    ja.plot.image(x, attribution).figure.savefig("image.png", dpi=150)
    ja.plot.text(words, attribution).draw().figure.savefig("text.png")
    ja.plot.text(words, attribution).save("text.html")

`ax` takes the Axes, or the array of Axes, to draw on instead of a new figure. No function shows a
figure or changes a global setting.

Values that are nowhere negative have a sequential colour scale from zero to the largest value. If
a value is negative, the scale is diverging and symmetric about zero: red supports the output, blue
opposes it, and both remain distinct for colour-blind readers. `limit` replaces the largest
magnitude and `cmap` the colour map of this range.
"""

from jaxattn.plot.attention_maps import attention, attention_heads
from jaxattn.plot.caption_panels import captions
from jaxattn.plot.comparisons import comparison, comparison_grid
from jaxattn.plot.curves import curve, score_over_time
from jaxattn.plot.features import features_0d, features_1d, features_2d, features_hist
from jaxattn.plot.glimpse_paths import glimpses
from jaxattn.plot.histograms import features_hist_v2, hist_clipped
from jaxattn.plot.jacobians import jacobian, temporal_jacobian
from jaxattn.plot.pictures import image, images
from jaxattn.plot.recurrent_values import gate_activations, memory_reach, state_trajectories
from jaxattn.plot.rnn_weights import rnn_heatmap, rnn_histogram
from jaxattn.plot.style import Panels
from jaxattn.plot.text_pages import Text, text
from jaxattn.plot.time_series import series
from jaxattn.plot.windows import window

__all__ = [
    "Panels",
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
    "features_hist_v2",
    "gate_activations",
    "glimpses",
    "hist_clipped",
    "image",
    "images",
    "jacobian",
    "memory_reach",
    "rnn_heatmap",
    "rnn_histogram",
    "score_over_time",
    "series",
    "state_trajectories",
    "temporal_jacobian",
    "text",
    "window",
]
