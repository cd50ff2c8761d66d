"""What a program is made of: layers, activations, normalisations, loops."""
