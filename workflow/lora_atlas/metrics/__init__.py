"""How well descriptors tell artists, and by how much better than controls do."""

BEST_CONTROL = "best control"  # what stands for the right side of a difference from whichever control is best
