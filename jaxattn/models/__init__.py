"""Reference networks, each an NNX module that maps one example, or a batch, to its output."""

from jaxattn.models.characters import CharacterClassifier as CharacterClassifier
from jaxattn.models.caption_search import (
    Caption as Caption,
    beam_captions as beam_captions,
    greedy_caption as greedy_caption,
)
from jaxattn.models.captioner import (
    Captioner as Captioner,
    CaptionLoss as CaptionLoss,
    Reading as Reading,
    hard_caption_loss as hard_caption_loss,
    moving_baseline as moving_baseline,
    soft_caption_loss as soft_caption_loss,
)
from jaxattn.models.glimpses import (
    Glimpses as Glimpses,
    GlimpseLoss as GlimpseLoss,
    RecurrentAttention as RecurrentAttention,
    glimpse_loss as glimpse_loss,
)
from jaxattn.models.sequence import SequenceClassifier as SequenceClassifier
from jaxattn.models.signals import SignalClassifier as SignalClassifier
from jaxattn.models.translation import Translator as Translator
