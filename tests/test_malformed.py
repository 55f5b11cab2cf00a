"""Malformed weights: refused with an error that says what was expected, in no more memory."""

import malformed
import numpy as np
import pytest
from malformed import within_memory

from normcore import weights


def cases(table):
    return pytest.mark.parametrize(
        ("data", "error", "message"), [row[1:] for row in table], ids=[row[0] for row in table]
    )


def refused(load, path, data, error, message):
    path.write_bytes(data)
    with within_memory(len(data)), pytest.raises(error, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@cases(malformed.NPZ)
def test_npz(data, error, message, tmp_path):
    refused(weights.load_npz, tmp_path / "w.npz", data, error, message)


@cases(malformed.SAFETENSORS)
def test_safetensors(data, error, message, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    refused(weights.load_safetensors, tmp_path / "w.safetensors", data, error, message)


def test_a_good_file_is_read_within_its_size(tmp_path):
    """And so that the limit above means something: an array of 10 MB takes 10 MB."""
    path = tmp_path / "w.npz"
    weights.save_npz(path, {"weight": np.zeros(1_250_000)})
    with within_memory(path.stat().st_size):
        found = weights.load_npz(path)["weight"]
    assert found.nbytes == 10_000_000
    with pytest.raises(AssertionError), within_memory(0):
        weights.load_npz(path)


def test_a_bomb_is_measured_before_it_is_unpacked(tmp_path):
    """20 MB of zeros in 20 kB, behind a header that declares a terabyte."""
    member = malformed.shaped((malformed.HUGE,)) + bytes(20_000_000)
    data = malformed.npz(("a.npy", member), compression=8)
    del member
    refused(weights.load_npz, tmp_path / "w.npz", data, ValueError, "got 20000016")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_damaged_bytes(kind, tmp_path):
    """Whatever bytes are changed, the file is read or refused, and nothing else happens."""
    if kind == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    load = getattr(weights, f"load_{kind}")
    good = getattr(malformed, f"good_{kind}")()
    rng = np.random.default_rng(0)
    path = tmp_path / f"w.{kind}"
    refusals = []
    for _ in range(150):
        data = bytearray(good)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        with within_memory(len(data)):
            try:
                read = load(path)
            except (ValueError, TypeError) as error:
                refusals.append(str(error))
            else:
                assert all(values.nbytes <= len(data) for values in read.values())
    assert 10 < len(refusals) < 140
    assert all(str(path) in refusal for refusal in refusals)
