"""A page for each method, and its picture."""
