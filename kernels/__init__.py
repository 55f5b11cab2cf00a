"""The compiled engine: one pair of modules (Numba, Cython) per memory pattern.

`table` lists the kernels, `cython` picks the Cython modules built for this CPU. Nothing here
knows axes, layers or defaults: that is normcore's Python layer.
"""

if __name__ != "normcore.kernels":
    raise ImportError(
        f"this folder is the package normcore.kernels, not {__name__!r}: "
        "install normcore (pip install -e .) and import normcore.kernels"
    )
