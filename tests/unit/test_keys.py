"""What counts in a stage's key."""

import dataclasses
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from orrery.pipeline import entry_points
from orrery.pipeline.artifact import without
from orrery.pipeline.config.load import discover_stages
from orrery.pipeline.keys import hashed


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


def test_a_new_version_of_a_package_that_provides_a_stage_or_what_it_calls_counts(monkeypatch) -> None:
    def entry(name: str, package: str, version: str) -> EntryPoint:
        dist = SimpleNamespace(name=package, version=version)
        return SimpleNamespace(name=name, dist=dist)  # type: ignore[return-value]

    found = {
        "stages": {"pack": [entry("pack", "orrery", "1")], "ice": [entry("ice", "lab-ice", "2.0")]},
        "formats": {"hdf5": [entry("hdf5", "orrery", "1")], "jsonl": [entry("jsonl", "lab-lines", "0.3")]},
    }
    monkeypatch.setattr(entry_points, "_entries", found.__getitem__)
    assert entry_points.providers("pack", ()) == ""
    assert entry_points.providers("pack", ("formats",)) == "lab-lines 0.3"
    assert entry_points.providers("ice", ("formats",)) == "lab-ice 2.0, lab-lines 0.3"
    assert entry_points.providers("not installed", ()) == ""
