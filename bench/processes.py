"""What only a fresh process can show: the import, the first call, the peak of memory.

Each script is run by the interpreter alone, away from the checkout, so that it is the installed
package that it imports.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from bench.api import Use
from bench.measure import Timing

IMPORT = """
import time, numpy
start = time.perf_counter()
import normcore
print(time.perf_counter() - start)
"""

# Its own arrays are there before, the result is not: a first call has no out=.
FIRST_CALL = """
import time, numpy as np, normcore as nc
x = np.random.default_rng(0).standard_normal((8, 64, 56, 56), dtype=np.float32)
start = time.perf_counter()
y = nc.BatchNorm2d(64)(x)
print(time.perf_counter() - start)
assert np.isfinite(y).all()
"""

# Linux forgets the peak when 5 is written to clear_refs. Before that, one call that needs threads
# starts them: their stacks are no call's own.
PEAK = """
import sys, numpy as np, normcore as nc
from normcore import functional as F

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

random = np.random.default_rng(0)
def arrays(n):
    x = random.standard_normal((n, 64, 56, 56), dtype=np.float32)
    return x, random.standard_normal(x.shape, dtype=np.float32), np.ones_like(x)

def calls(x, dy, out):
    _, mean, rstd = F.batch_norm_forward(x, out=out)
    rows, drows, orows = (a.reshape(-1, 56 * 56) for a in (x, dy, out))
    _, means, rstds = F.layer_norm_forward(rows, (56 * 56,), out=orows)
    _, gmean, grstd = F.group_norm_forward(x, 32, out=out)
    return {
        "BN forward": lambda: F.batch_norm_forward(x, out=out),
        "BN backward": lambda: F.batch_norm_backward(dy, x, mean, rstd, out=out),
        "LN forward": lambda: F.layer_norm_forward(rows, (56 * 56,), out=orows),
        "LN backward": lambda: F.layer_norm_backward(
            drows, rows, means, rstds, (56 * 56,), out=orows
        ),
        "GN forward": lambda: F.group_norm_forward(x, 32, out=out),
        "GN backward": lambda: F.group_norm_backward(dy, x, gmean, grstd, 32, out=out),
    }

for run in calls(*arrays(4)).values():
    run()
for name, run in calls(*arrays(32)).items():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    run()
    print(max(0, status("VmHWM") - before), name, sep="\\t")
"""


def import_time(runs: int) -> Use:
    """`import normcore` in processes that have imported NumPy."""
    return Use("import", "import normcore, after import numpy", "-", _times(IMPORT, runs))


def first_call(runs: int) -> Use:
    """The first call of a process, whatever the default path loads and starts for it."""
    what = "first call of a process, BatchNorm2d(64)(x) of (8, 64, 56, 56)"
    return Use("first call", what, "-", _times(FIRST_CALL, runs))


def peak_memory() -> list[Use]:
    """How far the process grows during a call with out=; empty where the system does not say."""
    if not sys.platform.startswith("linux"):
        return []
    found = []
    for line in _run(PEAK).splitlines():
        extra, what = line.split("\t")
        text = f"{what} with out=, 26 MB: memory beyond inputs and outputs"
        found.append(Use("peak memory", text, "-", None, extra_bytes=int(extra)))
    return found


def measure(runs: int, advance: Callable[[str], object]) -> list[Use]:
    """Everything in this file, in `STEPS` steps."""
    found = [import_time(runs)]
    advance("import normcore")
    found.append(first_call(runs))
    advance("first call")
    found += peak_memory()
    advance("peak memory")
    return found


STEPS = 3


def _times(script: str, runs: int) -> Timing:
    seconds = [float(_run(script)) for _ in range(runs)]
    return Timing(min(seconds), float(np.median(seconds)), runs)


def _run(script: str) -> str:
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout
