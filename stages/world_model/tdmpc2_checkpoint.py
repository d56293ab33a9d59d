"""TD-MPC2's checkpoints: their state dicts to ours and back, sizes inferred from shapes.

Two forms are in circulation. Old (2023 to 2024): `_Qs.params.0` to `_Qs.params.9`, three layers of weight, bias,
LayerNorm weight and bias in a row, and `_target_Qs.params.*`. New: `_Qs.params.<layer>.<name>`, `_target_Qs_params.*`,
a second copy `_detach_Qs_params.*`, and constants (`_action_masks`, `log_std_min`, `log_std_dif`). Neither holds
optimisers, scaling or task names.

Source: nicklashansen/tdmpc2 @e9f5932 and earlier; sections 1.2 and 3.3 of the TD-MPC2 paper (arXiv 2310.16828) for the
networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_PLAIN_NAMES = ("weight", "bias", "ln.weight", "ln.bias")
"""Parameters of a layer in the order in which the old form numbers those of the value ensemble."""

_CONSTANTS = re.compile(r"^(_action_masks|log_std_min|log_std_dif|_detach_Qs_params\..*|.*__batch_size|.*__device)$")
"""Of the new form: copies, and what follows from the config."""

_OURS = {
    "_dynamics": "dynamics",
    "_reward": "reward",
    "_pi": "policy_prior",
    "_encoder.state": "encoder.layers",
}


def rename(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names to ours, for either form; names that are not the published ones stay as they are."""
    renamed = {}
    for key, value in state.items():
        if not _CONSTANTS.match(key):
            renamed[_our_name(key, state)] = value
    return renamed


def _our_name(key: str, state: Mapping[str, torch.Tensor]) -> str:
    if key == "_task_emb.weight":
        return "task_embedding.weight"
    if match := re.fullmatch(r"_(target_)?Qs[._]params\.(\d+)(?:\.(.+))?", key):
        ensemble = "target_values" if match[1] else "values"
        layer, name = int(match[2]), match[3]
        if name is None:
            layer, name = divmod(layer, len(_PLAIN_NAMES))[0], _PLAIN_NAMES[layer % len(_PLAIN_NAMES)]
        return f"{ensemble}.{name.replace('ln.', 'norm_')}.{layer}"
    if match := re.fullmatch(r"(_dynamics|_reward|_pi|_encoder\.state)\.(\d+)\.(.+)", key):
        published, layer, name = match.groups()
        normed = f"{published}.{layer}.ln.weight" in state
        if normed:
            name = name.replace("ln.", "norm.") if name.startswith("ln.") else f"linear.{name}"
        return f"{_OURS[published]}.{layer}.{name}"
    return key
