"""The world model: shapes, masks, embedding, saving; and that its losses see only what is valid."""

from __future__ import annotations

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.windows import WindowSampler
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import mixture_weights
from orrery.stages.training.config import TrainerConfig
from orrery.stages.world_model.balance import reward_entropy, reward_weights
from orrery.stages.world_model.config import LossConfig, WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.objective import Draws, prior_values, rollout_losses
from orrery.stages.world_model.open_loop import OpenLoopError
from orrery.stages.world_model.values import sample_prior

from .stores import numbered_episode, point_mass_episodes, point_mass_spec, write_store

CONFIG = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_bins=11)
TABLE = TaskTable([TaskSpec("toy/a", 3, 1, 50), TaskSpec("toy/b", 5, 2, 50, terminates=True)])


def make_model(table=TABLE, config=CONFIG):
    torch.manual_seed(0)
    return WorldModel(config, table)


def test_shapes_and_simplex():
    model = make_model()
    task = torch.tensor([0, 1, 1])
    z = model.encode(torch.randn(3, 5), task)
    next_z, reward, continue_ = model.step(z, torch.randn(3, 2), task)
    assert z.shape == next_z.shape == (3, 16)
    assert reward.shape == (3, 11)
    assert continue_.shape == (3,)
    torch.testing.assert_close(next_z.unflatten(-1, (2, 8)).sum(-1), torch.ones(3, 2))
    # The reward head starts at uniform logits: it decodes to nothing.
    torch.testing.assert_close(model.decode_reward(reward), torch.zeros(3))


def test_step_is_its_three_parts():
    model = make_model()
    torch.nn.init.normal_(model.reward[-1].weight)
    z, action, task = (
        model.encode(torch.randn(4, 5), torch.tensor([0, 1, 0, 1])),
        torch.randn(4, 2),
        torch.tensor([0, 1, 0, 1]),
    )
    next_z, reward, continue_ = model.step(z, action, task)
    torch.testing.assert_close(next_z, model.next_latent(z, action, task))
    torch.testing.assert_close(reward, model.reward_logits(z, action, task))
    torch.testing.assert_close(continue_, model.continue_logits(next_z, task))


def test_padded_action_components_change_nothing():
    model = make_model()
    task = torch.tensor([0])
    z = model.encode(torch.randn(1, 5), task)
    torch.testing.assert_close(
        model.step(z, torch.tensor([[0.3, 0.0]]), task), model.step(z, torch.tensor([[0.3, 0.9]]), task)
    )


def test_no_continue_head_where_nothing_terminates():
    model = make_model(TaskTable([TaskSpec("toy/a", 3, 1, 50)]))
    task = torch.tensor([0])
    assert model.step(model.encode(torch.randn(1, 3), task), torch.zeros(1, 1), task)[2] is None
    assert not any("continue" in name for name in model.state_dict())


def test_task_embedding_is_kept_in_the_unit_ball_and_left_alone_inside():
    model = make_model()
    with torch.no_grad():
        model.task_embedding.weight[0] = 3.0
        model.task_embedding.weight[1] = 0.1
    inside = model.task_embedding.weight[1].clone()
    model.renormalise_task_embedding()
    torch.testing.assert_close(model.task_embedding.weight[0].norm(), torch.tensor(1.0))
    assert torch.equal(model.task_embedding.weight[1], inside)


def test_save_and_load_give_the_same_frozen_model(tmp_path):
    model = make_model()
    model.save(tmp_path)
    loaded = WorldModel.load(tmp_path)
    assert loaded.table == TABLE
    assert loaded.config == CONFIG.complete()
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_loading_names_what_does_not_fit(tmp_path):
    make_model().save(tmp_path)
    other = TaskTable([*TABLE, TaskSpec("toy/c", 2, 1, 50)])
    (tmp_path / "tasks.json").write_text(other.to_json())
    with pytest.raises(CheckpointError) as caught:
        WorldModel.load(tmp_path)
    assert "task_embedding.weight: expected [3, 6], found [2, 6]" in str(caught.value)


def test_loading_a_damaged_file_says_so(tmp_path):
    make_model().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        WorldModel.load(tmp_path)


def test_config_refuses_a_latent_that_does_not_divide():
    with pytest.raises(ConfigError, match="latent_dim 20 is not a multiple of simnorm_dim 8"):
        WorldModelConfig(latent_dim=20)


@pytest.fixture
def terminating_batch(tmp_path):
    spec = TABLE[1]
    store = write_store(tmp_path, [(spec, [numbered_episode(spec, e, 6, terminated=True) for e in range(4)])])
    return store, WindowSampler(store, length=4, batch_size=16, seed=0).batch(0)


