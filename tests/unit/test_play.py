"""`orrery play`: what is recorder is what was played; what cannot be drawn says what to do."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import imageio.v2
import numpy as np
import pytest
import torch
from orrery.datasets.rollout import play_episodes, policy_act
from orrery.datasets.tasks import task_spec
from orrery.pipeline.cli import main
from orrery.pipeline.errors import ConfigError, TaskError
from orrery.stages.deployment import opengl
from orrery.stages.deployment.playing import default_file, play
from orrery.stages.evaluation.scores import evaluation_seed

from . import deployed

ARM = deployed.arm_task()


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return deployed.latent(ARM)


def test_a_film_shows_the_episodes_that_evaluation_plays(policy, tmp_path):
    out = tmp_path / "made" / "arm.gif"
    told = []
    played = play(policy, out, episodes=2, on_episode=lambda index, result: told.append(index))
    seeds = [evaluation_seed(0, "test/arm", 3, episode) for episode in range(2)]
    expected = dict(play_episodes(ARM, policy_act(policy), seeds, record=True, lanes=1))
    assert [result.return_ for result in played.results] == [expected[0].return_, expected[1].return_]
    assert [result.success_any for result in played.results] == [expected[0].success_any, expected[1].success_any]
    assert told == [0, 1]
    # 60 steps per second are shown as 30 pictures: of the first state, and after steps 2, 4, 6, 8.
    assert (played.frames, played.frames_per_second) == (10, 30)
    pictures = imageio.v2.mimread(out)
    bars = [int(np.argmax(picture[..., 0].mean(1))) // 2 for picture in pictures]
    assert bars == 2 * [0, 2, 4, 6, 8]
    assert [path.name for path in out.parent.iterdir()] == ["arm.gif"]


def test_another_seed_starts_elsewhere(policy, tmp_path):
    one, other = (play(policy, tmp_path / "arm.png", seed=seed).results[0].return_ for seed in (0, 1))
    assert one != other


def test_curves_need_nothing_that_draws(tmp_path, policy):
    spec = deployed.arm_task(kwargs={"broken": "render"})
    blind = deployed.latent(spec)
    with pytest.raises(TaskError, match=r"'test/arm' cannot be rendered: RuntimeError: no display\. --out FILE\.png"):
        play(blind, tmp_path / "arm.gif")
    assert list(tmp_path.iterdir()) == []
    played = play(blind, tmp_path / "arm.png", episodes=2)
    picture = imageio.v2.imread(tmp_path / "arm.png")
    assert picture.shape[:2] == (700, 1100)
    assert played.frames == 0
    assert len(played.results) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["arm.png"]


def test_a_failing_episode_leaves_no_film(tmp_path):
    with pytest.raises(TaskError, match="episode 0 of test/arm failed: RuntimeError: the joint is stuck"):
        play(deployed.latent(deployed.arm_task(kwargs={"broken": "step"})), tmp_path / "arm.gif")
    assert list(tmp_path.iterdir()) == []


def test_it_plays_in_another_task_of_the_same_shape(tmp_path):
    spec = task_spec("myriad/cancer")
    policy = deployed.state(spec)
    assert play(policy, tmp_path / "a.png", task="myriad/mould").results[0].length == 100
    assert play(policy, tmp_path / "a.png", task="myriad/mould@7").results[0].length == 7
    with pytest.raises(
        TaskError, match=r"trained for myriad/cancer \(2 observation columns and 1 action components\), "
    ):
        play(policy, tmp_path / "a.png", task="myriad/bear")
    with pytest.raises(TaskError, match="unknown task 'myriad/moulds': the nearest are myriad/mould"):
        play(policy, tmp_path / "a.png", task="myriad/moulds")
    with pytest.raises(TaskError, match=r"equations and cannot be rendered; --out FILE\.png"):
        play(policy, tmp_path / "b.gif")
    assert (str(default_file(spec)), str(default_file(ARM))) == ("myriad.cancer.png", "test.arm.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_stateful_policy_keeps_its_memory_over_an_episode(tmp_path):
    class Counting:
        task = ARM
        trained_by = {"algorithm": "tdmpc2_plan", "seed": 1}

        def begin(self, episode):
            return [episode, 0]

        def act(self, observation, memory):
            memory[0][1] += 1
            seen.append(tuple(memory[0]))
            return torch.zeros(1, 2)

    seen = []
    played = play(Counting(), tmp_path / "arm.png", episodes=2)
    assert [result.seed for result in played.results] == [evaluation_seed(0, "test/arm", 1, e) for e in (0, 1)]
    assert seen == [(episode, count) for episode in (0, 1) for count in range(1, 9)]


def test_where_it_is_written(policy, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"arm\.avi: expected a file name that ends in \.gif, \.mp4, \.png"):
        play(policy, tmp_path / "arm.avi")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*file/arm\.gif: .*--out"):
        play(policy, tmp_path / "file" / "arm.gif")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'orrery\[video\]', or write .*arm\.gif"):
        play(policy, tmp_path / "arm.mp4")


def test_mp4(policy, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the extra `video` is not installed")
    play(policy, tmp_path / "arm.mp4")
    frames, seconds = ffmpeg.count_frames_and_secs(tmp_path / "arm.mp4")
    assert frames == 5
    assert seconds == pytest.approx(5 / 30, abs=0.01)


def test_the_command_says_what_it_played(tmp_path, capsys):
    run = deployed.save_run(tmp_path)
    words = ["task=test/arm", "algorithm=pwm", "--episodes", "2", "--out", str(tmp_path / "arm.gif")]
    assert main(["play", str(run / "extract"), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pwm of test/arm, seed 3"
    assert lines[1].startswith("episode 0: return ")
    assert lines[1].endswith((", 8 steps, success", ", 8 steps, no success"))
    assert lines[3].startswith("mean return ")
    assert lines[4].startswith(f"wrote {tmp_path / 'arm.gif'} (")
    assert lines[4].endswith("10 frames, 30 per second)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}/model"], "holds a world model (model.json), expected an artifact of kind 'policies'"),
        (["{run}/extract", "task=test/gird"], "no policy with task='test/gird', only: test/arm, test/grid"),
        (["{run}/extract/pwm/test.arm/seed_3", "task=dmc/walker-run"], "dmc/walker-run has 24 observation columns"),
        (["{run}/extract/pwm/test.arm/seed_3", "--episodes", "0"], "--episodes must be at least 1, found 0"),
    ],
)
def test_bad_input_is_one_message(words, message, tmp_path, capsys):
    run = deployed.save_run(tmp_path)
    deployed.world_model(ARM).save(run / "model")
    assert main(["play", *(word.format(run=run) for word in words)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.startswith("error: ")
    assert message in printed


def test_without_opengl_it_says_what_was_tried_and_what_to_install(monkeypatch):
    for name in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone as well
        monkeypatch.delenv(name)
    monkeypatch.setattr(opengl, "_try", lambda backend: f"no {backend} library")
    modules = {name: module for name, module in sys.modules.items() if name != "mujoco"}
    monkeypatch.setattr(sys, "modules", modules)
    with pytest.raises(TaskError) as caught:
        opengl.choose_opengl()
    for words in (
        "tried egl: no egl library; osmesa: no osmesa library; glfw: no display",
        "apt-get install libegl1 libgl1-mesa-dri, then MUJOCO_GL=egl",
        "apt-get install libosmesa6, then MUJOCO_GL=osmesa",
        "--out FILE.png",
    ):
        assert words in str(caught.value)
    monkeypatch.setattr(opengl, "_try", lambda backend: None if backend == "osmesa" else "no")
    assert opengl.choose_opengl() == os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(TaskError, match=r"with MUJOCO_GL=egl \(tried egl: no\)"):
        opengl.choose_opengl()
    monkeypatch.delenv("MUJOCO_GL")
    modules["mujoco"] = np
    with pytest.raises(TaskError, match=r"set the environment variable MUJOCO_GL=.* before Python starts"):
        opengl.choose_opengl()


@pytest.mark.parametrize("name", ["dmc/pendulum-swingup", pytest.param("metaworld/reach-v3", marks=pytest.mark.slow)])
def test_simulators_are_drawn_where_opengl_is(name, tmp_path):
    """In a process of its own: which OpenGL MuJoCo draws with is settled when it is imported."""
    spec = dataclasses.replace(task_spec(name), episode_length=4)
    deployed.state(spec).save(tmp_path / "policy")
    command = [sys.executable, "-m", "orrery.pipeline.cli", "play", str(tmp_path / "policy"), "--size", "64"]
    done = subprocess.run([*command, "--out", str(tmp_path / "a.gif")], capture_output=True, text=True, cwd=tmp_path)
    if "MuJoCo cannot render here" in done.stderr:
        pytest.skip(" ".join(done.stderr.split()))
    assert done.returncode == 0, done.stderr
    pictures = imageio.v2.mimread(tmp_path / "a.gif")
    assert pictures[0].shape[:2] == (64, 64)
    assert np.std(pictures[0]) > 10
