"""Programs on several processes, by the MPI that is installed; skips the test where none is."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest


def mpiexec():
    """The program that belongs to the library which mpi4py will load; None if there is none."""
    try:
        wheel = [
            str(distribution("mpich").locate_file(path).resolve().parent)
            for path in distribution("mpich").files or ()
            if path.name == "mpiexec"
        ]
    except PackageNotFoundError:
        wheel = []
    beside = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    for folders in (*wheel, *beside, None):
        found = shutil.which("mpiexec", path=folders)
        if found:
            return found
    return None


def environment(program):
    """That of the processes: one thread each, and the library beside mpiexec."""
    library = Path(program).parents[1] / "lib"
    known = os.environ.get("LD_LIBRARY_PATH")
    path = os.pathsep.join([str(library), *([known] if known else [])])
    return {**os.environ, "LD_LIBRARY_PATH": path, "OMP_NUM_THREADS": "1"}


def launch(processes, *command, seconds=60):
    """Run Python with these arguments on some processes; what they print."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    program = mpiexec()
    if program is None:
        pytest.skip("there is no mpiexec")
    done = subprocess.run(
        [program, "-n", str(processes), sys.executable, "-W", "error", *map(str, command)],
        env=environment(program),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
