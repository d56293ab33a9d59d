"""The model card: README.md of a published folder, generated from recorded facts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    parts = [
        _front_matter(facts, licence),
        f"# {name}\n",
        f"{_what(facts)}, trained with Orrery. {_sentence(facts.summary)}\n",
        "## Loading\n",
        _loading(name, facts, config, sizes),
        "## Tasks\n",
        _task_table(facts.tasks),
        _references(facts),
        "## Data\n",
        _data(facts, frames),
        "## Network\n",
        _network(config, parameters, sizes),
        "## Results\n",
        _measured(facts),
        "## Limitations\n",
        "".join(f"- {line}\n" for line in limitations(facts)),
        "## Licence\n",
        f"{licence}.\n" if licence != NOT_GIVEN else "The publisher stated no licence.\n",
        "## Provenance\n",
        _origin(facts),
    ]
    return "\n".join(part for part in parts if part)


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
        lines.append(f"Open-loop R2 undefined, because the held-out data does not vary: {', '.join(unknown)}.")
    if not facts.score_table:
        lines.append("No scores are included.")
    if not facts.data:
        lines.append("The data was not available at publication; only its hash is known.")
    return lines


def _front_matter(facts: Provenance, licence: str) -> str:
    tags = ["reinforcement-learning", "orrery", "world-model" if facts.kind == "world_model" else "policy"]
    suites = sorted({str(task["name"]).split("/")[0] for task in facts.tasks})
    lines = ["---", f"license: {licence}", "library_name: orrery", "pipeline_tag: reinforcement-learning", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in [*tags, *suites]), "---"]) + "\n"


def _what(facts: Provenance) -> str:
    count = f"{len(facts.tasks)} tasks" if len(facts.tasks) > 1 else facts.tasks[0]["name"]
    return f"A world model of {count}" if facts.kind == "world_model" else f"Policies for {count}"


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}." if summary else ""


def _loading(name: str, facts: Provenance, config: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    if SEQUENCE_MODEL in sizes:
        return _code(
            "python",
            "from orrery.pipeline.hub import find_artifact",
            "from orrery.stages.sequence_model.kinds import load_model",
            f'model = load_model(find_artifact("{name}", "world_model"))',
        )
    if facts.kind == "world_model":
        return _code(
            "python",
            "from orrery.stages.world_model.networks import WorldModel",
            f'model = WorldModel.from_pretrained("{name}")',
        ) + _code("", f"orrery run from_checkpoint world_model={name} tasks=[{facts.tasks[0]['name']}]")
    task = config["task"]
    algorithm = config["trained_by"].get("algorithm")
    # One policy's folder has it under the name that its index gives it.
    chosen = f', algorithm="{algorithm}"' if algorithm else ""
    return _code(
        "python",
        "import torch",
        "from orrery.stages.policy.policy import Policy",
        f'policy = Policy.from_pretrained("{name}", task="{task["name"]}"{chosen})',
        f"observation = torch.zeros(1, {task['observation_dim']})  # [B, O], in the environment's units",
        "action = policy.act(observation)  # [B, A]",
    )


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"]) + "\n"


def _task_table(tasks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            task["name"], task["observation_dim"], f"{task['action_dim']} {task['action_kind']}",
            task["episode_length"], task["action_repeat"], f"{task['discount']:.4g}",
            "yes" if task["terminates"] else "no", task["score_kind"],
        ]
        for task in tasks
    ]  # fmt: skip
    head = ["task", "observation", "action", "steps", "repeat", "discount", "terminates", "score"]
    return _table(head, rows)


def _references(facts: Provenance) -> str:
    known: dict[str, Mapping[str, Any]] = {
        task["name"]: {
            "random": task["score_random"],
            "expert": task["score_expert"],
            "problem": TaskSpec.from_dict(task).score_problem,
        }
        for task in facts.tasks
        if task["score_kind"] == "normalised" and task["score_random"] is not None
    }
    known |= facts.references
    lines = [
        f"- {name}: 0 is a return of {_number(one['random'])}, 1 is {_number(one['expert'])}"
        + (f"; no score, because {one['problem']}" if one.get("problem") else "")
        for name, one in known.items()
    ]
    return "References of normalised scores:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _data(facts: Provenance, frames: int) -> str:
    rows = [
        [
            row["task"], row["behaviour"], f"{row['episodes']:,}", f"{row['transitions']:,}",
            f"{_number(row['return_mean'])} ({_number(row['return_min'])} to {_number(row['return_max'])})",
            _number(row["success_rate"]),
        ]
        for row in facts.data
    ]  # fmt: skip
    head = ["task", "behaviour", "episodes", "transitions", "return", "success"]
    table = _table(head, rows) if rows else ""
    digest = (
        f"Hash of the packed data: `{facts.data_digest}`.\n" if facts.data_digest else "The data is not recorded.\n"
    )
    inside = (
        f"\nstarts.safetensors holds {frames:,} frames (observation and action) of each task's data, so that policies "
        "can be extracted without the data.\n"
        if frames
        else ""
    )
    return f"{table}\n{digest}{inside}" if table else f"{digest}{inside}"


def _network(config: Mapping[str, Any], parameters: int, sizes: Mapping[str, int]) -> str:
    plain = {key: value for key, value in config.items() if not isinstance(value, dict | list)}
    settings = ", ".join(f"{key} {value}" for key, value in plain.items())
    policies = sum(Path(file).name == "policy.json" for file in sizes)
    each = f" in each of {policies} policies" if policies > 1 else ""
    return f"{parameters:,} parameters{each}. {settings}.\n"


def _measured(facts: Provenance) -> str:
    parts = []
    if facts.open_loop:
        rows = [[task, _number(value)] for task, value in facts.open_loop.items()]
        parts.append(_table(["task", f"open-loop R2 of {facts.open_loop_of}"], rows))
    if facts.score_table:
        protocol = ", ".join(f"{name}: {value}" for name, value in facts.protocol.items())
        parts.append(f"Scores in the environments, over all seeds ({protocol}):\n\n{facts.score_table}")
    return "\n".join(parts) or "No results are included.\n"


def _origin(facts: Provenance) -> str:
    if not facts.stage:
        return "Unknown: the artifact has no manifest of a stage.\n"
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"Stage {facts.stage}, {facts.created}, {facts.seconds:,.0f} s. Versions: {versions}. Artifact "
        f"`{facts.digest}`. manifest.json holds the settings, provenance.json these numbers.\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"
