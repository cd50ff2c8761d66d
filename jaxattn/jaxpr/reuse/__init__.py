"""Incremental evaluation: recompute only the values that a change of the input reaches."""