def test_what_lies_after_the_end_has_no_loss_and_no_gradient(terminating_batch):
    store, batch = terminating_batch
    model = make_model(store.table)
    torch.nn.init.normal_(model.reward[-1].weight, std=0.1)
    assert not bool(batch["valid"].all())

    def gradients(batch):
        model.zero_grad()
        losses, _ = rollout_losses(model, batch, LossConfig(), torch.ones(1))
        losses["total"].backward()
        return losses, [p.grad.clone() for p in model.parameters()]

    losses, expected = gradients(batch)
    changed = batch.clone()
    after_end = ~batch["valid"]
    changed["reward"][after_end] = 123.0
    changed["action"][after_end] = 0.7
    changed["observation"][:, 1:][after_end] = 9.0
    changed_losses, found = gradients(changed)
    assert losses["continuation"] > 0
    for name, value in losses.items():
        torch.testing.assert_close(changed_losses[name], value)
    torch.testing.assert_close(found, expected)


def test_losses_match_a_loop_over_time_and_batch(terminating_batch):
    store, batch = terminating_batch
    model = make_model(store.table).double()
    torch.nn.init.normal_(model.reward[-1].weight, std=0.1)
    batch = batch.apply(lambda x: x.double() if x.is_floating_point() else x)
    config = LossConfig(consistency=2.0, reward=0.5, continuation=3.0, rho=0.8)
    losses, _ = rollout_losses(model, batch, config, torch.tensor([1.7], dtype=torch.float64))
    sums = torch.zeros(4, 4, dtype=torch.float64)  # step x (count, consistency, reward, continuation)
    for b in range(16):
        task = batch["task"][b : b + 1]
        z = model.encode(batch["observation"][b : b + 1, 0], task)
        for t in range(int(batch["valid"][b].sum())):
            next_z, logits, continue_ = model.step(z, batch["action"][b : b + 1, t], task)
            target = model.encode(batch["observation"][b : b + 1, t + 1], task)
            log_p = torch.log_softmax(logits[0], -1)
            # two-hot by hand
            position = torch.log1p(batch["reward"][b, t]).clamp(max=10) / 2 + 5
            low = int(position.floor())
            high = min(low + 1, 10)
            entropy = -((1 - position + low) * log_p[low] + (position - low) * log_p[high])
            end = batch["terminated"][b, t].double()
            bce = -(
                end * torch.log(1 - torch.sigmoid(continue_[0])) + (1 - end) * torch.log(torch.sigmoid(continue_[0]))
            )
            sums[t] += torch.stack(
                [torch.ones(()).double(), (next_z - target).square().mean(), 1.7 * entropy, bce]
            ).detach()
            z = next_z
    weights = 0.8 ** torch.arange(4) / 4
    expected = (weights[:, None] * sums[:, 1:] / sums[:, :1]).sum(0)
    torch.testing.assert_close(losses["consistency"], expected[0])
    torch.testing.assert_close(losses["reward"], expected[1])
    torch.testing.assert_close(losses["continuation"], expected[2])
    torch.testing.assert_close(losses["total"], 2 * expected[0] + 0.5 * expected[1] + 3 * expected[2])


def test_open_loop_r2_of_a_perfect_and_of_a_constant_prediction(tmp_path):
    store = write_store(tmp_path, [(point_mass_spec(), point_mass_episodes(point_mass_spec(), 10))])
    batch = WindowSampler(store, length=16, batch_size=32, seed=0).batch(0)

    class Oracle:
        """Its latents tell the time, and its logits are the rewards."""

        def encode(self, observation, task):
            return torch.zeros(len(task), 1)

        def rollout(self, z, action, task):
            return torch.arange(17.0)[:, None, None].expand(-1, len(task), 1)

        def reward_logits(self, z, action, task):
            return batch["reward"][:, int(z[0])]

        def decode_reward(self, logits):
            return logits

    std_K = torch.tensor([store.tasks[0].reward_std()])
    perfect = OpenLoopError(std_K, 16)
    perfect.add(Oracle(), batch)
    r2, latent = perfect.result().values()
    assert r2.tolist() == [[1.0] * 4]
    assert latent.tolist() == [[1.0, 16.0, 64.0, 256.0]]  # of the times 1, 4, 8, 16 against encodings of 0

    class Mean(Oracle):
        def decode_reward(self, logits):
            return logits.mean().expand(len(logits))

    constant = OpenLoopError(std_K, 16)
    constant.add(Mean(), batch)
    torch.testing.assert_close(
        constant.result()["reward_r2"], torch.zeros(1, 4, dtype=torch.float64), atol=1e-6, rtol=0
    )
    # Where windows hold almost no reward, of whatever unit, an error that hardly matters would be an R^2 of -50,000.
    for unit in (1e-3, 1.0, 1e3):
        batch["reward"] = unit * (1 + 2e-3 * torch.rand(batch["reward"].shape))
        of_unit = OpenLoopError(unit * std_K, 16)
        of_unit.add(Mean(), batch)
        assert of_unit.result()["reward_r2"].isnan().all()
        batch["reward"] = unit * (1 + 0.2 * torch.rand(batch["reward"].shape))
        of_unit.add(Mean(), batch)
        assert not of_unit.result()["reward_r2"].isnan().any()


