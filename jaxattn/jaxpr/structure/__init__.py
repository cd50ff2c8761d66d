"""The structure of a program: layers, activations, normalisations, loops."""
