"""A call, from its arguments to the attributions of all examples."""
