"""The stage bpo_online."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.tasks import resolve_name, task_spec
from ...pipeline.artifact import write_json
from ...pipeline.errors import ConfigError
from ...pipeline.reading import read_made
from ...pipeline.stage import Context, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from .config import BpoOnlineConfig


class BpoOnline(Stage):
    """Learn a sequence model and a policy together, online, in one environment (Ma et al.). Needs no data.

    There is one run per task and seed; finished runs are kept if the stage is interrupted.
    """

    Config = BpoOnlineConfig
    output_kind = "policies"
    algorithms = ("bpo_online",)
    config: BpoOnlineConfig

    def check(self) -> None:
        if not self.config.tasks:
            raise ConfigError("bpo_online.tasks is empty: name a task, for example tasks=[myriad/cancer]")
        for name in self.config.tasks:
            if not resolve_name(name).startswith("myriad/"):
                raise ConfigError(f"bpo_online.tasks: {name!r} is not of the suite myriad, which bpo_online requires")

    def run(self, context: Context) -> str:
        import pandas as pd
        import torch

        config = self.config
        torch.set_num_threads(context.threads)
        specs = [task_spec(resolve_name(name)) for name in config.tasks]
        total = sum(config.online.steps // spec.episode_length * spec.episode_length for spec in specs)
        entries, curves = [], []
        with context.progress("bpo_online", total=total * config.seeds) as progress:
            for spec in specs:
                for seed in range(config.seeds):
                    finished = self._one(context.folder, spec, seed, progress)
                    entries.append(finished["policy"])
                    curves += finished["curves"]
        write_index(context.folder, specs, entries)
        pd.DataFrame(curves).to_csv(context.folder / "training.csv", index=False)
        for record in context.folder.glob("finished_*.json"):
            record.unlink()
        return (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(len(specs), 'task')}, "
            f"{config.online.steps:,} steps each"
        )

    def _one(self, folder: Path, spec: Any, seed: int, progress: Any) -> dict[str, Any]:
        from .online import OnlineLoop
        from .policy import StatePolicy

        config = self.config
        record = folder / f"finished_{spec.slug}_{seed}.json"
        if record.is_file():
            progress.advance(config.online.steps // spec.episode_length * spec.episode_length)
            return dict(read_made(record, dict[str, Any]))
        algorithm = f"bpo_online_{config.model.kind}"
        progress.note(f"{algorithm} {spec.name}")
        loop = OnlineLoop(spec, config.model, config.online, config.seed + seed)
        rows = loop.run(progress.advance)
        trained_by = {"algorithm": algorithm, "seed": seed}
        entry = policy_entry(algorithm, spec, seed, imagined_return=loop.imagined_return())
        StatePolicy.from_member(loop.policy, 0, spec, config.online.bpo.units, trained_by).save(folder / entry["path"])
        finished = {
            "policy": entry,
            "curves": [
                {"iteration": row.pop("steps"), "algorithm": algorithm, "task": spec.name, "seed": seed, **row}
                for row in rows
            ],
        }
        write_json(record, finished)
        return finished