def test_reward_weights_raise_sparse_tasks(tmp_path):
    dense, sparse = point_mass_spec("toy/dense"), point_mass_spec("toy/sparse")
    episodes = point_mass_episodes(dense, 20)
    rare = [type(e)(e.observations, e.actions, (e.rewards > 0.99).astype("float32"), False) for e in episodes]
    store = write_store(tmp_path, [(dense, episodes), (sparse, rare)])
    entropy = reward_entropy(store, torch.linspace(-10, 10, 101))
    share = float((torch.cat([torch.from_numpy(e.rewards) for e in rare]) > 0).float().mean())
    # 1 lies in symlog units at ln 2 = 0.693: 0.466 of the way from bin 0.6 to 0.8.
    upper = (0.693147 - 0.6) / 0.2
    p = torch.tensor([1 - share, share * upper, share * (1 - upper)])
    torch.testing.assert_close(entropy[1], -(p * p.log()).sum(), atol=1e-4, rtol=1e-3)
    weights = reward_weights(entropy, 100.0)
    torch.testing.assert_close(weights, torch.stack([torch.tensor(1.0), entropy[0] / entropy[1]]))
    assert reward_weights(entropy, 1.0).tolist() == [1.0, 1.0]
    # Where every task's reward is always the same there is nothing to balance, and the loss still counts.
    assert reward_weights(torch.zeros(2), 100.0).tolist() == [1.0, 1.0]


def test_mixture_weights_by_task_before_behaviour():
    behaviours = {"toy/a": "exploration", "toy/b": "expert", "toy/c": "exploration"}
    config = PretrainConfig(mixture={"toy/c": 5.0}, behaviour_mixture={"exploration": 2.0})
    assert mixture_weights(config, behaviours) == {"toy/a": 2.0, "toy/b": 1.0, "toy/c": 5.0}
    with pytest.raises(ConfigError, match=r"pretrain\.mixture names toy/d, but the store holds: toy/a, toy/b"):
        mixture_weights(PretrainConfig(mixture={"toy/d": 1.0}), behaviours)
    with pytest.raises(ConfigError, match=r"pretrain\.behaviour_mixture: expected exploration, expert"):
        PretrainConfig(behaviour_mixture={"explore": 1.0})


def test_trainer_refuses_what_would_start_the_command_again():
    with pytest.raises(
        ConfigError, match=r"strategy 'ddp' would start the whole command once per device.* use ddp_spawn"
    ):
        TrainerConfig(devices=2, strategy="ddp")
    assert TrainerConfig(devices=2).launched_strategy == "ddp_spawn"
    assert TrainerConfig(devices=1).launched_strategy == "auto"


# Trainable parameters of the published models (their table of sizes), by size and number of tasks.
PUBLISHED = {
    ("1", 30): 1_426_427,
    ("5", 30): 5_241_066,
    ("19", 30): 16_031_210,
    ("48", 30): 48_242_410,
    ("317", 30): 317_316_889,
    ("1", 80): 1_435_067,
    ("5", 80): 5_389_930,
    ("19", 80): 18_970_218,
    ("48", 80): 48_791_146,
    ("317", 80): 317_383_129,
}


@pytest.mark.parametrize(("size", "tasks"), PUBLISHED)
def test_sizes_have_the_published_number_of_parameters(size, tasks):
    changes = {"task_dim": 64} if tasks == 30 and size in ("5", "19", "48") else {}
    if tasks == 30 and size == "19":
        changes["latent_dim"] = 512
    table = TaskTable([TaskSpec(f"toy/{i}", 24 if tasks == 30 else 39, 6, 500) for i in range(tasks)])
    with torch.device("meta"):
        model = WorldModel(WorldModelConfig(size=size, **changes), table)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PUBLISHED[size, tasks]


@pytest.mark.parametrize("latent", ["mish", "relu"])
def test_other_latents_leave_the_simplex(latent):
    model = make_model(config=WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, latent=latent))
    task = torch.zeros(3, dtype=torch.long)
    z = model.encode(torch.randn(3, 5), task)
    assert float(z.detach().max()) > 1
    assert model.next_latent(z, torch.randn(3, 2), task).shape == z.shape


