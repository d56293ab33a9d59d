"""`orrery study` and `orrery iterate`: their help, plan, progress and status, and how they end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..config.load import describe_files
from ..errors import EXIT_BUG, EXIT_USER_ERROR
from ..lock import lock_holder
from ..logging import duration
from ..run_folder import RUN_FILE
from ..stage import Stage
from ..status import read_run_file
from ..tables import rows_table
from ..termination import EXIT_UNFINISHED
from .config import Series, prepare_study
from .rounds import load_rounds
from .study import (
    COMPARE_STAGE,
    TABLE,
    WORDS,
    Result,
    compare_again,
    plan_series,
    print_head,
    read_record,
    results_text,
    run_series,
)

LOAD = {"study": prepare_study, "iterate": load_rounds}

HELP = {
    "study": (
        """\
usage: orrery study STUDY [run_dir=PATH] [key=value ...] [grid.KEY=[value,...]] [--plan] [--from STAGE | --force]

Run an experiment in several variants. Each variant is a run in RUN_DIR/VARIANT (default: runs/STUDY/VARIANT), and
RUN_DIR/compare/study.html compares them. Stages that variants share run once; after an interruption, the same command
continues. key=value applies to all variants; grid.KEY=[value,...] runs a variant per value of a key;
grid.seed=[0,1,2] repeats everything, data and models included. --plan only shows what would run. --from STAGE reruns
that stage and all later ones of every variant, --force all stages; what variants share is rerun once.

STUDY is one of the following, or the path of your own .yaml file. Its keys: `experiment` (a name or a .yaml file),
`overrides` (a list of key=value for all variants), and `grid` (lists of values by key: every combination) or
`variants` (lists of key=value by name).
""",
        """
  orrery study regularisation --plan
  orrery study regularisation run_dir=runs/regularisation seeds=3
  orrery study regularisation grid.extract.first_order.horizon=[4,16] grid.seed=[0,1,2]
  orrery study mine.yaml tasks=[dmc/cartpole-swingup]""",
    ),
    "iterate": (
        """\
usage: orrery iterate EXPERIMENT [rounds=N] [run_dir=PATH] [key=value ...] [later.key=value ...] [--plan]
                      [--from STAGE | --force]

Run an experiment in rounds. Each round after the first collects with the policies of the previous one, adds the
episodes to all data so far, and trains again. Rounds are runs in RUN_DIR/round_0, RUN_DIR/round_1 and so on; after an
interruption, the same command continues. The experiment must collect data and train policies. key=value applies to
all rounds. --plan only shows what would run. --from STAGE reruns that stage and all later ones of every round, --force
all stages. `orrery run --help` lists experiments.

  rounds      Number of rounds, including the first; a larger number adds rounds. Default: 3.
  later.KEY   A key of the experiment in all rounds but the first, such as later.collect.episodes=20.
  warm_start  Start each round's pretraining from the model of the previous round. Default: false.
  policies    Stage whose policies collect. Default: the first that trains policies.
  run_dir     Folder of all rounds. Default: runs/EXPERIMENT_rounds.
