"""What a command beside those of `pipeline` is: a subclass of Command, which an entry point names.

`orrery export` and `orrery play` are such. They work on what stages have written and write outside of run folders, so
they have no place in a run.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from rich.console import Console

from .errors import ConfigError


class Command(ABC):
    """Its module is imported for the list of commands too, so heavy libraries are imported inside `run`."""

    help: ClassVar[str]
    """One line, for the list of commands."""

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what the command line takes. `overrides` names the words of the form key=value, if it takes any."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        """Do it and return the exit code. Raises OrreryError for what the user is meant to read."""


def read_words(words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a mapping.

    Raises:
        ConfigError: a word of another form, an unknown key, or a key given twice.
    """
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"{word!r}: expected {', '.join(f'{one}=...' for one in known)}")
        if key in values:
            raise ConfigError(f"{key} is set twice: {values[key]} and {value}")
        values[key] = value
    return values
