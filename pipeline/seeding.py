"""One way to derive a seed, so that no two random streams of a run coincide and none depends on run order."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """Return a 64-bit seed that depends on all of `parts` and their order; the same on every platform.

    Example: `derive_seed(config.seed, "collect", task.name, worker)`.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")
