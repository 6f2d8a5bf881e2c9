"""Learning: the model, its training and its checkpoints. Knows nothing of files of pictures or of DALI."""
