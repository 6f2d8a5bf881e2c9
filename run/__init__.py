"""What a person sees of a run: progress, log, curves, model summary. Knows engine/, nothing of DALI."""
