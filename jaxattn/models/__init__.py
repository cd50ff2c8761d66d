"""Reference networks: Flax NNX modules that map one example, or a batch, to its output.

Sequences:
    SequenceClassifier: Recurrent layers with a linear readout.
    SignalClassifier: An LSTM with attention, for multivariate series.
    CharacterClassifier: A GRU with attention, for texts.
    Translator: A bidirectional encoder with an attention decoder.

Generation of series:
    FeatureGenerator: The distribution of the next time step, for `jaxattn.fit`; its result is
        `NextStep`.
    fit_generator: Its training; its result is `TrainedGenerator`.

Captions of images:
    Captioner: Convolutions, soft or hard attention, and an LSTM; its result is `Reading`.
    greedy_caption, beam_captions: Search for a `Caption`; `END` is the id of the last word.
    soft_caption_loss, hard_caption_loss: Losses of type `CaptionLoss`.
    moving_baseline: The baseline of the hard loss.

Glimpses of images:
    RecurrentAttention: The recurrent attention model; its result is `Glimpses`.
    glimpse_loss: Its loss, of type `GlimpseLoss`.
"""

from jaxattn.models.caption_loss import (
    CaptionLoss,
    hard_caption_loss,
    moving_baseline,
    soft_caption_loss,
)
from jaxattn.models.caption_search import Caption, beam_captions, greedy_caption
from jaxattn.models.captioner import END, Captioner, Reading
from jaxattn.models.characters import CharacterClassifier
from jaxattn.models.feature_generator import (
    FeatureGenerator,
    NextStep,
    TrainedGenerator,
    fit_generator,
)
from jaxattn.models.glimpses import GlimpseLoss, Glimpses, RecurrentAttention, glimpse_loss
from jaxattn.models.sequence import SequenceClassifier
from jaxattn.models.signals import SignalClassifier
from jaxattn.models.translation import Translator

__all__ = [
    "END",
    "Caption",
    "CaptionLoss",
    "Captioner",
    "CharacterClassifier",
    "FeatureGenerator",
    "GlimpseLoss",
    "Glimpses",
    "NextStep",
    "Reading",
    "RecurrentAttention",
    "SequenceClassifier",
    "SignalClassifier",
    "TrainedGenerator",
    "Translator",
    "beam_captions",
    "fit_generator",
    "glimpse_loss",
    "greedy_caption",
    "hard_caption_loss",
    "moving_baseline",
    "soft_caption_loss",
]
