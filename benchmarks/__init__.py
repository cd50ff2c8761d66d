"""What the methods cost, and whether they find what is there to be found."""
