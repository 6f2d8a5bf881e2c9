"""How fast the parts are, alone and together."""
