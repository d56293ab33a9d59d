"""`orrery completion SHELL`: a script that completes commands, options, experiments, stages and keys of settings.

The script holds every word, so that completing starts no Python; it has to be made again after an update.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterable, Mapping

from rich.console import Console

from .command import Command

BASH = """\
# Bash completion of orrery. In ~/.bashrc: eval "$(orrery completion bash)"
_orrery() {
    local cur="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
    local number=$COMP_CWORD
    @CHOOSE@
    COMPREPLY=("${found[@]}")
    [[ ${#found[@]} == 1 && ${found[0]} == *[.=] ]] && compopt -o nospace
}
complete -o default -F _orrery orrery
"""

ZSH = """\
#compdef orrery
# Zsh completion of orrery. In ~/.zshrc, after compinit: eval "$(orrery completion zsh)"
_orrery() {
    local cur="${words[CURRENT]}" command="${words[2]}" previous="${words[CURRENT-1]}" number=$((CURRENT-1))
    @CHOOSE@
    (( ${#found} )) || { _files; return; }
    compadd -S '' -- ${(M)found:#*[.=]}
    compadd -- ${found:#*[.=]}
}
compdef _orrery orrery
"""

CHOOSE = """\
local word rest
local -a choices found
if (( number == 1 )); then
    choices=(@COMMANDS@)
elif [[ $cur == -* ]]; then
    case $command in
        @OPTIONS@
    esac
elif [[ $previous == --from ]]; then
    choices=(@STAGES@)
elif (( number == 2 )); then
    case $command in
        @FIRST@
    esac
else
    case $command in
        @LATER@
    esac
fi
# Keys by one part at a time: of those with the dots of the word.
for word in "${choices[@]}"; do
    rest="${word#"${cur%"${cur##*.}"}"}"
    [[ $word == "$cur"* && -n $rest && $rest != *.?* ]] && found+=("$word")
done"""
"""Of Bash and Zsh: sets `found`."""

FISH = """\
# Fish completion of orrery. orrery completion fish > ~/.config/fish/completions/orrery.fish
function __orrery_choices
    set -l words (commandline -opc)
    set -l cur (commandline -ct)
    set -l choices
    if test (count $words) -eq 1
        set choices @COMMANDS@
    else if string match -q -- '-*' $cur
        switch $words[2]
            @OPTIONS@
        end
    else if test "$words[-1]" = --from
        set choices @STAGES@
    else if test (count $words) -eq 2
        switch $words[2]
            @FIRST@
        end
    else
        switch $words[2]
            @LATER@
        end
    end
    # Keys by one part at a time: of those with the dots of the word.
    set -l start (string replace -r '[^.]*$' '' -- $cur)
    string match -r -- '^'(string escape --style=regex -- $start)'[^.]+[.]?$' $choices
end
complete -c orrery -a '(__orrery_choices)'
"""


class Completion(Command):
    """Print a completion script."""

    help = "print a completion script for bash, zsh or fish"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=["bash", "zsh", "fish"])

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        console.file.write(script(arguments.shell))
        return 0


def script(shell: str) -> str:
    """The completion script of bash, zsh or fish."""
    from .cli import all_commands
    from .config.help import config_keys
    from .config.load import Settings, describe_files, discover_stages, list_experiments
    from .paths import CONFIG_DIR

    stages, options = discover_stages(), {name: _options(parser) for name, parser in all_commands().items()}
    keys = ["run_dir", *(key.name for key in config_keys(Settings, dataclasses.asdict(Settings())))]
    for name, stage in stages.items():
        keys += [key.name for key in config_keys(stage.Config, dataclasses.asdict(stage.Config()), f"{name}.")]
    experiments = list(list_experiments())
    first = dict.fromkeys(("run", "plan", "iterate"), experiments)
    first |= {"study": list(describe_files(CONFIG_DIR / "studies")), "completion": ["bash", "zsh", "fish"]}
    later = {"run|plan|study|iterate": _steps(keys)}
    case = _fish_case if shell == "fish" else _case
    parts = {
        "@COMMANDS@": " ".join([*options, "--help", "--version"]),
        "@STAGES@": " ".join(stages),
        "@OPTIONS@": case(options),
        "@FIRST@": case(first),
        "@LATER@": case(later),
    }
    made = FISH if shell == "fish" else _put(BASH if shell == "bash" else ZSH, "@CHOOSE@", CHOOSE)
    for place, text in parts.items():
        made = _put(made, place, text)
    return made


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]


def _steps(keys: Iterable[str]) -> list[str]:
    """What can be typed next, part by part: `pretrain.`, `pretrain.model.`, `pretrain.model.latent_dim=`."""
    found: dict[str, None] = {}
    for key in keys:
        parts = key.partition(".NAME")[0].split(".")  # names of a mapping's entries are the user's
        found |= dict.fromkeys("".join(f"{part}." for part in parts[:depth]) for depth in range(1, len(parts)))
        found[".".join(parts) + ("." if ".NAME" in key else "=")] = None
    return list(found)


def _case(choices: Mapping[str, Iterable[str]]) -> str:
    return "\n".join(f"{names}) choices=({' '.join(words)}) ;;" for names, words in choices.items())


def _fish_case(choices: Mapping[str, Iterable[str]]) -> str:
    cases = ((names.replace("|", " "), " ".join(words)) for names, words in choices.items())
    return "\n".join(f"case {names}\n    set choices {words}" for names, words in cases)


def _put(text: str, place: str, lines: str) -> str:
    """The text with lines in a place of it, indented as the place is."""
    before = text.partition(place)[0].rpartition("\n")[2]
    return text.replace(place, textwrap.indent(lines, before if before.isspace() else "").removeprefix(before))