def test_disagreement_heads_look_on(terminating_batch):
    """The model learns the same with them, and they learn."""
    store, batch = terminating_batch
    plain = make_model(store.table)
    config = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_bins=11, disagreement_heads=3)
    watched = make_model(store.table, config)
    missing, _ = watched.load_state_dict(plain.state_dict(), strict=False)
    assert missing
    assert all(name.startswith("disagreement_heads") for name in missing)
    for model in (plain, watched):
        rollout_losses(model, batch, LossConfig(), torch.ones(1))[0]["total"].backward()
    gradients = {name: p.grad for name, p in watched.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    assert all(float(gradients[name].abs().sum()) > 0 for name in missing if "weight.2" in name)


def value_model():
    config = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_bins=11, num_q=3, dropout=0.0)
    model = make_model(config=config)
    torch.nn.init.normal_(model.values.weight[-1])
    return model


def test_an_ensemble_is_its_heads_one_by_one():
    model = value_model()
    action, task = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    z = model.encode(torch.randn(4, 5), task)
    every = model.value_logits(z, action, task)
    assert every.shape == (3, 4, 11)
    for n in range(3):
        torch.testing.assert_close(model.value_logits(z, action, task, torch.tensor([n]))[0], every[n])
    # Written out for one head and row.
    x = torch.cat([z, model.task_embedding(task), action * model.action_mask_KA[task]], -1)[0]
    for i in range(3):
        x = model.values.weight[i][1] @ x + model.values.bias[i][1]
        if i < 2:
            x = torch.nn.functional.mish(torch.nn.functional.layer_norm(x, x.shape))
    torch.testing.assert_close(x, every[1, 0], rtol=1e-4, atol=1e-5)


def test_the_prior_learns_through_frozen_values_and_leaves_no_gradient_elsewhere():
    model = value_model()
    task = torch.tensor([0, 1])
    z = model.encode(torch.randn(3, 2, 5), task.expand(3, 2)).detach()
    draws = Draws.of(torch.Generator().manual_seed(0), 2, 2, 2, 3)
    value, entropy = prior_values(model, z, task, draws, LossConfig())
    (value + entropy).sum().backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"policy_prior"}


def test_the_priors_log_probability_is_that_of_a_squashed_gaussian():
    config = WorldModelConfig(log_std_min=-2, log_std_max=1)
    torch.manual_seed(0)
    head, noise = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    sample = sample_prior(head, noise, torch.ones(5, 3), config, squashed_entropy=True)
    mean, raw = head.chunk(2, -1)
    normal = torch.distributions.Normal(mean, (-2 + 1.5 * (torch.tanh(raw) + 1)).exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    expected = -squashed.log_prob(sample.action).sum(-1)
    torch.testing.assert_close(sample.scaled_entropy / 3, expected)


def test_target_values_move_by_their_rate():
    model = value_model()
    before = [p.clone() for p in model.target_values.parameters()]
    model.update_target_values(0.25)
    for old, new, source in zip(before, model.target_values.parameters(), model.values.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * source)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_losses_are_one_graph_for_the_compiler(terminating_batch):
    """No graph breaks: `fullgraph` raises at the first."""
    store, batch = terminating_batch
    config = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_bins=11, num_q=2, dropout=0.0)
    model = make_model(store.table, config)
    draws = Draws.of(torch.Generator().manual_seed(0), 4, 16, 1, 2)
    compiled = torch.compile(rollout_losses, fullgraph=True, backend="aot_eager")
    found, expected = (f(model, batch, LossConfig(), torch.ones(1), draws)[0] for f in (compiled, rollout_losses))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_mixed_precision_narrows_products_only():
    """Latents, logits, losses and gradients stay in float32, near those of products in float32."""
    model = make_model(config=WorldModelConfig(latent_dim=64, encoder_dim=64, mlp_dim=64, num_q=2, dropout=0.0))
    batch = {"observation": torch.randn(8, 4, 5), "action": torch.rand(8, 3, 2), "reward": torch.rand(8, 3)}
    batch |= {"terminated": torch.zeros(8, 3).bool(), "valid": torch.ones(8, 3).bool(), "task": torch.arange(8) % 2}
    draws = Draws.of(torch.Generator().manual_seed(0), 3, 8, 2, 2)
    for last in (model.reward[-1].weight, model.values.weight[-1]):
        torch.nn.init.normal_(last, std=0.1)
    found = {}
    for narrow in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses, z = rollout_losses(model, batch, LossConfig(), torch.ones(2), draws)
            outputs = [z, *model.step(z[1], batch["action"][:, 0], batch["task"])]
            outputs += [model.value_logits(z[1], batch["action"][:, 0], batch["task"]), *losses.values()]
        assert {one.dtype for one in outputs} == {torch.float32}
        gradients = torch.autograd.grad(losses["total"], [model.reward[0].linear.weight, model.values.weight[0]])
        found[narrow] = [*losses.values(), *gradients]
    for exact, narrow in zip(found[False], found[True], strict=True):
        assert (narrow - exact).norm() <= 0.03 * exact.norm()
    assert not torch.equal(found[True][-1], found[False][-1])
