"""Numbers that cannot be meant are refused when a config is read, under their key, and not hours later."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from typing import get_args, get_origin, get_type_hints

import pytest
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.config.schema import build, plain_type
from orrery.pipeline.errors import ConfigError
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.sequence_model.config import SequenceModelConfig

REFUSED = {
    "quickstart": [
        "seed=-1",
        "pretrain.seed=-1",
        "pack.window=0",
        "pretrain.mixture.dmc/cartpole-balance=-1",
        "pretrain.behaviour_mixture.expert=-1",
        "pretrain.model.simnorm_dim=0",
        "pretrain.model.simnorm_dim=-8",
        "pretrain.model.bin_limit=0",
        "pretrain.model.log_std_min=2",
        "pretrain.loss.rho=0",
        "pretrain.loss.rho=1.5",
        "pretrain.loss.reward=-0.1",
        "pretrain.loss.target_rate=2",
        "pretrain.loss.scale_rate=-1",
        "pretrain.optimizer.lr=0",
        "pretrain.optimizer.lr=nan",
        "pretrain.optimizer.encoder_lr_scale=-1",
        "pretrain.optimizer.clip_norm=0",
        "pretrain.optimizer.final_lr_scale=2",
        "pretrain.trainer.precision=half",
        "pretrain.trainer.precision=bf16-true",
        "pretrain.trainer.accelerator=mps",
        "extract.accelerator=tpu",
        "extract.anchor=[0.3,0.3]",
        "extract.uncertainty=[0,1,1.0]",
        "extract.first_order.networks.num_critics=0",
        "extract.first_order.networks.actor_units=[400,0]",
        "extract.first_order.networks.lr=-1",
        "extract.first_order.networks.final_lr=-1",
        "extract.first_order.networks.beta1=1",
        "extract.first_order.networks.critic_clip_norm=0",
    ],
    "mrq_offline": ["mrq.accelerator=mps"],
    "mrq_dmc": [
        "mrq_online.accelerator=xla",
        "mrq_online.learn.networks.bin_limit=0",
        "mrq_online.learn.value_lr=0",
        "mrq_online.learn.weight_decay=-1",
        "mrq_online.learn.value_clip_norm=0",
        "mrq_online.learn.done_weight=-1",
        "mrq_online.learn.exploration_noise=-0.1",
        "mrq_online.learn.gumbel_temperature=0",
        "mrq_online.learn.priority_exponent=-1",
        "mrq_online.learn.min_priority=0",
    ],
}


@pytest.mark.parametrize(("experiment", "override"), [(name, one) for name, many in REFUSED.items() for one in many])
def test_a_number_out_of_range_is_refused_under_its_key(experiment, override):
    *parts, last = override.partition("=")[0].split(".")
    with pytest.raises(ConfigError) as raised:
        load_config(experiment, [override], stages=discover_stages())
    pattern = r"\b.*\b".join([*parts[:1], last])
    assert re.search(pattern, str(raised.value)), raised.value


def _fields(cls, owner):
    """Every leaf of a config dataclass: (its path, type)."""
    hints = get_type_hints(cls)
    for setting in dataclasses.fields(cls):
        hint = plain_type(hints[setting.name])
        path = (*owner, setting.name)
        yield from _fields(hint, path) if dataclasses.is_dataclass(hint) else [(path, hint)]


@pytest.mark.parametrize("name", discover_stages())
def test_every_value_that_a_config_refuses_is_refused_under_its_full_key(name):
    config = discover_stages()[name].Config
    default = dataclasses.asdict(config())
    odd = {int: -7, float: float("nan"), str: "nonsense"}
    for path, hint in _fields(config, (name,)):
        of_items = get_origin(hint) in (list, tuple) and get_args(hint)[0]
        value = [odd[of_items]] if of_items in odd else odd.get(hint)
        values = copy.deepcopy(default)
        owner = functools.reduce(lambda node, key: node and node[key], path[1:-1], values)
        if owner is None or value is None:
            continue
        owner[path[-1]] = value
        message = _refusal(config, values, name)
        assert message is None or message.startswith(f"{'.'.join(path[:-1])}."), (path, message)
        assert message is None or path[-1] in message, (path, message)


def _refusal(config, values, name):
    try:
        build(config, values, name)
    except ConfigError as error:
        return str(error)
    return None


def test_positions_of_a_sequence_model_that_no_window_reaches_are_refused():
    kinds = {kind: SequenceModelConfig(kind=kind, horizon=10) for kind in ("awm", "hwm", "ssm", "markov")}
    for kind in ("awm", "hwm"):
        with pytest.raises(ConfigError, match=r"pretrain\.horizon 4 would leave 6 of the 10 positions"):
            PretrainConfig(kind="sequence", sequence=kinds[kind], horizon=4)
        PretrainConfig(kind="sequence", sequence=kinds[kind], horizon=10)
    for kind in ("ssm", "markov"):  # have none
        PretrainConfig(kind="sequence", sequence=kinds[kind], horizon=4)


def test_a_renamed_key_says_its_new_name():
    with pytest.raises(ConfigError, match=r"was renamed: use extract\.fanout\.options\.gpus$"):
        load_config("quickstart", ["extract.fanout.slurm.gpus=1"], stages=discover_stages())
