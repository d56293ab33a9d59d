"""What `orrery run --help` says about settings: taken from the dataclasses and the strings under their fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .config import RunConfig, Settings
from .stage import Stage

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


def run_help(experiments: Mapping[str, str], stages: Mapping[str, type[Stage]]) -> RenderableType:
    """What can follow `orrery run`."""
    return Group(
        Text("usage: orrery run EXPERIMENT [run_dir=PATH] [key=value ...]\n"),
        Text(
            "Runs the stages of an experiment that are not up to date; after an interruption the same\n"
            "command continues. EXPERIMENT is one of the following, or the path of your own .yaml file.\n"
        ),
        Text("Experiments", style="bold"),
        _columns([(name, Text(description)) for name, description in experiments.items()]),
        Text("\nKeys of every run", style="bold"),
        _columns(
            [("run_dir", Text("Folder of the run; runs/EXPERIMENT.")), *_rows(Settings, dataclasses.asdict(Settings()))]
        ),
        Text("\nStages, each with keys of its own", style="bold"),
        _columns([(name, Text(_first_paragraph(stage))) for name, stage in stages.items()]),
        Text("\n`orrery run EXPERIMENT --help` lists every key of that experiment with its value.\n"),
        Text("Examples", style="bold"),
        Text(textwrap.indent(EXAMPLES, "  ")),
    )


def experiment_help(config: RunConfig, stages: Mapping[str, type[Stage]]) -> RenderableType:
    """Every key of one experiment: its value there, its type, and what it means."""
    parts: list[RenderableType] = [
        Text(f"usage: orrery run {config.experiment} [run_dir=PATH] [key=value ...]\n"),
        Text("Keys of the run", style="bold"),
        _columns([("run_dir", Text(f"{config.run_dir}")), *_rows(Settings, config.resolved)]),
    ]
    for name in config.settings.stages:
        parts.append(Text.assemble("\n", (name, "bold"), f"  {_first_paragraph(stages[name])}"))
        parts.append(_columns(list(_rows(stages[name].Config, config.resolved[name], f"{name}."))))
    return Group(*parts)


def _rows(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Text]]:
    docs, hints = field_docs(cls), get_type_hints(cls)
    for setting in dataclasses.fields(cls):
        hint, value = hints[setting.name], values[setting.name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from _rows(hint, value, f"{prefix}{setting.name}.")
            continue
        spelled = hint.__name__ if hint in (int, float, bool, str) else str(hint)
        yield (
            f"{prefix}{setting.name}",
            Text.assemble(f"{_short(value)} ", (f"({spelled}) ", "dim"), docs.get(setting.name, "")),
        )


def _short(value: Any) -> str:
    if value == "":
        return '""'
    if isinstance(value, list) and len(value) > 3:
        return f"[{', '.join(map(str, value[:2]))}, ... {len(value)} in all]"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)


def _columns(rows: list[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(f"  {name}", text)
    return table


def _first_paragraph(stage: type[Stage]) -> str:
    return " ".join((stage.__doc__ or "").partition("\n\n")[0].split())
