"""What the tests of attribution share."""

from painters import case

__all__ = ["case"]
