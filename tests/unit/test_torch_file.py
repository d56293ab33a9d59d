"""read_torch_file: what a foreign file holds comes out as plain containers, and nothing in it is ever called.

tests/golden/tensordict_<version>.pt were written by `torch.save` with that version of tensordict.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import tensordict
import torch
from orrery.pipeline import torch_file
from orrery.pipeline.errors import CheckpointError, DatasetError
from orrery.pipeline.torch_file import TensorTree, read_torch_file
from tensordict import TensorDict

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    def write(content, name="file.pt"):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / name

    return write


def rows():
    observations = torch.arange(24.0).reshape(2, 3, 4)
    return TensorDict(
        {"obs": observations, "task": torch.arange(6, dtype=torch.int32).reshape(2, 3)}, batch_size=[2, 3]
    )


def assert_same(found, expected):
    """Equal content, with TensorDicts as TensorTrees of their batch size."""
    if isinstance(expected, torch.Tensor):
        assert type(found) is torch.Tensor
        assert not found.requires_grad
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, (dict, TensorDict)):
        assert type(found) is (TensorTree if isinstance(expected, TensorDict) else dict)
        assert list(found) == list(expected.keys())
        for key in found:
            assert_same(found[key], expected[key])
        if isinstance(expected, TensorDict):
            assert found.batch_size == tuple(expected.batch_size)
    elif isinstance(expected, (list, tuple)) and not isinstance(expected, torch.Size):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected


def test_plain_content_comes_back(save):
    content = {
        "model": OrderedDict(weight=torch.randn(3, 2), steps=torch.tensor(7), half=torch.ones(2, dtype=torch.float16)),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "view": torch.arange(10)[2:8:2],
        "empty": torch.zeros(0, 3),
        "sizes": torch.Size([3, 2]),
        "about": [torch.float32, torch.device("cuda:1"), None, True, 3, 2**70, 0.5, "text", b"bytes", (1, [2])],
        "names": {"a", "b"},
        5: {},
    }
    assert_same(read_torch_file(save(content)), {**content, "model": dict(content["model"])})


@pytest.mark.parametrize("locked", [False, True])
def test_tensordicts_become_trees_with_their_batch_size(save, locked):
    inner = rows()
    content = TensorDict(
        {"rows": inner.lock_() if locked else inner, "deep": {"reward": torch.ones(2)}}, batch_size=[2]
    )
    assert_same(read_torch_file(save({"data": content})), {"data": content})


@pytest.mark.parametrize("version", ["0.1.2", "0.2.0", "0.4.0", "0.6.2"])
def test_tensordicts_of_other_versions(version):
    found = read_torch_file(GOLDEN / f"tensordict_{version}.pt")
    params = found.pop("params", None)
    nested = TensorDict({"inner": rows(), "reward": torch.ones(2)}, batch_size=[2])
    assert_same(found, {"rows": rows(), "nested": nested})
    if version == "0.1.2":  # had no TensorDictParams yet
        assert params is None
    else:
        assert_same(params, TensorDict({"layer": TensorDict({"weight": torch.full((2,), 5.0)})}))


def test_a_tensordict_of_another_version_in_the_legacy_format():
    assert_same(read_torch_file(GOLDEN / "tensordict_0.2.0_legacy.pt"), rows())


def test_a_module_of_tensordict_parameters(tmp_path):
    torch.save(tensordict.nn.TensorDictParams(TensorDict({"layer": {"weight": torch.ones(2)}})), tmp_path / "file.pt")
    assert_same(read_torch_file(tmp_path / "file.pt"), TensorDict({"layer": TensorDict({"weight": torch.ones(2)})}))


def test_mapped_tensors_are_part_of_the_file_and_copies_are_not(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.zeros(10_000)}, path)
    mapped, copied = read_torch_file(path)["a"], read_torch_file(path, mmap=False)["a"]
    mapped[0] = 1
    assert read_torch_file(path)["a"][0] == 0
    start = path.read_bytes().index(bytes(4 * 10_000))
    with path.open("r+b") as file:
        file.seek(start + 4 * 9_000)
        file.write(struct.pack("<f", 1.0))
    assert (mapped[9_000], copied[9_000]) == (1, 0)


def test_shared_tensors_stay_shared(tmp_path):
    weight = torch.zeros(4)
    torch.save([weight, weight], tmp_path / "file.pt")
    for mmap in (True, False):
        first, second = read_torch_file(tmp_path / "file.pt", mmap=mmap)
        first[0] = 1
        assert second[0] == 1


class Called:
    """Unpickled the usual way, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Rebuilt:
    """Written as a TensorDict is, with `cls` in the place of its class and `fields` of its fields."""

    def __init__(self, cls, fields):
        self.cls, self.fields = cls, fields

    def __reduce__(self):
        return tensordict._reductions._make_td, (self.cls, self.fields)


class Hook:
    def __setstate__(self, state):
        os.system(f"touch {state['_batch_size']}")


