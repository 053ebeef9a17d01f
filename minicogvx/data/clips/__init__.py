"""Encoded clips: what every trainer of the transformer reads."""
