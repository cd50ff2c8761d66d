"""What a change of the input leaves unchanged, and what it makes a program recompute."""
