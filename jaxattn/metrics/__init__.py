"""Judges of attributions."""

from jaxattn.metrics.faithfulness import Curve as Curve
from jaxattn.metrics.faithfulness import completeness as completeness
from jaxattn.metrics.faithfulness import deletion as deletion
from jaxattn.metrics.faithfulness import insertion as insertion
