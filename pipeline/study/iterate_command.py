"""What `orrery iterate` prints: its help, a plan, the progress of every round, and the scores round by round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import artifact
from ..logging import duration
from ..plan import Decision, start_line
from ..run_folder import RUN_FILE, lock_holder
from ..runner import Outcome, end_line
from ..stage import Stage
from ..status import read_run_file
from .iterate import (
    COLLECT,
    Iteration,
    folder_of,
    load_iteration,
    plan_rounds,
    read_iteration_file,
    run_rounds,
)
from .study import PAGE, TABLE, read_study
from .tree import COMPARE_STAGE

USAGE = "usage: orrery iterate EXPERIMENT [rounds=N] [run_dir=PATH] [key=value ...] [later.key=value ...] [--plan]\n"
KEYS = {
    "rounds": "How many, the first included. A larger number adds rounds to those that are there. 3",
    "later.KEY": "A key of the experiment in all rounds but the first, such as later.collect.episodes=20.",
    "warm_start": "Pretrain each model from that of the round before. false",
    "policies": "Stage whose policies collect, where several make some. The first of them",
    "run_dir": "Folder of all rounds. runs/EXPERIMENT_rounds",
}
EXAMPLES = """\
orrery iterate iterate_cartpole
orrery iterate iterate_cartpole rounds=5 later.collect.episodes=20 later.pretrain.steps=500 warm_start=true
orrery iterate quickstart --plan
orrery iterate quickstart later.collect.policy_noise=[0,0.2] later.collect.policy_algorithm=pwm"""


def iterate_help() -> RenderableType:
    """What can follow `orrery iterate`."""
    keys = Table.grid(padding=(0, 2))
    for key, text in KEYS.items():
        keys.add_row(f"  {key}", Text(text))
    return Group(
        Text(USAGE),
        Text(
            "Runs an experiment in rounds. Each after the first collects with the policies of the one before, adds\n"
            "that to all data so far, and trains anew. Rounds are ordinary runs in RUN/round_0, RUN/round_1 and so\n"
            "on: those that are up to date are skipped, and after an interruption the same command continues. The\n"
            "experiment has to collect and to make policies; key=value counts for all rounds. `orrery run --help`\n"
            "lists experiments.\n"
        ),
        Text("Keys of its own", style="bold"),
        keys,
        Text("\nExamples", style="bold"),
        Text("\n".join(f"  {line}" for line in EXAMPLES.splitlines())),
    )


def plan(
    experiment: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path, console: Console
) -> int:
    """Show what each round would do."""
    iteration = load_iteration(experiment, overrides, stages, config_dir)
    table = Table("round", "stage", "action", "reason", box=None, pad_edge=False)
    for number, decisions in enumerate(plan_rounds(iteration, stages)):
        if decisions is None:
            table.add_row(folder_of(number), "", "", f"it waits for {folder_of(number - 1)}")
        for index, decision in enumerate(decisions or ()):
            label = folder_of(number) if index == 0 else ""
            table.add_row(label, decision.stage, decision.would, Text(decision.reason))
    console.print(table)
    return 0


def run(
    experiment: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]], config_dir: Path, console: Console
) -> int:
    """Run all rounds and return the exit code of the command."""
    iteration = load_iteration(experiment, overrides, stages, config_dir)
    printer = _Printer(console, iteration)
    started = time.monotonic()
    if run_rounds(iteration, stages, console, printer.on_round, printer.on_start, printer.on_end):
        console.print(f"done in {duration(time.monotonic() - started)}")
    else:
        console.print("nothing to do: every round is up to date")
    if (scores := score_table(iteration.run_dir)) is not None:
        console.print(scores)
        folder = iteration.run_dir / COMPARE_STAGE
        console.print(Text(f"table: {folder / TABLE}\ncomparison: {folder / PAGE}"), soft_wrap=True)
    else:
        console.print(Text(f"folder: {iteration.run_dir}"), soft_wrap=True)
    return 0


def score_table(run_dir: Path) -> Table | None:
    """Mean score over tasks with its 95% interval, by round and algorithm; None before the first evaluation."""
    if not (run_dir / COMPARE_STAGE / TABLE).is_file():
        return None
    frame = read_study(run_dir)
    means = frame[frame["row"] == "mean"]
    if means.empty:
        return None
    algorithms = list(dict.fromkeys(means["algorithm"]))
    table = Table("round", *algorithms, "data", box=None, pad_edge=False)
    for variant, rows in means.groupby("variant", sort=False):
        own = frame[(frame["row"] == "task") & (frame["variant"] == variant)]
        returns = {name: runs["return_mean"].dropna().tolist() for name, runs in own.groupby("algorithm")}
        cells = {row.algorithm: _estimate(row, returns.get(row.algorithm, [])) for row in rows.itertuples()}
        table.add_row(str(variant), *(cells.get(name, "") for name in algorithms), _data(run_dir / str(variant)))
    return table


def describe_iteration(run_dir: Path) -> RenderableType:
    """How far each round is, and the scores so far."""
    record, holder = read_iteration_file(run_dir), lock_holder(run_dir)
    state = f"running, {holder}" if holder else "not running"
    table = Table("round", "status", "time", "result", box=None, pad_edge=False)
    for number in range(int(str(record["rounds"]))):
        folder = run_dir / folder_of(number)
        if not (folder / RUN_FILE).is_file():
            table.add_row(folder.name, "waiting", "", "")
            continue
        outcomes = read_run_file(folder)["stages"]
        finished = [one for one in outcomes if one["status"] in ("fresh", "done")]
        seconds = duration(sum(one["seconds"] for one in finished))
        result = finished[-1]["summary"] if finished else ""
        table.add_row(folder.name, f"{len(finished)} of {len(outcomes)} stages", seconds, Text(result))
    head = Text(f"{record['experiment']} in {record['rounds']} rounds in {run_dir}: {state}")
    scores = score_table(run_dir)
    return Group(head, table) if scores is None else Group(head, table, Text(""), scores)


def _estimate(row: Any, returns: Sequence[float]) -> str:
    """Score with interval; without a score the return, or the range of returns over tasks."""
    if row.score == row.score:
        return f"{row.score:.3f}" if row.low != row.low else f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
    ends = dict.fromkeys(f"{end:.4g}" for end in (min(returns), max(returns))) if returns else ()
    return f"no score, return {' to '.join(ends)}" if ends else "no score"


def _data(round_dir: Path) -> str:
    """What the round's store holds, as its stage says it."""
    for folder in round_dir.glob(f"*/{artifact.MANIFEST}"):
        manifest = artifact.read_manifest(folder.parent)
        if manifest is not None and manifest.kind == "store":
            return manifest.summary
    return ""


class _Printer:
    """A line for each round that has something to do, and below it one for each stage that starts or ends."""

    def __init__(self, console: Console, iteration: Iteration) -> None:
        self._console, self._iteration = console, iteration
        self._width = max(len(name) for name in iteration.rounds[0].settings.stages)
        self._head: str | None = None

    def on_round(self, number: int) -> None:
        total = len(self._iteration.rounds)
        before = f", with policies of {folder_of(number - 1)}/{self._iteration.policies}" if number else ""
        episodes = getattr(self._iteration.rounds[number].stage_configs[COLLECT], "episodes", None)
        collected = f": {episodes} episodes per task{before}" if episodes is not None else ""
        self._head = f"{folder_of(number)} ({number + 1} of {total}){collected}"

    def on_start(self, decision: Decision) -> None:
        if self._head is not None:
            self._console.print(Text(self._head, style="bold"), soft_wrap=True)
            self._head = None
        self._console.print(Text.assemble("  ", start_line(decision)), soft_wrap=True)

    def on_end(self, outcome: Outcome) -> None:
        if outcome.status != "fresh":
            self._console.print(Text.assemble("  ", end_line(outcome)), soft_wrap=True)
