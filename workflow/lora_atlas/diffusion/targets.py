"""Kinds of layers that LoRAs are trained on: name in `training.targets` → pattern of the layers' names."""

TARGETS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "feed_forward": r"\.ff\.net\.(0\.proj|2)$",
    "projection": r"\.proj_(in|out)$",
    "convolution": r"\.(resnets\.\d+\.conv[12]|(down|up)samplers\.\d+\.conv)$",
}
