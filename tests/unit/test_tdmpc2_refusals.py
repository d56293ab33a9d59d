"""TD-MPC2's checkpoints: files and models that are refused, and what the message says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.errors import CheckpointError
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.world_model.config import ExportTdmpc2Config, WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.stage_export_tdmpc2 import ExportTdmpc2
from orrery.stages.world_model.tdmpc2_checkpoint import (
    from_tdmpc2,
    read_tdmpc2,
    to_tdmpc2,
)

from .tdmpc2_states import (
    TABLE,
    golden_state,
    random_state,
    write,
)


def refusal(state, *arguments):
    with pytest.raises(CheckpointError) as caught:
        from_tdmpc2(state, *arguments)
    return str(caught.value)


@pytest.mark.parametrize("form", ["old", "new"])
def test_a_missing_an_extra_and_a_misshapen_tensor_are_named_as_published(form):
    state = golden_state(form)
    del state["_dynamics.1.ln.bias"]
    state["_reward.3.weight"] = torch.zeros(2, 3)
    state["_pi.2.weight"] = torch.zeros(10, 48)
    value = {"old": "_Qs.params.4", "new": "_Qs.params.1.weight"}[form]
    state[value] = torch.zeros(5, 48, 47)
    message = refusal(state, TABLE)
    assert message.splitlines()[1:] == [
        "  missing _dynamics.1.ln.bias [48]",
        "  unexpected _reward.3.weight [2, 3]",
        "  _pi.2.weight: expected [12, 48], found [10, 48]",
        f"  {value}: expected [5, 48, 48], found [5, 48, 47]",
    ]
    assert "latent_dim 64, encoder_dim 32, encoder_layers 2, mlp_dim 48, task_dim 16, num_q 5" in message


@pytest.mark.parametrize("form", ["old", "new"])
def test_any_one_tensor_that_is_missing_or_misshapen_is_the_one_named(form):
    """But the width of an observation, which one tensor alone shows: then the tasks tell."""
    state = golden_state(form)
    names = [name for name in state if name.startswith("_") and "__" not in name and (form == "old" or "Qs" in name)]
    assert len(names) > 25
    for name in names:
        without = {key: value for key, value in state.items() if key != name}
        found = refusal(without, TABLE)
        assert f"missing {name} " in found or f"expected {name}" in found, found
        longer = [length + 3 for length in state[name].shape]
        lines = refusal(state | {name: torch.zeros(longer)}, TABLE).splitlines()[1:]
        if name == "_encoder.state.0.weight":
            assert lines[0].startswith(f"  {name}: expected [32, "), lines
        else:
            assert [line.split(":")[0] for line in lines] == [f"  {name}"], lines
    wider = state | {"_encoder.state.0.weight": torch.zeros(32, 41)}
    assert "longest observation 25 in the file, 24 by the tasks" in refusal(wider, TABLE)


def test_another_number_type_is_named():
    state = golden_state("old") | {"_reward.2.bias": torch.zeros(101, dtype=torch.float16)}
    assert "_reward.2.bias: expected [101] float32, found [101] float16" in refusal(state, TABLE)


def test_a_copy_of_the_values_that_is_none():
    state = golden_state("new")
    name = "_detach_Qs_params.1.bias"
    assert f"{name} differ from _Qs.params" in refusal(state | {name: state[name] + 1}, TABLE)
    del state[name]
    assert f"missing {name}" in refusal(state, TABLE)


def test_masks_that_are_none():
    masks = torch.ones(4, 6)
    masks[1, 0] = 0
    assert "_action_masks must have ones" in refusal(golden_state("new") | {"_action_masks": masks}, TABLE)


def test_models_of_other_kinds_are_refused_by_kind():
    regression = golden_state("old")
    for name in ("_reward.2.weight", "_reward.2.bias"):
        regression[name] = regression[name][:1]
    for name in ("_Qs.params.8", "_Qs.params.9", "_target_Qs.params.8", "_target_Qs.params.9"):
        regression[name] = regression[name][:, :1]
    assert "a regression head (num_bins 0 or 1" in refusal(regression)
    assert "encoder reads images" in refusal({"_encoder.rgb.2.weight": torch.zeros(3), **golden_state("old")})
    assert "latent_dim 64 is not a multiple of simnorm_dim 10" in refusal(
        golden_state("old"), TABLE, WorldModelConfig(latent_dim=10, simnorm_dim=10)
    )
    assert "found _pi (list)" in refusal({**golden_state("old"), "_pi": [1]})


def test_the_tasks_given_must_be_those_of_the_weights():
    fewer = TaskTable(list(TABLE)[1:])
    assert "number of tasks 4 in the file, 3 by the tasks" in refusal(golden_state("old"), fewer)
    swapped = TaskTable([TABLE[1], TABLE[0], *list(TABLE)[2:]])
    message = refusal(golden_state("new"), swapped)
    assert "action of task 0 1 in the file, 2 of toy/1" in message
    ending = TaskTable([TaskSpec("toy/one", 5, 2, 100, terminates=True)])
    assert "terminations predicted False in the file, True by the tasks" in refusal(random_state("old"), ending)


def test_files_that_are_not_checkpoints(tmp_path):
    path = write(tmp_path / "model.pt", {"model": golden_state("new")})
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_tdmpc2(cut)
    with pytest.raises(CheckpointError, match="no file at"):
        read_tdmpc2(tmp_path / "none.pt")
    other = write(tmp_path / "other.pt", {"actor": {"weight": torch.zeros(2)}, "critic": {}})
    with pytest.raises(CheckpointError, match=r"is not a TD-MPC2 checkpoint: expected .* found actor, critic"):
        read_tdmpc2(other)
    with pytest.raises(CheckpointError, match=r"found list"):
        read_tdmpc2(write(tmp_path / "list.pt", [torch.zeros(2)]))


def test_prefixes_that_are_unknown_or_make_two_of_a_name_are_named(tmp_path):
    state = golden_state("old")
    named = write(tmp_path / "named.pt", {f"agent.net.{name}": value for name, value in state.items()})
    with pytest.raises(CheckpointError, match=r"named\.pt: .* remove the prefix 'agent\.net\.' from its names"):
        read_tdmpc2(named)
    both = write(tmp_path / "both.pt", state | {"module._pi.0.weight": state["_pi.0.weight"]})
    with pytest.raises(CheckpointError, match=r"_pi\.0\.weight twice, as _pi\.0\.weight and as module\._pi\.0\.weight"):
        read_tdmpc2(both)
    double = write(tmp_path / "double.pt", {name: value.double() for name, value in state.items()})
    with pytest.raises(CheckpointError, match=r"_encoder\.state\.0\.weight: expected .*float32, found .*float64"):
        from_tdmpc2(read_tdmpc2(double), where=str(double))


class Executing:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path / "model.pt", {"model": golden_state("old"), "statistics": Executing(marker)})
    with pytest.raises(CheckpointError, match="could run code"):
        read_tdmpc2(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Executing(marker)))  # it would have
    assert marker.exists()


@pytest.mark.parametrize(
    ("changes", "terminates", "reason"),
    [
        ({"num_q": 0}, False, "neither values nor policy prior"),
        ({"activation": "silu"}, False, "activation is silu, not mish"),
        ({"latent": "relu"}, False, "latent ends in relu"),
        ({"dynamics": "awm", "awm_horizon": 5}, False, "dynamics are awm, not step"),
        ({"disagreement_heads": 2}, False, "disagreement_heads"),
        ({"encoder_layers": 1}, False, "one layer"),
        ({"task_dim": 0}, False, "no task embedding"),
        ({}, True, "predicts terminations with a task embedding"),
    ],
)
def test_a_model_that_td_mpc2_cannot_hold_is_not_written(changes, terminates, reason):
    config = {"latent_dim": 16, "encoder_dim": 12, "mlp_dim": 20, "task_dim": 6, "num_q": 2}
    table = TaskTable([TaskSpec("toy/a", 3, 1, 50, terminates=terminates), TaskSpec("toy/b", 3, 1, 50)])
    with pytest.raises(CheckpointError, match=reason):
        to_tdmpc2(WorldModel(WorldModelConfig(**config | changes), table))


def promised(config):
    return Pretrain(config).promise({"store": [None]})


def test_a_model_that_td_mpc2_cannot_hold_is_refused_before_it_is_trained():
    stage, folder = ExportTdmpc2(ExportTdmpc2Config()), Path("pretrain")
    with pytest.raises(CheckpointError, match=r"it scales observations\. Pretrain one with pretrain\.model\.num_q=5 "):
        stage.check_input("world_model", folder, promised(PretrainConfig()))
    with pytest.raises(CheckpointError, match=r"pretrain\.kind=latent"):
        stage.check_input("world_model", folder, promised(PretrainConfig(kind="sequence", horizon=100)))
    angles = PretrainConfig(model=WorldModelConfig(size="1", normalize_observations=False, wrap_angles=True))
    with pytest.raises(
        CheckpointError, match=r"it reads sines and cosines\. Pretrain one with pretrain\.model\.wrap_an"
    ):
        stage.check_input("world_model", folder, promised(angles))
    unscaled = PretrainConfig(model=WorldModelConfig(size="1", normalize_observations=False))
    stage.check_input("world_model", folder, promised(unscaled))


def test_a_model_that_scales_observations_is_not_written():
    model = from_tdmpc2(golden_state("old"), TABLE)
    model.set_observation_statistics(1, torch.zeros(8), torch.full((8,), 2.0))
    with pytest.raises(CheckpointError, match="it scales observations"):
        to_tdmpc2(model)
