"""Masks as runs of what counts, in Numba.

A mask is k planes of equal length, elements of a plane (nchw) or rows (nc). `Kept` is a pair of
arrays (first, edges): the kept runs of plane p are first[p] to first[p + 1], and run r is from
edges[2 * r] to edges[2 * r + 1]. Without a mask both have length 0. Sums over runs of any length
are the sums of the unmasked passes, so a mask costs them one comparison.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import memory
from .jit import block, inline


@block
def kept_runs(mask, planes):
    """The kept runs of a mask (uint8), which may have length 0."""
    masked = mask.size > 0
    first = np.zeros(planes + 1 if masked else 0, np.intp)
    length = mask.size // max(planes, 1)
    for p in range(planes if masked else 0):
        before, runs = np.uint8(0), 0
        for i in range(p * length, (p + 1) * length):
            runs += mask[i] != 0 and before == 0
            before = mask[i]
        first[p + 1] = first[p] + runs
    edges = np.empty(2 * first[-1] if masked else 0, np.intp)
    e = 0
    for p in range(planes if masked else 0):
        before = np.uint8(0)
        for i in range(p * length, (p + 1) * length):
            if (mask[i] != 0) != (before != 0):
                edges[e] = i - p * length
                e += 1
            before = mask[i]
        if before != 0:
            edges[e] = length
            e += 1
    return first, edges


@inline
def is_masked(kept):
    """Whether there is a mask."""
    first, _ = kept
    return first.size > 0


@block
def counts_of(kept, whole, pooled, d):
    """Elements of each statistic: of all, of all of one plane, or `whole` without a mask.

    `pooled`: a statistic covers all planes. An element of a plane stands for d elements.
    """
    first, edges = kept
    if first.size == 0:
        counts = np.empty(1)
        counts[0] = whole
        return counts
    counts = np.zeros(1 if pooled else first.size - 1)
    for p in range(first.size - 1):
        for r in range(first[p], first[p + 1]):
            counts[0 if pooled else p] += d * (edges[2 * r + 1] - edges[2 * r])
    return counts


@inline
def kept_memory(firsts, edges):
    """(first, edges, planes) without arrays, for the inside of loops; no planes without a mask."""
    return memory(firsts), memory(edges), max(firsts.size - 1, 0)
