"""What counts in a stage's key."""

import dataclasses

import pytest
from orrery.pipeline.artifact import without
from orrery.pipeline.config.load import discover_stages
from orrery.pipeline.plan import hashed


def test_entries_are_left_out_by_dotted_keys() -> None:
    values = {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}}
    assert without(values, ["a", "b.d.e"]) == {"b": {"c": 2, "d": {"f": 4}}}
    assert without(values, ["b", "b.c"]) == {"a": 1}


@pytest.mark.parametrize("name", discover_stages())
def test_what_is_not_hashed_is_a_setting(name: str) -> None:
    stage = discover_stages()[name]
    config = dataclasses.asdict(stage.Config())
    for key in stage.not_hashed:
        assert without(config, [key]) != config, key
    assert "seed" not in stage.not_hashed
    assert ("seed" in config) == ("seed" in hashed(config, stage))
