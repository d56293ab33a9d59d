"""Behaviours that make data, and how their episodes are written: one Minari HDF5 dataset per task.

Decides what exploration looks like (per episode one of three kinds, at many time scales), how a scripted expert is
varied, and that an episode depends only on (seed, task, its number): not on how the work was split. The recorded
actions are those of the project, [-1, 1] or a choice, so a dataset describes its environment by the TaskSpec in its
metadata rather than by a gymnasium EnvSpec.

Dimension letters: B episodes being played, O observation, A action.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pipeline.artifact import link, unfinished
from ..pipeline.reading import read_made, reading_made
from ..pipeline.seeding import derive_seed
from .formats.minari import BEHAVIOUR_KEY, TASK_KEY, MinariReader
from .rollout import Act, EpisodeResult
from .schema import Behaviour, TaskSpec

COLLECT_KEY = "orrery_collect"
"""Metadata entry that holds the record of `write_dataset` as a JSON string."""

RESULTS_KEY = "results"
"""Entry of that record for `read_results`: exact returns, and which episodes failed and why."""

EPISODE_OVERHEAD, FILE_OVERHEAD = 24 * 1024, 256 * 1024
"""Bytes beside the numbers that a Minari dataset takes at most: 18 kB of HDF5's per episode were measured."""

MEAN_HOLD = (1.0, 32.0)
"""Range, in steps, of the mean time for which held actions last, and of the time scale of correlated noise."""

POLICY_HOLD = 8
"""Mean time for which a random policy acts, in time scales of its noise."""

SMALL_VARIANCE = 1e-12
"""Added to the variance of an observation, so that one that never changes counts as 0."""

Controller = Callable[[np.ndarray], np.ndarray]
"""One episode's behaviour: observation [O] -> action [A] in [-1, 1]."""


@dataclass(frozen=True)
class Variation:
    """How the episodes of a scripted expert differ from one another."""

    noise: tuple[float, float] = (0.0, 0.6)
    """Range of the standard deviation of the Gaussian noise on its actions, drawn once per episode."""
    random_share: float = 0.1
    """Probability that an episode is uniformly random instead."""


def episode_seed(seed: int, task: str, number: int) -> int:
    """Environment seed of a collected episode, below 2**31; evaluation draws its own from above."""
    return derive_seed("collect", seed, task, number) % 2**31


def has_expert(spec: TaskSpec) -> bool:
    """Whether a scripted expert comes with the task's suite."""
    return spec.environment.get("kind") == "metaworld"