def bad_files(target):
    return {
        "called": ({"model": {"rms": Called(target)}}, "posix.system"),
        "inside a TensorDict": (Rebuilt(TensorDict, {"_tensordict": {"obs": Called(target)}}), "posix.system"),
        "as its class": (Rebuilt(Hook, {"_tensordict": {}, "_batch_size": str(target)}), f"{__name__}.Hook"),
        "as an attribute": (Rebuilt(TensorDict, {"_tensordict": {}, "_hook": Called(target)}), "posix.system"),
    }


@pytest.mark.parametrize("kind", ["called", "inside a TensorDict", "as its class", "as an attribute"])
def test_what_would_be_called_is_refused_by_name(save, tmp_path, kind):
    content, name = bad_files(tmp_path / "executed")[kind]
    path = save(content)
    with pytest.raises(CheckpointError, match=rf"^{path}: holds {name}") as caught:
        read_torch_file(path)
    assert "could run code" in str(caught.value)
    assert not (tmp_path / "executed").exists()
    if name == "posix.system":  # and it would have been
        torch.load(path, weights_only=False)
        assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["called", "inside a TensorDict", "as its class", "as an attribute"])
def test_the_unpickler_alone_would_not_call_it_either(save, tmp_path, monkeypatch, kind):
    content, _ = bad_files(tmp_path / "executed")[kind]
    path = save(content)
    monkeypatch.setattr(torch_file, "_check_names", lambda *_: None)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file(path)
    assert not (tmp_path / "executed").exists()


def test_the_message_says_where_and_names_all(save):
    path = save({"actor": torch.ones(1), "statistics": Counter("a"), "other": Path("x")})
    with pytest.raises(
        CheckpointError, match=r"holds collections\.Counter \(after the entry 'statistics'\), and also p"
    ):
        read_torch_file(path)


def test_what_others_have_allowed_in_this_process_is_refused_all_the_same(save, tmp_path):
    path = save({"a": Hook()})
    torch.serialization.add_safe_globals([Hook, (TensorDict, "tensordict._td.TensorDict")])
    before = set(torch.serialization.get_safe_globals())
    try:
        with pytest.raises(CheckpointError, match=f"holds {__name__}.Hook"):
            read_torch_file(path)
        assert type(read_torch_file(save(rows(), "rows.pt"))) is TensorTree
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(
            [one for one in before if one not in (Hook, (TensorDict, "tensordict._td.TensorDict"))]
        )


def test_tensors_that_are_no_plain_ones_are_refused(save):
    with pytest.raises(CheckpointError, match=r"holds torch\._utils\._rebuild_sparse_tensor"):
        read_torch_file(save({"a": torch.eye(2).to_sparse()}))
    with pytest.raises(CheckpointError, match=r"holds torch\.storage\.UntypedStorage"):
        read_torch_file(save({"a": torch.ones(2).untyped_storage()}))


def test_a_tensordict_without_entries_is_refused(save):
    with pytest.raises(CheckpointError, match=r"\['a'\] is a TensorDict of an unknown version"):
        read_torch_file(save({"a": Rebuilt(TensorDict, {"_source": torch.ones(2)})}))


def test_every_cut_is_one_clear_error(save, tmp_path):
    whole = save({"data": rows()}).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(0, len(whole), 11):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"^{cut}: (is truncated|cannot be read|is not a file)") as caught:
            read_torch_file(cut)
        assert "\n" not in str(caught.value)


def test_what_torch_did_not_write_is_said_to_be_so(tmp_path):
    for name, content in [("text.pt", b"hello"), ("empty.pt", b""), ("pickle.pt", pickle.dumps({"a": 1}))]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=r"is not a file written by torch\.save"):
            read_torch_file(tmp_path / name, error=DatasetError)
    with pytest.raises(CheckpointError, match=r"no file at .*absent\.pt: expected one written by torch\.save"):
        read_torch_file(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("folder/readme", "hello")
    with pytest.raises(CheckpointError, match=r"not written by torch\.save: it has no data\.pkl"):
        read_torch_file(tmp_path / "archive.pt")


def test_a_file_that_was_compressed_later_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "file.pt")
    with (
        zipfile.ZipFile(tmp_path / "file.pt") as before,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for name in before.namelist():
            after.writestr(name, before.read(name))
    with pytest.raises(CheckpointError, match=r"was compressed after torch\.save wrote it"):
        read_torch_file(tmp_path / "small.pt")


def test_another_pickle_protocol_is_named(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "file.pt", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="written with pickle protocol 4, expected 2"):
        read_torch_file(tmp_path / "file.pt")


def test_one_bit_of_one_tensor_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"weight": torch.zeros(1000), "other": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(2000)) + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"file\.pt: is damaged: file/data/0 in it has another checksum"):
        read_torch_file(path)
    assert read_torch_file(path, checksums=False)["weight"].sum() > 0  # for files that were checked before


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"weight": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(CheckpointError, match=r"\['weight'\] declares shape \[1000000000000\], more than the file's"):
        read_torch_file(path)
