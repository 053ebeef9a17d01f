"""The question of each study, for the command's help, which must not import PyTorch."""

QUESTIONS = {
    "vae-losses": "what does each part of the loss do to the reconstruction? (paper 2.1)",
    "vae-kl": "how strongly may the latent be pulled towards a standard normal?",
    "vae-compression": "how far can latents be compressed, and do more channels help? (paper Table 1)",
    "vae-stages": "short clips, long clips, or short ones and then long ones? (paper 2.1)",
    "latents": "which VAE's latents does a transformer learn in ten minutes? (masks, correlation, equivariance, "
               "compression)",
    "latents-micro": "the same at micro's size, without compression",
    "minutes-micro": "what makes micro's transformer obey its captions sooner? (alignment, value residual, routing, "
                     "schedules, batches)",
    "position": "how does a token know where it is? (paper figure 10a)",
    "modulation": "one modulation for text and video, one for each, or all weights apart? (paper figures 8a and 10c)",
    "attention": "does every token see every token, or its own frame and then its own place? "
                 "(paper figures 8b and 10b)",
    "twins": "full or factorised attention: which learns sooner to find things that have moved, or have not? "
             "(paper 2.2)",
    "uniform-sampling": "timesteps drawn one by one, or one from each of equal parts: a smoother curve, or a better "
                        "model? (paper 3.3, Table 9)",
    "schedules": "equal tokens: clips only, or thumbnails or still pictures first? (paper 3.2, Table 5)",
    "stages": "is growing in stages faster than the full size at once? (paper 3.2, Table 5)",
}
