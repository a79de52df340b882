"""Training and sampling of many LoRAs at once on one frozen latent diffusion base."""
