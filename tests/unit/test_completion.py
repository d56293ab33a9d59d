"""Completion scripts, run by the shells that are there; Bash always is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from orrery.pipeline.command_completion import script

BASH = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
compopt() { echo "compopt $*"; }
_orrery
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'source $argv[1]; complete -C (string join " " -- $argv[2..])'


@pytest.fixture(scope="module", params=["bash", "fish"])
def complete(request, tmp_path_factory):
    """What a shell offers for words of which the last is being typed."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file = tmp_path_factory.mktemp("completion") / shell
    file.write_text(script(shell))
    empty = tmp_path_factory.mktemp("empty")

    def call(*words: str) -> list[str]:
        command = [shell, "-c", BASH if shell == "bash" else FISH, *(["x"] if shell == "bash" else []), file]
        found = subprocess.run([*command, "orrery", *words], capture_output=True, text=True, cwd=empty, check=True)
        assert not found.stderr
        return sorted(word for word in found.stdout.split("\n") if word and not word.startswith("compopt"))

    return call


def test_words_by_their_place(complete) -> None:
    assert complete("pl") == ["plan", "play"]
    assert complete("run", "quick") == ["quickstart"]
    assert complete("study", "few") == ["few_shot"]
    assert complete("plan", "quickstart", "--js") == ["--json"]
    assert complete("run", "quickstart", "--from", "eval") == ["evaluate"]
    assert complete("completion", "z") == ["zsh"]


def test_keys_part_by_part(complete) -> None:
    assert complete("run", "quickstart", "pret") == ["pretrain."]
    assert complete("run", "quickstart", "pretrain.model.latent") == [
        "pretrain.model.latent=",
        "pretrain.model.latent_dim=",
    ]
    offered = complete("run", "quickstart", "pretrain.")
    assert {"pretrain.model.", "pretrain.steps="} <= set(offered)
    assert "pretrain." not in offered
    assert not any(word.startswith("pretrain.model.l") for word in offered)
    offered = complete("run", "mine.yaml", "pack.sources")
    assert offered == ["pack.sources.", "pack.sources="], "names of sources are the user's"


def test_files_where_there_is_nothing_to_offer(complete) -> None:
    assert complete("status", "runs/none") == []
    assert complete("run", "mine/ex") == []


def test_a_key_that_goes_on_gets_no_space(tmp_path: Path) -> None:
    (tmp_path / "orrery.bash").write_text(script("bash"))
    call = ["bash", "-c", BASH, "x", str(tmp_path / "orrery.bash"), "orrery", "run", "quickstart", "pretrain.step"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout.split("\n")[:2] == [
        "compopt -o nospace",
        "pretrain.steps=",
    ]


def test_zsh_shares_the_choices_of_bash() -> None:
    bash, zsh = script("bash"), script("zsh")
    start, end = bash.index("    local word rest"), bash.index("    COMPREPLY")
    assert bash[start:end] in zsh
    assert zsh.startswith("#compdef orrery\n")
