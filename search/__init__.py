"""HOW it is found and trained: recipes, bi-level search, derivation, fine-tuning."""
