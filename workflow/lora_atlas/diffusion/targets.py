"""Names of the kinds of layers that LoRAs are trained on (`training.targets`); each denoiser has their patterns.

Without torch, since the configuration's schema takes them from here."""

TARGETS = ("attention", "feed_forward", "projection", "convolution", "context", "single", "modulation")
