"""The reference pages of the documentation, generated from the code.

`pages()` returns {path: Markdown} of stages, experiments and commands, and needs no MkDocs. The files that a
stage writes and its measured cost are in `stage_notes.yaml`; the page of a stage without an entry says that its
cost was not measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import yaml
from orrery.pipeline import cli
from orrery.pipeline.config.help import Key, config_keys, group_keys, shortened, stage_keys
from orrery.pipeline.config.load import (
    CONFIG_DIR,
    Settings,
    describe_file,
    describe_files,
    discover_stages,
    dotted_keys,
    load_config,
)
from orrery.pipeline.stage import Stage
from raised import Raised, raised_errors, used_modules

NOTES = Path(__file__).with_name("stage_notes.yaml")


def pages() -> dict[str, str]:
    """Return {path: Markdown} of every generated page."""
    return {path: make() for path, make in makers().items()}


def makers() -> dict[str, Callable[[], str]]:
    """Return {path: function that renders it} of every generated page, in the order of the navigation."""
    stages = discover_stages()
    notes = yaml.safe_load(NOTES.read_text(encoding="utf-8"))
    experiments, studies = (describe_files(CONFIG_DIR / folder) for folder in ("experiments", "studies"))
    made: dict[str, Callable[[], str]] = {
        "stages/index.md": partial(_render, "stages.md", stages=stages, summary=_summary)
    }
    made |= {f"stages/{name}.md": partial(stage_page, name, stages, notes.get(name, {})) for name in stages}
    made["experiments/index.md"] = partial(_render, "experiments.md", experiments=experiments, studies=studies)
    made |= {f"experiments/{name}.md": partial(experiment_page, name, stages) for name in experiments}
    made |= {f"studies/{name}.md": partial(_render, "study.md", **_file("studies", name)) for name in studies}
    made["command_line.md"] = command_line_page
    return made


def navigation() -> list[dict[str, Any]]:
    """The generated part of MkDocs' `nav`."""
    of: dict[str, list[str]] = {}
    for path in makers():
        of.setdefault(path.rpartition("/")[0], []).append(path)
    return [
        {"Stages": of["stages"]},
        {"Experiments": [*of["experiments"], {"Studies": of["studies"]}]},
        {"Command line": "command_line.md"},
    ]


def stage_page(name: str, stages: Mapping[str, type[Stage]], notes: Mapping[str, str]) -> str:
    """The page of a stage: inputs, output, keys, cost and errors."""
    stage = stages[name]
    base = yaml.safe_load((CONFIG_DIR / "base.yaml").read_text(encoding="utf-8"))
    groups: dict[str, list[Key]] = {name: []}  # the stage's own keys before those of its parts
    for key in default_keys(name, stage):
        groups.setdefault(key.name.rpartition(".")[0], []).append(key)
    kinds = {one.kind for one in stage.inputs.values()}
    errors, parts = _errors(stage)
    return _render(
        "stage.md",
        name=name,
        stage=stage,
        text=inspect.getdoc(stage) or "",
        makers={kind: [other for other, maker in stages.items() if maker.output_kind == kind] for kind in kinds},
        readers=[
            other
            for other, reader in stages.items()
            if stage.output_kind in {one.kind for one in reader.inputs.values()}
        ],
        notes_of=notes,
        bound={f"{name}.{key}": str(value)[2:-1] for key, value in base.get(name, {}).items() if "${" in str(value)},
        groups={group: keys for group, keys in groups.items() if keys},
        several=len(groups) > 1,
        errors=errors,
        parts=parts,
    )


def default_keys(name: str, stage: type[Stage]) -> list[Key]:
    """Every config key of a stage with its default."""
    keys = stage_keys(name, stage, dataclasses.asdict(stage.Config()))
    return [dataclasses.replace(key, value=_plain(key.value)) for key in keys]


def experiment_page(name: str, stages: Mapping[str, type[Stage]]) -> str:
    """The page of an experiment: its stages, its settings and its file."""
    config = load_config(name, stages=stages)
    defaults = {key.name: key for key in config_keys(Settings, dataclasses.asdict(Settings()))}
    for stage in config.settings.stages:
        defaults |= {key.name: key for key in default_keys(stage, stages[stage])}
    if not any(stages[stage].algorithms for stage in config.settings.stages):
        del defaults["algorithms"]
    leaves = dict(dotted_keys(config.resolved))
    for stage in config.settings.stages:  # groups of settings are one key
        keys = stage_keys(stage, stages[stage], config.resolved[stage])
        leaves = {key.name: _plain(key.value) for key in keys} | leaves
    changed = [
        dataclasses.replace(key, value=value)
        for dotted, key in defaults.items()
        if (value := leaves.get(dotted, key.value)) != key.value and dotted not in ("name", "stages")
    ]
    return _render("experiment.md", **_file("experiments", name), stages=config.settings.stages, changed=changed)