def behaviour_act(spec: TaskSpec, numbers: Sequence[int], seed: int, variation: Variation) -> Act:
    """The behaviour for the episodes `numbers`: a varied scripted expert where the suite has one, else exploration."""
    controllers: list[Controller] = []
    for number in numbers:
        rng = np.random.default_rng(derive_seed("behaviour", seed, spec.name, number))
        controllers.append(expert(spec, rng, variation) if has_expert(spec) else exploration(spec, rng))

    def act(observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        return np.array([controllers[index](row) for index, row in zip(episode, observation, strict=True)])

    return act


def exploration(spec: TaskSpec, rng: np.random.Generator) -> Controller:
    """One episode's exploration: random linear policies, correlated noise (Ornstein-Uhlenbeck) or held bang-bang noise.

    Each kind has a third of the episodes; the time scale is drawn log-uniformly from `MEAN_HOLD`. Discrete choices are
    uniform, held for a random time.
    """
    time_scale = float(np.exp(rng.uniform(*np.log(MEAN_HOLD))))
    if spec.action_kind == "discrete":
        return _held(rng, time_scale, lambda: np.eye(spec.action_dim, dtype=np.float32)[rng.integers(spec.action_dim)])
    kind = rng.integers(3)
    if kind == 0:
        return _linear_policies(rng, time_scale, spec)
    if kind == 1:
        return _ornstein_uhlenbeck(rng, time_scale, spec.action_dim)
    return _held(rng, time_scale, lambda: rng.choice(np.array([-1, 1], np.float32), spec.action_dim))


def uniform(spec: TaskSpec, rng: np.random.Generator) -> Controller:
    """Uniform over [-1, 1] at every step; over the choices of a discrete action."""
    if spec.action_kind == "discrete":
        return lambda _: np.eye(spec.action_dim, dtype=np.float32)[rng.integers(spec.action_dim)]
    return lambda _: rng.uniform(-1, 1, spec.action_dim).astype(np.float32)


def expert(spec: TaskSpec, rng: np.random.Generator, variation: Variation) -> Controller:
    """Meta-World's scripted policy for the task with Gaussian noise, or with `random_share` a random episode."""
    from metaworld.policies import ENV_POLICY_MAP

    if rng.random() < variation.random_share:
        return uniform(spec, rng)
    scale = rng.uniform(*variation.noise)
    scripts: Mapping[str, Any] = ENV_POLICY_MAP
    policy = scripts[spec.environment["task"]]()

    def controller(observation: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            # The scripts warn that the environment clips what they return; it is clipped below as well.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            action = policy.get_action(observation.astype(np.float64))
        return np.clip(action + scale * rng.standard_normal(len(action)), -1, 1).astype(np.float32)

    return controller


def noisy(
    act: Act, spec: TaskSpec, numbers: Sequence[int], seed: int, noise: tuple[float, float], random_share: float
) -> Act:
    """`act` with exploration on top, for the episodes `numbers`.

    Per episode a level is drawn from the range `noise`: the standard deviation of Gaussian noise on continuous actions,
    or the probability of a uniform choice at each step where they are discrete. With probability `random_share` the
    whole episode is that of `exploration` instead.
    """
    rngs = [np.random.default_rng(derive_seed("policy noise", seed, spec.name, number)) for number in numbers]
    levels = [rng.uniform(*noise) for rng in rngs]
    strangers = [exploration(spec, rng) if rng.random() < random_share else None for rng in rngs]

    def explored(index: int, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        rng, level, stranger = rngs[index], levels[index], strangers[index]
        if stranger is not None:
            return stranger(observation)
        if spec.action_kind == "discrete":
            return uniform(spec, rng)(observation) if rng.random() < level else action
        return np.clip(action + level * rng.standard_normal(len(action)), -1, 1).astype(np.float32)

    def explore(observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        actions = act(observation, episode)
        return np.stack([explored(*row) for row in zip(episode.tolist(), observation, actions, strict=True)])

    return explore


def _ornstein_uhlenbeck(rng: np.random.Generator, time_scale: float, action_dim: int) -> Controller:
    """First-order autoregressive noise whose correlation falls by 1/e in `time_scale` steps, clipped to [-1, 1].

    Its stationary standard deviation is drawn from [0.1, 1]: an unstable system needs gentle episodes too.
    """
    deviation = rng.uniform(0.1, 1.0)
    keep = np.exp(-1 / time_scale)
    spread = np.sqrt(1 - keep**2) * deviation
    state = deviation * rng.standard_normal(action_dim)

    def controller(_: np.ndarray) -> np.ndarray:
        nonlocal state
        action = state.clip(-1, 1).astype(np.float32)
        state = keep * state + spread * rng.standard_normal(action_dim)
        return action

    return controller


def _linear_policies(rng: np.random.Generator, time_scale: float, spec: TaskSpec) -> Controller:
    """Random linear policies, one after the other, with correlated noise: they reach states that only feedback reaches,
    among them those in which trained policies fail.

    As in augmented random search (Mania et al. 2018, arXiv 1803.07055), a policy acts on observations that are
    standardised by those seen so far, here in the episode. A new one is drawn after `POLICY_HOLD * time_scale` steps on
    average.
    """
    noise = _ornstein_uhlenbeck(rng, time_scale, spec.action_dim)
    count, mean_O, square_O = 0, np.zeros(spec.observation_dim), np.zeros(spec.observation_dim)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        # From gentle feedback to actions that are mostly at their limits.
        gain = rng.uniform(0.3, 3.0) / np.sqrt(spec.observation_dim)
        weight_AO = gain * rng.standard_normal((spec.action_dim, spec.observation_dim))
        return weight_AO, rng.uniform(-0.5, 0.5, spec.action_dim)

    weight_AO, bias_A = draw()

    def controller(observation: np.ndarray) -> np.ndarray:
        nonlocal count, mean_O, square_O, weight_AO, bias_A
        count += 1
        off_O = observation - mean_O
        mean_O = mean_O + off_O / count
        square_O = square_O + off_O * (observation - mean_O)  # Welford's sum of squares
        if rng.random() < 1 / (POLICY_HOLD * time_scale):
            weight_AO, bias_A = draw()
        scaled_O = (observation - mean_O) / np.sqrt(square_O / count + SMALL_VARIANCE)
        return np.clip(weight_AO @ scaled_O + bias_A + 0.5 * noise(observation), -1, 1).astype(np.float32)

    return controller


def _held(rng: np.random.Generator, mean_hold: float, draw: Callable[[], np.ndarray]) -> Controller:
    """An action that is drawn anew with probability 1 / `mean_hold` at every step."""
    action = draw()

    def controller(_: np.ndarray) -> np.ndarray:
        nonlocal action
        if rng.random() < 1 / mean_hold:
            action = draw()
        return action

    return controller


def dataset_id(task: str) -> str:
    """Minari id of the dataset collected for a task: its name with characters that Minari refuses replaced, and -v0."""
    return "".join(letter if letter.isalnum() or letter in "-_/" else "_" for letter in task) + "-v0"


def write_dataset(
    root: Path,
    spec: TaskSpec,
    behaviour: Behaviour,
    results: Sequence[EpisodeResult],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the completed episodes as the Minari dataset `dataset_id(spec.name)` below `root`.

    The dataset appears under its name when it is complete: it is written aside and renamed.

    Args:
        root: what MINARI_DATASETS_PATH must be for Minari to find the dataset.
        spec: the task, stored in the metadata.
        behaviour: how the data was made, stored in the metadata.
        results: recorded episodes in order; those that failed are counted and left out. At least one completed.
        settings: JSON of what determined the episodes, for provenance.

    Raises:
        OSError: the disk is full, found before anything is written.
    Returns:
        The record: dataset_id, behaviour, episodes, transitions, failed_episodes, errors, return_mean, success_rate.
    """
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    identifier = dataset_id(spec.name)
    discrete = spec.action_kind == "discrete"
    completed = []
    buffers = []
    size = FILE_OVERHEAD
    for result in results:
        episode = result.episode
        if episode is None:
            continue
        completed.append(result)
        length = len(episode)
        size += episode.observations.nbytes + episode.actions.nbytes + episode.rewards.nbytes + EPISODE_OVERHEAD
        last = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                seed=result.seed,
                observations=episode.observations,
                actions=episode.actions.argmax(-1) if discrete else episode.actions,
                rewards=episode.rewards,
                terminations=last & episode.terminated,
                truncations=last & (not episode.terminated),
                # Minari's infos have an entry for the reset as well.
                infos=None if episode.success is None else {"success": np.concatenate([[False], episode.success])},
            )
        )
    record = {
        "dataset_id": identifier,
        "behaviour": behaviour,
        "episodes": len(completed),
        "transitions": sum(result.length for result in completed),
        "failed_episodes": len(results) - len(completed),
        "errors": sorted({result.error for result in results if result.error is not None})[:5],
        "return_mean": float(np.mean([result.return_ for result in completed])),
        "success_rate": float(np.mean([result.success_any for result in completed])) if spec.reports_success else None,
    }
    played = {
        "returns": [result.return_ for result in completed],
        "failures": {str(number): result.error for number, result in enumerate(results) if result.error is not None},
    }
    root = root.resolve()  # Minari joins a relative path to itself
    aside = unfinished(root)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _reserve(aside, size)
    with _minari_root(aside), warnings.catch_warnings():
        # Minari asks for an author and a permalink, which a local run does not have, and for an environment to evaluate
        # in, which the TaskSpec describes.
        warnings.filterwarnings("ignore", message=".*is set to None.*|env_spec is None.*")
        dataset = minari.create_dataset_from_buffers(
            identifier,
            buffers,
            observation_space=spaces.Box(-np.inf, np.inf, (spec.observation_dim,), np.float32),
            action_space=spaces.Discrete(spec.action_dim) if discrete else spaces.Box(-1, 1, (spec.action_dim,)),
            algorithm_name=behaviour,
            description=f"{spec.name}, collected by orrery ({behaviour})",
            data_format="hdf5",
        )
        dataset.storage.update_metadata(
            {
                TASK_KEY: json.dumps(spec.to_dict()),
                BEHAVIOUR_KEY: behaviour,
                COLLECT_KEY: json.dumps({**record, "settings": dict(settings), RESULTS_KEY: played}),
            }
        )
    final = root / identifier
    final.parent.mkdir(parents=True, exist_ok=True)
    (aside / identifier).rename(final)
    shutil.rmtree(aside)
    return record


def _reserve(folder: Path, size: int) -> None:
    """Raise the OSError of a disk that has no room for `size` bytes: raised within HDF5 it ends in a segfault."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)


def read_record(root: Path, task: str) -> dict[str, Any] | None:
    """The record of a dataset that `write_dataset` completed below `root`; None if there is none."""
    record = _read_metadata(root, task)
    return None if record is None else {name: value for name, value in record.items() if name != RESULTS_KEY}


def _read_metadata(root: Path, task: str) -> dict[str, Any] | None:
    metadata = root / dataset_id(task) / "data" / "metadata.json"
    if not metadata.is_file():
        return None
    with reading_made(metadata):
        return dict(json.loads(read_made(metadata, dict[str, Any])[COLLECT_KEY]))


def read_results(root: Path, spec: TaskSpec, seeds: Sequence[int]) -> list[EpisodeResult]:
    """What `write_dataset` was given, as far as there are seeds: one for each of the results, failed ones included.

    Empty where there is no dataset, or one whose record does not say enough.
    """
    record = _read_metadata(root, spec.name) or {}
    if RESULTS_KEY not in record:
        return []
    returns, failures = record[RESULTS_KEY]["returns"], record[RESULTS_KEY]["failures"]
    completed = zip(MinariReader(root / dataset_id(spec.name)), returns, strict=True)
    total = record["episodes"] + record["failed_episodes"]
    results = []
    for number, seed in zip(range(total), seeds, strict=False):
        if (error := failures.get(str(number))) is not None:
            results.append(EpisodeResult(seed, 0.0, 0, None, None, error))
            continue
        episode, return_ = next(completed)
        success = None if episode.success is None else [bool(one) for one in episode.success]
        results.append(
            EpisodeResult(
                seed, return_, len(episode),
                any(success) if success else None, success[-1] if success else None, None, episode,
            )
        )  # fmt: skip
    return results


def take_dataset(source: Path, root: Path, task: str) -> None:
    """Let the dataset of a task below `source` be that below `root`, too (see `artifact.link`)."""
    identifier, aside = dataset_id(task), unfinished(root)
    shutil.rmtree(aside, ignore_errors=True)
    link(source / identifier, aside / identifier)
    (root / identifier).parent.mkdir(parents=True, exist_ok=True)
    (aside / identifier).rename(root / identifier)
    shutil.rmtree(aside)


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Point Minari at `root`, which it reads from the environment at every call, and nowhere else afterwards."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
