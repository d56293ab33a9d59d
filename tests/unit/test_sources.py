"""open_reader: a file or folder of another format is named, with what is read in its place."""

import numpy as np
import pytest
from orrery.datasets.formats.sources import dataset_files, open_reader
from orrery.pipeline.errors import DatasetError

from .hdf5_files import flat_columns, write


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.npy", "a NumPy array"), ("a.PKL", "a pickle"), ("a.csv", "a table in text"), ("a.txt", "a file of no known")],
)
def test_files_of_other_formats(name, kind, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(
        DatasetError, match=rf"{name}: not a supported dataset: it is {kind}.*expected an HDF5, .npz or .parquet file"
    ):
        open_reader(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([".zgroup"], "is a Zarr store"),
        (["zarr.json"], "is a Zarr store"),
        (["dataset_info.json", "x.tfrecord-0"], r"is a TensorFlow dataset \(RLDS\)"),
        (
            ["a.hdf5", "b.h5", "c.HDF5", "d.hdf", "notes.txt"],
            r"a folder of 4 files \(a.hdf5, b.h5, c.HDF5, ...\), of which",
        ),
        (["b.pkl", "a.pkl"], r"a folder of unsupported files \(a.pkl, b.pkl; each a pickle\)"),
        (["b.npz", "a.npz"], r"a folder of 2 files \(a.npz, b.npz\), of which each is a separate dataset"),
        (["main_data.hdf5"], "is the data of a Minari dataset without its metadata.json"),
    ],
)
def test_folders_of_other_formats(files, found, tmp_path):
    for name in files:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"")
    with pytest.raises(DatasetError, match=f"set (is )?{found}"):
        open_reader(tmp_path / "set")
    with pytest.raises(DatasetError):
        dataset_files(tmp_path / "set")


@pytest.mark.parametrize("name", ["A.HDF5", "a.hdf", "a.he5", "episodes.dat"])
def test_hdf5_under_any_name(name, tmp_path):
    path = write(tmp_path / name, flat_columns())
    assert len(open_reader(path)) == 2
    assert dataset_files(path) == [path]
    np.testing.assert_array_equal(next(iter(open_reader(path))).rewards, np.arange(7))
