"""What a person sees of a run: progress, log, curves, model summary. Knows engine/config.py, nothing of DALI."""
