"""The help of `orrery run`: settings from the config dataclasses and the strings under their fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..stage import Stage
from .load import RunConfig, Settings, keys_from_run, run_groups

EXAMPLES = """\
orrery run quickstart
orrery run quickstart run_dir=runs/longer pretrain.steps=5000
orrery run quickstart tasks=[dmc/cartpole-swingup,metaworld/reach-v3] seeds=5
orrery run mine.yaml inputs.world_model=runs/quickstart/pretrain"""


def field_docs(cls: type) -> dict[str, str]:
    """Return {field: the string under it} of a dataclass, from its source; inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        if not isinstance(definition, ast.ClassDef):
            continue
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs


PURPOSE = {
    "run": "Run the stages of an experiment. Up-to-date stages are skipped; after an interruption, the same\n"
    "command continues.",
    "plan": "Show what `orrery run` would do with the same arguments, and why. Runs and writes nothing.",
}


def run_help(experiments: Mapping[str, str], stages: Mapping[str, type[Stage]], command: str = "run") -> RenderableType:
    """Render the help of `orrery run` and `orrery plan`."""
    return Group(
        Text(_usage(command, "EXPERIMENT")),
        Text(
            f"{PURPOSE[command]} EXPERIMENT is one of the following, or the path of a .yaml file.\n"
            "--from STAGE reruns that stage and all later ones; --force reruns all stages."
            f"{' --json prints JSON.' if command == 'plan' else ' --plan only shows what would run.'}\n"
        ),
        Text("Experiments", style="bold"),
        _columns([(name, Text(description)) for name, description in experiments.items()]),
        Text("\nKeys of every run", style="bold"),
        _columns(
            [
                ("run_dir", Text("Folder of the run. Default: runs/EXPERIMENT.")),
                *_rows(config_keys(Settings, dataclasses.asdict(Settings()))),
                *_rows(group_keys(stages, {})),
            ]
        ),
        Text("\nStages", style="bold"),
        _columns([(name, Text(_described(stage))) for name, stage in stages.items()]),
        Text("\n`orrery run EXPERIMENT --help` lists all keys of an experiment with their values.\n"),
        Text("Examples", style="bold"),
        Text(textwrap.indent(EXAMPLES.replace("orrery run", f"orrery {command}"), "  ")),
    )


def _usage(command: str, experiment: str) -> str:
    option = "--json" if command == "plan" else "--plan"
    return f"usage: orrery {command} {experiment} [run_dir=PATH] [key=value ...] [--from STAGE | --force] [{option}]\n"


def experiment_help(config: RunConfig, stages: Mapping[str, type[Stage]]) -> RenderableType:
    """Render the keys of one experiment with value, type and meaning."""
    parts: list[RenderableType] = [
        Text(_usage("run", config.experiment)),
        Text("Keys of the run", style="bold"),
        _columns(
            [
                ("run_dir", Text(f"{config.run_dir}")),
                *_rows(config_keys(Settings, config.resolved)),
                *_rows(group_keys(stages, config.resolved)),
            ]
        ),
    ]
    for name in config.settings.stages:
        parts.append(Text.assemble("\n", (name, "bold"), f"  {first_paragraph(stages[name])}"))
        parts.append(_columns(_rows(stage_keys(name, stages[name], config.resolved[name]))))
    return Group(*parts)


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting, as written on the command line."""

    name: str
    """Dotted; NAME stands for an entry of a mapping, such as a task."""
    value: Any
    type: str
    meaning: str


def config_keys(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[Key]:
    """Yield every key of a config dataclass, those of nested ones too, with its value in `values` (as asdict has it).

    Of a mapping to dataclasses there are also the keys of one entry, with their defaults.
    """
    docs, hints = field_docs(cls), get_type_hints(cls)
    for setting in dataclasses.fields(cls):
        hint, value = hints[setting.name], values[setting.name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from config_keys(hint, value, f"{prefix}{setting.name}.")
            continue
        entry = get_args(hint)[-1] if get_origin(hint) is dict else None
        spelled = hint.__name__ if hint in (int, float, bool, str) else str(hint).replace("typing.", "")
        spelled = re.sub(r"tuple\[(.*), \.\.\.\]", r"list[\1]", spelled)
        if isinstance(entry, type) and dataclasses.is_dataclass(entry):
            spelled = f"dict[str, {entry.__name__}]"
        yield Key(f"{prefix}{setting.name}", value, spelled, docs.get(setting.name, ""))
        if isinstance(entry, type) and dataclasses.is_dataclass(entry):
            yield from config_keys(entry, dataclasses.asdict(entry()), f"{prefix}{setting.name}.NAME.")


def stage_keys(name: str, stage: type[Stage], values: Mapping[str, Any]) -> Iterator[Key]:
    """Yield every key of a stage, as `config_keys` does; says which take the run's value. Groups that the run has, too,
    are one key, with what differs from their defaults."""
    from_run = {f"{name}.{key}": key for key in keys_from_run(stage)}
    groups = run_groups({name: stage})
    for key in config_keys(stage.Config, values, f"{name}."):
        if key.name.split(".")[1] not in groups:
            shared = f" Taken from the run's `{from_run[key.name]}`." if key.name in from_run else ""
            yield dataclasses.replace(key, meaning=key.meaning + shared)
    for group, cls in groups.items():
        own = {key: value for key, value in values[group].items() if value != dataclasses.asdict(cls())[key]}
        meaning = f"{field_docs(stage.Config).get(group, '')} Keys and defaults are those of the run's `{group}`."
        yield Key(f"{name}.{group}", own, cls.__name__, meaning)


def group_keys(stages: Mapping[str, type[Stage]], values: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the keys of the groups of a run."""
    for name, group in run_groups(stages).items():
        yield from config_keys(group, values.get(name, dataclasses.asdict(group())), f"{name}.")


def _rows(keys: Iterable[Key]) -> list[tuple[str, Text]]:
    return [
        (key.name, Text.assemble(f"{shortened(key.value)} ", (f"({key.type}) ", "dim"), key.meaning)) for key in keys
    ]


def shortened(value: Any) -> str:
    """Return a value as written on the command line; long lists are shortened."""
    if value == "":
        return '""'
    if isinstance(value, list) and len(value) > 3:
        return f"[{', '.join(map(str, value[:2]))}, ... {len(value)} in total]"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shortened(one)}' for key, one in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _columns(rows: list[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(f"  {name}", text)
    return table


def _described(stage: type[Stage]) -> str:
    own = f" Algorithms: {', '.join(stage.algorithms)}." if stage.algorithms else ""
    return first_paragraph(stage) + own


def first_paragraph(stage: type[Stage]) -> str:
    """Return the summary of a stage in one line."""
    return " ".join((stage.__doc__ or "").partition("\n\n")[0].split())
