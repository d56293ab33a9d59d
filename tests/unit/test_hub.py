"""Artifacts by name: folders, run folders and repositories of the Hub, whose protocol a local server speaks."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline import artifact, hub
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import CheckpointError, ConfigError, OrreryError, StageError
from orrery.pipeline.plan import plan
from orrery.stages.extraction.actor_critic import StackedActor
from orrery.stages.extraction.config import ActorCriticConfig
from orrery.stages.extraction.policy import LatentPolicy
from orrery.stages.policy.policy import Policy
from orrery.stages.sharing.card import model_card
from orrery.stages.sharing.provenance import Provenance
from orrery.stages.sharing.publish import push_to_hub, write_publication
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import load_frames, save_store_frames
from safetensors.torch import load_file, save_file

from .fake_hub import FakeHub
from .stores import point_mass_episodes, point_mass_spec, write_store

SPECS = (point_mass_spec("toy/a"), point_mass_spec("toy/b", observation_dim=3))
ACTOR = ActorCriticConfig(actor_units=(8,), critic_units=(8,), num_critics=2)


def finish(folder: Path, kind: str, stage: str, **inputs: Path) -> None:
    records = {
        name: [artifact.InputRecord(str(path), artifact.digest_of(path))] for name, path in inputs.items()
    }  # fmt: skip
    artifact.finish(folder, kind=kind, stage=stage, key="k", config={}, inputs=records, seconds=1.0, summary="fine")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a store, a world model and two policies of it."""
    folder = tmp_path_factory.mktemp("run")
    store = write_store(folder / "pack", [(spec, point_mass_episodes(spec, 6)) for spec in SPECS])
    finish(folder / "pack", "store", "pack")
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4), store.table)
    model.save(folder / "pretrain")
    save_store_frames(store, folder / "pretrain")
    (folder / "pretrain" / "validation.csv").write_text(
        "step,task,horizon,latent_mse,reward_r2\n10,toy/a,16,0.1,0.75\n10,toy/b,16,0.1,\n"
    )
    (folder / "pretrain" / "checkpoints").mkdir()
    (folder / "pretrain" / "checkpoints" / "last.ckpt").write_bytes(b"resume")
    finish(folder / "pretrain", "world_model", "pretrain", store=folder / "pack")
    actor = StackedActor(2, 16, 1, ACTOR)
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter)
    entries = []
    for m in range(2):
        path = f"pwm/toy.a/seed_{m}"
        trained_by = {"algorithm": "pwm", "seed": m}
        LatentPolicy.from_member(model, actor, m, SPECS[0], ACTOR, trained_by).save(folder / "extract" / path)
        entries.append({**trained_by, "task": "toy/a", "path": path})
    index = {"tasks": [spec.to_dict() for spec in SPECS], "policies": entries}
    (folder / "extract" / "policies.json").write_text(json.dumps(index))
    finish(folder / "extract", "policies", "extract", world_model=folder / "pretrain", store=folder / "pack")
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The Hub, with nothing on it, and an empty cache."""
    from huggingface_hub import constants

    with FakeHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        hub.download.cache_clear()
        yield server
        hub.download.cache_clear()


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_model_is_found_in_its_folder_and_in_its_run(run: Path) -> None:
    model = WorldModel.from_pretrained(run / "pretrain")
    assert same_weights(model, WorldModel.load(run / "pretrain"))
    assert same_weights(model, WorldModel.from_pretrained(str(run)))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    policy = Policy.from_pretrained(run, task="toy/a", seed=1)
    rows = torch.rand(3, 2)
    assert torch.equal(policy.act(rows), Policy.from_pretrained(run / "extract/pwm/toy.a/seed_1").act(rows))
    assert not torch.equal(policy.act(rows), Policy.from_pretrained(run / "extract").act(rows))


def test_what_is_not_the_wanted_artifact_is_refused(run: Path, tmp_path: Path) -> None:
    def refusal(load, reference) -> str:
        with pytest.raises(OrreryError) as caught:
            load(reference)
        return str(caught.value)

    assert "kind 'policies', expected kind 'world_model'" in refusal(WorldModel.from_pretrained, run / "extract")
    assert "kind 'world_model', expected kind 'policies'" in refusal(Policy.from_pretrained, run / "pretrain")
    one = run / "extract/pwm/toy.a/seed_0"
    assert "holds a policy (policy.json), expected" in refusal(WorldModel.from_pretrained, one)
    (tmp_path / "bare").mkdir()
    WorldModel.load(run / "pretrain").save(tmp_path / "bare")
    assert "holds a world model (model.json), expected" in refusal(Policy.from_pretrained, tmp_path / "bare")
    assert "there is no folder" in refusal(WorldModel.from_pretrained, "one-word")
    (tmp_path / "model.pt").write_bytes(b"\x80\x02.")
    assert "import_tdmpc2.checkpoint=" in refusal(WorldModel.from_pretrained, tmp_path / "model.pt")
    assert "seed=7" in refusal(lambda reference: Policy.from_pretrained(reference, seed=7), run / "extract")
    shutil.copytree(run, tmp_path / "two")
    shutil.copytree(run / "pretrain", tmp_path / "two" / "finetune")
    assert "it has several; use" in refusal(WorldModel.from_pretrained, tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "finetune")
    shutil.rmtree(tmp_path / "two" / "pretrain")
    message = refusal(WorldModel.from_pretrained, tmp_path / "two")
    assert "it holds extract (policies), pack (store)" in message


def test_damaged_and_foreign_files_are_named(run: Path, tmp_path: Path) -> None:
    def broken(change) -> str:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run / "pretrain", folder)
        change(folder)
        with pytest.raises(OrreryError) as caught:
            WorldModel.from_pretrained(folder)
        return str(caught.value)

    def bare(change):
        """Without a manifest, which would name the file first."""

        def both(folder: Path) -> None:
            (folder / artifact.MANIFEST).unlink()
            change(folder)

        return both

    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def foreign(folder: Path) -> None:
        save_file({"embed.weight": torch.zeros(3, 3)}, folder / "model.safetensors")

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(Attack(), folder / "model.pt")

    def pickle_in_disguise(folder: Path) -> None:
        torch.save(Attack(), folder / "model.safetensors")

    assert "model.safetensors has" in broken(cut)
    assert "cannot be read as safetensors" in broken(bare(cut))
    message = broken(bare(foreign))
    assert "does not fit WorldModel" in message
    assert "missing task_embedding.weight [2, 4]" in message
    message = broken(bare(pickled))
    assert "model.safetensors is missing; model.pt may run code when opened and is not read" in message
    assert "cannot be read as safetensors" in broken(bare(pickle_in_disguise))
    assert not (tmp_path / "executed").exists()
    assert "expected model.json" in broken(bare(lambda folder: (folder / "model.json").unlink()))
    assert "tasks.json: the task table is missing" in broken(bare(lambda folder: (folder / "tasks.json").unlink()))
    assert "is not JSON" in broken(bare(lambda folder: (folder / "model.json").write_text("{")))


def test_a_file_of_another_version_says_what_changed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run / "pretrain", folder)
    config = json.loads((folder / "model.json").read_text())
    older = {key: value for key, value in config.items() if key not in ("disagreement_heads", "log_std_min")}
    (folder / "model.json").write_text(json.dumps(older))
    # A key that was added since takes its default.
    assert same_weights(WorldModel.load(folder), WorldModel.load(run / "pretrain"))
    (folder / "model.json").write_text(json.dumps({**config, "wings": 2}))
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    manifest["versions"]["orrery"] = "0.9.0"
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"unknown key wings\. It was written by orrery 0\.9\.0; this is \d"):
        WorldModel.load(folder)


def test_a_policy_from_before_the_task_encoder_loads(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(run / "extract/pwm/toy.a/seed_0", folder)
    values = json.loads((folder / "policy.json").read_text())
    encoder = values.pop("encoder")
    values |= {"encoder": encoder["config"], "observation_dim": encoder["observation_dim"]}
    (folder / "policy.json").write_text(json.dumps(values))
    tensors = load_file(folder / "policy.safetensors")
    save_file({name.removeprefix("encoder."): value for name, value in tensors.items()}, folder / "policy.safetensors")
    rows = torch.rand(4, 2)
    now = Policy.from_pretrained(run / "extract/pwm/toy.a/seed_0")
    assert torch.equal(Policy.from_pretrained(folder).act(rows), now.act(rows))


def test_a_model_goes_to_the_hub_and_comes_back(run: Path, fake: FakeHub, tmp_path: Path) -> None:
    url = push_to_hub(run / "pretrain", "me/model", licence="mit")
    assert url.endswith("/me/model")
    files = fake.repositories["me/model"]
    assert {"README.md", "manifest.json", "model.json", "model.safetensors", "provenance.json", "tasks.json"} < set(
        files
    )
    assert not any("last.ckpt" in name for name in files)
    assert str(run) not in b"".join(files.values()).decode(errors="replace")
    model = WorldModel.from_pretrained("me/model")
    assert same_weights(model, WorldModel.load(run / "pretrain"))
    assert model.table == TaskTable(list(SPECS))
    found = hub.find_artifact("me/model@main", "world_model")
    assert set(load_frames(found, SPECS)) == {"toy/a", "toy/b"}

    # Nothing but what is pushed now is there afterwards, and a run of another process finds it without a network.
    push_to_hub(run / "pretrain", "me/model", starts=False)
    assert "starts.safetensors" not in fake.repositories["me/model"]
    assert ".gitattributes" in fake.repositories["me/model"]
    hub.download.cache_clear()
    asked = len(fake.requests)
    code = (
        "from orrery.stages.world_model.networks import WorldModel; import torch;"
        "print(float(WorldModel.from_pretrained('me/model').task_embedding.weight.sum()))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == float(model.task_embedding.weight.sum())
    assert len(fake.requests) == asked


def test_policies_and_objects_go_to_the_hub(run: Path, fake: FakeHub) -> None:
    rows = torch.rand(3, 2)
    push_to_hub(run / "extract", "me/policies")
    push_to_hub(run / "extract/pwm/toy.a/seed_1", "me/one", private=True)
    assert fake.private == {"me/one"}
    one = Policy.from_pretrained("me/one")
    assert torch.equal(one.act(rows), Policy.from_pretrained("me/policies", seed=1).act(rows))
    index = json.loads(fake.repositories["me/one"]["policies.json"])
    assert [(entry["task"], entry["path"], entry["seed"]) for entry in index["policies"]] == [("toy/a", ".", 1)]
    assert "`" + artifact.digest_of(run / "extract") + "`" in fake.repositories["me/one"]["README.md"].decode()

    push_to_hub(one, "me/copy")
    assert torch.equal(Policy.from_pretrained("me/copy").act(rows), one.act(rows))

    model = WorldModel.from_pretrained(run / "pretrain")
    push_to_hub(model, "me/object")
    assert same_weights(WorldModel.from_pretrained("me/object"), model)
    assert "| toy/a | exploration | 6 | 150 |" in fake.repositories["me/object"]["README.md"].decode()
    # Of a model that was changed since, what was measured before holds no more.
    with torch.no_grad():
        model.reward[-1].bias += 1
    push_to_hub(model, "me/object")
    assert same_weights(WorldModel.from_pretrained("me/object"), WorldModel.load(run / "pretrain"))  # downloaded before
    hub.download.cache_clear()
    assert same_weights(WorldModel.from_pretrained("me/object"), model)
    assert "the artifact has no manifest of a stage" in fake.repositories["me/object"]["README.md"].decode()


def test_the_hub_refuses(run: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*, and the Hugging Face Hub has no repository no/such"):
        WorldModel.from_pretrained("no/such")
    push_to_hub(run / "pretrain", "me/model")
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        WorldModel.from_pretrained("me/model@v9")
    with pytest.raises(StageError, match="kind 'world_model', expected kind 'policies'"):
        Policy.from_pretrained("me/model")
    fake.repositories["me/model"]["model.safetensors"] += b"x"
    hub.download.cache_clear()
    with pytest.raises(StageError, match=r"model\.safetensors has .* bytes, expected"):
        WorldModel.from_pretrained("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(CheckpointError, match="no permission to write"):
        push_to_hub(run / "pretrain", "me/model")
    with pytest.raises(StageError, match="expected the name of a repository"):
        push_to_hub(run / "pretrain", "me/model@v1")
    with pytest.raises(StageError, match="found an artifact of kind 'store'"):
        push_to_hub(run / "pack", "me/model")


@pytest.mark.parametrize("listening", [False, True])
def test_without_a_network_the_answer_comes_at_once(
    listening: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether connections are refused, or taken and never answered."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "CONNECT_TIMEOUT", 0.5)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if listening:
            nobody.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.download.cache_clear()
        started = time.monotonic()
        reason = "ReadTimeout" if listening else "ConnectError"
        with pytest.raises(CheckpointError, match=rf"no folder .*no copy of me/model .* reached \({reason}"):
            WorldModel.from_pretrained("me/model")
        with pytest.raises(CheckpointError, match=rf"cannot be reached \({reason}.*nothing was uploaded"):
            hub.upload(tmp_path, "me/model")
        # The library retries with growing pauses, or waits without end.
        assert time.monotonic() - started < 10


@pytest.mark.gpu
def test_what_a_gpu_wrote_loads_on_a_cpu(run: Path, tmp_path: Path) -> None:
    model = WorldModel.load(run / "pretrain")
    model.to("cuda").save(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    assert same_weights(loaded, model.to("cpu"))


def test_world_model_is_for_the_first_stage_that_reads_one(run: Path, tmp_path: Path) -> None:
    stages = discover_stages()

    def planned(*overrides: str) -> list[str]:
        settings = [f"world_model={run}", f"run_dir={tmp_path / 'new'}", *overrides]
        return [one.stage for one in plan(load_config("from_checkpoint", settings, stages=stages), stages)]

    assert planned() == ["starts", "extract", "evaluate", "report"]
    with pytest.raises(ConfigError, match="would not be used: extract would use the model of stage pretrain"):
        planned("stages=[collect,pack,pretrain,extract]", "tasks=[gymnasium/Pendulum-v1]")
    with pytest.raises(StageError, match=r"^world_model: there is no folder .*nowhere"):
        planned("world_model=nowhere")
    with pytest.raises(StageError, match=r"needs an input 'world_model'.*use an external artifact: world_model="):
        planned("world_model=")


def run_snippets(card: str, folder: Path, published: Path, name: str) -> str:
    """Execute every Python block of a card, with the Hub's name standing for the folder; returns what it defines."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)).replace(f'"{name}"', repr(str(published)))
    assert str(published) in code
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(sorted(name for name in globals() if not name.startswith('_')))"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cards_of_a_tiny_run_load_what_they_say(tmp_path: Path) -> None:
    """The quickstart's stages, which leave several algorithms, tasks and seeds beside each other."""
    small = {
        "pretrain.model": "{latent_dim: 16, encoder_dim: 24, mlp_dim: 24, task_dim: 4}", "pretrain.steps": 4,
        "pretrain.batch_size": 8, "pretrain.trainer.devices": 1, "pretrain.validation_batches": 1,
        "collect.episodes": 4, "extract.iterations": 2, "extract.starts_per_task": 16,
        "extract.first_order.batch_size": 8,
        "extract.first_order.horizon": 2, "extract.groups": 1, "seeds": 2, "workers": 1, "threads": 1,
        "tasks": "[gymnasium/Pendulum-v1,gymnasium/CartPole-v1]", "stages": "[collect,pack,pretrain,extract]",
        "algorithms": "[pwm,bc]", "run_dir": tmp_path / "run",
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in small.items()]
    done = subprocess.run(
        [sys.executable, "-m", "orrery.pipeline.cli", "run", "quickstart", *words],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = "extract/bc/gymnasium.CartPole-v1/seed_1"
    for made, defined in (("pretrain", "model"), ("extract", "action"), (one, "action")):
        published = tmp_path / "published" / made.replace("/", "_")
        write_publication(tmp_path / "run" / made, published, "me/it")
        card = (published / "README.md").read_text()
        assert f"'{defined}'" in run_snippets(card, tmp_path, published, "me/it")
    model = WorldModel.load(tmp_path / "run" / "pretrain")
    count = sum(parameter.numel() for parameter in model.parameters())
    summary = artifact.read_manifest(tmp_path / "run" / "pretrain").summary
    assert f"{count:,} parameters" in summary
    assert f"\n{count:,} parameters. " in (tmp_path / "published" / "pretrain" / "README.md").read_text()
    policy = Policy.from_pretrained(tmp_path / "run" / one)
    assert "parameters in each of 8 policies" in (tmp_path / "published" / "extract" / "README.md").read_text()
    with pytest.raises((OrreryError, ValueError, RuntimeError)):
        policy.act(torch.zeros(1, policy.task.observation_dim + 1))
    task = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        model.encode(torch.zeros(1, model.table.observation_dim + 1), task)


def test_the_card_tells_what_is_known(run: Path, tmp_path: Path) -> None:
    write_publication(run / "pretrain", tmp_path / "out", "me/model", licence="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: orrery\n")
    assert 'WorldModel.from_pretrained("me/model")' in card
    assert "| toy/b | 3 | 1 continuous | 25 | 1 | 0.95 | no | normalised |" in card
    assert "| toy/a | exploration | 6 | 150 |" in card
    assert f"Hash of the packed data: `{artifact.digest_of(run / 'pack')}`" in card
    assert "16,384 frames (observation and action) of each task's data" in card
    assert "| toy/a | 0.75 |" in card
    assert "Fewer than 20 episodes: toy/a, toy/b." in card
    assert "Open-loop R2 undefined, because the held-out reward hardly varies: toy/b." in card
    assert "No scores are included." in card
    # A card may be edited where it is; the model still loads.
    (tmp_path / "out" / "README.md").write_text("mine")
    assert same_weights(WorldModel.from_pretrained(tmp_path / "out"), WorldModel.load(run / "pretrain"))
    # What was published once keeps its provenance when it is published again, far from its run.
    again = write_publication(tmp_path / "out", tmp_path / "again", "you/model")
    assert [row["episodes"] for row in again.data] == [6, 6]
    with pytest.raises(StageError, match="is not an empty folder"):
        write_publication(run / "pretrain", tmp_path / "out", "me/model")


def test_the_card_says_why_a_task_has_no_score():
    task = TaskSpec("own/arm", 2, 1, 10, score_random=3.0, score_expert=2.0)
    config = {"task": task.to_dict(), "trained_by": {"algorithm": "bc"}}
    card = model_card("a/b", Provenance("policies", [task.to_dict()], None, []), config, 0, {}, "mit", 0)
    assert "- own/arm: 0 is a return of 3, 1 is 2; no score, because score_expert must be above score_random" in card
