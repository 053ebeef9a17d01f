"""The shapes world: clips that a program draws, with captions, and an oracle that reads them."""
