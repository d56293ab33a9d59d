"""The stage gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipeline.errors import ConfigError
from ...pipeline.stage import Context, Input, Stage
from ..world_model.facts import read_model_facts
from .config import GradientsConfig

if TYPE_CHECKING:
    import torch

    from ...datasets.store import TaskStore


class Gradients(Stage):
    """Measure how gradients through the world model grow with the horizon.

    `gradients.csv` has these columns. norm: median over trajectories of |d x_t / d a_1|, where x is the observation of
    a sequence model (environment units, without time) or the latent of a latent model. return_norm: the same for the
    sum of predicted rewards up to t. sign_changes: sign changes of that gradient as the first action moves across its
    range, mean over four trajectories; measures how rough the landscape is. r2: open-loop R^2, on episodes held out
    from training, of observations or, for a latent model, of the reward. cosine: median cosine similarity to the
    simulator's Jacobian, if there is a simulator. Each trajectory counts up to the end of its episode.
    """

    Config = GradientsConfig
    inputs = {"world_model": Input("world_model", facts=read_model_facts), "store": Input("store")}
    output_kind = "gradients"
    run_keys = ("seed",)
    config: GradientsConfig

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name == "world_model" and facts is not None:
            facts.check_single("gradients", folder)

    def run(self, context: Context) -> str:
        import pandas as pd
        import torch

        from ...datasets.store import TaskStore
        from ...datasets.tables import check_same_tables
        from ..figures.drawing import save_svg
        from ..sequence_model.kinds import load_model
        from ..world_model.facts import held_out_share
        from ..world_model.networks import WorldModel
        from .figures import draw_growth
        from .gradient_record import record_latent, record_sequence

        torch.set_num_threads(context.threads)
        folder = context.input("world_model")
        store = TaskStore.open(context.input("store"))
        is_sequence = (folder / "sequence_model.json").is_file()
        model: Any = load_model(folder) if is_sequence else WorldModel.load(folder)
        check_same_tables(model.table, store.table, context)
        held_out = held_out_share(folder)
        if held_out is None:
            context.log.warning("gradients: the model does not record its held-out episodes; r2 uses all episodes")
        names = self.config.tasks or list(store.table.names)
        rows: list[dict[str, Any]] = []
        with context.progress("gradients", total=len(names)) as progress:
            for name in names:
                k = store.table.id_of(name)
                horizons = self._horizons(store, k, model.config.longest_prediction())
                batch = self._windows(store, name, max(horizons), 0.0)
                unseen = self._windows(store, name, max(horizons), held_out or 0.0)
                generator = torch.Generator().manual_seed(self.config.seed)
                if is_sequence:
                    found = record_sequence(model, k, batch, unseen, horizons)
                else:
                    found = record_latent(model, k, batch, unseen, horizons, self.config.probes, generator)
                rows += [{"task": name, **row} for row in found]
                figure = draw_growth(
                    {name: torch.tensor([row["norm"] for row in found])},
                    horizons,
                    {name: torch.tensor([row["r2"] for row in found])},
                )
                save_svg(figure, context.folder / f"{store.table[k].slug}.svg")
                progress.advance(1)
        table = pd.DataFrame(rows)
        table.to_csv(context.folder / "gradients.csv", index=False)
        last = table[table.horizon == table.horizon.max()]
        return (
            f"norm {last.norm.median():.3g}, R2 {last.r2.median():.2f} at {int(table.horizon.max())} steps (medians "
            "over tasks)"
        )

    def _horizons(self, store: TaskStore, k: int, limit: int | None) -> tuple[int, ...]:
        longest = int(store.tasks[k].lengths.max())
        reach = longest if limit is None else min(limit, longest)
        if not (kept := tuple(sorted(horizon for horizon in set(self.config.horizons) if horizon <= reach))):
            raise ConfigError(
                f"gradients.horizons: task {store.table[k].name!r} allows at most {reach} steps (its longest episode "
                f"has {longest}), found {self.config.horizons}"
            )
        return kept

    def _windows(self, store: TaskStore, name: str, length: int, held_out: float) -> dict[str, torch.Tensor]:
        """Windows of the held-out episodes; of all where `held_out` is 0 or there is one. Shorter than `length` where
        those episodes are."""
        from ...datasets.windows import Split, WindowIndex, WindowSampler

        rows = store.rows_of(name)
        unseen = rows.held_out(held_out)
        split: Split = "held_out" if unseen.any() else "all"
        length = min(length, int(rows.lengths[unseen if unseen.any() else ~unseen].max()))
        available = int(WindowIndex.build([rows], length, split, held_out).counts[0])
        weights = {other: float(other == name) for other in store.table.names}
        batch = WindowSampler(
            store,
            length=length,
            batch_size=min(self.config.trajectories, available),
            seed=self.config.seed,
            weights=weights,
            split=split,
            held_out=held_out,
        ).batch(0)
        return {key: batch[key] for key in ("observation", "action", "reward", "valid")}
