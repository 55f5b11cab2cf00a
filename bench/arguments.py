"""What several subcommands are told in the same way."""

from __future__ import annotations

import argparse

import numba


def add_threads(parser: argparse.ArgumentParser) -> None:
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument(
        *("-t", "--threads"),
        type=int,
        choices=range(1, cores + 1),
        default=cores,
        metavar=f"1..{cores}",
        help="threads of every engine that has threads (default: every core)",
    )
