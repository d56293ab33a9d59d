"""Policies made elsewhere: what they act like, what they may not do, and their scores by command and in a run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest
import torch
from orrery.datasets.tasks import task_spec
from orrery.pipeline.cli import main
from orrery.pipeline.errors import CheckpointError, ConfigError, OrreryError, TaskError
from orrery.stages.baselines.mlp_policy import MlpPolicy
from orrery.stages.deployment.evaluating import evaluate_policies, find_policies
from orrery.stages.evaluation.config import EvaluateConfig
from orrery.stages.evaluation.stage_evaluate import Evaluate
from orrery.stages.policy.foreign import load_foreign
from orrery.stages.policy.policy_index import policy_entry, write_index
from orrery.stages.policy.programs import check_torchscript, load_program
from torch import nn

from .mrq_cases import context_of

PENDULUM, CARTPOLE = "gymnasium/Pendulum-v1", "gymnasium/CartPole-v1"


class Push(nn.Module):
    """Torque in [-2, 2] on the pendulum, from a linear layer."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 1)
        nn.init.constant_(self.layer.weight, -0.3)
        nn.init.constant_(self.layer.bias, 0.1)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return 2 * torch.tanh(self.layer(observation))


class Values(nn.Module):
    """A value for each of CartPole's choices."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layer(observation)


PUSHES = """
import numpy as np

def push(observation):
    return (2 * np.tanh(observation @ np.full((3, 1), -0.3) + 0.1)).astype(np.float32)
"""


def write(module: nn.Module, file, inputs=3, batch=True):
    example = torch.zeros(2, inputs)
    if file.suffix in (".pt", ".pth"):
        torch.jit.script(module).save(file)
        return file
    shapes = {"observation": {0: torch.export.Dim("batch", min=1)}} if batch else None
    program = torch.export.export(module, (example if batch else example[:1],), dynamic_shapes=shapes)
    if file.suffix == ".pt2":
        torch.export.save(program, file)
    else:
        pytest.importorskip("onnxscript")
        torch.onnx.export(program, dynamo=True, external_data=False, verbose=False).save(str(file))
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("file", ["push.onnx", "push.pt2", "push.pt", "alone.pt2", "orrery_pushes:push"])
def test_a_foreign_policy_scores_as_the_same_policy_of_ours(tmp_path, monkeypatch, capsys, file):
    spec = task_spec(PENDULUM)
    own = MlpPolicy.from_linears([Push().layer], None, spec, {"algorithm": "push", "seed": 0})
    entry = policy_entry("push", spec, 0)
    own.save(tmp_path / "made" / entry["path"])
    write_index(tmp_path / "made", [spec], [entry])
    if ":" in file:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "orrery_pushes.py").write_text(PUSHES)
        reference = file
    else:
        reference = str(write(Push(), tmp_path / file, batch=not file.startswith("alone")))
    observation = 2 * torch.randn(5, 3)
    torch.testing.assert_close(load_foreign(reference, spec).act(observation), own.act(observation))
    arguments = [f"task={PENDULUM}", "--episodes", "2", "--seed", "3", "--json"]
    assert main(["evaluate", reference, str(tmp_path / "made"), *arguments]) == 0
    theirs, ours = json.loads(capsys.readouterr().out)
    assert theirs["returns"] == pytest.approx(ours["returns"], rel=1e-3)
    assert theirs["episode_seeds"] == ours["episode_seeds"]
    assert (theirs["episodes"], theirs["lengths"], theirs["score"]) == (2, [200, 200], None)
    assert theirs["score_problem"].startswith("no value for score_random")


def test_a_run_evaluates_files_that_an_index_names(tmp_path):
    write(Values(), made := tmp_path / "mine.pt2", inputs=4)
    index = {"tasks": [CARTPOLE], "policies": [
        {"algorithm": "theirs", "task": CARTPOLE, "seed": 4, "path": made.name}
    ]}  # fmt: skip
    (tmp_path / "policies.json").write_text(json.dumps(index))
    context = context_of(tmp_path, "scores", policies=tmp_path, store=None)
    headline = Evaluate(EvaluateConfig(episodes=2, baselines=[])).run(context)
    assert headline.startswith("theirs no score, return ")
    command = evaluate_policies(find_policies(str(tmp_path), {}), episodes=2, seed=0)
    rows = (context.folder / "episodes.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[5]) for row in rows] == command[0]["returns"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("file", ["walker.onnx", "walker.pt2", "walker.pt"])
def test_other_widths_are_named_with_the_tasks_own(tmp_path, file):
    write(Push(inputs=17), tmp_path / file, inputs=17)
    expected = (
        rf"{file} is no policy for {PENDULUM}, which has observations float32 \['batch', 3\] and actions float32 "
        r"\['batch', 1\]: .*17"
    )
    with pytest.raises(TaskError, match=expected):
        find_policies(str(tmp_path / file), {"task": PENDULUM})


def test_other_actions_are_named(tmp_path):
    write(Push(inputs=4), tmp_path / "push.pt2", inputs=4)
    with pytest.raises(TaskError, match=r"actions int64 \['batch'\]: it gives float32 \[2, 1\]"):
        find_policies(str(tmp_path / "push.pt2"), {"task": CARTPOLE})


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def changed(source, target, change):
    """A copy of an archive whose files `change` has had a look at."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, change(name.partition("/")[2], archive.read(name)))
    return target


