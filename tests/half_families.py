"""Which half each Numba family is tested with, to save two minutes of compilation.

The halves differ in nothing but how 16 bits become a float and back, which test_numba_vectors.py
tests for every value of both.
"""

import ml_dtypes
import numpy as np

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
HALF_OF = {"nchw": BFLOAT16, "nc": FLOAT16, "rows": BFLOAT16, "cols": FLOAT16}
