"""What `orrery study` prints: the list of studies, the tree of one, its progress, how far it is, and how it ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ..logging import duration
from ..plan import Decision, start_line
from ..run_folder import RUN_FILE, lock_holder
from ..runner import Outcome, end_line
from ..stage import Stage
from ..status import read_run_file
from ..termination import EXIT_UNFINISHED
from .config import Study, list_studies
from .plan import plan_branches
from .study import (
    PAGE,
    TABLE,
    BranchResult,
    StudyObserver,
    compare_again,
    prepare_study,
    read_study_file,
    run_branches,
)
from .tree import COMPARE_STAGE, Branch, Layout

USAGE = "usage: orrery study STUDY [run_dir=PATH] [key=value ...] [grid.KEY=[value,...]] [--plan]\n"
EXAMPLES = """\
orrery study regularisation --plan
orrery study regularisation run_dir=runs/regularisation seeds=3
orrery study regularisation grid.extract.first_order.horizon=[4,16] grid.seed=[0,1,2]
orrery study mine.yaml tasks=[dmc/cartpole-swingup]"""

WIDTH = 10
"""Of most stages' names."""

EXIT_BUG = 1
EXIT_USER_ERROR = 2


def study_help(config_dir: Path) -> RenderableType:
    """What can follow `orrery study`."""
    table = Table.grid(padding=(0, 2))
    for name, description in list_studies(config_dir).items():
        table.add_row(f"  {name}", Text(description))
    return Group(
        Text(USAGE),
        Text(
            "Runs an experiment in several variants; what they share runs once. After an interruption the same\n"
            "command continues. key=value counts for all variants; grid.KEY=[value,...] sets what they are made of,\n"
            "and grid.seed=[0,1,2] repeats everything, data and model included.\n\n"
            "STUDY is one of the following, or the path of your own .yaml file. In it `experiment` is what is varied\n"
            "(a name or a .yaml file), `overrides` what all variants share (a list of key=value), and `grid` (lists\n"
            "of values by key: every combination) or `variants` (lists of key=value by name) what they differ in.\n"
        ),
        Text("Studies", style="bold"),
        table,
        Text("\nExamples", style="bold"),
        Text("\n".join(f"  {line}" for line in EXAMPLES.splitlines())),
    )


def plan_study(
    source: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path, console: Console
) -> int:
    """Show the tree of a study and what is up to date in it."""
    study, layout = prepare_study(source, overrides, stages, config_dir)
    console.print(Text(_title(study, layout)), soft_wrap=True)
    console.print(_tree(layout, plan_branches(study, layout, stages)), soft_wrap=True)
    _print_same(layout, console)
    return 0


def run(
    source: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path, console: Console
) -> int:
    """Run a study and return the exit code of the command."""
    study, layout = prepare_study(source, overrides, stages, config_dir)
    console.print(Text(_title(study, layout)), soft_wrap=True)
    _print_same(layout, console)
    started = time.monotonic()
    results = run_branches(study, layout, stages, console, _Printer(console, len(layout.branches)))
    if all(result.status == "fresh" for result in results.values()):
        console.print("nothing to do: every variant is up to date")
    else:
        console.print(f"ended after {duration(time.monotonic() - started)}")
    return _conclude(study, results, console)


def report(folder: Path, stages: Mapping[str, type[Stage]], config_dir: Path, console: Console) -> int:
    """Make the comparison of a study again, from what it has so far."""
    record = read_study_file(folder)
    study, layout = prepare_study(record["source"], [*record["overrides"], f"run_dir={folder}"], stages, config_dir)
    result = compare_again(study, layout, stages, console, _Printer(console, len(layout.branches)))
    return _conclude(study, {COMPARE_STAGE: result}, console)


def describe_study(folder: Path) -> RenderableType:
    """How far each branch of a study is, and what it found."""
    record, holder = read_study_file(folder), lock_holder(folder)
    state = f"running, {holder}" if holder else "not running"
    table = Table("run", "stages", "status", "time", "result", box=None, pad_edge=False)
    for branch in record["branches"]:
        table.add_row(*_status_row(folder, branch))
    finished = {branch["name"] for branch in record["branches"] if branch["status"] in ("fresh", "done")}
    complete = sum(finished.issuperset(variant["branches"]) for variant in record["variants"])
    head = f"study {record['name']} in {folder}: {state}, {complete} of {len(record['variants'])} variants complete"
    parts: list[RenderableType] = [Text(head), table]
    if (page := folder / COMPARE_STAGE / PAGE).is_file():
        parts.append(Text(f"comparison: {page}"))
    return Group(*parts)


