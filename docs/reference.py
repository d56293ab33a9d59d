"""The reference pages of the documentation, generated from the code.

`pages()` returns {path: Markdown} of stages, experiments and commands, and needs no MkDocs. The files that a
stage writes and its measured cost are in `stage_notes.yaml`; the page of a stage without an entry says that its cost was
not measured.
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

import yaml
from orrery.pipeline import cli
from orrery.pipeline.config.help import Key, config_keys, shortened, stage_keys
from orrery.pipeline.config.load import CONFIG_DIR, Settings, describe_files, discover_stages, dotted_keys, load_config
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
    made: dict[str, Callable[[], str]] = {"stages/index.md": partial(_stages_page, stages)}
    made |= {f"stages/{name}.md": partial(stage_page, name, stages, notes.get(name, {})) for name in stages}
    made["experiments/index.md"] = partial(_experiments_page, experiments, studies)
    made |= {f"experiments/{name}.md": partial(experiment_page, name, stages) for name in experiments}
    made |= {f"studies/{name}.md": partial(study_page, name) for name in studies}
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
    parts = [f"# {name}", _prose(inspect.getdoc(stage) or "")]
    if stage.algorithms:
        named = ", ".join(f"`{algorithm}`" for algorithm in stage.algorithms)
        parts.append(f"Policy stage of the algorithms {named}.")
    parts += ["## Inputs", _inputs(stage, stages), "## Output", _output(name, stage, stages)]
    if "writes" in notes:
        parts.append(notes["writes"])
    parts += ["## Settings", *_settings(name, stage), "## Cost", notes.get("cost", "Not measured yet.")]
    parts += ["## Errors", *_error_sections(stage)]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def default_keys(name: str, stage: type[Stage]) -> list[Key]:
    """Every config key of a stage with its default."""
    keys = stage_keys(name, stage, dataclasses.asdict(stage.Config()))
    return [dataclasses.replace(key, value=_plain(key.value)) for key in keys]


def experiment_page(name: str, stages: Mapping[str, type[Stage]]) -> str:
    """The page of an experiment: its stages, its settings and its file."""
    path = CONFIG_DIR / "experiments" / f"{name}.yaml"
    config = load_config(name, stages=stages)
    title = describe_files(path.parent)[name]
    steps = " → ".join(f"[{stage}](../stages/{stage}.md)" for stage in config.settings.stages)
    defaults = {key.name: key for key in config_keys(Settings, dataclasses.asdict(Settings()))}
    for stage in config.settings.stages:
        defaults |= {key.name: key for key in default_keys(stage, stages[stage])}
    if not any(stages[stage].algorithms for stage in config.settings.stages):
        del defaults["algorithms"]
    leaves = dict(dotted_keys(config.resolved))
    changed = [
        dataclasses.replace(key, value=value)
        for dotted, key in defaults.items()
        if (value := leaves.get(dotted, key.value)) != key.value and dotted not in ("name", "stages")
    ]
    return "\n\n".join(
        [
            f"# {name}",
            _prose(title),
            f"    orrery run {name}",
            f"Runs {steps}.",
            "## What it sets",
            "All other keys have the defaults shown on the stages' pages.",
            _table(changed, value="value"),
            f"## configs/experiments/{path.name}",
            f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```",
            "",
        ]
    )


def study_page(name: str) -> str:
    """The page of a study: its description and its file."""
    path = CONFIG_DIR / "studies" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8").strip()
    return (
        f"# {name}\n\n{_prose(describe_files(path.parent)[name])}\n\n    orrery study {name}\n\n```yaml\n{text}\n```\n"
    )


def command_line_page() -> str:
    """The page of the command line: the help of every command, and the keys of every run."""
    overview = _printed("--help")
    commands = re.findall(r"^    (\w+) ", overview, flags=re.MULTILINE)
    parts = ["# Command line", _block(overview)]
    for command in commands:
        parts += [f"## orrery {command}", _block(_printed(command, "--help"))]
    keys = list(config_keys(Settings, dataclasses.asdict(Settings())))
    return "\n\n".join([*parts, "## Keys of every run", _table(keys), ""])


# Parts of pages.


def _stages_page(stages: Mapping[str, type[Stage]]) -> str:
    rows = ["| stage | what it does | reads | writes |", "|---|---|---|---|"]
    for name, stage in stages.items():
        reads = ", ".join(f"{one.kind} (optional)" if one.optional else one.kind for one in stage.inputs.values())
        rows.append(f"| [{name}]({name}.md) | {_summary(stage)} | {reads} | {stage.output_kind} |")
    return "\n".join(
        [
            "# All stages",
            "",
            "A stage reads artifacts by kind and writes one folder, `RUN/<stage>/`.",
            "",
            *rows,
            "",
        ]
    )


def _summary(stage: type[Stage]) -> str:
    """The first sentence of its docstring."""
    return _prose(inspect.getdoc(stage) or "").partition("\n\n")[0]


def _experiments_page(experiments: Mapping[str, str], studies: Mapping[str, str]) -> str:
    lines = ["# All experiments", "", "`orrery run EXPERIMENT`:", ""]
    lines += [f"- [{name}]({name}.md): {_escape(text)}" for name, text in experiments.items()]
    lines += ["", "`orrery study STUDY`:", ""]
    lines += [f"- [{name}](../studies/{name}.md): {_escape(text)}" for name, text in studies.items()]
    return "\n".join([*lines, ""])


def _inputs(stage: type[Stage], stages: Mapping[str, type[Stage]]) -> str:
    if not stage.inputs:
        return "None."
    rows = ["| input | artifact | produced by |", "|---|---|---|"]
    for name, one in stage.inputs.items():
        makers = ", ".join(f"[{other}]({other}.md)" for other, maker in stages.items() if maker.output_kind == one.kind)
        notes = [text for text, holds in (("optional", one.optional), ("all of the run", one.many)) if holds]
        kind = f"{one.kind} ({', '.join(notes)})" if notes else one.kind
        rows.append(f"| `{name}` | {kind} | {makers or '-'} |")
    names = next(iter(stage.inputs))
    return "\n".join(rows) + f"\n\nUse an external artifact with `inputs.{names}=FOLDER`."


def _output(name: str, stage: type[Stage], stages: Mapping[str, type[Stage]]) -> str:
    readers = [
        other for other, reader in stages.items() if stage.output_kind in {one.kind for one in reader.inputs.values()}
    ]
    read = ", ".join(f"[{other}]({other}.md)" for other in readers)
    return f"`RUN/{name}/`, an artifact of kind {stage.output_kind}{f', read by {read}' if read else ''}."


def _settings(name: str, stage: type[Stage]) -> Iterator[str]:
    """A table per nested group of keys, with the text of the field that holds the group."""
    keys = default_keys(name, stage)
    if not keys:
        yield "None."
    base = yaml.safe_load((CONFIG_DIR / "base.yaml").read_text(encoding="utf-8"))
    bound = {f"{name}.{key}": str(value)[2:-1] for key, value in base.get(name, {}).items() if "${" in str(value)}
    if bound:
        same = ", ".join(f"`{key}` from `{source}`" for key, source in bound.items())
        yield f"Default to keys of the run: {same}."
    groups: dict[str, list[Key]] = {name: []}  # the stage's own keys before those of its parts
    for key in keys:
        groups.setdefault(key.name.rpartition(".")[0], []).append(key)
    for group, members in groups.items():
        if members:
            yield f"### `{group}`" if len(groups) > 1 else ""
            yield _table(members)


def _table(keys: Sequence[Key], value: str = "default") -> str:
    if not keys:
        return "Nothing."
    rows = [f"| key | {value} | meaning |", "|---|---|---|"]
    for key in keys:
        meaning = _escape(key.meaning)
        rows.append(f"| `{key.name}` | `{_cell(shortened(key.value))}` | {meaning} *{_escape(key.type)}* |")
    return "\n".join(rows)


CHECKS = ("check", "check_machine", "check_input", "check_inputs")


def _error_sections(stage: type[Stage]) -> Iterator[str]:
    """Errors of a stage: in its settings, before the run, while it runs, and of the modules it uses."""
    own = importlib.import_module(stage.__module__)
    configs = {cls.__name__: cls for cls in _config_classes(stage.Config)}
    found: list[tuple[str, Raised]] = []
    for cls in configs.values():
        path = Path(inspect.getfile(cls))
        found += [(cls.__name__, one) for one in raised_errors(path) if one.where.split(".")[0] == cls.__name__]
    yield from _errors("Invalid settings", [one for _, one in found])
    others = [one for one in raised_errors(Path(str(own.__file__))) if one.where.split(".")[0] not in configs]
    early = [one for one in others if one.where.split(".")[-1] in CHECKS]
    yield from _errors("Before anything runs", early)
    yield from _errors("While it runs", [one for one in others if one not in early])
    for module, path in used_modules(stage).items():
        messages = [one for one in raised_errors(path) if one.where.split(".")[0] not in configs]
        yield from _errors(f"From {module}", messages, folded=True)
    if not found and not others:
        yield "Only wrong types and unknown keys, as for every stage."


def _config_classes(cls: type) -> Iterator[type]:
    """A config dataclass and those nested in it."""
    yield cls
    hints = inspect.get_annotations(cls, eval_str=True)
    for hint in hints.values():
        for inner in (hint, *getattr(hint, "__args__", ())):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _config_classes(inner)


def _errors(title: str, found: Sequence[Raised], folded: bool = False) -> Iterator[str]:
    if not found:
        return
    lines = [f"- **{one.error}** {_escape(one.message)}" for one in dict.fromkeys(found)]
    if folded:
        body = "\n".join(f"    {line}" for line in lines)
        yield f'??? note "{title} ({len(lines)})"\n\n{body}'
    else:
        yield f"### {title}\n\n" + "\n".join(lines)


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
