"""normcore.jax, in a process of its own: tests/jax_cases.py says why. Shapes without JAX."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import normcore.functional as F
from normcore import shapes

HERE = Path(__file__).parent


def test_values_gradients_vmap_and_doctests():
    pytest.importorskip("jaxlib", reason="JAX is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-o", "addopts=--doctest-modules", "--noconftest"),
            *(HERE / "jax_cases.py", HERE.parent / "normcore" / "jax.py"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        # Threads that spin while they wait take the time of JAX's.
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_jax_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['jax'] = None\n"
        "try: import normcore.jax\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install normcore[jax]" in done.stdout


def test_equal_calls_are_one_and_have_the_same_key_in_all_processes():
    source = (
        "import numpy as np\n"
        "from normcore.jax_calls import Norm, call\n"
        "norm = Norm('layer', 1e-5, (('normalized_shape', (4,)), ('axis', None)))\n"
        "given = ((2, 4), np.dtype(np.float32)), None, None\n"
        "found = call(norm, 'forward', given)\n"
    )
    names: dict = {}
    exec(source, names)
    found = names["found"]
    assert found is names["call"](names["norm"], "forward", names["given"])
    other = names["call"](replace(found.norm, eps=2e-5), "forward", names["given"])
    assert other.key != found.key
    command = [sys.executable, "-c", source + "print(found.key)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == found.key


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_shapes_are_those_of_the_results(dtype):
    def function(x, weight):
        y, mean, rstd = F.group_norm_forward(x, 2, weight)
        return *F.group_norm_backward(y, x, mean, rstd, 2, weight), mean

    arguments = [((3, 4, 5), dtype), ((4,), np.float32)]
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    wanted = [(a.shape, a.dtype) for a in function(x, np.ones(4, np.float32))]
    assert shapes.results(function, arguments) == wanted
    with pytest.raises(ValueError, match="num_groups"):
        shapes.results(lambda x: F.group_norm_forward(x, 3), arguments[:1])


def test_shapes_touch_no_memory():
    shape = 1 << 20, 1 << 10  # 4 GB
    found = shapes.results(lambda x: F.layer_norm_forward(x, 1 << 10), [(shape, np.float32)])
    assert [result[0] for result in found] == [shape, shape[:1], shape[:1]]
