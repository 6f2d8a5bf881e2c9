"""What a recipe reaches, and what each of its ingredients is worth."""
