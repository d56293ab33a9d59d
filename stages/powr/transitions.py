"""Rows of data (state, action, next state, reward), and the sink rows of terminal states.

A terminal state gets sink rows (s_T, a, s_T, 0), so that its value is 0. A time limit gets none: there, the value
of the last state comes from the model.

Dimension letters: N rows, O state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...pipeline.errors import DatasetError


@dataclass(frozen=True)
class Transitions:
    """n rows; reward follows action."""

    state_NO: torch.Tensor
    """float64."""
    action: torch.Tensor
    """[N] int64 index, or [N, A] float64 of continuous actions."""
    next_state_NO: torch.Tensor
    reward_N: torch.Tensor

    def __post_init__(self) -> None:
        lengths = {len(self.state_NO), len(self.action), len(self.next_state_NO), len(self.reward_N)}
        if len(lengths) > 1:
            raise DatasetError(
                f"states, actions, next states and rewards must have equal lengths, found {sorted(lengths)}"
            )
        for name, values in (("state", self.state_NO), ("next state", self.next_state_NO), ("reward", self.reward_N)):
            finite = torch.isfinite(values)
            finite = finite if finite.ndim == 1 else finite.all(1)
            if not finite.all():
                row, count = int((~finite).nonzero()[0]), int((~finite).sum())
                raise DatasetError(
                    f"the {name} of row {row} is {values[row].tolist()} ({count} of {len(values)} rows are like it): "
                    "values must be finite. Remove those episodes or correct their file"
                )

    def __len__(self) -> int:
        return len(self.reward_N)

    def __getitem__(self, index: slice | torch.Tensor) -> Transitions:
        return Transitions(self.state_NO[index], self.action[index], self.next_state_NO[index], self.reward_N[index])

    def to(self, device: str | torch.device) -> Transitions:
        return Transitions(
            self.state_NO.to(device), self.action.to(device), self.next_state_NO.to(device), self.reward_N.to(device)
        )


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """All rows, in order."""
    return Transitions(
        torch.cat([part.state_NO for part in parts]),
        torch.cat([part.action for part in parts]),
        torch.cat([part.next_state_NO for part in parts]),
        torch.cat([part.reward_N for part in parts]),
    )


def with_sinks(
    rows: Transitions, terminated_N: torch.Tensor, choices: torch.Tensor | None = None, sink_reward: float = 0.0
) -> Transitions:
    """Each row, followed by the sink rows (s_T, a, s_T, sink_reward) of the state it ended in where `terminated_N`.

    Args:
        choices: [U] or [U, A], an action a for each sink row of a terminal state. None takes the last action alone, as
            published: other actions there have no data, and wide kernels give them the values of non-terminal
            states.
        sink_reward: 0 unless a constant was added to every reward; then that constant, which moves all values by
            constant / (1 - discount) and changes no policy.
    """
    per_end = 1 if choices is None else len(choices)
    source_N = torch.repeat_interleave(1 + per_end * terminated_N.long())
    first_N = torch.ones(len(source_N), dtype=torch.bool, device=source_N.device)
    first_N[1:] = source_N[1:] != source_N[:-1]
    sink_N = ~first_N
    action = rows.action[source_N]
    if choices is not None:
        action[sink_N] = choices.repeat(int(terminated_N.sum()), *[1] * (choices.ndim - 1))
    return Transitions(
        torch.where(sink_N[:, None], rows.next_state_NO[source_N], rows.state_NO[source_N]),
        action,
        rows.next_state_NO[source_N],
        torch.where(sink_N, torch.full_like(rows.reward_N[source_N], sink_reward), rows.reward_N[source_N]),
    )
