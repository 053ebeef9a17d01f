"""The speedrun: minutes on two cores from nothing to a model that obeys its captions (see benchmarks/speedrun)."""
