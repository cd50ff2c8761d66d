"""Attention weights, found in a traced program by what is done with them."""
