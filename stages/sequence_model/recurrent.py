"""Two more backbones for AWMs: a plain recurrent network and stacked diagonal linear state-space layers.

Both have the transformer's interface: `forward` over all tokens, `step` for the next one with a carry.

Dimension letters: B batch, N tokens, W width, S complex states.
Source: the recurrent AWM of Ma et al. (arXiv 2402.05290); the state-space layer follows Orvieto et al.
(arXiv 2303.06349), with |lambda| < 1 by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Recurrent(nn.Module):
    """h_n = tanh(W h_{n-1} + U x_n + b) from h = 0, W orthogonal at the start. With eta = ||W||, |dh_n / dx_1| may grow
    or vanish as eta^n: an AWM with this backbone keeps a gradient path as long as the horizon."""

    def __init__(self, width: int, activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh) -> None:
        super().__init__()
        self._activation = activation
        self.token_in, self.recurrence = nn.Linear(width, width), nn.Parameter(torch.empty(width, width))
        nn.init.orthogonal_(self.recurrence)

    def forward(self, token_BNW: torch.Tensor) -> torch.Tensor:
        hidden, outputs = torch.zeros_like(token_BNW[:, 0]), []
        for driven in self.token_in(token_BNW).unbind(1):
            hidden = self._activation(torch.addmm(driven, hidden, self.recurrence))
            outputs.append(hidden)
        return torch.stack(outputs, 1)

    def step(self, token_BW: torch.Tensor, carry: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.zeros_like(token_BW) if carry is None else carry
        hidden = self._activation(torch.addmm(self.token_in(token_BW), hidden, self.recurrence))
        return hidden, hidden


def diagonal_scan(decay_S: torch.Tensor, driven_BNS: torch.Tensor) -> torch.Tensor:
    """Compute all states of x_n = decay * x_{n-1} + driven_n, x_{-1} = 0, in parallel.

    Tokens are cut into chunks of C. Within each, x_i = sum_{j <= i} decay^(i - j) driven_j is a matrix product; the
    chunks' ends are such a recurrence again, with decay^C, so that there are log_C(N) levels.

    Args:
        decay_S: [S], complex, |decay| <= 1.
        driven_BNS: [B, N, S], complex.
    Returns:
        [B, N, S].
    Source: Blelloch (1990), in chunks that matrix products are fast for: on a CPU two thirds of the time of a scan by
    doubling steps.
    """
    return _scan(decay_S, driven_BNS.permute(2, 1, 0)).permute(2, 1, 0)


_CHUNK = 13
"""About the fastest of 4 to 128 tokens at N = 52 and 102, B = 32, S = 64."""


def _scan(decay_S: torch.Tensor, driven_SNB: torch.Tensor) -> torch.Tensor:
    S, N, B = driven_SNB.shape
    C = min(_CHUNK, N)
    powers = [torch.ones_like(decay_S)]
    for _ in range(C):
        powers.append(powers[-1] * decay_S)
    power_SC = torch.stack(powers, 1)
    lag_CC = torch.arange(C, device=decay_S.device)[:, None] - torch.arange(C, device=decay_S.device)
    kernel_SCC = torch.where(lag_CC >= 0, power_SC[:, lag_CC.clamp(min=0)], 0)
    if N == C:
        return kernel_SCC @ driven_SNB
    chunks = -(-N // C)
    padded = F.pad(driven_SNB, (0, 0, 0, chunks * C - N))
    driven_SCX = padded.unflatten(1, (chunks, C)).transpose(1, 2).flatten(2)  # X: chunks and rows
    end = _scan(powers[C], (kernel_SCC[:, -1:] @ driven_SCX).view(S, chunks, B))
    before_S1X = F.pad(end[:, :-1], (0, 0, 1, 0)).flatten(1)[:, None]  # the state in which each chunk begins
    state = torch.baddbmm(power_SC[:, 1:, None] @ before_S1X, kernel_SCC, driven_SCX)
    return state.unflatten(2, (chunks, B)).transpose(1, 2).flatten(1, 2)[:, :N]


class DiagonalLayer(nn.Module):
    """x + MLP(states of a diagonal linear recurrence with the normalised x as input)."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # |lambda| uniform in area between radii 0.9 and 0.999, phase uniform up to pi / 10.
        squared_radius = 0.9**2 + (0.999**2 - 0.9**2) * torch.rand(states)
        self.log_rate = nn.Parameter(torch.log(-0.5 * torch.log(squared_radius)))
        self.log_phase = nn.Parameter(torch.log(math.pi / 10 * torch.rand(states).clamp(min=1e-3)))
        self.drive = nn.Linear(width, 2 * states)
        self.mix_in = nn.Linear(2 * states + width, 2 * width)
        self.mix_out = nn.Linear(2 * width, width)

    def decay(self) -> torch.Tensor:
        """lambda = exp(-exp(log_rate) + i exp(log_phase)), [S] complex; |lambda| < 1."""
        rate, phase = torch.exp(self.log_rate), torch.exp(self.log_phase)
        return torch.polar(torch.exp(-rate), phase)

    def forward(self, x_BNW: torch.Tensor) -> torch.Tensor:
        normed, driven, decay = self._driven(x_BNW)
        return self._mixed(x_BNW, normed, diagonal_scan(decay, driven))

    def step(self, x_BW: torch.Tensor, state_BS: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        normed, driven, decay = self._driven(x_BW)
        state_BS = driven if state_BS is None else decay * state_BS + driven
        return self._mixed(x_BW, normed, state_BS), state_BS

    def _driven(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed, decay = self.norm(x), self.decay()
        # Of this size the states have unit variance under white noise, whatever their memory. In the weights, where it
        # costs nothing per token.
        size = torch.sqrt(1 - decay.abs().square()).repeat_interleave(2)
        driven = F.linear(normed, self.drive.weight * size[:, None], self.drive.bias * size)
        return normed, torch.view_as_complex(driven.unflatten(-1, (-1, 2))), decay

    def _mixed(self, x: torch.Tensor, normed: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        of_state, of_x = self.mix_in.weight.split([2 * state.shape[-1], normed.shape[-1]], 1)
        hidden = F.linear(torch.view_as_real(state).flatten(-2), of_state) + F.linear(normed, of_x, self.mix_in.bias)
        return x + self.mix_out(F.gelu(hidden, approximate="tanh"))


class StateSpace(nn.Module):
    """Stacked diagonal layers. Through one of them |dy_n / dx_k| falls as |lambda|^(n - k); through L of them it grows
    at most as (n - k)^(L - 1), never exponentially."""

    def __init__(self, width: int, layers: int, states: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DiagonalLayer(width, states) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, token_BNW: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            token_BNW = layer(token_BNW)
        return self.norm(token_BNW)

    def step(self, token_BW: torch.Tensor, carry: list[torch.Tensor] | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        states = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DiagonalLayer)  # for the type checker: a ModuleList does not say
            token_BW, state = layer.step(token_BW, carry[index] if carry else None)
            states.append(state)
        return self.norm(token_BW), states
