"""Where it was measured: processor, caches, versions, instruction set, threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bench.engines import Engine

PACKAGES = (
    *("normcore", "numpy", "numba", "llvmlite", "cython"),
    *("torch", "onnxruntime", "jax", "scikit-learn"),
)
CACHES = {
    "l1_data_cache_size": "L1d",
    "l2_cache_size": "L2",
    "l3_cache_size": "L3",
}


def versions() -> dict[str, str]:
    """Versions of the installed packages that matter here."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(engines: Sequence[Engine], threads: int) -> dict[str, Any]:
    """Everything that a reader of the figures must know about their origin."""
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
    from threadpoolctl import threadpool_info

    system = pytest_benchmark_generate_machine_info()
    cpu = system["cpu"]
    vectors = [
        flag for flag in ("sse2", "avx2", "avx512f", "asimd") if flag in cpu.get("flags", [])
    ]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu.get("brand_raw", system["processor"]),
        "cores": cpu.get("count"),
        "caches": {short: cpu[name] for name, short in CACHES.items() if name in cpu},
        "vectors": vectors,
        "instruction_set": {
            engine.name: engine.instruction_set for engine in engines if engine.instruction_set
        },
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "system": f"{system['system']} {system['machine']}",
        "python": platform.python_version(),
        "versions": versions(),
        "thread_pools": [
            {key: pool.get(key) for key in ("prefix", "version", "num_threads")}
            for pool in threadpool_info()
        ],
    }


def sentence(machine: dict[str, Any]) -> str:
    """One line of `describe` for a caption."""
    caches = ", ".join(f"{name} {_size(bytes)}" for name, bytes in machine["caches"].items())
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    chosen = ", ".join(f"{name}: {isa}" for name, isa in machine["instruction_set"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {'/'.join(machine['vectors'])}; "
        f"caches of all cores: {caches}; {machine['threads']} threads; {chosen and chosen + '; '}"
        f"load before: {machine['load_before']:.1f}; {machine['system']}, "
        f"Python {machine['python']}, {packages}."
    )


def _size(nbytes: int) -> str:
    return f"{nbytes >> 10} KiB" if nbytes < 1 << 20 else f"{nbytes >> 20} MiB"
