"""TD-MPC2's checkpoints: both forms, every published size, and round trips bit for bit, also through the stages."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.cli import main
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.tdmpc2_checkpoint import (
    describe,
    from_tdmpc2,
    read_tdmpc2,
    save_tdmpc2,
    to_tdmpc2,
)

from .tdmpc2_states import (
    CLOSE,
    LAYER,
    TABLE,
    assert_identical,
    constants,
    golden,
    golden_state,
    published_shapes,
    random_state,
    write,
)

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
    next_z, reward, continue_ = model.step(z, action[0], task)
    torch.testing.assert_close(next_z, numbers["out/z1_pred"], **CLOSE)
    torch.testing.assert_close(reward, numbers["out/reward_logits"], **CLOSE)
    assert continue_ is None
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
    next_z, reward, continue_ = model.step(z, action, task)
    joint = torch.cat([z, action], -1)
    torch.testing.assert_close(next_z, published_head(state, "_dynamics", joint, simnorm), **CLOSE)
    torch.testing.assert_close(reward, published_head(state, "_reward", joint), **CLOSE)
    for k in range(3):
        one = {f"q.{i // 4}.{LAYER[i % 4]}": state[f"_Qs.params.{i}"][k] for i in range(10)}
        torch.testing.assert_close(model.value_logits(z, action, task)[k], published_head(one, "q", joint), **CLOSE)
    if episodic:
        ends = torch.sigmoid(published_head(state, "_termination", next_z)[:, 0])
        torch.testing.assert_close(1 - torch.sigmoid(continue_), ends, **CLOSE)
    else:
        assert continue_ is None


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


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize(
    "wrap",
    [
        prefixed("_orig_mod."),
        prefixed("module."),
        prefixed("module._orig_mod."),
        prefixed("model."),
        prefixed("model._orig_mod."),
        lambda state: {name.replace("_encoder.", "_encoder._orig_mod."): value for name, value in state.items()},
        lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3},
        lambda state: {"model": state},
    ],
)
def test_what_a_training_loop_wraps_around_a_model_is_removed(tmp_path, form, wrap):
    state = random_state(form, tasks=3)
    for content in (wrap(state), {"model": wrap(state)}):
        assert_identical(read_tdmpc2(write(tmp_path / "in.pt", content)), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32_without_a_loss(tmp_path, dtype):
    state = random_state("new", tasks=3)
    half = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in state.items()
    }
    model = from_tdmpc2(read_tdmpc2(write(tmp_path / "half.pt", {"model": half})), frozen=False)
    assert model.dynamics[0].linear.weight.dtype == torch.float32
    assert torch.equal(model.dynamics[0].linear.weight.to(dtype), half["_dynamics.0.weight"])
