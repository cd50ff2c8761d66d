"""Recurrent and attention layers worth explaining: Flax NNX modules over pure functions."""

from jaxattn.nn.attending import Attended as Attended, masked_softmax as masked_softmax
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
from jaxattn.nn.steps import (
    GRUWeights as GRUWeights,
    LSTMState as LSTMState,
    LSTMWeights as LSTMWeights,
    RNNWeights as RNNWeights,
    gru_step as gru_step,
    lstm_step as lstm_step,
    rnn_step as rnn_step,
)
