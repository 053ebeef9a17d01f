"""Real films: read, listed, cut, curated and captioned."""
