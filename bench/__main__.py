"""``python -m bench COMMAND``: speed (the default), compare, readme, large, training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "speed": "verify, time and report every kernel (what runs when no command is named)",
    "compare": "what became slower or faster from one JSON to another, beyond the noise",
    "readme": "write README's tables and figures from a JSON",
    "training": "what normalization does to training: twelve experiments and a report",
    "large": "cost against size up to 4 GB and beyond 2^31 elements",
}
"""Name of a module of `bench` with `add_arguments` and `main` -> what it does."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if not arguments or (arguments[0] not in COMMANDS and arguments[0] not in ("-h", "--help")):
        arguments = ["speed", *arguments]
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        # Only the chosen one is imported: `compare` needs no engine.
        if name == arguments[0]:
            import_module(f"bench.{name}").add_arguments(command)
    given = parser.parse_args(arguments)
    rounds = getattr(given, "rounds", None)
    if rounds is not None and rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {rounds}")
    return given


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit status."""
    given = parse(arguments)
    status: int = import_module(f"bench.{given.command}").main(given)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
