"""Data: verified CIFAR-10 arrays, the plan of every batch, and the loaders that carry it out."""
