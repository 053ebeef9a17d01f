"""Evaluation: reconstruction, and how often a model's videos show what their captions ask for (paper 4)."""
