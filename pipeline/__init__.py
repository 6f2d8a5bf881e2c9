"""Data: data sets as arrays, the plan of every batch, and the loaders that carry it out."""
