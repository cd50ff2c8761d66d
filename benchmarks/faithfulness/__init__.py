"""Attributions compared with a known truth."""