CHANGES = {
    "calls torch.os.mkdir": ("models/model.json", b"torch.ops.aten.tanh.default", b"torch.os.mkdir"),
    "calls torch.ops.aten.from_file.default": ("models/model.json", b"aten.tanh.default", b"aten.from_file.default"),
    "has the expression __import__": (
        "models/model.json", b"Symbol('s", b"__import__('os').mkdir('exploded') or Symbol('s"
    ),
    "has the expression Symbol.__class__": ("models/model.json", b"Symbol('s", b"Symbol.__class__('s"),
    "holds layer.* as a pickle": (
        "data/weights/model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true'
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", CHANGES)
def test_a_program_of_torch_export_that_would_execute_code_is_refused(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    name, before, after = CHANGES[said]
    source = write(Push(), tmp_path / "push.pt2")
    files = []

    def change(file, content):
        if file == name:
            files.append(content)
            assert before in content
            return content.replace(before, after)
        return content

    forged = changed(source, tmp_path / "forged.pt2", change)
    assert files
    with pytest.raises(CheckpointError, match=rf"forged.pt2 {said}.*would execute code when it is loaded"):
        load_program(forged)
    bomb = changed(source, tmp_path / "bomb.pt2", lambda f, old: pickle.dumps(Bomb()) if "sample" in f else old)
    load_program(bomb)  # example inputs are not read at all
    assert not (tmp_path / "exploded").exists()


def test_compiled_libraries_and_custom_objects_are_refused(tmp_path):
    source = write(Push(), tmp_path / "push.pt2")
    for name in ("data/aotinductor/model/model.so", "data/constants/opaque_obj_0"):
        forged = changed(source, tmp_path / "forged.pt2", lambda _, old: old)
        with zipfile.ZipFile(forged, "a") as archive:
            archive.writestr(f"push/{name}", b"")
        with pytest.raises(CheckpointError, match=f"holds {name}, which would execute code"):
            load_program(forged)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pickles_and_programs_that_touch_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"policy": Bomb()}, tmp_path / "saved.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    for name, said in (("saved.pt", "holds pickled Python objects"), ("plain.pth", "is no TorchScript program")):
        with pytest.raises(CheckpointError, match=rf"{name} {said}.*would execute code"):
            load_program(tmp_path / name)

    class Reads(nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            return torch.from_file("exploded", True, 1)

    torch.jit.script(Reads()).save(tmp_path / "reads.pt")
    with pytest.raises(CheckpointError, match=r"its program calls from_file, which reads or writes files"):
        check_torchscript(tmp_path / "reads.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["nothing.onnx", f"task={PENDULUM}"], CheckpointError, r"there is no file .*nothing.onnx"),
        (["damaged.onnx", f"task={PENDULUM}"], CheckpointError, r"damaged.onnx cannot be loaded"),
        (["damaged.pt2", f"task={PENDULUM}"], CheckpointError, r"damaged.pt2 is damaged: BadZipFile"),
        (["policy.zip", f"task={PENDULUM}"], ConfigError, r"expected a file that ends in .onnx, .pt2, .pt, .pth, .ts"),
        (["damaged.onnx"], ConfigError, r"does not say for which task it is; add task=NAME"),
        (["damaged.onnx", "task=dmc/walker-rum"], TaskError, r"unknown task 'dmc/walker-rum': the nearest are"),
        (["orrery_nothing:act", f"task={PENDULUM}"], ConfigError, r"module orrery_nothing cannot be imported"),
        (["math:act", f"task={PENDULUM}"], ConfigError, r"module math has no function act"),
        (["math:sqrt", f"task={PENDULUM}"], TaskError, r"math:sqrt is no policy for gymnasium/Pendulum-v1.*TypeError"),
        (["folder"], OrreryError, r"there is no folder"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, words, error, said):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    for name in ("damaged.onnx", "damaged.pt2", "policy.zip"):
        (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(error, match=said):
        find_policies(words[0], dict(word.split("=") for word in words[1:]))


def test_the_command_says_what_is_wrong(capsys):
    assert main(["evaluate", f"task={PENDULUM}"]) == 2
    assert "name at least one policy" in capsys.readouterr().err
    assert main(["evaluate", "a.onnx", f"task={PENDULUM}", "--episodes", "0"]) == 2
    assert "--episodes must be at least 1, found 0" in capsys.readouterr().err