""",
        """
  orrery iterate iterate_cartpole
  orrery iterate iterate_cartpole rounds=5 later.collect.episodes=20 later.pretrain.steps=500 warm_start=true
  orrery iterate quickstart --plan
  orrery iterate quickstart later.collect.policy_noise=[0,0.2] later.collect.policy_algorithm=svg""",
    ),
}
"""Usage and examples by command."""


def series_help(command: str, config_dir: Path) -> RenderableType:
    """What can follow `orrery study` or `orrery iterate`."""
    usage, examples = HELP[command]
    studies = describe_files(config_dir / "studies") if command == "study" else {}
    table = Table.grid(padding=(0, 2))
    for name, text in studies.items():
        table.add_row(f"  {name}", Text(text))
    listed: list[RenderableType] = [Text("Studies", style="bold"), table, Text("")] if studies else []
    return Group(Text(usage), *listed, Text("Examples", style="bold"), Text(examples[1:]))


def show_plan(series: Series, stages: Mapping[str, type[Stage]], console: Console) -> int:
    """Print what each variant would do, and return the exit code of the command."""
    plans = plan_series(series, stages)
    print_head(series, plans, console)
    table = Table(WORDS[series.command], "stages", "action", "reason", box=None, pad_edge=False)
    for variant in series.variants:
        label, decisions = variant.name, plans[variant.name]
        if decisions is None:
            table.add_row(Text(label), "", "", f"it waits for {variant.reads_from}")
        for _, group in itertools.groupby(decisions or (), key=lambda one: (one.would, one.waits or one.reason)):
            own = list(group)
            table.add_row(Text(label), ", ".join(one.stage for one in own), own[0].would, Text(own[0].reason))
            label = ""
    console.print(table)
    return 0


def run(series: Series, stages: Mapping[str, type[Stage]], console: Console) -> int:
    """Run a series and return the exit code of the command."""
    started = time.monotonic()
    results = run_series(series, stages, console)
    if all(result.status == "fresh" for result in results.values()):
        console.print(f"nothing to do: every {WORDS[series.command]} is up to date")
    else:
        console.print(f"ended after {duration(time.monotonic() - started)}")
    return _conclude(series, results, console)


def report(folder: Path, stages: Mapping[str, type[Stage]], config_dir: Path, console: Console) -> int:
    """Make the comparison of a series again, from what it has so far."""
    record = read_record(folder)
    series = LOAD[record.command](record.source, [*record.overrides, f"run_dir={folder}"], stages, config_dir)
    return _conclude(series, compare_again(series, stages, console), console)


def read_study_status(folder: Path) -> dict[str, Any]:
    """How far each variant or round is, and what came of it."""
    record = read_record(folder)
    return {
        "folder": str(folder),
        "name": record.name,
        "command": record.command,
        "running": lock_holder(folder),
        "variants": [{"name": name} | _status(folder / name, one) for name, one in record.variants.items()],
        "complete": sum(result.complete for result in record.variants.values()),
        "table": str(table) if (table := folder / COMPARE_STAGE / TABLE).is_file() else None,
    }


def describe_study(status: Mapping[str, Any]) -> RenderableType:
    """What `read_study_status` returns, for people."""
    word, rows = WORDS[status["command"]], status["variants"]
    state = f"running, {status['running']}" if status["running"] else "not running"
    complete = f"{status['complete']} of {len(rows)} {word}s complete"
    shown = [{word: row["name"]} | {key: value for key, value in row.items() if key != "name"} for row in rows]
    head = Text(f"{status['name']} in {status['folder']}: {state}, {complete}")
    return Group(head, rows_table(shown), results_text(Path(status["folder"])))


def _status(run_dir: Path, result: Result) -> dict[str, Any]:
    """Status, seconds and result of a variant."""
    if not (run_dir / RUN_FILE).is_file():
        return {"status": result.status, "seconds": 0.0, "result": result.reason}
    outcomes, status = read_run_file(run_dir)["stages"], result.status
    finished = [one for one in outcomes if one["status"] in ("fresh", "reused", "done")]
    if lock_holder(run_dir):
        status = "running"
    elif status == "waiting" and any(one["status"] == "interrupted" for one in outcomes):
        status = "interrupted"
    return {
        "status": f"{status} ({len(finished)} of {len(outcomes)} stages)",
        "seconds": sum(one["seconds"] for one in finished if one["status"] != "reused"),
        "result": result.reason or (finished[-1]["summary"] if finished else ""),
    }


def _conclude(series: Series, results: Mapping[str, Result], console: Console) -> int:
    """List what is not finished and say where the results are; returns the exit code."""
    unfinished = {name: result for name, result in results.items() if not result.complete}
    lines = [f"  {name}: {result.status}, {result.reason}" for name, result in unfinished.items()]
    if lines:
        console.print(Text(f"not finished: {len(lines)} of {len(results)}", style="bold yellow"))
        console.print(Text("\n".join(lines)), soft_wrap=True)
    console.print(results_text(series.run_dir), soft_wrap=True)
    failed = [result for result in unfinished.values() if result.status == "failed"]
    if not failed:
        return EXIT_UNFINISHED if unfinished else 0
    return EXIT_BUG if any(result.bug for result in failed) else EXIT_USER_ERROR
