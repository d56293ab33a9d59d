"""Paths as people write them, and where the built-in configs are."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError

CONFIG_DIR = Path(__file__).parents[1] / "configs"


def user_path(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by that home folder, as shells do.

    Shells do not after `key=`, inside quotes, or in YAML.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: no home folder of that user; write the path in full, or ./{path}") from error
