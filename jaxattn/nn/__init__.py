"""Recurrent and attention layers worth explaining: Flax NNX modules over pure functions."""

from jaxattn.nn.attending import Attended as Attended, masked_softmax as masked_softmax
from jaxattn.nn.cross_attention import (
    AdditiveAttention as AdditiveAttention,
    CrossAttention as CrossAttention,
    MultiplicativeAttention as MultiplicativeAttention,
)
from jaxattn.nn.decoder import (
    AttentionDecoder as AttentionDecoder,
    Decoded as Decoded,
    DecoderState as DecoderState,
    DecoderWeights as DecoderWeights,
    attention_decoder_step as attention_decoder_step,
)
from jaxattn.nn.dot_product import (
    MultiHeadAttention as MultiHeadAttention,
    ScaledDotProductAttention as ScaledDotProductAttention,
)
from jaxattn.nn.glimpse import (
    GlimpseNetwork as GlimpseNetwork,
    GlimpseSensor as GlimpseSensor,
    Located as Located,
    LocationNetwork as LocationNetwork,
    glimpse as glimpse,
    glimpse_boxes as glimpse_boxes,
)
from jaxattn.nn.pretrained import from_keras as from_keras, from_torch as from_torch
from jaxattn.nn.recurrent import (
    GRU as GRU,
    LSTM as LSTM,
    RNN as RNN,
    Padding as Padding,
    Recurrence as Recurrence,
    Recurrent as Recurrent,
    valid_steps as valid_steps,
)
from jaxattn.nn.self_attention import (
    SeqSelfAttention as SeqSelfAttention,
    attention_regularizer as attention_regularizer,
)
from jaxattn.nn.spatial import (
    Fixation as Fixation,
    HardSpatialAttention as HardSpatialAttention,
    SoftSpatialAttention as SoftSpatialAttention,
    SpatialAttention as SpatialAttention,
    SpatialWeights as SpatialWeights,
    choose_position as choose_position,
    doubly_stochastic_penalty as doubly_stochastic_penalty,
    read_position as read_position,
    spatial_keys as spatial_keys,
    spatial_scores as spatial_scores,
)
from jaxattn.nn.steps import (
    GRUWeights as GRUWeights,
    LSTMState as LSTMState,
    LSTMWeights as LSTMWeights,
    RNNWeights as RNNWeights,
    gru_step as gru_step,
    lstm_step as lstm_step,
    rnn_step as rnn_step,
)
from jaxattn.nn.weighted import (
    FeedForwardAttention as FeedForwardAttention,
    SeqWeightedAttention as SeqWeightedAttention,
)

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
