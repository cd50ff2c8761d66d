"""Metrics of attributions: faithfulness and completeness."""

from jaxattn.metrics.faithfulness import (
    Curve as Curve,
    completeness as completeness,
    deletion as deletion,
    insertion as insertion,
)

__all__ = [
    "Curve",
    "completeness",
    "deletion",
    "insertion",
]
