"""Data: the synthetic shapes world and its oracle, videos, curation, captions, frame packs (paper 2.3, 3.1)."""
