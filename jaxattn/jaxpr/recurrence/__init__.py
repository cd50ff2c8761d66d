"""Recurrent layers of a traced program: their cells, gates, weights and values."""
