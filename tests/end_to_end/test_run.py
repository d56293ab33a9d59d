"""The main job at its smallest, as a user runs it: stages in order, skipped when fresh, continued when killed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from orrery.datasets.formats.sources import open_reader
from orrery.stages.policy.policy import load_policy

TINY = Path(__file__).with_name("tiny.yaml")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def orrery(*arguments, **options):
    command = [sys.executable, "-m", "orrery.pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    parent = tmp_path_factory.mktemp("run")
    # The default run folder, which is relative. Loggers are part of no key: later commands go without.
    result = orrery("run", TINY, "loggers=[csv,tensorboard]", cwd=parent)
    assert result.returncode == 0, result.stderr
    return parent / "runs" / "tiny"


def test_every_stage_leaves_what_it_promises(finished):
    scores = pd.read_csv(finished / "evaluate" / "scores.csv")
    columns = ["algorithm", "task", "seed", "episodes", "return_mean", "return_std", "success_rate", "score"]
    assert list(scores.columns) == columns
    rows = {(row.algorithm, row.task, row.seed) for row in scores.itertuples()}
    tasks = ["gymnasium/Pendulum-v1", "gymnasium/CartPole-v1"]
    expected = {(a, t, s) for a in ("pwm", "bc", "random") for t in tasks for s in (0, 1)}
    assert rows == expected | {("behaviour", t, 0) for t in tasks}
    assert scores[scores.algorithm != "behaviour"].episodes.eq(2).all()
    assert scores.score.notna().all()
    summary = json.loads((finished / "evaluate" / "summary.json").read_text())
    for name in ("pwm", "bc", "random"):
        interval = summary["algorithms"][name]["iqm"]
        assert interval["low"] <= interval["value"] <= interval["high"]
    page = (finished / "report" / "index.html").read_text()
    assert "gymnasium/CartPole-v1" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    validation = pd.read_csv(finished / "pretrain" / "validation.csv")
    assert set(validation.task) == set(tasks)
    assert set(validation.step) == {20, 40}
    policy = load_policy(finished / "extract" / "pwm" / "gymnasium.CartPole-v1" / "seed_1")
    assert policy.task.action_kind == "discrete"


def test_loggers_write_beside_the_artifacts(finished):
    logged = pd.read_csv(next(finished.glob("logs/csv/extract/*/attempt_0/metrics.csv")))
    training = pd.read_csv(finished / "extract" / "training.csv")
    row = training[(training.algorithm == "pwm") & (training.seed == 1)].iloc[0]
    name = f"pwm/{row.task}/seed_1/imagined_reward"
    assert logged.loc[logged.step == row.iteration, name].tolist() == pytest.approx([row.imagined_reward])
    assert "train/total" in pd.read_csv(finished / "logs/csv/pretrain/attempt_0/metrics.csv")
    assert "latent_dim" in (finished / "logs/csv/pretrain/attempt_0/hparams.yaml").read_text()
    for stage in ("pretrain", "extract/*"):
        assert list(finished.glob(f"logs/tensorboard/{stage}/events.*"))
    assert not (finished / "pretrain" / "tensorboard").exists()


def test_every_file_may_be_read_by_whom_the_umask_says(finished):
    usual = (finished / "run.json").stat().st_mode
    assert not [path for path in finished.rglob("*") if path.is_file() and path.stat().st_mode != usual]


def test_a_second_run_does_nothing_within_three_seconds(finished):
    """Of the processor: other tests may run beside this one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = orrery("run", TINY, f"run_dir={finished}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert "nothing to do: all stages are up to date" in result.stdout
    assert seconds < 3


def test_a_changed_setting_reruns_its_stage_and_what_depends_on_it(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    result = orrery("plan", TINY, f"run_dir={folder}", "extract.iterations=10")
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert all("up to date" in lines[stage] for stage in ("collect", "pack", "pretrain"))
    assert "iterations 20 -> 10" in lines["extract"]
    assert "extract runs first" in lines["evaluate"]
    result = orrery("run", TINY, f"run_dir={folder}", "extract.iterations=10")
    assert result.returncode == 0, result.stderr
    for stage, same in [("pretrain", True), ("extract", False), ("evaluate", False)]:
        before, after = ((f / stage / "manifest.json").read_text() for f in (finished, folder))
        assert (json.loads(before)["key"] == json.loads(after)["key"]) is same


STAGES = ["collect", "pack", "pretrain", "extract", "evaluate", "report"]
# What shows that a stage has done something worth continuing from.
UNDER_WAY = {
    "collect": "collect.partial/minari/gymnasium/Pendulum-v1-v0",
    "pretrain": "pretrain.partial/checkpoints/last.ckpt",
    "extract": "extract.jobs/000-gymnasium.Pendulum-v1+1/result.partial/checkpoint.pt",
    "evaluate": "evaluate.partial/finished.jsonl",
}


@pytest.mark.parametrize(
    ("stage", "how"),
    [(stage, [signal.SIGKILL]) for stage in UNDER_WAY]
    + [("pretrain", [signal.SIGTERM] * 3), ("collect", [signal.SIGUSR1]), ("extract", [signal.SIGUSR2])],
)
def test_stopped_and_continued_ends_with_the_same_artifact(finished, tmp_path, stage, how):
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(folder / later)
        shutil.rmtree(folder / f"{later}.jobs", ignore_errors=True)  # whose results it would take over
    command = [
        sys.executable,
        "-m",
        "orrery.pipeline.cli",
        "run",
        str(TINY),
        f"run_dir={folder}",
        f"stages={upto(stage)}",
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True)
    begun = folder / UNDER_WAY[stage]
    deadline = time.monotonic() + 120
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    for number in how:  # to all of its processes, as a scheduler does
        os.killpg(process.pid, number)
        time.sleep(0.05)
    # 75: to be run again, as a scheduler understands it.
    assert process.wait() == (-9 if how == [signal.SIGKILL] else 75)
    assert begun.exists(), "it ended before it could be stopped"
    result = orrery("run", TINY, f"run_dir={folder}", f"stages={upto(stage)}")
    assert result.returncode == 0, result.stderr
    if stage == "collect":
        assert_same_episodes(finished / "collect", folder / "collect")
        return
    paths = [path for pattern in SAME[stage] for path in sorted((finished / stage).glob(pattern))]
    assert paths
    for path in paths:
        assert path.read_bytes() == (folder / path.relative_to(finished)).read_bytes(), path


def test_a_killed_worker_fails_its_stage_which_then_continues(finished, tmp_path):
    """As the out-of-memory killer does it: no property of a policy, so no failed episodes."""
    folder = tmp_path / "worker"
    shutil.copytree(finished, folder)
    for later in ("evaluate", "evaluate.jobs", "report"):
        shutil.rmtree(folder / later)
    command = [sys.executable, "-m", "orrery.pipeline.cli", "run", str(TINY), f"run_dir={folder}"]
    command.append(f"stages={upto('evaluate')}")
    process = psutil.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    workers = []
    deadline = time.monotonic() + 120
    while not workers and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
        workers = [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    message = " ".join(errors.split())
    assert "the process died (killed, out of memory" in message
    assert "are kept; rerun the command" in message
    assert "Traceback" not in message
    assert not (folder / "evaluate").exists()
    result = orrery("run", TINY, f"run_dir={folder}", f"stages={upto('evaluate')}")
    assert result.returncode == 0, result.stderr
    for name in SAME["evaluate"]:
        assert (finished / "evaluate" / name).read_bytes() == (folder / "evaluate" / name).read_bytes(), name


def upto(stage):
    return "[" + ",".join(STAGES[: STAGES.index(stage) + 1]) + "]"


# Files that come out byte for byte as without the kill.
SAME = {
    "pretrain": ["model.safetensors", "training.csv", "validation.csv"],
    "extract": ["**/*.safetensors", "training.csv", "policies.json"],
    "evaluate": ["scores.csv", "episodes.csv", "summary.json"],
}


def assert_same_episodes(expected, found):
    """Of every dataset; the files themselves hold the time at which they were written."""
    tasks = json.loads((expected / "datasets.json").read_text())["tasks"]
    assert list(json.loads((found / "datasets.json").read_text())["tasks"]) == list(tasks)
    for entry in tasks.values():
        left, right = (list(open_reader(folder / entry["path"])) for folder in (expected, found))
        assert len(left) == len(right) == 30
        for a, b in zip(left, right, strict=True):
            assert (a.observations == b.observations).all()
            assert (a.actions == b.actions).all()
            assert (a.rewards == b.rewards).all()


def test_an_edited_store_is_refused_before_it_is_trained_on(finished, tmp_path):
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder)
    rows = folder / "pack" / "gymnasium.Pendulum-v1" / "rows.f32"
    data = bytearray(rows.read_bytes())
    data[1000] ^= 1
    rows.write_bytes(data)
    result = orrery("run", TINY, f"run_dir={folder}", "pretrain.steps=41")
    assert result.returncode == 2
    message = " ".join(result.stderr.split())
    assert "rows.f32" in message
    assert "Traceback" not in message


def test_a_model_of_other_tasks_is_refused_before_anything_runs(finished, tmp_path):
    folder = tmp_path / "other"
    result = orrery(
        "run",
        TINY,
        f"run_dir={folder}",
        "stages=[collect,pack,extract]",
        "tasks=[gymnasium/MountainCarContinuous-v0]",
        "collect.episodes=3",
        f"inputs.world_model={finished / 'pretrain'}",
    )
    assert result.returncode == 2
    assert "gymnasium/MountainCarContinuous-v0: not in the task table of the world model" in result.stderr
    assert "gymnasium/CartPole-v1" in result.stderr
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning")  # Minari asks for an author and a permalink
def test_a_minari_dataset_made_elsewhere_becomes_a_task(tmp_path, monkeypatch):
    """Written with Minari's own functions and no word of ours: recovered environment, random actions."""
    import gymnasium
    import minari
    import numpy as np
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    env = gymnasium.make("Pendulum-v1")
    env.action_space.seed(0)
    buffers = []
    for episode in range(10):
        observations, actions, rewards = [env.reset(seed=episode)[0]], [], []
        for _ in range(200):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        ends = np.arange(200) == 199
        buffers.append(
            EpisodeBuffer(
                observations=np.array(observations),
                actions=np.array(actions),
                rewards=np.array(rewards),
                terminations=np.zeros(200, bool),
                truncations=ends,
            )
        )
    minari.create_dataset_from_buffers("elsewhere/pendulum-v0", buffers, env=env, eval_env=env, data_format="hdf5")
    folder = tmp_path / "run"
    stages = "stages=[pack,pretrain,extract,evaluate,report]"
    monkeypatch.setitem(ENVIRONMENT, "MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    result = orrery("run", TINY, f"run_dir={folder}", stages, "tasks=[minari/elsewhere/pendulum-v0]")
    assert result.returncode == 0, result.stderr
    scores = pd.read_csv(folder / "evaluate" / "scores.csv")
    assert set(scores.task) == {"minari/elsewhere/pendulum-v0"}
    assert set(scores.algorithm) == {"pwm", "bc", "behaviour", "random"}
    # Pendulum's returns lie between -2000 and 0: actions were undone to the environment's own scale.
    assert scores.return_mean.between(-2000, 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["quickstart", "tasks=[dmc/cartpole-balence]"],
            "unknown task 'dmc/cartpole-balence': the nearest are dmc/cart",
        ),
        (["quickstart", "pretrain.stepz=3"], "unknown key 'pretrain.stepz'. Did you mean 'pretrain.steps'?"),
        (["quickstart", "pretrain.steps=many"], "pretrain.steps: expected a whole number"),
        (["offline", "tasks=[minari/no/such-v0]"], "no Minari dataset 'no/such-v0'"),
        (["offline", "tasks=[{here}/no_rewards.hdf5]"], "no reward column 'rewards' in /"),
        (["offline", "tasks=[{here}/nan.hdf5]"], "observation column 1 (observations[1]) at t = 17 is nan"),
        (["quickstart", "inputs.store={here}/nothing", "stages=[pretrain]"], "nothing"),
    ],
)
def test_bad_input_is_one_message_that_says_where(tmp_path, arguments, message):
    import h5py
    import numpy as np

    for name in ("no_rewards", "nan"):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            observations = np.zeros((100, 3), np.float32)
            if name == "nan":
                observations[57, 1] = np.nan
                file["rewards"] = np.ones(100, np.float32)
            file["observations"], file["actions"] = observations, np.zeros((100, 1), np.float32)
            file["terminals"], file["timeouts"] = np.zeros(100, bool), np.arange(100) % 20 == 19
    result = orrery("run", *(a.format(here=tmp_path) for a in arguments), f"run_dir={tmp_path / 'run'}")
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
