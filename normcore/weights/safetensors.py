"""State dicts in safetensors files, bfloat16 included."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..extras import extra
from .states import arrays_to_store

Array = np.ndarray[Any, Any]

_READ = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""The format's names of the types that are read."""


def load_safetensors(
    path: str | os.PathLike[str], names: Iterable[str] | None = None
) -> dict[str, Array]:
    """Read the tensors of a safetensors file.

    Parameters
    ----------
    path : path
        The file is mapped, and read where its tensors are wanted.
    names : iterable of str, optional
        Which tensors to read; all if None. Of a large model, the norms' weights are a small part.

    Returns
    -------
    dict of str to ndarray
        Of the type that was stored; bfloat16 is that of ml_dtypes.

    Raises
    ------
    ImportError
        Without safetensors: ``pip install normcore[safetensors]``.
    ValueError
        For what is no safetensors file, or a damaged one: a header or a tensor beyond the end of
        the file, tensors that overlap or leave gaps, shapes that do not match their bytes, names
        that come twice. Nothing is allocated that the file does not hold.
    TypeError
        For types that NumPy and ml_dtypes have no match for (8-bit floats and smaller).
    KeyError
        For names that are not in the file.
    """
    with extra("safetensors"):
        import ml_dtypes  # noqa: F401  # or safetensors has no type for BF16
        from safetensors import SafetensorError, safe_open
    try:
        file: Any = safe_open(os.fspath(path), framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got one with: {error}") from error
    with file:
        _check_names(path)
        there = set(file.keys())
        wanted = sorted(there) if names is None else list(names)
        for name in wanted:
            if name not in there:
                raise KeyError(f"{path}: expected a tensor {name!r}, got {sorted(there)}")
            kind = file.get_slice(name).get_dtype()
            if kind not in _READ:
                raise TypeError(f"{path}, {name}: expected one of {', '.join(_READ)}, got {kind}")
        return {name: file.get_tensor(name) for name in wanted}


def _check_names(path: str | os.PathLike[str]) -> None:
    """Refuse a header that has a name twice, of which safetensors takes one.

    safetensors has found the header to be within the file, and to be what it should be otherwise.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = {name for name, _ in pairs}
        if len(names) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{path}: expected different names, got {twice!r} twice")

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length), object_pairs_hook=check)


def save_safetensors(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write arrays to a safetensors file.

    Parameters
    ----------
    path : path
        Of the file to write.
    state : mapping of str to array_like
        Arrays or tensors of numbers, as from `state_dict`. bfloat16 arrays (of ml_dtypes) stay so;
        PyTorch's bfloat16 becomes float32.

    Raises
    ------
    ImportError
        Without safetensors: ``pip install normcore[safetensors]``.
    TypeError
        For names that are no strings and for arrays that hold no numbers.
    """
    with extra("safetensors"):
        from safetensors.numpy import save_file
    save_file(arrays_to_store(state, bfloat16=True), os.fspath(path))
