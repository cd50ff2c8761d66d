"""Relevance and differences, propagated back through a program by rules."""
