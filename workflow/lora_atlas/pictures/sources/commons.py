from .manifest import SOURCE
