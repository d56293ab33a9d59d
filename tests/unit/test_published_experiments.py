"""Published experiments: mt30 and mt80 are complete for data and machines that the tests do not have."""

from __future__ import annotations

from pathlib import Path

import pytest
from orrery.datasets.tasks.tdmpc2 import SETS
from orrery.pipeline.config.load import discover_stages, load_config


@pytest.mark.parametrize(("name", "task_dim"), [("mt30", 64), ("mt80", 96)])
def test_settings_are_pwms(name, task_dim):
    config = load_config(name, stages=discover_stages())
    pretrain, extract, pack = (config.stage_configs[stage] for stage in ("pretrain", "extract", "pack"))
    assert tuple(pack.names) == SETS[name]
    model = pretrain.model.complete()
    assert (model.latent_dim, model.mlp_dim, model.encoder_layers, model.task_dim) == (768, 1792, 4, task_dim)
    assert (pretrain.horizon, pretrain.batch_size, pretrain.loss.rho) == (16, 1024, 0.99)
    assert (extract.iterations, extract.first_order.batch_size, extract.first_order.horizon) == (10_000, 512, 16)


def test_a_run_decides_on_the_algorithms_of_extract():
    """An experiment that names them below `extract` would keep its own."""
    stages, found = discover_stages(), {}
    for path in (Path(__file__).parents[2] / "configs" / "experiments").glob("*.yaml"):
        if "extract" in load_config(path.stem, stages=stages).settings.stages:
            chosen = load_config(path.stem, ["algorithms=[svg]"], stages=stages)
            found[path.stem] = chosen.stage_configs["extract"].algorithms
    assert "mt_small" in found
    assert found == {name: ["svg"] for name in found}
