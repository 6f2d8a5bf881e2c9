"""Measuring: how fast the parts are, alone and together."""
