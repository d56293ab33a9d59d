"""Figures of the stage `gradients`: growth of gradients through the world model with the horizon."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from ..figures.drawing import PALETTE, new_panel, to_svg

STATE, RETURN = PALETTE[0], PALETTE[5]
"""Colours of the gradients of the predicted state and of the return."""

SMALLEST = 1e-12
"""Smaller norms are drawn at this value."""


def draw_growth(gradients: pd.DataFrame, tasks: Sequence[str]) -> list[tuple[str, Markup]]:
    """Median gradient norms over the horizon, both axes logarithmic, a panel per task."""
    panels = []
    for task in tasks:
        own = gradients[gradients["task"] == task].sort_values("horizon")
        if own.empty:
            continue
        figure, axes = new_panel(250, 178, left=52)
        for column, colour, dash in (("norm", STATE, "-"), ("return_norm", RETURN, "--")):
            axes.loglog(
                own["horizon"], own[column].clip(lower=SMALLEST), color=colour, linestyle=dash, marker="o", markersize=3
            )
        axes.set_xticks(own["horizon"].tolist(), [str(horizon) for horizon in own["horizon"]])
        axes.minorticks_off()
        axes.set(xlabel="Steps ahead")
        numbers = ", ".join(f"{row.norm:.2g} at {row.horizon} (R2 {row.r2:.2f})" for row in own.itertuples())
        panels.append((task, to_svg(figure, f"Gradient of the state by the first action on {task}: {numbers}")))
    return panels
