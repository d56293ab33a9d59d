"""Numbers of the published MR.Q: golden/mrq_*.npz, produced by facebookresearch/MRQ @8a44a7d."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        loaded = {}
        for key in file.files:
            if file[key].dtype.kind in "US":
                loaded |= json.loads(file[key].item()) if key == "meta" else {key: file[key]}
            else:
                loaded[key] = torch.from_numpy(file[key]) if file[key].ndim else file[key].item()
        return loaded


def under(golden, prefix):
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
