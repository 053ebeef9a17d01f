"""Training machinery that knows no video: ranks, sharding, checkpoints, optimizers, configs."""
