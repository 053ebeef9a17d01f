"""What each study asks, by its name: for the command's help, which must not wait for PyTorch."""

QUESTIONS = {
    "vae-losses": "what does each part of the loss do to the reconstruction? (paper 2.1)",
    "vae-kl": "how strongly may the latent be pulled towards a standard normal?",
    "vae-compression": "how much may be thrown away, and do more channels help? (paper Table 1)",
    "vae-stages": "short clips, long clips, or the one and then the other? (paper 2.1)",
    "position": "how does a token know where it is? (paper figure 10a)",
    "modulation": "one modulation for text and video, one for each, or all weights apart? (paper figures 8a and 10c)",
    "attention": "does every token see every token, or its own frame and then its own place? "
                 "(paper figures 8b and 10b)",
    "stages": "is growing in stages quicker than the full size at once? (paper 3.2, Table 5)",
}
