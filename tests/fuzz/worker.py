"""A process that damages inputs and reads them: one line `FORMAT<tab>SEED` in, one line of JSON out.

Its address space may grow by LIMIT while it reads; whatever would need more fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage import MARKER, clear, damage
from formats import FORMATS
from orrery.pipeline.errors import OrreryError

LIMIT = 2**30


def digest(value: Any) -> str:
    """A hash of what a reader returned, independent of where it was read from."""
    found = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            one = one.detach().numpy()
        if isinstance(one, np.ndarray):
            found.update(f"{one.dtype}{one.shape}".encode() + np.ascontiguousarray(one).tobytes())
        elif isinstance(one, dict):
            for key, inner in sorted(one.items(), key=lambda item: str(item[0])):
                found.update(str(key).encode())
                add(inner)
        elif isinstance(one, list | tuple):
            found.update(b"[%d" % len(one))
            for inner in one:
                add(inner)
        else:
            found.update(repr(one).encode())

    add(value)
    return found.hexdigest()


def judge(read: Any, folder: Path, original: str) -> tuple[str, str]:
    try:
        same = digest(read(folder)).replace(str(folder), "") == original
        return ("same" if same else "other"), ""
    except OrreryError as error:
        text = str(error)
        named = any(path.name in text for path in folder.rglob("*")) or str(folder) in text
        if "more data than fits into memory" in text or "MemoryError" in text:
            return "memory", text
        return ("clear" if named else "unclear"), f"{type(error).__name__}: {text}"
    except MemoryError as error:
        return "memory", repr(error)
    except BaseException as error:
        return "unclear", f"{type(error).__name__}: {error}"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="damaged-"))
    originals: dict[str, tuple[Path, str]] = {}
    folder = root / "input"  # always the same path, which what is read may mention
    peak = 0
    for line in sys.stdin:
        name, _, seed = line.rstrip("\n").partition("\t")
        if name not in originals:
            made = root / name
            made.mkdir()
            FORMATS[name].make(made)
            shutil.copytree(made, folder)
            originals[name] = made, digest(FORMATS[name].read(folder))
            clear(folder)
        made, original = originals[name]
        shutil.copytree(made, folder)
        what = damage(folder, int(seed))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, resource.RLIM_INFINITY))
        outcome, text = judge(FORMATS[name].read, folder, original)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if list(root.rglob(MARKER)):
            outcome = "executed"
        # A file that is gone has no checksum; a manifest names it, where there is one.
        if outcome == "other" and FORMATS[name].verified and not what.endswith(": missing"):
            outcome = "silent"
        clear(folder)
        peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(json.dumps({"outcome": outcome, "what": what, "text": text, "rss": peak}), flush=True)
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout, answers = sys.stderr, sys.stdout  # what libraries print does not mix with the answers
    os.environ["HYDRA_FULL_ERROR"] = "0"
    sys.stdout = answers
    main()
