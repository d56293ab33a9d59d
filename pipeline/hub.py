"""Where an artifact that a user names is: a folder, a run folder that holds one, or a repository of the Hub.

A repository of the Hugging Face Hub is downloaded once into the cache of huggingface_hub (HF_HOME) and found there
afterwards, also without a network. Downloading runs nothing: what is read from it later is JSON, CSV and safetensors.
The Hub's own PyTorchModelHubMixin would store weights and settings in a form of its own beside ours, so folders are
sent and fetched as they are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from . import artifact
from .errors import CheckpointError, StageError
from .paths import user_path

HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""user/name, or user/name@revision with a branch, tag or commit."""

CONNECT_TIMEOUT = 10.0
"""Timeout (seconds) for the Hub's first answer."""

REPLACED = {".safetensors", ".json", ".csv"}
"""Endings of the files of a repository that an upload replaces as a whole."""

KIND_BY_FILE: Mapping[str, tuple[str, str]] = {
    "model.json": ("world_model", "a world model"),
    "sequence_model.json": ("world_model", "a sequence model"),
    "policy.json": ("policies", "a policy"),
    "policies.json": ("policies", "policies"),
    "store.json": ("store", "a store"),
}
"""Kind of a folder without a manifest, by a file in it: (kind, description)."""


def find_artifact(reference: str | Path, kind: str) -> Path:
    """Return the folder of the artifact named by `reference`.

    Args:
        reference: an artifact's folder, a run folder with one artifact of that kind, or a Hub id (user/name,
            user/name@revision). What exists on disk is never looked for on the Hub.
        kind: as some stage's `output_kind`: world_model, policies, ...
    Raises:
        StageError: it is no such artifact, or damaged.
        CheckpointError: it cannot be downloaded.
    """
    path = user_path(reference)
    if path.is_dir():
        return artifact_in(path, kind)
    if path.exists():
        raise StageError(f"{path}: expected the folder of an artifact of kind {kind!r}, found a file{_hint(path)}")
    match = HUB_ID.fullmatch(str(reference))
    if match is None:
        raise StageError(
            f"there is no folder {path.absolute()}, and {str(reference)!r} is not a Hugging Face Hub id (user/name or "
            "user/name@revision)"
        )
    return artifact_in(download(match["repository"], match["revision"]), kind)


def artifact_in(folder: Path, kind: str) -> Path:
    """`folder` itself, or the one artifact of `kind` in it where it is the folder of a run; checked without reading all
    of it.

    Raises:
        StageError: it holds another kind, several of this kind or none; or files are missing.
    """
    if artifact.read_manifest(folder) is None:
        if inside := sorted(folder.glob(f"*/{artifact.MANIFEST}")):
            folder = _only(folder, [path.parent for path in inside], kind)
        for name, (found, words) in KIND_BY_FILE.items():
            if (folder / name).is_file() and found != kind:
                raise StageError(f"{folder} holds {words} ({name}), expected an artifact of kind {kind!r}")
    artifact.verify_quick(folder, kind)
    return folder.resolve()


def _only(run: Path, folders: list[Path], kind: str) -> Path:
    kinds = {folder: getattr(artifact.read_manifest(folder), "kind", "") for folder in folders}
    right = [folder for folder in folders if kinds[folder] == kind]
    if len(right) == 1:
        return right[0]
    if right:
        choice = f"it has several; use {' or '.join(map(str, right))}"
    else:
        choice = "it holds " + ", ".join(f"{folder.name} ({found})" for folder, found in kinds.items())
    raise StageError(f"{run} is a folder of artifacts, expected an artifact of kind {kind!r}; {choice}")


def _hint(path: Path) -> str:
    if path.suffix in (".pt", ".pth"):
        return f"; to import TD-MPC2 weights: orrery run import_tdmpc2 import_tdmpc2.checkpoint={path}"
    return ""


@functools.cache  # a run asks several times, and each would go to the network
def download(repository: str, revision: str | None = None) -> Path:
    """Fetch a repository of the Hub, or find it in the cache, and return its folder.

    Raises:
        CheckpointError: there is no such repository or revision, it is private, or there is no network and no copy.
    """
    import httpx2
    from huggingface_hub import errors, snapshot_download

    unreachable = _why_unreachable()
    name = f"{repository}@{revision}" if revision else repository
    local = f"there is no folder {Path(name).absolute()}, and"
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=unreachable is not None))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: access to this repository must be requested on its page of the Hugging Face Hub"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{local} the Hugging Face Hub has no repository {name}, or it is private and you are not logged in (hf "
            "auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository}: no revision {revision!r} on the Hugging Face Hub") from error
    except errors.LocalEntryNotFoundError as error:
        reason = unreachable or error.__cause__ or error
        raise CheckpointError(
            f"{local} no copy of {name} in the cache of the Hugging Face Hub, which cannot be reached "
            f"({type(reason).__name__}: {_line(reason)})"
        ) from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise _failed(name, "downloading it from the Hugging Face Hub", error) from error


def _why_unreachable() -> Exception | None:
    """What stands between here and the Hub; None if it answers. The library itself would wait for an answer for ever,
    which a network that drops packets never gives."""
    import httpx2
    from huggingface_hub import HfApi, get_session

    try:
        get_session().head(HfApi().endpoint, timeout=CONNECT_TIMEOUT)
    except (httpx2.HTTPError, OSError) as error:
        return error
    return None


def upload(folder: Path, repository: str, *, private: bool = False) -> str:
    """Make a repository of the Hub hold what `folder` holds, and return its address.

    The repository is made if it does not exist. Weights, tables and JSON that are in it and not in `folder` go; other
    files stay.

    Raises:
        CheckpointError: not logged in, not allowed, or no network.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, errors

    if (unreachable := _why_unreachable()) is not None:
        reason = f"{type(unreachable).__name__}: {_line(unreachable)}"
        raise CheckpointError(
            f"{repository}: the Hugging Face Hub cannot be reached ({reason}); nothing was uploaded. use --dry-run to "
            "write the folder, and `hf upload` to upload it later"
        ) from unreachable
    api = HfApi()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        stale = [
            name for name in api.list_repo_files(repository) if Path(name).suffix in REPLACED and name not in files
        ]
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]
        # One commit, so that nobody downloads half of it.
        api.create_commit(repository, operations, commit_message="Upload with orrery push")
    except (errors.LocalTokenNotFoundError, errors.HfHubHTTPError) as error:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 401
        if status not in (401, 403):
            raise _failed(repository, "uploading", error) from error
        raise CheckpointError(
            f"{repository}: no permission to write to this repository of the Hugging Face Hub ({_line(error)}). Log in "
            "with a write token (hf auth login, or HF_TOKEN), and use your own user name or one of your organisations"
        ) from error
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise _failed(repository, "uploading", error) from error
    return str(url)


def _failed(name: str, what: str, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{name}: {what} failed ({type(error).__name__}: {_line(error)})")


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else "no more is known"
