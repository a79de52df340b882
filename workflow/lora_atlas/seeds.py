"""Derived seeds: every random stream of a study comes from its one seed by a stable hash."""

import hashlib
import json
from typing import Any


def derive_seed(*parts: Any) -> int:
    """A stable 63-bit seed: SHA-256 of the JSON of the parts."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
