"""Learning: the model, its training, its checkpoints. Knows nothing of pictures' files or of DALI."""
