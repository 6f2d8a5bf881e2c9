"""Measuring: how fast the parts are, what a recipe reaches, and where the time goes."""
