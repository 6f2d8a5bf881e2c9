"""The model as it leaves this repository: one file that others run without it. `python export.py` writes it."""
