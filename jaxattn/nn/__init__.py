"""Recurrent and attention layers: Flax NNX modules over pure functions.

Recurrent layers:
    LSTM, GRU, RNN: Layers over time; `Recurrent` is their base class, `Recurrence` their result.
    lstm_step, gru_step, rnn_step: One time step, with `LSTMWeights`, `GRUWeights`, `RNNWeights`
        and `LSTMState`.
    valid_steps: The mask of valid steps from lengths; `Padding` is the side of the padding.
    from_keras, from_torch: Pretrained weights.

Attention over sequences, with the result `Attended`:
    SeqSelfAttention, SeqWeightedAttention, FeedForwardAttention: Attention of one sequence.
    AdditiveAttention, MultiplicativeAttention, CrossAttention: Attention over another sequence.
    ScaledDotProductAttention, MultiHeadAttention: Dot-product attention.
    masked_softmax: The softmax over unmasked positions.
    attention_regularizer: The penalty of similar attention weights.

Decoder with attention:
    AttentionDecoder: A recurrent decoder with additive attention; its result is `Decoded`.
    attention_decoder_step: One output step, with `DecoderWeights` and `DecoderState`.

Attention over images:
    SoftSpatialAttention, HardSpatialAttention: Attention over the places of an image;
        `SpatialAttention` is their base class, `Fixation` the result of hard attention.
    spatial_keys, spatial_scores, choose_position, read_position: Their parts, with
        `SpatialWeights`.
    doubly_stochastic_penalty: The penalty of places without attention.
    GlimpseSensor, GlimpseNetwork, LocationNetwork: Glimpses, and the choice of their `Located`.
    glimpse, glimpse_boxes: One glimpse, and its pixels.

Layers take one example or a batch with leading axes. Their attention weights carry a tag, under
which `jaxattn.capture` returns and `jaxattn.intervene` replaces them.
"""

from jaxattn.nn.attending import Attended, masked_softmax
from jaxattn.nn.cross_attention import AdditiveAttention, CrossAttention, MultiplicativeAttention
from jaxattn.nn.decoder import (
    AttentionDecoder,
    Decoded,
    DecoderState,
    DecoderWeights,
    attention_decoder_step,
)
from jaxattn.nn.dot_product import MultiHeadAttention, ScaledDotProductAttention
from jaxattn.nn.glimpse import (
    GlimpseNetwork,
    GlimpseSensor,
    Located,
    LocationNetwork,
    glimpse,
    glimpse_boxes,
)
from jaxattn.nn.places import (
    SpatialWeights,
    choose_position,
    doubly_stochastic_penalty,
    read_position,
    spatial_keys,
    spatial_scores,
)
from jaxattn.nn.pretrained import from_keras, from_torch
from jaxattn.nn.recurrent import GRU, LSTM, RNN, Padding, Recurrence, Recurrent, valid_steps
from jaxattn.nn.self_attention import SeqSelfAttention, attention_regularizer
from jaxattn.nn.spatial import (
    Fixation,
    HardSpatialAttention,
    SoftSpatialAttention,
    SpatialAttention,
)
from jaxattn.nn.steps import (
    GRUWeights,
    LSTMState,
    LSTMWeights,
    RNNWeights,
    gru_step,
    lstm_step,
    rnn_step,
)
from jaxattn.nn.weighted import FeedForwardAttention, SeqWeightedAttention

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdditiveAttention",
    "Attended",
    "AttentionDecoder",
    "CrossAttention",
    "Decoded",
    "DecoderState",
    "DecoderWeights",
    "FeedForwardAttention",
    "Fixation",
    "GRUWeights",
    "GlimpseNetwork",
    "GlimpseSensor",
    "HardSpatialAttention",
    "LSTMState",
    "LSTMWeights",
    "Located",
    "LocationNetwork",
    "MultiHeadAttention",
    "MultiplicativeAttention",
    "Padding",
    "RNNWeights",
    "Recurrence",
    "Recurrent",
    "ScaledDotProductAttention",
    "SeqSelfAttention",
    "SeqWeightedAttention",
    "SoftSpatialAttention",
    "SpatialAttention",
    "SpatialWeights",
    "attention_decoder_step",
    "attention_regularizer",
    "choose_position",
    "doubly_stochastic_penalty",
    "from_keras",
    "from_torch",
    "glimpse",
    "glimpse_boxes",
    "gru_step",
    "lstm_step",
    "masked_softmax",
    "read_position",
    "rnn_step",
    "spatial_keys",
    "spatial_scores",
    "valid_steps",
]
