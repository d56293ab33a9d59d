"""Figures of gradient diagnostics, for notebooks and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from ..figures.drawing import PALETTE
from .gradients import Landscape


def draw_growth(
    norms: Mapping[str, torch.Tensor], horizons: Sequence[int], skill: Mapping[str, torch.Tensor]
) -> Figure:
    """Draw the median norm of d s_t / d a_1 over the horizon, next to the model's skill.

    Args:
        norms: by model, medians at `horizons` [H].
        skill: by model, open-loop R^2 at `horizons` [H].
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, values), colour in zip(norms.items(), PALETTE, strict=False):
        left.loglog(horizons, values, marker="o", color=colour, label=name)
        if name in skill:
            right.semilogx(horizons, skill[name].clamp(min=-1), marker="o", color=colour)
    left.set(xlabel="Steps t", ylabel="median |d s_t / d a_1|")
    right.set(xlabel="Steps t", ylabel="open-loop R2 (cut at -1)", ylim=(-1.05, 1.05))
    for axes in (left, right):
        axes.set_xticks(list(horizons), [str(horizon) for horizon in horizons])
        axes.minorticks_off()
    left.legend(frameon=False)
    return figure


def draw_landscapes(landscapes: Mapping[str, Landscape], xlabel: str = "first action") -> Figure:
    """Draw the value along the line and its gradient below, one column per model, with shared axes."""
    figure = Figure(figsize=(3 * len(landscapes), 4), layout="constrained")
    axes = figure.subplots(2, len(landscapes), squeeze=False, sharex=True, sharey="row")
    reference = next(iter(landscapes.values()))
    for column, ((name, land), colour) in enumerate(zip(landscapes.items(), PALETTE, strict=False)):
        top, bottom = axes[0][column], axes[1][column]
        top.plot(reference.point_G, reference.value_G, color="#a3a3a3", linewidth=0.8)
        top.plot(land.point_G, land.value_G, color=colour, linewidth=1.2)
        bottom.plot(land.point_G, land.gradient_G, color=colour, linewidth=1.2)
        bottom.set_yscale("symlog")
        top.set_title(f"{name}: {land.sign_changes} sign changes")
        bottom.set_xlabel(xlabel)
    axes[0][0].set_ylabel("final reward")
    axes[1][0].set_ylabel("its gradient")
    return figure
