"""TD-MPC2's checkpoints: read strictly, with every size inferred from the tensors' shapes, and written back exactly.

A file is `{"model": state_dict}`. Two forms are in circulation, which differ in the value ensemble. Old (2023 to 2024):
`_Qs.params.0` to `_Qs.params.9`, three layers of weight, bias, LayerNorm weight and bias in a row, and the same under
`_target_Qs.params`. New: `_Qs.params.<layer>.<name>`, `_target_Qs_params.*`, a second copy `_detach_Qs_params.*`, what
TensorDict adds (`__batch_size`, `__device`), and constants: `_action_masks`, `log_std_min`, `log_std_dif`. Models of a
single task have neither task embedding nor masks, and those of episodes that end have `_termination`.

Users' training loops wrap it: names gain `_orig_mod.` (torch.compile), `module.` (DistributedDataParallel) or `model.`
(the agent's attribute), the state dict lies in Lightning's `state_dict`, weights are in half precision. `read_tdmpc2`
undoes all of these without a loss: half precision is exact in float32.

Neither form holds optimisers, the names of the tasks, or the settings that leave no trace in shapes; the last two are
arguments here.

Source: nicklashansen/tdmpc2 @e9f5932 and its earlier versions; TD-MPC2 (arXiv 2310.16828) section 3.1 for the networks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...datasets.schema import TaskSpec, TaskTable
from ...pipeline.checkpoint import check_same_tensors
from ...pipeline.errors import CheckpointError, ConfigError
from ...pipeline.torch_file import read_torch_file
from .config import SIZES, WorldModelConfig
from .networks import WorldModel
from .tdmpc2_limits import check_tdmpc2_can_hold

FORMS = ("new", "old")

UNSEEN = WorldModelConfig(normalize_observations=False)
"""Where settings come from that a file does not show, such as simnorm_dim and bin_limit: TD-MPC2's defaults."""

_PARTS = {
    "task_embedding": "_task_emb",
    "encoder.layers": "_encoder.state",
    "dynamics": "_dynamics",
    "reward": "_reward",
    "continue_head": "_termination",
    "policy_prior": "_pi",
    "values": "_Qs.params",
    "target_values": "_target_Qs_params",
}
"""Ours to published, in the order of a published file."""

_LAYER = ("weight", "bias", "ln.weight", "ln.bias")
"""Order in which the old form numbers the parameters of a layer of the value ensemble."""

_CONSTANTS = ("log_std_min", "log_std_dif")

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module)\.")
"""Parts of a name that wrapping a module adds, wherever the wrapped module was."""

_HALF = (torch.float16, torch.bfloat16)

_NEGATED = ("continue_head.2.weight", "continue_head.2.bias")
"""Ours is the logit that an episode continues, theirs that it ends."""


@dataclass(frozen=True)
class Published:
    """What a state dict says about its model."""

    form: str
    """old or new."""
    config: WorldModelConfig
    num_tasks: int
    observation_dim: int
    """Of the longest observation; shorter ones are padded."""
    action_dim: int
    action_dims: tuple[int, ...] | None
    """Of each task; None if the file has no masks."""
    terminates: bool
    """Whether it predicts terminations."""

    def generic_table(self, episode_length: int = 500) -> TaskTable:
        """Tasks `tdmpc2/0` and so on, for want of names: observations at full width, actions as the masks say.

        Args:
            episode_length: in steps; decides the discount.
        """
        action_dims = self.action_dims or (self.action_dim,) * self.num_tasks
        return TaskTable(
            [
                TaskSpec(f"tdmpc2/{k}", self.observation_dim, action_dim, episode_length, terminates=self.terminates)
                for k, action_dim in enumerate(action_dims)
            ]
        )


def read_tdmpc2(path: str | Path) -> dict[str, Any]:
    """The state dict in a file, under its published names and in float32. Nothing in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, not TD-MPC2's, or holds more than tensors and plain containers.
    """
    state = read_torch_file(path)
    while isinstance(state, dict) and isinstance(inner := state.get("model", state.get("state_dict")), dict):
        state = inner
    named = _unwrapped(state, f"{path}") if isinstance(state, dict) else {}
    if not any(key.startswith(("_encoder.", "_dynamics.")) for key in named):
        inside = next((key.partition("_encoder.")[0] for key in named if "._encoder." in key), None)
        found = ", ".join(list(named)[:4]) if isinstance(state, dict) else type(state).__name__
        advice = f"; remove the prefix {inside!r} from its names and save it again" if inside else ""
        raise CheckpointError(
            f"{path}: is not a TD-MPC2 checkpoint: expected {{'model': state}} with entries such as "
            f"_encoder.state.0.weight and _dynamics.0.weight, found {found or 'nothing'}{advice}"
        )
    return {
        key: value.float() if torch.is_tensor(value) and value.dtype in _HALF else value for key, value in named.items()
    }


