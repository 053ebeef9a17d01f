"""Training of VAE and transformer, fine-tuning, checkpoints and distributed training (paper 3)."""
