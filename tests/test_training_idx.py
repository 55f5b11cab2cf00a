"""MNIST's files: what is read, and what is refused in which words."""

import gzip
import struct

import numpy as np
import pytest

from bench.__main__ import main
from bench.training import idx
from bench.training.data import load


def packed(values, magic=None):
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return (magic or bytes((0, 0, 8, values.ndim))) + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """Four small files, two of them gzipped, in both spellings of their names."""
    draw = np.random.default_rng(0)
    for part, n, dash, end in (("train", 100, "-", ".gz"), ("t10k", 30, ".", "")):
        images, labels = draw.integers(0, 256, (n, 8, 8)), np.arange(n) % 10
        for kind, values in (("images", images), ("labels", labels)):
            data = packed(values)
            path = tmp_path / f"{part}-{kind}{dash}idx{values.ndim}-ubyte{end}"
            path.write_bytes(gzip.compress(data) if end else data)
    return tmp_path


def test_mnist_is_read(folder):
    data = load(folder)
    assert (data.name, data.side) == ("MNIST", 8)
    assert data.train.images.shape == (100, 8, 8)
    assert data.test.labels.tolist() == [n % 10 for n in range(30)]
    draw = np.random.default_rng(0)
    expected = draw.integers(0, 256, (100, 8, 8)) / np.float32(255)
    np.testing.assert_allclose(data.train.images, expected, rtol=1e-6)
    assert len(load(folder, 20).train) == 20


def test_mnist_is_trained_on(folder, tmp_path, capsys):
    arguments = ["--only", "landscape", "--mnist", str(folder), "--epochs", "1", "--seeds", "1"]
    assert main(["training", *arguments, "--threads", "1", "-o", str(tmp_path)]) == 0
    assert "from MNIST" in (tmp_path / "report.md").read_text()


IMAGES = packed(np.zeros((2, 3, 3)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected the magic number 00 00 08 03 of 3-D bytes, got nothing"),
        (packed(np.zeros(5)), "expected the magic number 00 00 08 03 .*, got 00 00 08 01"),
        (packed(np.zeros((2, 3, 3)), b"\0\0\x0d\3"), "got 00 00 0d 03"),
        (IMAGES[:10], "truncated: expected 16 bytes of header, got 10"),
        (IMAGES[:-1], r"truncated: sizes \(2, 3, 3\) mean 34 bytes, got 33"),
        (IMAGES + b"!", r"too long: sizes \(2, 3, 3\) mean 34 bytes, got 35"),
        (gzip.compress(IMAGES)[:-9], "not a complete gzip file"),
        (b"\x1f\x8bnonsense", "not a complete gzip file"),
    ],
)
def test_malformed_files_are_refused(tmp_path, data, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        idx.read(path, idx.IMAGES)
    assert str(path) in str(raised.value)


def test_sizes_beyond_the_file_allocate_nothing(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12)
    with pytest.raises(ValueError, match="truncated"):
        idx.read(path, idx.IMAGES)


def test_pairs_must_fit(folder):
    path = folder / "t10k-labels.idx1-ubyte"
    path.write_bytes(packed(np.zeros(29)))
    with pytest.raises(ValueError, match="expected one label for each of 30, got 29"):
        idx.pair(folder, "t10k")
    path.write_bytes(packed(np.full(30, 10)))
    with pytest.raises(ValueError, match="expected labels 0 to 9, got 10"):
        idx.pair(folder, "t10k")
    path.unlink()
    with pytest.raises(ValueError, match="expected one of t10k-labels-idx1-ubyte, "):
        idx.pair(folder, "t10k")


def test_the_command_says_what_is_wrong(folder, tmp_path, capsys):
    (folder / "t10k-labels.idx1-ubyte").write_bytes(b"labels")
    assert main(["training", "--mnist", str(folder), "-o", str(tmp_path / "out")]) == 1
    assert "expected the magic number" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