def _unwrapped(state: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The state under the names it had before modules were wrapped.

    Raises:
        CheckpointError: two entries would have one name.
    """
    found: dict[str, str] = {}
    for key in map(str, state):
        name = _WRAPPERS.sub("", key).removeprefix("model.")
        if name in found:
            raise CheckpointError(
                f"{where}: has {name} twice, as {found[name]} and as {key}; save the state dict of a single model"
            )
        found[name] = key
    return dict(zip(found, state.values(), strict=True))


def save_tdmpc2(model: WorldModel, path: str | Path, form: str = "new") -> None:
    """Write `to_tdmpc2(model, form)` as TD-MPC2's own `save` does."""
    torch.save({"model": to_tdmpc2(model, form)}, path)


def describe(state: Mapping[str, Any], unseen: WorldModelConfig = UNSEEN, where: str = "state dict") -> Published:
    """Infer what a published state dict is, and check that nothing is missing, added or of another shape.

    A size is what most of the tensors that show it say, so that a tensor of a wrong shape is named itself.

    Args:
        state: published names to tensors, of either form.
        unseen: for settings that the state does not show.
        where: what to call it in messages.
    Raises:
        CheckpointError: every difference, under the published names; or what kind of model cannot be read.
    """
    tensors = {key: value for key, value in state.items() if not re.search(r"params\.__(batch_size|device)$", str(key))}
    if others := [key for key, value in tensors.items() if not (isinstance(key, str) and torch.is_tensor(value))]:
        kinds = ", ".join(f"{key} ({type(state[key]).__name__})" for key in others[:8])
        raise CheckpointError(f"{where}: expected names and tensors, found {kinds}")
    if any(key.startswith("_encoder.rgb.") for key in tensors):
        raise CheckpointError(f"{where}: its encoder reads images (_encoder.rgb.*); only state observations are read")
    numbered = [bool(re.fullmatch(r"_(target_)?Qs\.params\.\d+", key)) for key in tensors if "Qs" in key]
    form = "old" if sum(numbered) > len(numbered) / 2 else "new"
    sizes = _infer(tensors, where)
    num_tasks, observation_dim, action_dim = (
        sizes.pop(name) for name in ("num_tasks", "observation_dim", "action_dim")
    )
    if sizes["num_bins"] == 1:
        raise CheckpointError(
            f"{where}: _reward.2.weight has one output, a regression head (num_bins 0 or 1, as in PWM's models of "
            "differentiable simulators); only two-hot heads are read"
        )
    widths = sizes["encoder_dim"], sizes["encoder_layers"], sizes["mlp_dim"], sizes["num_q"]
    named = [name for name, (_, *between, _, num_q) in SIZES.items() if (*between, num_q) == widths]
    shown: dict[str, Any] = {**sizes, **_log_std(tensors), "size": named[0] if named else unseen.size}
    try:
        config = dataclasses.replace(unseen, **shown)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
    terminates = any(key.startswith("_termination.") for key in tensors)
    published = Published(form, config, num_tasks, observation_dim, action_dim, None, terminates)
    check_same_tensors(
        tensors,
        _expected(published, tensors),
        f"{where} is not a complete TD-MPC2 checkpoint ({form} form; by most of its tensors {num_tasks} tasks, "
        f"observation_dim {observation_dim}, action_dim {action_dim}, "
        f"{', '.join(f'{name} {size}' for name, size in sizes.items())})",
    )
    _check_copies(tensors, where)
    return dataclasses.replace(published, action_dims=_action_dims(tensors, where))


def from_tdmpc2(
    state: Mapping[str, Any],
    table: TaskTable | None = None,
    unseen: WorldModelConfig = UNSEEN,
    *,
    frozen: bool = True,
    where: str = "state dict",
) -> WorldModel:
    """The world model in a published state dict, its weights bit for bit.

    Args:
        state: published names to tensors, of either form.
        table: its tasks in their order; None for `Published.generic_table`.
        unseen, where: as `describe`.
        frozen: call `freeze`, which shortens rows of the task embedding that are longer than 1, as the published lookup
            does. False leaves them, to be written back.
    Raises:
        CheckpointError: see `describe`; or the table is not that of the weights.
    """
    published = describe(state, unseen, where)
    if table is None:
        table = published.generic_table()
    _check_table(published, table, where)
    model = WorldModel(published.config, table)
    weights = {ours: state[theirs] for ours, theirs in published_names(model, published.form).items()}
    weights |= {name: -weights[name] for name in _NEGATED if name in weights}
    model.load_state_dict(model.state_dict() | weights)
    return model.freeze() if frozen else model


def to_tdmpc2(model: WorldModel, form: str = "new") -> dict[str, Any]:
    """The published state dict of a model: `from_tdmpc2` in reverse. Shares memory with the model.

    Raises:
        CheckpointError: TD-MPC2 has no such model; says why.
    """
    if form not in FORMS:
        raise CheckpointError(f"form: expected {' or '.join(FORMS)}, found {form!r}")
    scaled = bool((model.observation_mean_KO != 0).any() or (model.observation_scale_KO != 1).any())
    check_tdmpc2_can_hold(
        model.config, "this model", scaled=scaled, tasks=len(model.table), terminates=model.models_termination
    )
    ours = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    state: dict[str, Any] = {}
    if form == "new":
        config = model.config
        if config.task_dim:
            state["_action_masks"] = model.action_mask_KA.cpu()
        # Whole numbers are integers there, since its config writes them so.
        low, high = (int(x) if float(x).is_integer() else x for x in (config.log_std_min, config.log_std_max))
        state |= {"log_std_min": torch.tensor(low), "log_std_dif": torch.tensor(high - low)}
    names = published_names(model, form)
    state |= {theirs: -ours[name] if name in _NEGATED else ours[name] for name, theirs in names.items()}
    if form == "new":
        state |= {_copy_of(key): state[key] for key in names.values() if key.startswith("_Qs.params.")}
        for prefix in ("_Qs.params", "_detach_Qs_params", "_target_Qs_params"):
            state |= {f"{prefix}.__batch_size": torch.Size([model.config.num_q]), f"{prefix}.__device": None}
    return state


def published_names(model: WorldModel, form: str) -> dict[str, str]:
    """Our name of each parameter to the published one, in the published order."""
    names = {}
    for part, theirs in _PARTS.items():
        # A task embedding of width 0 is not published.
        own = [key for key, value in model.state_dict().items() if key.startswith(f"{part}.") and value.numel()]
        if part in ("values", "target_values"):
            for key in sorted(own, key=_place):
                layer, number = _place(key)
                old = f"{theirs.replace('_params', '.params')}.{layer * len(_LAYER) + number}"
                names[key] = old if form == "old" else f"{theirs}.{layer}.{_LAYER[number]}"
        else:
            for key in own:
                name = key.removeprefix(part).replace(".linear.", ".").replace(".norm.", ".ln.")
                names[key] = f"{theirs}{name}"
    return names


def _place(key: str) -> tuple[int, int]:
    """Layer, and number in it, of a parameter of our value ensemble: `values.norm_weight.1` is (1, 2)."""
    _, kind, layer = key.split(".")
    return int(layer), _LAYER.index(kind.replace("norm_", "ln."))


def _infer(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, int]:
    """Every size, from all tensors that show it."""

    def lengths(pattern: str, axis: int) -> list[int]:
        shown = [tensor.shape for key, tensor in tensors.items() if re.fullmatch(pattern, key)]
        return [shape[axis] for shape in shown if len(shape) > axis]

    def usual(shown: Iterable[int]) -> list[int]:
        return [length for length, _ in Counter(length for length in shown if length >= 0).most_common(1)]

    def most(name: str, shown: Iterable[int], keys: str) -> int:
        for length in usual(shown):
            return length
        raise CheckpointError(f"{where}: no tensor shows {name}; expected {keys}")

    layers = {int(match[1]) for key in tensors if (match := re.match(r"_encoder\.state\.(\d+)\.", key))}
    last = next(i for i in itertools.count() if i + 1 not in layers)
    ensemble = r"_(?:target_)?Qs[._]params\."
    # What is taken from differences counts once: one wrong tensor must not outvote the others through them.
    joint = usual(lengths(r"_(dynamics|reward)\.0\.weight", 1) + lengths(ensemble + r"0(\.weight)?", 2))
    prior = usual(lengths(r"_(pi|termination)\.0\.weight", 1))
    latent_dim = most(
        "latent_dim",
        lengths(r"_dynamics\.2\..+", 0) + lengths(rf"_encoder\.state\.{last}\..+", 0),
        "_dynamics.2.* and _encoder.state.*",
    )
    halves = [length // 2 for length in lengths(r"_pi\.2\..+", 0)]
    masks = lengths("_action_masks", 1)
    action_dim = most("action_dim", halves + masks + [j - p for j in joint for p in prior], "_pi.2.*")
    shares = [p - latent_dim for p in prior] + [j - latent_dim - action_dim for j in joint]
    task_dim = most("task_dim", lengths(r"_task_emb\.weight", 1) + shares, "_pi.0.weight")
    inputs = lengths(r"_encoder\.state\.0\.weight", 1)
    bins = lengths(r"_reward\.2\..+", 0) + lengths(ensemble + r"(8|9|2\.weight|2\.bias)", 1)
    return {
        "num_tasks": most("tasks", lengths(r"_task_emb\.weight", 0) + lengths("_action_masks", 0) or [1], ""),
        "observation_dim": most("observation_dim", [n - task_dim for n in inputs], "_encoder.state.0.weight"),
        "action_dim": action_dim,
        "latent_dim": latent_dim,
        "encoder_dim": most("encoder_dim", lengths(r"_encoder\.state\.0\..+", 0), "_encoder.state.0.*"),
        "encoder_layers": last + 1,
        "mlp_dim": most("mlp_dim", lengths(r"_(dynamics|reward|pi)\.[01]\..+", 0), "_dynamics.0.*"),
        "task_dim": task_dim,
        "num_q": most("num_q", lengths(ensemble + ".+", 0), "_Qs.params.*"),
        "num_bins": most("num_bins", bins, "_reward.2.*"),
    }


def _log_std(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    constants = [tensors.get(name) for name in ("log_std_min", "log_std_dif")]
    if any(constant is None or constant.numel() != 1 for constant in constants):
        return {}
    low, range_ = (float(constant) for constant in constants if constant is not None)
    return {"log_std_min": low, "log_std_max": low + range_}


def _expected(published: Published, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a complete state dict holds, without memory behind it. Copies and constants count only where they are."""
    with torch.device("meta"):
        model = WorldModel(published.config, published.generic_table())
        constants = {name: torch.empty((), dtype=tensors[name].dtype) for name in _CONSTANTS if name in tensors}
        if "_action_masks" in tensors and published.config.task_dim:
            constants["_action_masks"] = torch.empty(published.num_tasks, published.action_dim)
    ours = model.state_dict()
    expected = {theirs: ours[name] for name, theirs in published_names(model, published.form).items()}
    if any(key.startswith("_detach_Qs_params.") for key in tensors):
        constants |= {_copy_of(key): value for key, value in expected.items() if key.startswith("_Qs.params.")}
    return expected | constants


def _copy_of(key: str) -> str:
    return key.replace("_Qs.params.", "_detach_Qs_params.")


def _check_copies(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """The second copy of the value ensemble is the ensemble."""
    pairs = [(key, _copy_of(key)) for key in tensors if key.startswith("_Qs.params.") and _copy_of(key) in tensors]
    if differing := [copy for key, copy in pairs if not torch.equal(tensors[key], tensors[copy])]:
        raise CheckpointError(
            f"{where}: {', '.join(differing)} differ from _Qs.params, although they are copies of it in every file "
            "that TD-MPC2 writes; the file was edited, and it is not clear which to use"
        )


def _action_dims(tensors: Mapping[str, torch.Tensor], where: str) -> tuple[int, ...] | None:
    if (masks := tensors.get("_action_masks")) is None:
        return None
    dims = masks.sum(1)
    ones_first = (torch.arange(masks.shape[1]) < dims[:, None]).to(masks.dtype)
    if not torch.equal(ones_first, masks) or dims.min() < 1 or dims.max() != masks.shape[1]:
        raise CheckpointError(
            f"{where}: _action_masks must have ones for a task's own action components, then zeros, and no zero in the "
            f"longest row; found {masks.tolist()}"
        )
    return tuple(int(length) for length in dims)


def _check_table(published: Published, table: TaskTable, where: str) -> None:
    problems = [
        f"{name} {found} in the file, {given} by the tasks"
        for name, found, given in (
            ("number of tasks", published.num_tasks, len(table)),
            ("longest observation", published.observation_dim, table.observation_dim),
            ("longest action", published.action_dim, table.action_dim),
            ("terminations predicted", published.terminates, any(task.terminates for task in table)),
        )
        if found != given
    ]
    for k, (task, action_dim) in enumerate(zip(table, published.action_dims or (), strict=False)):
        if task.action_dim != action_dim:
            problems.append(f"action of task {k} {action_dim} in the file, {task.action_dim} of {task.name}")
    if problems:
        raise CheckpointError(
            f"{where} was trained on other tasks than the given ones:\n  "
            + "\n  ".join(problems)
            + "\nName its tasks in its order (mt30 and mt80 are TD-MPC2's sets), or no tasks to use numbers"
        )
