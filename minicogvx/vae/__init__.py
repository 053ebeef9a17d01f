"""The 3D causal VAE (paper 2.1)."""

from minicogvx.vae.autoencoder import CausalVAE, DiagonalGaussian

__all__ = ["CausalVAE", "DiagonalGaussian"]
