"""The model card: README.md of a published folder, generated from recorded facts only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ...datasets.schema import TaskSpec
from .provenance import Provenance

FEW_EPISODES = 20
SEQUENCE_MODEL = "sequence_model.json"
NOT_GIVEN = "unknown"
"""The Hub's identifier for an unstated licence."""


def model_card(
    name: str,
    facts: Provenance,
    config: Mapping[str, Any],
    parameters: int,
    sizes: Mapping[str, int],
    licence: str,
    frames: int,
) -> str:
    """Return the card as Markdown, with the Hub's front matter.

    Args:
        name: user/name, or a folder if the artifact is not published on the Hub.
        config: of the network, as stored with the weights; of the first policy if there are several.
        parameters: number of parameters of that network.
        sizes: bytes by file.
        licence: an identifier of the Hub, such as mit or cc-by-4.0.
        frames: number of included start frames per task.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "cell": lambda text: text.replace("|", "\\|")}
    plain = {key: value for key, value in config.items() if not isinstance(value, dict | list)}
    return environment.get_template("card.md").render(
        name=name,
        facts=facts,
        config=config,
        parameters=parameters,
        licence=licence,
        not_given=NOT_GIVEN,
        frames=frames,
        is_model=facts.kind == "world_model",
        is_sequence=SEQUENCE_MODEL in sizes,
        suites=sorted({str(task["name"]).split("/")[0] for task in facts.tasks}),
        references=_references(facts),
        settings=", ".join(f"{key} {value}" for key, value in plain.items()),
        policies=sum(Path(file).name == "policy.json" for file in sizes),
        limitations=limitations(facts),
    )


def limitations(facts: Provenance) -> list[str]:
    """Limitations shown by the recorded numbers, and those of every artifact of this kind."""
    lines = [
        "Only the tasks above are supported. An observation of another length is an error; one with another order or "
        "other units silently gives meaningless results.",
    ]
    if facts.kind == "world_model":
        lines.append(
            "The model is only accurate near its data. A policy trained in imagination can exploit model errors where "
            "data is sparse: evaluate policies in the environment, not by their imagined return."
        )
    if narrow := [row["task"] for row in facts.data if row["behaviour"] not in ("exploration", "unknown")]:
        lines.append(f"Narrow data (from experts or policies): {', '.join(narrow)}.")
    if few := [row["task"] for row in facts.data if row["episodes"] < FEW_EPISODES]:
        lines.append(f"Fewer than {FEW_EPISODES} episodes: {', '.join(few)}.")
    if poor := [task for task, value in facts.open_loop.items() if value is not None and value < 0.5]:
        lines.append(f"Open-loop R2 below 0.5: {', '.join(poor)}.")
    if unknown := [task for task, value in facts.open_loop.items() if value is None]:
        lines.append(f"Open-loop R2 undefined, because the held-out reward hardly varies: {', '.join(unknown)}.")
    if not facts.score_table:
        lines.append("No scores are included.")
    if not facts.data:
        lines.append("The data was not available at publication; only its hash is known.")
    return lines


def _references(facts: Provenance) -> dict[str, Mapping[str, Any]]:
    """What 0 and 1 of normalised scores are, by task: as the evaluation says, else as the task does."""
    known = {
        task["name"]: {
            "random": task["score_random"],
            "expert": task["score_expert"],
            "problem": TaskSpec.from_dict(task).score_problem,
        }
        for task in facts.tasks
        if task["score_kind"] == "normalised" and task["score_random"] is not None
    }
    return {**known, **facts.references}


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"
