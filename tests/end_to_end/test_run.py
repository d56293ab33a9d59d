"""The main job at its smallest, as a user runs it: stages in order, skipped when fresh, continued when killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from orrery.stages.policy import load_policy
from safetensors.torch import load_file

TINY = Path(__file__).with_name("tiny.yaml")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def orrery(*arguments, **options):
    command = [sys.executable, "-m", "orrery.pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    result = orrery("run", TINY, f"run_dir={folder}")
    assert result.returncode == 0, result.stderr
    return folder


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


def test_a_second_run_does_nothing_within_three_seconds(finished):
    start = time.perf_counter()
    result = orrery("run", TINY, f"run_dir={finished}")
    seconds = time.perf_counter() - start
    assert "nothing to do: every stage is up to date" in result.stdout
    assert seconds < 3


def test_a_changed_setting_reruns_its_stage_and_what_depends_on_it(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    result = orrery("plan", TINY, f"run_dir={folder}", "extract.iterations=10")
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert all("up to date" in lines[stage] for stage in ("collect", "pack", "pretrain"))
    assert "iterations 20 -> 10" in lines["extract"]
    assert "its input comes from extract" in lines["evaluate"]
    result = orrery("run", TINY, f"run_dir={folder}", "extract.iterations=10")
    assert result.returncode == 0, result.stderr
    for stage, same in [("pretrain", True), ("extract", False), ("evaluate", False)]:
        before, after = ((f / stage / "manifest.json").read_text() for f in (finished, folder))
        assert (json.loads(before)["key"] == json.loads(after)["key"]) is same


@pytest.mark.parametrize("stage", ["pretrain", "extract"])
def test_killed_and_continued_ends_with_the_same_artifact(finished, tmp_path, stage):
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    for later in ("pretrain", "extract", "evaluate", "report"):
        if later != "pretrain" or stage == "pretrain":
            shutil.rmtree(folder / later)
    resumable = {"pretrain": "checkpoints/last.ckpt", "extract": "checkpoint.pt"}[stage]
    command = [sys.executable, "-m", "orrery.pipeline.cli", "run", str(TINY), f"run_dir={folder}"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True)
    checkpoint = folder / f"{stage}.partial" / resumable
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() or (folder / stage).exists(), "no checkpoint was written"
    result = orrery("run", TINY, f"run_dir={folder}")
    assert result.returncode == 0, result.stderr
    weights = sorted(path.relative_to(finished) for path in (finished / stage).rglob("*.safetensors"))
    assert weights
    for path in weights:
        expected, found = load_file(finished / path), load_file(folder / path)
        assert all((expected[name] == found[name]).all() for name in expected), path
    curves = [(f / stage / "training.csv").read_text() for f in (finished, folder)]
    assert curves[0] == curves[1]


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


def test_a_model_of_other_tasks_is_refused_with_both_tables(finished, tmp_path):
    folder = tmp_path / "other"
    result = orrery(
        "run",
        TINY,
        f"run_dir={folder}",
        "stages=[collect,pack,extract]",
        "tasks=[gymnasium/Pendulum-v1]",
        "collect.episodes=3",
        f"inputs.world_model={finished / 'pretrain'}",
    )
    assert result.returncode == 2
    assert "different task tables" in result.stderr
    assert "gymnasium/CartPole-v1 (O=4, A=2)" in result.stderr
    assert "<- differs" in result.stderr
