"""The stage export_tdmpc2."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.stage import Context, Input, Stage
from .config import ExportTdmpc2Config
from .facts import ModelFacts, read_model_facts
from .tdmpc2_limits import check_tdmpc2_can_hold

FILE = "model.pt"


class ExportTdmpc2(Stage):
    """Convert a world model into a checkpoint for TD-MPC2's own code, bit for bit."""

    Config = ExportTdmpc2Config
    inputs = {"world_model": Input("world_model", facts=read_model_facts)}
    output_kind = "tdmpc2_checkpoint"
    config: ExportTdmpc2Config

    def check_input(self, name: str, folder: Path, facts: ModelFacts | None) -> None:
        if facts is None:
            return
        facts.check_single("export_tdmpc2", folder)
        facts.check_predicts("latents", "export_tdmpc2", folder)
        if facts.config is not None:
            scaled = facts.config.normalize_observations
            check_tdmpc2_can_hold(facts.config, f"the world model in {folder}", scaled=scaled)

    def run(self, context: Context) -> str:
        from .networks import WorldModel
        from .tdmpc2_checkpoint import save_tdmpc2

        model = WorldModel.load(context.input("world_model"), frozen=False)
        save_tdmpc2(model, context.folder / FILE, self.config.form)
        config = model.config
        settings = {
            "num_enc_layers": config.encoder_layers,
            "enc_dim": config.encoder_dim,
            "mlp_dim": config.mlp_dim,
            "latent_dim": config.latent_dim,
            "task_dim": config.task_dim,
            "num_q": config.num_q,
            "simnorm_dim": config.simnorm_dim,
            "num_bins": config.num_bins,
            "vmin": f"{-config.bin_limit:g}",
            "vmax": f"{config.bin_limit:g}",
            "log_std_min": f"{config.log_std_min:g}",
            "log_std_max": f"{config.log_std_max:g}",
        }
        context.log.info(
            "TD-MPC2's settings for it: %s", " ".join(f"{name}={value}" for name, value in settings.items())
        )
        return f"{(context.folder / FILE).stat().st_size / 2**20:,.1f} MiB, {self.config.form} format"
