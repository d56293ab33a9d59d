"""How a command is told which policy it is about."""

from __future__ import annotations

import argparse


def add_policy_arguments(parser: argparse.ArgumentParser, which: str) -> None:
    """Add POLICY, and the words task=, algorithm= and seed=; `which` says what these choose."""
    parser.add_argument("policy", metavar="POLICY", help="policy folder, RUN/extract, run folder, or Hub id")
    parser.add_argument("overrides", nargs="*", metavar="task=NAME algorithm=NAME seed=N", help=which)
