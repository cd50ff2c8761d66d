"""Reference networks, each an NNX module that maps one example, or a batch, to its output."""

from jaxattn.models.sequence import SequenceClassifier as SequenceClassifier
