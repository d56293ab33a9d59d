"""An exported policy acts as the policy does, in the environment's units; anything else is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec
from orrery.datasets.tasks import make_environment
from orrery.pipeline.cli import main
from orrery.pipeline.errors import ConfigError, DatasetError, ExportError
from orrery.stages.deployment import equality, exporting, formats
from orrery.stages.deployment.choice import made_by, read_policy
from orrery.stages.deployment.exporting import export_policy
from orrery.stages.policy.interface import Interface

from . import deployed
from .stores import point_mass_episodes, write_store

has_onnx = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not has_onnx, reason="the extra `export` is not installed")

ARM, GRID, CHOICES = deployed.arm_task(), deployed.grid_task(), deployed.arm_choices()

POLICIES = {
    "latent": lambda: deployed.latent(ARM),
    "latent, discrete": lambda: deployed.latent(CHOICES),
    "state": lambda: deployed.state(ARM),
    "mlp": lambda: deployed.perceptron(ARM),
    "mrq": lambda: deployed.mrq(ARM),
    "mrq, discrete, on latents": lambda: deployed.mrq(CHOICES, on_latents=True),
    "kernel of numbered states": lambda: deployed.kernel(GRID, "delta"),
    "kernel, mode": lambda: deployed.kernel(ARM, "laplace"),
    "kernel, mean, with behaviour and penalty": lambda: deployed.kernel(ARM, "gaussian", "mean", full=True),
    "kernel, discrete, on latents": lambda: deployed.kernel(CHOICES, "product_laplace", encoder=True),
    "pixels": deployed.pixels,
}
# An export takes a second of CPU time: all kinds in one format, the commonest in both.
CASES = [
    *(pytest.param(name, "torch", marks=[pytest.mark.slow] if name == "pixels" else []) for name in POLICIES),
    *(pytest.param(name, "onnx", marks=needs_onnx) for name in ("latent", "latent, discrete")),
    *(pytest.param(name, "onnx", marks=[needs_onnx, pytest.mark.slow]) for name in list(POLICIES)[2:]),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("orrery.stages.deployment.latency.SECONDS", 0.05)
    monkeypatch.setattr("orrery.stages.deployment.latency.WARM_UP", 1)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_exported_policies_act_as_they_do(name, form, tmp_path):
    policy = POLICIES[name]()
    made = export_policy(policy, [form], tmp_path)
    spec = policy.task
    generator = np.random.default_rng(1)
    if spec.name == "test/grid":
        raw = generator.integers(10, 15, size=7)
        flat = np.eye(5, dtype=np.float32)[raw - 10]
    else:
        raw = flat = generator.standard_normal((7, spec.observation_dim)).astype(np.float32)
    action = policy.act(torch.from_numpy(flat)).numpy()
    if spec.environment:
        environment = make_environment(spec)
        expected = np.stack([environment.to_native_action(row) for row in action])
    else:
        expected = action.argmax(1) if spec.action_kind == "discrete" else action
    if form == "torch":
        program = torch.export.load(tmp_path / "policy.pt2").module()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    for rows in (7, 1):
        if form == "torch":
            found = program(torch.from_numpy(raw[:rows])).numpy()
        else:
            (found,) = session.run(["action"], {"observation": raw[:rows]})
        assert found.shape == expected[:rows].shape
        assert found.dtype == (np.int64 if spec.action_kind == "discrete" else np.float32)
        np.testing.assert_allclose(found, expected[:rows], rtol=0, atol=1e-4)
    described = json.loads((tmp_path / "export.json").read_text())
    assert described["task"]["name"] == spec.name
    one = made.formats[form]
    assert one.differences.keys() == ({"of an episode", "random"} if spec.environment else {"random"})
    assert max(one.differences.values()) < equality.TOLERANCE
    assert 0 < one.latency.p50_us <= one.latency.p99_us
    assert {path.name for path in tmp_path.iterdir()} == {"export.json", formats.FILES[form]}


def test_without_an_environment_the_bounds_are_those_of_the_data():
    description = Interface.of(deployed.arm_task(environment={})).describe()
    assert description["observation"] == {"name": "observation", "dtype": "float32", "shape": ["batch", 3]}
    assert description["action"]["units"].startswith("scaled")
    spec = deployed.arm_task(environment={"action_low": [-4.0, 0.0], "action_high": [4.0, 1.0]})
    description = Interface.of(spec).describe()["action"]
    assert description == {
        "name": "action", "shape": ["batch", 2], "dtype": "float32", "units": "environment",
        "low": [-4.0, 0.0], "high": [4.0, 1.0],
    }  # fmt: skip


def test_what_the_environment_says_is_described():
    assert Interface.of(GRID).describe() == {
        "observation": {"name": "observation", "dtype": "int64", "shape": ["batch"], "values": [10, 14]},
        "action": {"name": "action", "shape": ["batch"], "dtype": "int64", "values": [5, 7]},
    }
    rooms = TaskSpec("test/rooms", 5, 2, 8, action_kind="discrete",
                     environment={"kind": "gymnasium", "id": "OrreryTest/Rooms-v0"})  # fmt: skip
    assert Interface.of(rooms).describe()["observation"] == {
        "name": "observation", "dtype": "float32", "shape": ["batch", 5],
        "columns": ["observation.place[0]", "observation.place[1]", *(f"observation.room[{n}]" for n in range(3))],
    }  # fmt: skip
    action = Interface.of(ARM).describe()["action"]
    assert (action["shape"], action["low"], action["high"]) == (["batch", 2, 1], [-2.0, 0.0], [2.0, 10.0])


def test_a_policy_that_would_act_differently_is_not_written(tmp_path, monkeypatch):
    policy = deployed.state(ARM)
    original = exporting.load_program
    monkeypatch.setattr(exporting, "load_program", lambda file: lambda raw: original(file)(raw) + np.float32(0.5))
    (tmp_path / "policy.pt2").write_bytes(b"of an earlier export")
    # Half of the range of the first component is 2, of the second 5.
    with pytest.raises(
        ExportError,
        match=r"as torch, .* of an episode, an action differs by 0\.25 of half its range .*Nothing was written",
    ):
        export_policy(policy, ["torch"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt2"]
    assert (tmp_path / "policy.pt2").read_bytes() == b"of an earlier export"


def test_another_choice_counts_as_a_difference_unless_the_policy_wavers():
    interface = Interface.of(CHOICES)
    rows = equality.Observations("made", np.ones((20, 3), np.float32))

    class Firm:
        def act(self, observation):
            return torch.eye(4)[torch.zeros(len(observation), dtype=torch.int64)]

    class Wavering:
        """Chooses 2 or 0 by the last bits of the observation; the exported form says 2."""

        def act(self, observation):
            return torch.eye(4)[torch.where(observation[:, 0] > 1, 2, 0)]

    def exported(raw):
        return np.full(len(raw), 2)

    assert equality.difference(Firm(), interface, exported, rows) == 1.0
    assert equality.difference(Wavering(), interface, exported, rows) == 0.0
    nowhere = equality.difference(Wavering(), interface, lambda raw: np.full(len(raw), 3), rows)
    assert nowhere == 1.0


def test_it_is_compared_on_the_store(tmp_path):
    spec = TaskSpec("toy/point", 3, 2, 25)
    write_store(tmp_path / "pack", [(spec, point_mass_episodes(spec, 2))])
    (tmp_path / "out").mkdir()
    for name in ("export.json", "policy.onnx"):
        (tmp_path / "out" / name).write_text("of another policy")
    made = export_policy(deployed.state(spec), ["torch"], tmp_path / "out", store=tmp_path / "pack")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", "policy.pt2"}
    assert list(made.formats["torch"].differences) == [f"recorded in {tmp_path / 'pack'}", "random"]
    with pytest.raises(DatasetError, match="has no data of test/arm; it has toy/point"):
        export_policy(deployed.state(ARM), ["torch"], tmp_path / "other", store=tmp_path / "pack")
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_exported_says_why(tmp_path, monkeypatch):
    class Planner:
        task = ARM

        def begin(self, episode):
            return None

    with pytest.raises(ExportError, match=r"plans each step .* export a policy of another algorithm"):
        export_policy(Planner(), ["torch"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write to .*file/below.*--out"):
        export_policy(deployed.state(ARM), ["torch"], tmp_path / "file" / "below")
    broken = deployed.state(deployed.arm_task(kwargs={"broken": "step"}))
    with pytest.raises(ExportError, match=r"comparison episode of test/arm failed: RuntimeError: the joint is stuck"):
        export_policy(broken, ["torch"], tmp_path / "out")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnxscript: pip install 'orrery\[export\]', or export with --format torch"):
        export_policy(deployed.state(ARM), ["onnx"], tmp_path / "out")


def test_a_policy_is_chosen_out_of_a_run(tmp_path):
    run = deployed.save_run(tmp_path)
    chosen = read_policy(str(run / "extract"), {"task": "test/arm", "algorithm": "pwm"})
    assert made_by(chosen) == {"algorithm": "pwm", "seed": 3}
    assert made_by(read_policy(str(run / "extract"), {"task": "test/grid"})) == {"algorithm": "powr", "seed": 0}
    assert chosen.task == read_policy(str(run / "extract/pwm/test.arm/seed_3"), {}).task == ARM
    with pytest.raises(ConfigError, match="seed: expected a number, found 'first'"):
        read_policy(str(run / "extract"), {"task": "test/arm", "algorithm": "pwm", "seed": "first"})


def test_the_command_writes_and_says_what_it_wrote(tmp_path, capsys):
    run, out = deployed.save_run(tmp_path / "run"), tmp_path / "out"
    words = ["task=test/arm", "algorithm=pwm"]
    assert main(["export", str(run / "extract"), "--format", "torch", "--out", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "policy: pwm on test/arm, seed 3" in printed
    assert "action: float32 ['batch', 2, 1], [-2.0, 0.0] to [2.0, 10.0]" in printed
    assert "torch.export" in printed
    assert "p99" in printed
    assert json.loads((out / "export.json").read_text())["source"]["algorithm"] == "pwm"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}/model"], "holds a world model (model.json), expected an artifact of kind 'policies'"),
        (["{run}/nothing"], "expected policies.json, the index of policies"),
        (["{run}/extract"], "policies of several tasks; set task= to one of: test/arm, test/grid"),
        (["{run}", "taks=test/arm"], "'taks=test/arm': expected task=..., algorithm=..., seed=..."),
        (["{run}", "task=test/arm", "task=test/grid"], "task is set twice"),
    ],
)
def test_bad_input_is_one_message(words, message, tmp_path, capsys):
    run = deployed.save_run(tmp_path)
    deployed.world_model(ARM).save(run / "model")
    (run / "nothing").mkdir()
    assert main(["export", *(word.format(run=run) for word in words), "--out", str(tmp_path / "out")]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.startswith("error: ")
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "policy", "--format", "tflite"])
    assert "'tflite'" in capsys.readouterr().err


@needs_onnx
def test_onnx_and_torch_are_written_by_default(tmp_path):
    deployed.state(ARM).save(tmp_path / "policy")
    assert main(["export", str(tmp_path / "policy"), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"policy.onnx", "policy.pt2", "export.json"}
