"""open_hdf5 and Columns: what is not in the file is refused, what cannot be opened says why, chunks stay unpacked."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from orrery.datasets.formats.hdf5 import Hdf5Reader
from orrery.datasets.formats.hdf5_file import Columns, is_hdf5, open_hdf5
from orrery.pipeline.errors import DatasetError

from .hdf5_files import flat_columns, write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"<!DOCTYPE html>\n<html>",
            r"cannot be opened as HDF5: it is not HDF5 .it starts with b'<!DOCTYPE html>'. but another",
        ),
        (b"", r"a\.hdf5: cannot be opened as HDF5: it is empty \(0 bytes\)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            r"is not HDF5 but a Git LFS pointer.*git lfs pull",
        ),
    ],
)
def test_what_is_not_hdf5_is_shown(content, message, tmp_path):
    (tmp_path / "a.hdf5").write_bytes(content)
    with pytest.raises(DatasetError, match=message), open_hdf5(tmp_path / "a.hdf5"):
        pass


def test_a_pattern_is_not_a_file(tmp_path):
    with (
        pytest.raises(DatasetError, match=r"no HDF5 file at .*episode_\*\.hdf5.*patterns are not supported"),
        open_hdf5(tmp_path / "episode_*.hdf5"),
    ):
        pass


WRITER = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"


def test_a_file_that_another_process_writes_is_not_called_damaged(tmp_path):
    path = write(tmp_path / "a.hdf5", flat_columns())
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(DatasetError, match="is open for writing in another process") as raised:
            Hdf5Reader(path)
        writer.stdin.close()
    assert "fetch" not in str(raised.value)
    assert len(Hdf5Reader(path)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_another_user_says_so(tmp_path):
    path = write(tmp_path / "a.hdf5", flat_columns())
    path.chmod(0)
    with pytest.raises(DatasetError, match="permission denied"), open_hdf5(path):
        pass


def test_links_out_of_the_file_are_refused_and_links_within_it_followed(tmp_path):
    write(tmp_path / "other.h5", {"rewards": np.arange(12.0)})
    path = write(tmp_path / "a.h5", flat_columns(rewards=None) | {"kept/score": np.arange(12.0)})
    with h5py.File(path, "r+") as file:
        file["rewards"] = h5py.SoftLink("/kept/score")
        file["nowhere"] = h5py.SoftLink("/absent")
    assert next(iter(Hdf5Reader(path))).rewards[3] == 3
    with h5py.File(path, "r+") as file:
        file["kept/far"] = h5py.ExternalLink("other.h5", "/rewards")
    with pytest.raises(DatasetError, match=r"links to other files \('kept/far' to other\.h5\), which are not"):
        Hdf5Reader(path)


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_values_in_another_file_are_refused(kind, tmp_path):
    write(tmp_path / "other.h5", {"rewards": np.arange(12.0)})
    path = write(tmp_path / "a.h5", flat_columns(rewards=None))
    with h5py.File(path, "r+") as file:
        if kind == "external":
            (tmp_path / "values.bin").write_bytes(np.arange(12.0).tobytes())
            file.create_dataset("rewards", (12,), "f8", external=[(tmp_path / "values.bin", 0, 96)])
        else:
            layout = h5py.VirtualLayout((12,), "f8")
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "rewards", (12,))
            file.create_virtual_dataset("rewards", layout)
    with pytest.raises(
        DatasetError, match=r"column 'rewards' stores its values in other files .*values\.bin|other\.h5"
    ):
        Hdf5Reader(path)


def test_a_virtual_column_of_the_same_file_is_read(tmp_path):
    path = write(tmp_path / "a.h5", flat_columns(rewards=None) | {"kept/score": np.arange(12.0)})
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout((12,), "f8")
        layout[:] = h5py.VirtualSource(file["kept/score"])
        file.create_virtual_dataset("rewards", layout)
    assert next(iter(Hdf5Reader(path))).rewards[3] == 3


@pytest.mark.parametrize("column", ["observations", "next_observations", "actions", "rewards", "terminals", "timeouts"])
def test_a_damaged_chunk_names_its_column(column, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for key, value in flat_columns().items():
            file.create_dataset(key, data=value, chunks=(4, *value.shape[1:]), fletcher32=True)
    with h5py.File(path) as file:
        info = file[column].id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(info.byte_offset)
        raw.write(b"\x12\x34\x56\x78")
    with pytest.raises(DatasetError, match=rf"a\.h5: column '{column}' cannot be read in rows .*damaged, download"):
        list(Hdf5Reader(path))


@pytest.mark.parametrize("chunks", [(500, 1), (500, 3), (1000, 600), (20, 1)])
def test_the_chunks_of_an_episode_stay_unpacked_for_the_next(chunks, tmp_path):
    values = np.random.default_rng(0).normal(size=(1000, 600))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("wide", data=values, chunks=chunks, compression="gzip", compression_opts=1)
    with open_hdf5(tmp_path / "a.h5") as file:
        columns = Columns(file["/"])
        slots, room, _ = columns["wide"].id.get_access_plist().get_chunk_cache()
        across = -(-600 // chunks[1])
        assert slots >= 2 * across
        assert room >= 2 * across * chunks[0] * chunks[1] * 8
        np.testing.assert_array_equal(columns.rows("wide", 490, 510), values[490:510])
        assert columns["wide"] is columns["wide"]


def test_hdf5_is_known_by_its_name_or_its_first_bytes(tmp_path):
    for name in ("a.hdf5", "A.HDF5", "a.h5", "a.hdf"):
        assert is_hdf5(Path(name)), name
    assert is_hdf5(write(tmp_path / "episodes.dat", flat_columns()))
    assert not is_hdf5(tmp_path / "absent.dat")
    (tmp_path / "notes.txt").write_text("notes")
    assert not is_hdf5(tmp_path / "notes.txt")
