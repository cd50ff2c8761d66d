"""Reference networks, each an NNX module that maps one example, or a batch, to its output."""

from jaxattn.models.caption_loss import (
    CaptionLoss as CaptionLoss,
    hard_caption_loss as hard_caption_loss,
    moving_baseline as moving_baseline,
    soft_caption_loss as soft_caption_loss,
)
from jaxattn.models.caption_search import (
    Caption as Caption,
    beam_captions as beam_captions,
    greedy_caption as greedy_caption,
)
from jaxattn.models.captioner import END as END, Captioner as Captioner, Reading as Reading
from jaxattn.models.characters import CharacterClassifier as CharacterClassifier
from jaxattn.models.glimpses import (
    GlimpseLoss as GlimpseLoss,
    Glimpses as Glimpses,
    RecurrentAttention as RecurrentAttention,
    glimpse_loss as glimpse_loss,
)
from jaxattn.models.sequence import SequenceClassifier as SequenceClassifier
from jaxattn.models.signals import SignalClassifier as SignalClassifier
from jaxattn.models.translation import Translator as Translator

__all__ = [
    "END",
    "Caption",
    "CaptionLoss",
    "Captioner",
    "CharacterClassifier",
    "GlimpseLoss",
    "Glimpses",
    "Reading",
    "RecurrentAttention",
    "SequenceClassifier",
    "SignalClassifier",
    "Translator",
    "beam_captions",
    "glimpse_loss",
    "greedy_caption",
    "hard_caption_loss",
    "moving_baseline",
    "soft_caption_loss",
]
