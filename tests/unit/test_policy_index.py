import json

import pytest
from orrery.datasets.schema import TaskSpec
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.stages.policy.policy_index import POLICIES_FILE, PolicyIndex, policy_entry, write_index

WALK, RUN = TaskSpec("dmc/walker-walk", 24, 6, 500), TaskSpec("dmc/walker-run", 24, 6, 500)


def test_an_index_is_read_as_it_was_written(tmp_path):
    entries = [policy_entry("pwm", WALK, seed, anchor=0.5) for seed in (0, 1)] + [policy_entry("bc", WALK, 0)]
    write_index(tmp_path, [WALK, RUN], entries)
    index = PolicyIndex.read(tmp_path)
    assert index.tasks == [WALK, RUN]
    assert index.entries == entries
    assert index.entries[1]["path"] == "pwm/dmc.walker-walk/seed_1"
    assert index.entries[1]["anchor"] == 0.5
    first = [tmp_path / "pwm" / "dmc.walker-walk" / f"seed_{seed}" for seed in (0, 1)]
    assert index.folders([WALK.name], "", "key") == {WALK.name: first}
    assert index.folders([WALK.name], "bc", "key") == {WALK.name: [tmp_path / "bc" / "dmc.walker-walk" / "seed_0"]}


def test_a_task_without_a_policy_is_named_with_those_that_have_one(tmp_path):
    write_index(tmp_path, [WALK, RUN], [policy_entry("pwm", WALK, 0)])
    with pytest.raises(
        ConfigError, match=r"x\.algorithm: .* no policy of 'pwm' for dmc/walker-run; it has: pwm for dmc/walker-walk$"
    ):
        PolicyIndex.read(tmp_path).folders([WALK.name, RUN.name], "", "x.algorithm")
    write_index(tmp_path, [WALK], [])
    with pytest.raises(ConfigError, match="none at all"):
        PolicyIndex.read(tmp_path).folders([WALK.name], "", "x.algorithm")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", json.dumps({"tasks": [], "policies": [{"algorithm": "pwm"}]}), json.dumps({"policies": 3})],
)
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / POLICIES_FILE).write_text(text)
    with pytest.raises(
        CheckpointError, match=r"policies\.json (is not JSON|cannot be read) .*; (it is damaged, )?run its stage again"
    ):
        PolicyIndex.read(tmp_path)


def test_an_index_that_is_not_there_is_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected policies\.json"):
        PolicyIndex.read(tmp_path)


@pytest.mark.parametrize("path", ["../elsewhere", "/tmp/elsewhere", "pwm/../../x"])
def test_a_policy_outside_the_artifact_is_refused(tmp_path, path):
    entry = {"algorithm": "pwm", "task": "toy/a", "seed": 0, "path": path}
    (tmp_path / POLICIES_FILE).write_text(json.dumps({"tasks": [], "policies": [entry]}))
    with pytest.raises(CheckpointError, match=r"policies\.json .* expected a path inside the artifact's folder"):
        PolicyIndex.read(tmp_path)
