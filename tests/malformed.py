"""Files that are wrong in one way each, and what reading them may cost.

Rows are (name, bytes, error, message). Each is a few hundred bytes, and many declare terabytes.
"""

import io
import json
import pickle
import resource
import struct
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np

SLACK = 600_000
"""Bytes that reading any file may take beside what is in it: NumPy's buffer of 256 kB, zlib's, and
what it takes to parse a header. 534 kB were seen."""
ROOM = 1 << 28
"""Bytes that no allocation may exceed, whoever asks for it: Rust's and C's are not traced."""


@contextmanager
def within_memory(size):
    """No allocation beyond the size of a file."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size + SLACK
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, before)


HUGE = 1 << 40
ARRAY = np.arange(4, dtype=np.float32)
VALUES = ARRAY.tobytes()


def npy(header=None, data=VALUES, magic=b"\x93NUMPY\x01\x00", length=None):
    """An npy file with a header of one's own."""
    text = header or "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"
    text = text.encode() + b"\n"
    size = struct.pack("<H" if magic[-2:-1] != b"\x02" else "<I", length or len(text))
    return magic + size + text + data


def npz(*members, compression=zipfile.ZIP_STORED):
    """An npz file of (name, bytes)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def shaped(shape, dtype="<f4", **options):
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", **options)


def good_npz():
    return npz(("weight.npy", npy()), ("bias.npy", npy()))


def objects():
    file = io.BytesIO()
    np.save(file, np.array([None, print], dtype=object), allow_pickle=True)
    return file.getvalue()


def patched(data, old, new, count=-1):
    assert old in data
    return data.replace(old, new, count)


def twice():
    """zipfile warns when a name comes twice: rename one in the finished archive."""
    return patched(npz(("weight.npy", npy()), ("weighs.npy", npy())), b"weighs", b"weight")


def larger_member():
    """The archive's directory declares a terabyte for a stored member."""
    data = npz(("weight.npy", shaped((HUGE // 4,))))
    size = struct.pack("<I", len(shaped((HUGE // 4,))))
    at = data.index(b"PK\x01\x02")
    return data[:at] + data[at:].replace(size, struct.pack("<I", 0xFFFFFFF0))


NPZ = [
    ("empty", b"", ValueError, "expected an npz file, which begins with b'PK', got b''"),
    ("wrong magic", b"GIF89a" + good_npz(), ValueError, "begins with b'PK', got b'GIF8'"),
    ("an npy file", npy(), ValueError, "begins with b'PK', got"),
    ("a pickle", pickle.dumps({"weight": [1.0]}), ValueError, "a pickle, which is never loaded"),
    ("truncated", good_npz()[:-30], ValueError, "expected an intact npz file, got one with"),
    ("only the start", good_npz()[:40], ValueError, "expected an intact npz file"),
    (
        "objects",
        npz(("a.npy", objects())),
        TypeError,
        "a: expected numbers, got objects, which are",
    ),
    ("a name twice", twice(), ValueError, "expected different names, got 'weight' twice"),
    ("another ending", npz(("weight.txt", npy())), ValueError, r"ends in .npy, got 'weight.txt'"),
    ("no npy file", npz(("a.npy", b"hello")), ValueError, "a: expected an npy file, got one with"),
    ("an empty member", npz(("a.npy", b"")), ValueError, "a: expected an npy file"),
    ("version 9", npz(("a.npy", npy(magic=b"\x93NUMPY\x09\x00"))), ValueError, r"got \(9, 0\)"),
    (
        "huge shape",
        npz(("a.npy", shaped((HUGE,)))),
        ValueError,
        f"expected {4 * HUGE} bytes.*got 16",
    ),
    (
        *("huge shape, compressed", npz(("a.npy", shaped((HUGE,))), compression=8)),
        *(ValueError, f"a: expected {4 * HUGE} bytes for shape .* and dtype float32, got 16"),
    ),
    ("overflowing shape", npz(("a.npy", shaped((HUGE, HUGE, HUGE)))), ValueError, "got 16"),
    ("negative shape", npz(("a.npy", shaped((-2, -2)))), ValueError, "lengths of at least 0, got"),
    ("small shape", npz(("a.npy", shaped((2,)))), ValueError, "expected 8 bytes .* more than 8"),
    ("huge header", npz(("a.npy", npy(length=1200))), ValueError, "EOF: reading array header"),
    (
        *("huger header", npz(("a.npy", npy(magic=b"\x93NUMPY\x02\x00", length=0xFFFFFFF0)))),
        *(ValueError, "EOF: reading array header"),
    ),
    ("huge member", larger_member(), ValueError, "expected 4294967280 bytes, got a file of"),
    ("void", npz(("a.npy", shaped((4,), "|V4"))), TypeError, r"expected numbers, got dtype \|V4"),
    ("complex", npz(("a.npy", shaped((2,), "<c8"))), TypeError, "got dtype complex64"),
    ("text", npz(("a.npy", shaped((4,), "<U1"))), TypeError, "got dtype <U1"),
    ("code", npz(("a.npy", npy("__import__('os').abort()"))), ValueError, "expected an npy file"),
    ("not a header", npz(("a.npy", npy("{'descr': '<f4'"))), ValueError, "expected an npy file"),
    ("nested", npz(("a.npy", npy("(" * 900))), ValueError, "expected an npy file"),
    (
        *("wrong checksum", patched(good_npz(), VALUES, ARRAY[::-1].tobytes(), 1)),
        *(ValueError, "intact npz file, got one with: Bad CRC-32"),
    ),
    (
        *(
            "unknown compression",
            patched(good_npz(), b"\x14\x00\x00\x00\x00\x00", b"\x14\0\0\0\x63\0"),
        ),
        *(ValueError, "intact npz file, got one with: That compression method"),
    ),
]


def tensor(kind="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors(header, data=VALUES, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def good_safetensors():
    both = {"weight": tensor(), "bias": tensor(offsets=(16, 32))}
    return safetensors(both, VALUES * 2)


_ONE = json.dumps({"a": tensor()})[1:-1]
_NO = "expected a safetensors file, got one with"
SAFETENSORS = [
    ("empty", b"", ValueError, _NO),
    ("short", b"abc", ValueError, _NO),
    ("a pickle", pickle.dumps({"weight": [1.0] * 9}), ValueError, _NO),
    ("truncated", good_safetensors()[:-1], ValueError, f"{_NO}.*not fully covered"),
    ("truncated header", good_safetensors()[:40], ValueError, _NO),
    ("longer", good_safetensors() + b"\0", ValueError, f"{_NO}.*not fully covered"),
    ("huge header", safetensors({"a": tensor()}, length=HUGE), ValueError, _NO),
    ("large header", safetensors({"a": tensor()}, length=10**8), ValueError, _NO),
    ("not json", safetensors(b"\xff\xfe{{{"), ValueError, _NO),
    ("a list", safetensors([1, 2]), ValueError, _NO),
    ("no shape", safetensors({"a": {"dtype": "F32"}}), ValueError, f"{_NO}.*missing field"),
    ("unknown type", safetensors({"a": tensor("Q7")}), ValueError, f"{_NO}.*unknown variant"),
    ("8-bit float", safetensors({"a": tensor("F8_E4M3", (16,))}), TypeError, "a: expected one of"),
    ("complex", safetensors({"a": tensor("C64", (2,))}), TypeError, "BOOL, got C64"),
    ("wrong shape", safetensors({"a": tensor(shape=(5,))}), ValueError, f"{_NO}.*invalid shape"),
    (
        "wrong type",
        safetensors({"a": tensor("F64")}),
        ValueError,
        f"{_NO}.*invalid shape, data type",
    ),
    ("huge shape", safetensors({"a": tensor(shape=(HUGE,))}), ValueError, _NO),
    ("overflowing shape", safetensors({"a": tensor(shape=(HUGE, HUGE))}), ValueError, _NO),
    ("negative shape", safetensors({"a": tensor(shape=(-4,))}), ValueError, _NO),
    (
        "huge offsets",
        safetensors({"a": tensor(shape=(HUGE,), offsets=(0, 4 * HUGE))}),
        ValueError,
        _NO,
    ),
    (
        *("overlap", safetensors({"a": tensor(), "b": tensor(offsets=(8, 24))}, b"\0" * 24)),
        *(ValueError, f"{_NO}.*invalid offset for tensor `b`"),
    ),
    (
        "same bytes",
        safetensors({"a": tensor(), "b": tensor()}),
        ValueError,
        f"{_NO}.*invalid offset",
    ),
    ("a gap", safetensors({"a": tensor(offsets=(8, 24))}, b"\0" * 24), ValueError, _NO),
    (
        "backwards",
        safetensors({"a": tensor(offsets=(16, 0))}),
        ValueError,
        f"{_NO}.*invalid offset",
    ),
    (
        *("a name twice", safetensors(f"{{{_ONE}, {_ONE}}}".encode())),
        *(ValueError, "expected different names, got 'a' twice"),
    ),
]