class _Printer(StudyObserver):
    """A line for each branch that has something to do, and below it one for each stage that starts or ends."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._number = 0
        self._branch: Branch | None = None

    def on_branch(self, branch: Branch) -> None:
        self._number += 1
        self._branch = branch

    def on_start(self, decision: Decision) -> None:
        self._head()
        if decision.stage == COMPARE_STAGE:  # what it has that it had not before is a list of all artifacts
            decision = replace(decision, reason="")
        self._print(Text.assemble("  ", start_line(decision)))

    def on_end(self, outcome: Outcome) -> None:
        if outcome.status != "fresh":
            self._print(Text.assemble("  ", end_line(outcome)))

    def on_result(self, branch: Branch, result: BranchResult) -> None:
        if result.status not in ("fresh", "done"):
            self._head()
            self._print(Text(f"  {result.status}: {result.reason}", style="yellow" if not result.bug else "red"))
        self._branch = None

    def _head(self) -> None:
        """Once per branch, when it turns out that there is something to say."""
        if self._branch is not None:
            self._print(Text(f"[{self._number}/{self._total}] {self._branch.name}", style="bold"))
            self._branch = None

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _title(study: Study, layout: Layout) -> str:
    return (
        f"study {study.name}: {len(layout.variants)} variants of {study.experiment} in {len(layout.branches)} runs, "
        f"in {study.run_dir}"
    )


def _print_same(layout: Layout, console: Console) -> None:
    for names in layout.same:
        console.print(Text(f"the same work: {' = '.join(names)}", style="yellow"), soft_wrap=True)


def _tree(layout: Layout, decisions: Mapping[str, Sequence[Decision]]) -> Tree:
    root = Tree("", hide_root=True)
    nodes: dict[str | None, Tree] = {None: root}
    for branch in layout.branches:
        label = Text.assemble((branch.name, "bold"))
        for action, group in itertools.groupby(decisions[branch.name], key=lambda decision: decision.action):
            own = list(group)
            word = own[0].would if action == "fresh" else f"would {own[0].would}"
            reason = f" ({own[0].reason})" if own[0].reason else ""
            stages = ", ".join(decision.stage for decision in own)
            label.append(f"\n{stages}: {word}{reason}", style="dim" if action == "fresh" else "")
        nodes[branch.name] = nodes[branch.parent].add(label)
    return root


def _conclude(study: Study, results: Mapping[str, BranchResult], console: Console) -> int:
    """List what is not finished and say where the results are; returns the exit code."""
    unfinished = {name: result for name, result in results.items() if result.status not in ("fresh", "done")}
    if unfinished:
        console.print(Text(f"not finished: {len(unfinished)} of {len(results)} runs", style="bold yellow"))
    for name, result in unfinished.items():
        console.print(Text(f"  {name}: {result.status}, {result.reason}"), soft_wrap=True)
    folder = study.run_dir / COMPARE_STAGE
    if (folder / TABLE).is_file():
        console.print(Text(f"table: {folder / TABLE}\ncomparison: {folder / PAGE}"), soft_wrap=True)
    else:
        console.print(Text(f"study folder: {study.run_dir}"), soft_wrap=True)
    failed = [result for result in unfinished.values() if result.status == "failed"]
    if not failed:
        return EXIT_UNFINISHED if unfinished else 0
    return EXIT_BUG if any(result.bug for result in failed) else EXIT_USER_ERROR


def _status_row(folder: Path, branch: Mapping[str, str | list[str]]) -> tuple[str | Text, ...]:
    name, status = str(branch["name"]), str(branch["status"])
    stages, run_dir = ", ".join(branch["stages"]), folder / name
    if not (run_dir / RUN_FILE).is_file():
        return Text(name), stages, status, "", Text(str(branch["reason"]))
    outcomes = read_run_file(run_dir)["stages"]
    finished = [one for one in outcomes if one["status"] in ("fresh", "done")]
    if lock_holder(run_dir):
        status = "running"
    elif status == "waiting" and (last := next((one for one in outcomes if one not in finished), None)):
        status = "interrupted" if last["status"] == "interrupted" else status
    if len(finished) < len(outcomes):
        status += f" ({len(finished)} of {len(outcomes)} stages)"
    result = str(branch["reason"]) or (finished[-1]["summary"] if finished else "")
    return Text(name), stages, status, duration(sum(one["seconds"] for one in finished)), Text(result)
