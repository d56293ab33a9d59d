"""The stage export_tdmpc2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...pipeline.errors import CheckpointError
from ...pipeline.stage import Context, Input, Stage
from ..pretrain.config import PretrainConfig
from .config import ExportTdmpc2Config
from .tdmpc2_limits import check_tdmpc2_can_hold

FILE = "model.pt"


class ExportTdmpc2(Stage):
    """Convert a world model into a checkpoint for TD-MPC2's own code, bit for bit."""

    Config = ExportTdmpc2Config
    inputs = {"world_model": Input("world_model")}
    output_kind = "tdmpc2_checkpoint"
    config: ExportTdmpc2Config

    def check_input(self, name: str, folder: Path, maker: Any) -> None:
        if not isinstance(maker, PretrainConfig):
            return
        if maker.world_model == "sequence":
            raise CheckpointError(
                "export_tdmpc2 needs a latent world model, but pretrain would train a sequence model; set "
                "pretrain.world_model=latent"
            )
        where = "the world model of the stage pretrain"
        check_tdmpc2_can_hold(maker.model.complete(), where, scaled=maker.model.normalize_observations)

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
