"""IDX, the file format of MNIST: a magic number, big-endian sizes, bytes.

``00 00 08 rank``, then one 32-bit size per axis, then the values. Files may be gzipped.
"""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GZIP = b"\x1f\x8b"
IMAGES, LABELS = 3, 1
"""Ranks of the two kinds of file."""


def read(path: Path, rank: int) -> Array:
    """The uint8 array of a file; ValueError, which names the file, if it is not such an array."""
    data = path.read_bytes()
    if data[:2] == GZIP:
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path}: not a complete gzip file ({error})") from error
    expected = bytes((0, 0, 8, rank))
    if data[:4] != expected:
        raise ValueError(
            f"{path}: expected the magic number {expected.hex(' ')} of {rank}-D bytes, "
            f"got {data[:4].hex(' ') or 'nothing'}"
        )
    head = 4 + 4 * rank
    if len(data) < head:
        raise ValueError(f"{path}: truncated: expected {head} bytes of header, got {len(data)}")
    sizes = [int(size) for size in np.frombuffer(data, ">u4", rank, 4)]
    if len(data) != head + prod(sizes):
        word = "truncated" if len(data) < head + prod(sizes) else "too long"
        raise ValueError(
            f"{path}: {word}: sizes {tuple(sizes)} mean {head + prod(sizes)} bytes, got {len(data)}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(sizes)


def pair(folder: Path, part: str) -> tuple[Array, Array]:
    """Images (n, h, w) and labels (n,) of "train" or "t10k" in a folder; ValueError if not there.

    Both spellings of the names that are about are known, gzipped or not.
    """
    images = read(_found(folder, f"{part}-images", IMAGES), IMAGES)
    path = _found(folder, f"{part}-labels", LABELS)
    labels = read(path, LABELS)
    if len(images) != len(labels):
        raise ValueError(f"{path}: expected one label for each of {len(images)}, got {len(labels)}")
    if labels.size and labels.max() > 9:
        raise ValueError(f"{path}: expected labels 0 to 9, got {labels.max()}")
    return images, labels


def _found(folder: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{dash}idx{rank}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder}: expected one of {', '.join(names)}")
