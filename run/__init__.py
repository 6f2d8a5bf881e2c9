"""One training, and all that is kept and said of it: state, log, curves, progress. See run/run.py."""
