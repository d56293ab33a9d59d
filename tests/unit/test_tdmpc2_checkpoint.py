"""TD-MPC2's checkpoints: both forms, every published size, round trips bit for bit, and what is refused.

The toy state of golden/tdmpc2_forward.npz is in the new form; the old one is derived from it here.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.cli import main
from orrery.pipeline.errors import CheckpointError
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.tdmpc2_checkpoint import (
    describe,
    from_tdmpc2,
    read_tdmpc2,
    save_tdmpc2,
    to_tdmpc2,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tdmpc2_forward.npz"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
ACTION_DIMS = (1, 2, 4, 6)
TABLE = TaskTable(
    [TaskSpec(f"toy/{k}", o, a, 500) for k, (o, a) in enumerate(zip((3, 8, 15, 24), ACTION_DIMS, strict=True))]
)
LAYER = ("weight", "bias", "ln.weight", "ln.bias")


def published_shapes(tasks, observation, action, encoder, mlp, latent, layers, num_q, task, *, form, episodic=False):
    """Names and shapes as TD-MPC2 builds them, written down from its description and not from ours."""
    shapes = {}

    def normed(name, inputs, outputs):
        shapes.update({f"{name}.weight": (outputs, inputs)})
        shapes.update(dict.fromkeys((f"{name}.bias", f"{name}.ln.weight", f"{name}.ln.bias"), (outputs,)))

    def head(name, inputs, outputs):
        normed(f"{name}.0", inputs, mlp)
        normed(f"{name}.1", mlp, mlp)
        shapes.update({f"{name}.2.weight": (outputs, mlp), f"{name}.2.bias": (outputs,)})

    if task:
        shapes["_task_emb.weight"] = (tasks, task)
    widths = [observation + task, *[encoder] * (layers - 1), latent]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        normed(f"_encoder.state.{i}", inputs, outputs)
    joint = latent + task + action
    head("_reward", joint, 101)
    head("_pi", latent + task, 2 * action)
    if episodic:
        head("_termination", latent + task, 1)
    head("_dynamics", joint, latent)
    shapes |= {"_dynamics.2.ln.weight": (latent,), "_dynamics.2.ln.bias": (latent,)}
    ensemble = [
        *((num_q, mlp, joint), (num_q, mlp), (num_q, mlp), (num_q, mlp)),
        *((num_q, mlp, mlp), (num_q, mlp), (num_q, mlp), (num_q, mlp)),
        *((num_q, 101, mlp), (num_q, 101)),
    ]
    if form == "old":
        return shapes | {
            f"{name}.params.{i}": shape for name in ("_Qs", "_target_Qs") for i, shape in enumerate(ensemble)
        }
    return shapes | {
        f"{name}.{i // 4}.{LAYER[i % 4]}": shape
        for name in ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")
        for i, shape in enumerate(ensemble)
    }


def constants(tasks, action, num_q, action_dims=None):
    """What the new form holds beside the parameters; no masks where tasks is 0."""
    extra = {"log_std_min": torch.tensor(-10), "log_std_dif": torch.tensor(12)}
    if tasks:
        own = torch.tensor(action_dims or [action] * tasks)
        extra["_action_masks"] = (torch.arange(action) < own[:, None]).float()
    for name in ("_Qs.params", "_detach_Qs_params", "_target_Qs_params"):
        extra |= {f"{name}.__batch_size": torch.Size([num_q]), f"{name}.__device": None}
    return extra


def random_state(form, *, tasks=0, episodic=False, seed=0):
    """A small model, of one task without embedding where tasks is 0."""
    torch.manual_seed(seed)
    task = 16 if tasks else 0
    shapes = published_shapes(tasks, 5, 2, 24, 32, 16, 3, 3, task, form=form, episodic=episodic)
    state = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    if form == "new":
        state |= {name.replace("_Qs.params", "_detach_Qs_params"): state[name] for name in state if "_Qs.p" in name}
        state |= constants(tasks, 2, 3, [1, 2, 2][:tasks])
    return state


def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file.files}


def golden_state(form):
    new = {name.removeprefix("sd/"): value for name, value in golden().items() if name.startswith("sd/")}
    if form == "new":
        copies = {k.replace("_Qs.params", "_detach_Qs_params"): v for k, v in new.items() if k.startswith("_Qs.")}
        return new | copies | constants(4, 6, 5, ACTION_DIMS)
    old = {}
    for name, value in new.items():
        if "Qs" in name:
            prefix, rest = name.replace("_target_Qs_params", "_target_Qs.params").split(".params.")
            layer, kind = rest.split(".", 1)
            old[f"{prefix}.params.{4 * int(layer) + LAYER.index(kind)}"] = value
        elif name not in ("_action_masks", "log_std_min", "log_std_dif"):
            old[name] = value
    return old


def assert_identical(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        if torch.is_tensor(value):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def write(path, content):
    torch.save(content, path)
    return path


# Parameters of the published models without targets, by size and number of tasks; then encoder, mlp and latent width,
# encoder layers, value functions, task width.
SIZES = {
    ("1", 30): (1_426_427, (256, 384, 128, 2, 2, 96)),
    ("5", 30): (5_241_066, (256, 512, 512, 2, 5, 64)),
    ("19", 30): (16_031_210, (1024, 1024, 512, 3, 5, 64)),
    ("48", 30): (48_242_410, (1792, 1792, 768, 4, 5, 64)),
    ("317", 30): (317_316_889, (4096, 4096, 1376, 5, 8, 96)),
    ("1", 80): (1_435_067, (256, 384, 128, 2, 2, 96)),
    ("5", 80): (5_389_930, (256, 512, 512, 2, 5, 96)),
    ("19", 80): (18_970_218, (1024, 1024, 768, 3, 5, 96)),
    ("48", 80): (48_791_146, (1792, 1792, 768, 4, 5, 96)),
    ("317", 80): (317_383_129, (4096, 4096, 1376, 5, 8, 96)),
}


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize(("size", "tasks"), SIZES)
def test_every_published_size_is_inferred_from_shapes(size, tasks, form):
    parameters, (encoder, mlp, latent, layers, num_q, task) = SIZES[size, tasks]
    observation = 24 if tasks == 30 else 39
    shapes = published_shapes(tasks, observation, 6, encoder, mlp, latent, layers, num_q, task, form=form)
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}  # no memory behind them
    trained = [value for name, value in state.items() if not name.startswith(("_target", "_detach"))]
    assert sum(value.numel() for value in trained) == parameters
    if form == "new":
        state |= constants(tasks, 6, num_q)
    found = describe(state)
    assert (found.form, found.num_tasks, found.observation_dim, found.action_dim) == (form, tasks, observation, 6)
    expected = WorldModelConfig(
        size=size,
        latent_dim=latent,
        encoder_dim=encoder,
        encoder_layers=layers,
        mlp_dim=mlp,
        task_dim=task,
        num_q=num_q,
        normalize_observations=False,
    )
    assert found.config == expected
    assert found.action_dims == ((6,) * tasks if form == "new" else None)
    assert not found.terminates


@pytest.mark.parametrize("form", ["old", "new"])
def test_a_model_read_from_a_file_gives_the_published_numbers(tmp_path, form):
    path = write(tmp_path / "model.pt", {"model": OrderedDict(golden_state(form))})
    model = from_tdmpc2(read_tdmpc2(path), TABLE)
    numbers = golden()
    task, action = numbers["in/task"], numbers["in/action"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.task_embedding.weight, numbers["out/task_emb_after_lookup"], **CLOSE)
    z = model.encode(numbers["in/obs"][0], task)
    torch.testing.assert_close(z, numbers["out/z0"], **CLOSE)
    next_z, reward, goes_on = model.step(z, action[0], task)
    torch.testing.assert_close(next_z, numbers["out/z1_pred"], **CLOSE)
    torch.testing.assert_close(reward, numbers["out/reward_logits"], **CLOSE)
    assert goes_on is None
    for target, name in ((False, "out/q_logits_all"), (True, "out/q_target_logits_all")):
        found = model.value_logits(z, action[0], task, target=target)
        torch.testing.assert_close(found, numbers[name], **CLOSE)
    sample = model.sample_prior(z, task, numbers["in/pi_eps"])
    torch.testing.assert_close(sample.action, numbers["out/pi_action"], **CLOSE)
    torch.testing.assert_close(sample.mean, numbers["out/pi_mean"], **CLOSE)


@pytest.mark.parametrize("form", ["old", "new"])
def test_published_to_ours_and_back_is_the_same_bit_for_bit(tmp_path, form):
    states = [golden_state(form), random_state(form), random_state(form, episodic=True), random_state(form, tasks=3)]
    for state in states:
        model = from_tdmpc2(read_tdmpc2(write(tmp_path / "in.pt", {"model": state})), frozen=False)
        assert_identical(to_tdmpc2(model, form), state)
        save_tdmpc2(model, tmp_path / "out.pt", form)
        assert_identical(torch.load(tmp_path / "out.pt", weights_only=True)["model"], state)


def test_one_form_to_the_other():
    assert_identical(to_tdmpc2(from_tdmpc2(golden_state("old"), TABLE, frozen=False), "new"), golden_state("new"))
    assert_identical(to_tdmpc2(from_tdmpc2(golden_state("new"), TABLE, frozen=False), "old"), golden_state("old"))


@pytest.mark.parametrize("form", ["old", "new"])
def test_ours_to_published_and_back_is_the_same_bit_for_bit(tmp_path, form):
    torch.manual_seed(1)
    config = WorldModelConfig(
        latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_q=2, normalize_observations=False
    )
    model = WorldModel(config, TABLE)
    for parameter in model.parameters():
        parameter.data.normal_()
    save_tdmpc2(model, tmp_path / "model.pt", form)
    back = from_tdmpc2(read_tdmpc2(tmp_path / "model.pt"), TABLE, frozen=False)
    assert back.config == config.complete()
    assert_identical(back.state_dict(), model.state_dict())


def test_a_range_of_the_prior_that_is_not_the_default():
    state = golden_state("new") | {"log_std_min": torch.tensor(-5), "log_std_dif": torch.tensor(5.5)}
    model = from_tdmpc2(state, TABLE, frozen=False)
    assert (model.config.log_std_min, model.config.log_std_max) == (-5, 0.5)
    assert_identical(to_tdmpc2(model, "new"), state)
    old = from_tdmpc2(golden_state("old"), TABLE, WorldModelConfig(log_std_min=-5, log_std_max=0.5))
    assert (old.config.log_std_min, old.config.log_std_max) == (-5, 0.5)


def published_head(state, name, x, last=F.mish):
    """A published network by its names, in plain functions. `last` ends it where its last layer is normalised."""
    count = len({key.split(".")[-2 if ".ln." not in key else -3] for key in state if key.startswith(f"{name}.")})
    for i in range(count):
        x = F.linear(x, state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"])
        if f"{name}.{i}.ln.weight" in state:
            x = F.layer_norm(x, x.shape[-1:], state[f"{name}.{i}.ln.weight"], state[f"{name}.{i}.ln.bias"])
            x = F.mish(x) if i < count - 1 else last(x)
    return x


@pytest.mark.parametrize("episodic", [False, True])
def test_a_model_of_a_single_task(tmp_path, episodic):
    state = random_state("old", episodic=episodic)
    found = describe(state)
    assert (found.num_tasks, found.observation_dim, found.action_dim, found.config.task_dim) == (1, 5, 2, 0)
    assert found.terminates == episodic
    table = TaskTable([TaskSpec("toy/one", 5, 2, 1000, terminates=episodic)])
    from_tdmpc2(state, table, frozen=False).save(tmp_path)
    model = WorldModel.load(tmp_path)
    observation, action, task = torch.randn(7, 5), torch.rand(7, 2) * 2 - 1, torch.zeros(7, dtype=torch.long)

    def simnorm(x):
        return x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2)

    z = model.encode(observation, task)
    torch.testing.assert_close(z, published_head(state, "_encoder.state", observation, simnorm), **CLOSE)
    next_z, reward, goes_on = model.step(z, action, task)
    joint = torch.cat([z, action], -1)
    torch.testing.assert_close(next_z, published_head(state, "_dynamics", joint, simnorm), **CLOSE)
    torch.testing.assert_close(reward, published_head(state, "_reward", joint), **CLOSE)
    for k in range(3):
        one = {f"q.{i // 4}.{LAYER[i % 4]}": state[f"_Qs.params.{i}"][k] for i in range(10)}
        torch.testing.assert_close(model.value_logits(z, action, task)[k], published_head(one, "q", joint), **CLOSE)
    if episodic:
        ends = torch.sigmoid(published_head(state, "_termination", next_z)[:, 0])
        torch.testing.assert_close(1 - torch.sigmoid(goes_on), ends, **CLOSE)
    else:
        assert goes_on is None


def test_a_model_without_task_embedding_trains():
    model = from_tdmpc2(random_state("old"), frozen=False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters())
    task = torch.zeros(7, dtype=torch.long)
    next_z, reward, _ = model.step(model.encode(torch.randn(7, 5), task), torch.zeros(7, 2), task)
    (next_z.square().sum() + reward.square().sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.renormalise_task_embedding()
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 10
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_tasks_without_names_have_the_widths_that_the_file_shows():
    table = describe(golden_state("new")).generic_table(100)
    assert table.names == ("tdmpc2/0", "tdmpc2/1", "tdmpc2/2", "tdmpc2/3")
    assert [(task.observation_dim, task.action_dim) for task in table] == [(24, 1), (24, 2), (24, 4), (24, 6)]
    assert table[0].discount == 0.95
    assert [task.action_dim for task in describe(golden_state("old")).generic_table()] == [6] * 4
    assert describe(random_state("new", episodic=True)).generic_table()[0].terminates


# What is refused.


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
    assert "_action_masks must hold ones" in refusal(golden_state("new") | {"_action_masks": masks}, TABLE)


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
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read_tdmpc2(cut)
    with pytest.raises(CheckpointError, match="no file at"):
        read_tdmpc2(tmp_path / "none.pt")
    other = write(tmp_path / "other.pt", {"actor": {"weight": torch.zeros(2)}, "critic": {}})
    with pytest.raises(CheckpointError, match=r"is not a TD-MPC2 checkpoint: expected .* found actor, critic"):
        read_tdmpc2(other)
    with pytest.raises(CheckpointError, match=r"found list"):
        read_tdmpc2(write(tmp_path / "list.pt", [torch.zeros(2)]))


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
        ({"num_q": 0}, False, "no values and policy prior"),
        ({"activation": "silu"}, False, "activation is silu, not mish"),
        ({"latent": "relu"}, False, "latent ends in relu"),
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


def test_a_model_that_scales_observations_is_not_written():
    model = from_tdmpc2(golden_state("old"), TABLE)
    model.set_observation_statistics(1, torch.zeros(8), torch.full((8,), 2.0))
    with pytest.raises(CheckpointError, match="it scales observations"):
        to_tdmpc2(model)


# As stages.


@pytest.mark.parametrize("form", ["old", "new"])
def test_import_and_export_stages_give_back_the_file(tmp_path, capsys, form):
    state = golden_state(form)
    path = write(tmp_path / "toy.pt", {"model": state})
    imported = tmp_path / "imported"
    assert main(["run", "import_tdmpc2", f"run_dir={imported}", f"import_tdmpc2.checkpoint={path}"]) == 0
    assert "4 tasks, from toy.pt" in capsys.readouterr().out
    model = WorldModel.load(imported / "import_tdmpc2")
    assert model.table.names == ("tdmpc2/0", "tdmpc2/1", "tdmpc2/2", "tdmpc2/3")
    torch.testing.assert_close(model.task_embedding.weight, golden()["out/task_emb_after_lookup"], **CLOSE)
    exported = tmp_path / "exported"
    arguments = [f"inputs.world_model={imported / 'import_tdmpc2'}", f"export_tdmpc2.form={form}"]
    assert main(["run", "export_tdmpc2", f"run_dir={exported}", *arguments]) == 0
    assert_identical(read_tdmpc2(exported / "export_tdmpc2" / "model.pt"), state)


def test_import_stage_knows_tasks_by_name_and_says_what_does_not_fit(tmp_path, capsys):
    shapes = published_shapes(30, 24, 6, 16, 24, 8, 2, 2, 4, form="old")
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    path = write(tmp_path / "mt30.pt", {"model": state})
    arguments = ["run", "import_tdmpc2", f"run_dir={tmp_path / 'run'}", f"import_tdmpc2.checkpoint={path}"]
    assert main([*arguments, "tasks=[mt30]"]) == 0
    model = WorldModel.load(tmp_path / "run" / "import_tdmpc2")
    assert model.table[6].name == "dmc/acrobot-swingup"
    assert model.action_mask_KA.sum(1)[[0, 6, 26]].tolist() == [6, 1, 3]
    capsys.readouterr()
    assert main([*arguments, "tasks=[dmc/walker-run]"]) == 2
    assert "number of tasks 30 in the file, 1 by the tasks" in capsys.readouterr().err
    assert main(["run", "import_tdmpc2", f"run_dir={tmp_path / 'other'}"]) == 2
    assert "import_tdmpc2.checkpoint is empty" in capsys.readouterr().err
