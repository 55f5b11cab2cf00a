"""State dicts in NumPy's npz files.

An npz file is a zip archive of npy files. NumPy allocates what an npy header declares before it
reads a value, so that a file of a hundred bytes can ask for any amount of memory: here the header
is compared with what follows it first.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy

from .states import arrays_to_store

Array = np.ndarray[Any, Any]

_HEADER = 1024
"""Bytes of the header of an array of numbers at most; NumPy writes 128 for up to 8 axes."""
_CHUNK = 1 << 16
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
"""What zipfile raises: OSError where a damaged directory sends it beyond the file, the last two for
unknown compression and for encryption."""


def load_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read the arrays of an npz file, as `save_npz`, `numpy.savez` and `savez_compressed` write it.

    Parameters
    ----------
    path : path
        Of the file.

    Returns
    -------
    dict of str to ndarray
        By name. Floats, integers and booleans; objects would be pickles, and are refused.

    Raises
    ------
    ValueError
        For what is no npz file, or a damaged one: names that come twice, members that are no
        npy files, arrays that declare more or fewer bytes than they have, wrong checksums. An array
        is allocated after its bytes have been counted, compressed ones too.
    TypeError
        For arrays of anything but numbers.

    Examples
    --------
    >>> import os, tempfile
    >>> import normcore as nc
    >>> from normcore import weights
    >>> path = os.path.join(tempfile.mkdtemp(), "norm.npz")
    >>> weights.save_npz(path, {"norm.weight": [1.0, 2.0]})
    >>> weights.load_npz(path)
    {'norm.weight': array([1., 2.])}
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if not start.startswith(b"PK"):
        kind = "a pickle, which is never loaded" if _is_pickle(start) else f"{start!r}"
        raise ValueError(f"{path}: expected an npz file, which begins with b'PK', got {kind}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(path, archive)
    except _DAMAGE as error:
        raise ValueError(f"{path}: expected an intact npz file, got one with: {error}") from error


def _is_pickle(start: bytes) -> bool:
    return start[:1] == pickle.PROTO and start[1:2] <= bytes([pickle.HIGHEST_PROTOCOL])


def _members(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> dict[str, Array]:
    found: dict[str, Array] = {}
    size = Path(path).stat().st_size
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        where = f"{path}, {name}"
        if name == info.filename:
            raise ValueError(f"{where}: expected a member that ends in .npy, got {info.filename!r}")
        if name in found:
            raise ValueError(f"{path}: expected different names, got {name!r} twice")
        if info.header_offset + info.compress_size > size:
            raise ValueError(
                f"{where}: expected {info.compress_size} bytes, got a file of {size} in all"
            )
        _check(where, archive, info)
        with archive.open(info) as member:
            found[name] = npy.read_array(member, allow_pickle=False)
    return found


def _check(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Compare what the header of an npy file declares with the bytes that follow it."""
    with archive.open(info) as member:
        begin = member.read(_HEADER)
        header = BytesIO(begin)
        try:
            shape, dtype = _header(header)
        except (ValueError, SyntaxError, TokenError) as error:
            raise ValueError(f"{where}: expected an npy file, got one with: {error}") from error
        if dtype.hasobject:
            raise TypeError(f"{where}: expected numbers, got objects, which are never unpickled")
        if dtype.kind not in "fiub":
            raise TypeError(f"{where}: expected numbers, got dtype {dtype}")
        declared = prod(shape) * dtype.itemsize
        given = len(begin) - header.tell()
        # What the archive says of the length proves nothing: count, and have zipfile compare the
        # checksum at the end.
        while given <= declared and (chunk := member.read(_CHUNK)):
            given += len(chunk)
    if given != declared:
        more = "more than " if given > declared else ""
        raise ValueError(
            f"{where}: expected {declared} bytes for shape {shape} and dtype {dtype}, got "
            f"{more}{min(given, declared)}"
        )


def _header(file: BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an npy file."""
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"expected version (1, 0) or (2, 0), got {version}")
    shape, _, dtype = readers[version](file, max_header_size=_HEADER)
    if min(shape, default=0) < 0:
        raise ValueError(f"expected lengths of at least 0, got shape {shape}")
    return shape, dtype


def save_npz(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write arrays to an npz file.

    Parameters
    ----------
    path : path
        Of the file to write.
    state : mapping of str to array_like
        Arrays or tensors of numbers, as from `state_dict`. bfloat16, which npy files cannot name,
        becomes float32.

    Raises
    ------
    TypeError
        For names that are no strings and for arrays that hold no numbers.

    Examples
    --------
    See `load_npz`.
    """
    # numpy.savez takes the names as keywords and has some of its own.
    arrays = arrays_to_store(state, bfloat16=False)
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, values, allow_pickle=False)
