import json
from pathlib import Path

import pytest
from orrery.pipeline import artifact
from orrery.pipeline.errors import StageError
from orrery.pipeline.seeding import derive_seed


def make(folder: Path, text: str = "0123456789") -> artifact.Manifest:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "rows.bin").write_text(text)
    (folder / "names.txt").write_text("a b")
    return artifact.finish(
        folder,
        kind="store",
        stage="pack",
        key="k",
        config={"length": 3},
        inputs={"datasets": [artifact.InputRecord("runs/x/collect", "d")]},
        seconds=1.5,
        summary="2 files",
    )


def test_the_manifest_round_trips_and_lists_every_file(tmp_path: Path) -> None:
    written = make(tmp_path / "a")

    assert artifact.read_manifest(tmp_path / "a") == written
    assert set(written.files) == {"deep/rows.bin", "names.txt"}
    assert written.files["names.txt"].bytes == 3
    assert written.versions["orrery"]
    artifact.verify(tmp_path / "a", "store")


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    same, other = make(tmp_path / "a"), make(tmp_path / "b")
    assert same.digest == other.digest
    assert make(tmp_path / "c", "012345678x").digest != same.digest


def test_the_digest_leaves_out_what_tells_one_attempt_from_another(tmp_path: Path) -> None:
    """Artifacts of earlier versions count these files; they stay valid."""
    plain, logged = make(tmp_path / "a"), tmp_path / "b"
    (logged / "deep" / "tensorboard").mkdir(parents=True)
    (logged / "deep" / "tensorboard" / "events.1795907540.host").write_text("now")
    manifest = make(logged)
    assert manifest.digest == plain.digest
    (record,) = [path for path in manifest.files if "tensorboard" in path]
    values = json.loads((logged / artifact.MANIFEST).read_text())
    of_all = artifact.hash_json(values["files"])
    (logged / artifact.MANIFEST).write_text(json.dumps(values | {"digest": of_all}))
    assert artifact.digest_of(logged) == of_all != plain.digest
    (logged / record).write_text("no!")
    with pytest.raises(StageError, match="was changed after"):
        artifact.verify(logged, "store")


def test_a_truncated_file_is_named_with_its_sizes(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "deep" / "rows.bin").write_text("01234")
    with pytest.raises(StageError, match=r"rows\.bin has 5 bytes, expected 10.*stage 'pack'"):
        artifact.verify_quick(tmp_path / "a", "store")


def test_an_edited_file_is_named_with_its_hashes(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "deep" / "rows.bin").write_text("012345678x")
    artifact.verify_quick(tmp_path / "a", "store")
    with pytest.raises(StageError, match=r"rows\.bin was changed after stage 'pack'.*expected sha256.*Delete"):
        artifact.verify(tmp_path / "a", "store")


def test_a_missing_file_a_wrong_kind_and_a_broken_manifest(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(StageError, match="kind 'store', expected kind 'policies'"):
        artifact.verify(tmp_path / "a", "policies")
    (tmp_path / "a" / "names.txt").unlink()
    with pytest.raises(StageError, match=r"names\.txt is missing"):
        artifact.verify(tmp_path / "a", "store")
    (tmp_path / "a" / artifact.MANIFEST).write_text('{"kind": "store"')
    with pytest.raises(StageError, match=r"manifest\.json is not JSON"):
        artifact.verify(tmp_path / "a", "store")
    with pytest.raises(StageError, match="no artifact folder"):
        artifact.verify(tmp_path / "none", "store")


def test_a_manifest_names_nothing_that_a_kill_left_unfinished(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    artifact.unfinished(folder / artifact.MANIFEST).write_text("{")
    artifact.unfinished(folder / "last.ckpt").write_text("half")
    (folder / ".tmprEgHyy").write_text("half of what safetensors writes")
    artifact.unfinished(folder / "rows").mkdir()
    (artifact.unfinished(folder / "rows") / "part.f32").write_text("half")
    assert set(make(folder).files) == {"deep/rows.bin", "names.txt"}
    assert sorted(path.name for path in folder.iterdir()) == ["deep", artifact.MANIFEST, "names.txt"]
    artifact.verify(folder, "store")


def test_a_file_that_is_replaced_keeps_its_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    artifact.write_json(path, {"n": 1})
    with pytest.raises(TypeError, match="set"):
        artifact.write_json(path, {"n": {1}})
    assert json.loads(path.read_text()) == {"n": 1}


def test_publishing_replaces_the_old_artifact(tmp_path: Path) -> None:
    make(tmp_path / "pack", "old")
    make(tmp_path / "pack.partial", "new")
    artifact.publish(tmp_path / "pack.partial", tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    assert (tmp_path / "pack" / "deep" / "rows.bin").read_text() == "new"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_publish_that_was_killed_is_completed(tmp_path: Path, renames: int) -> None:
    final, partial, aside = tmp_path / "pack", tmp_path / "pack.partial", tmp_path / "pack.old"
    make(final, "old")
    make(partial, "new")
    for source, target in [(final, aside), (partial, final)][:renames]:
        source.rename(target)
    artifact.recover(partial, final)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    assert (final / "deep" / "rows.bin").read_text() == "new"


def test_without_a_finished_successor_the_old_artifact_comes_back(tmp_path: Path) -> None:
    make(tmp_path / "pack.old", "old")
    (tmp_path / "pack.partial").mkdir()
    artifact.recover(tmp_path / "pack.partial", tmp_path / "pack")
    assert (tmp_path / "pack" / "deep" / "rows.bin").read_text() == "old"


def test_a_folder_of_other_programs_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_text("1")
    before = artifact.digest_of(tmp_path)
    artifact.verify(tmp_path, "world_model")
    (tmp_path / "weights.safetensors").write_text("12")
    assert artifact.digest_of(tmp_path) != before


def test_derived_seeds_are_fixed_and_depend_on_order_and_type() -> None:
    # By hand: the first eight bytes, little-endian, of sha256 of the text [0, "collect"].
    assert derive_seed(0, "collect") == 13934849164573948267
    assert len({derive_seed(0, 1), derive_seed(1, 0), derive_seed("0", 1), derive_seed(0, 1, 0)}) == 4


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/passwd", "deep/../../x", ""])
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    make(tmp_path / "a")
    changed = json.loads((tmp_path / "a" / artifact.MANIFEST).read_text())
    changed["files"][path] = changed["files"].pop("names.txt")
    (tmp_path / "a" / artifact.MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(StageError, match=r"manifest\.json .* expected a path inside the artifact's folder"):
        artifact.verify(tmp_path / "a", "store")


def test_a_file_cannot_be_taken_off_the_manifest(tmp_path: Path) -> None:
    make(tmp_path / "a")
    changed = json.loads((tmp_path / "a" / artifact.MANIFEST).read_text())
    del changed["files"]["names.txt"]
    (tmp_path / "a" / artifact.MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(StageError, match=r"manifest\.json .* the list was changed after it was written"):
        artifact.verify(tmp_path / "a", "store")


def test_a_file_that_is_loaded_has_to_be_listed(tmp_path: Path) -> None:
    make(tmp_path / "a")
    artifact.verify_listed(tmp_path / "a", ["names.txt", "absent.txt"])
    (tmp_path / "a" / "added.json").write_text("{}")
    with pytest.raises(StageError, match=r"added\.json is not listed in .*manifest\.json"):
        artifact.verify_listed(tmp_path / "a", ["names.txt", "added.json"])