def command_line_page() -> str:
    """The page of the command line: the help of every command, and the keys of every run."""
    overview = _printed("--help")
    commands = re.findall(r"^    (\w+) ", overview, flags=re.MULTILINE)
    keys = [*config_keys(Settings, dataclasses.asdict(Settings())), *group_keys(discover_stages(), {})]
    return _render("command_line.md", overview=overview, commands=commands, printed=_printed, keys=keys)


def _file(folder: str, name: str) -> dict[str, str]:
    """Name, first comment and text of a file of an experiment or study."""
    path = CONFIG_DIR / folder / f"{name}.yaml"
    return {"name": name, "title": describe_file(path), "text": path.read_text(encoding="utf-8").strip()}


# Parts of pages.


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": _prose, "escaped": _escape}
    environment.globals |= {"table": _table, "block": _block, "links": _links}
    text = environment.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _links(stages: Sequence[str]) -> str:
    return ", ".join(f"[{name}]({name}.md)" for name in stages)


def _summary(stage: type[Stage]) -> str:
    """The first sentence of its docstring."""
    return _prose(inspect.getdoc(stage) or "").partition("\n\n")[0]


def _table(keys: Sequence[Key], value: str = "default") -> str:
    if not keys:
        return "Nothing."
    rows = [f"| key | {value} | meaning |", "|---|---|---|"]
    for key in keys:
        meaning = _escape(key.meaning)
        rows.append(f"| `{key.name}` | `{_cell(shortened(key.value))}` | {meaning} *{_escape(key.type)}* |")
    return "\n".join(rows)


CHECKS = ("check", "check_machine", "check_input", "check_inputs")


def _errors(stage: type[Stage]) -> tuple[list[tuple[str, list[Raised]]], list[tuple[str, list[Raised]]]]:
    """Errors of a stage (in its settings, before the run, while it runs), and those of the modules it uses."""
    configs = {cls.__name__: cls for cls in _config_classes(stage.Config)}
    found: list[Raised] = []
    for name, cls in configs.items():
        found += [one for one in raised_errors(Path(inspect.getfile(cls))) if one.where.split(".")[0] == name]
    path = Path(str(importlib.import_module(stage.__module__).__file__))
    others = [one for one in raised_errors(path) if one.where.split(".")[0] not in configs]
    early = [one for one in others if one.where.split(".")[-1] in CHECKS]
    late = [one for one in others if one not in early]
    own = {"Invalid settings": found, "Before anything runs": early, "While it runs": late}
    parts = {
        module: [one for one in raised_errors(path) if one.where.split(".")[0] not in configs]
        for module, path in used_modules(stage).items()
    }
    return [(title, list(dict.fromkeys(one))) for title, one in own.items()], [
        (module, list(dict.fromkeys(one))) for module, one in parts.items()
    ]


def _config_classes(cls: type) -> Iterator[type]:
    """A config dataclass and those nested in it."""
    yield cls
    hints = inspect.get_annotations(cls, eval_str=True)
    for hint in hints.values():
        for inner in (hint, *getattr(hint, "__args__", ())):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _config_classes(inner)


# Markdown.


def _printed(*arguments: str) -> str:
    """What a command prints."""
    text, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main(arguments)
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def _prose(text: str) -> str:
    """A docstring's paragraphs, without the stage's name in front; indented lines stay as code."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^\w+: ", "", text.strip()))
    shown = (one if one.startswith("    ") else _escape(" ".join(one.split())) for one in paragraphs)
    return "\n\n".join(one[:1].upper() + one[1:] for one in shown)


def _escape(text: str) -> str:
    """Plain text as Markdown, code in backticks left alone."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_|\[\]])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return "`".join(_cell(part) if i % 2 else part for i, part in enumerate(parts))


def _cell(code: str) -> str:
    """Code inside a table: a bar would end the cell."""
    return code.replace("|", "\\|")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
