/* Buffers between the steps of a backward through an activation: the gradient before the activation
   is never rounded to the storage type, and halves are widened once for all steps.

   Buffers hold floats, for float64 doubles. Those of float16 and bfloat16 are worked on by the loops
   for `w32` (halves.h), those of float32 and float64 by the loops for their own type. */

#ifndef NORMCORE_BUFFERS_H
#define NORMCORE_BUFFERS_H

#include "partial.h"

/* Elements of a buffer on the stack: it stays in the first-level cache, with what it is made of. */
enum { CHUNK = 512 };

/* Bytes to ask for ahead of what is read from memory. */
#define BUFFER_AHEAD 4096

/* round: to = from, in the storage type; widen: to = from, in the type computed in. */
#define BUFFERS(SUFFIX, REAL)                                                                  \
    KERNEL void PASTE(round, SUFFIX)(PASTE(store_t, SUFFIX) * to, const REAL *from,            \
                                     ptrdiff_t len, int stream) {                              \
        const ptrdiff_t width = VECTOR_BYTES / sizeof(REAL), line = 64 / sizeof *to;           \
        ptrdiff_t i = 0;                                                                       \
        if (stream) {                                                                          \
            for (const ptrdiff_t head = line_head(to, sizeof *to, len); i < head;) {           \
                const ptrdiff_t k = head - i < width ? head - i : width;                       \
                PASTE(store_some, SUFFIX)(to + i, LOAD_SOME_REAL(from + i, k), k);             \
                i += k;                                                                        \
            }                                                                                  \
            for (; i + line <= len; i += line)                                                 \
                for (ptrdiff_t j = i; j < i + line; j += width)                                \
                    PASTE(stream, SUFFIX)(to + j, LOAD_REAL(from + j));                        \
        }                                                                                      \
        for (; i + width <= len; i += width)                                                   \
            PASTE(store, SUFFIX)(to + i, LOAD_REAL(from + i));                                 \
        if (i < len)                                                                           \
            PASTE(store_some, SUFFIX)(to + i, LOAD_SOME_REAL(from + i, len - i), len - i);     \
    }                                                                                          \
    KERNEL void PASTE(widen_all, SUFFIX)(REAL * to, const PASTE(store_t, SUFFIX) * from,       \
                                         ptrdiff_t len) {                                      \
        const ptrdiff_t width = VECTOR_BYTES / sizeof(REAL);                                   \
        ptrdiff_t i = 0;                                                                       \
        for (; i + width <= len; i += width)                                                   \
            STORE_REAL(to + i, PASTE(load, SUFFIX)(from + i));                                 \
        for (; i < len; i++)                                                                   \
            to[i] = PASTE(get, SUFFIX)(from + i);                                              \
    }
#define LOAD_REAL(p) _Generic((p), const float *: load_f32, const double *: load_f64)(p)
#define LOAD_SOME_REAL(p, k)                                                                   \
    _Generic((p), const float *: load_some_f32, const double *: load_some_f64)(p, k)
#define STORE_REAL(p, v) _Generic((p), float *: store_f32, double *: store_f64)(p, v)
BUFFERS(f32, float)
BUFFERS(f16, float)
BUFFERS(bf16, float)
BUFFERS(f64, double)
#undef BUFFERS

#endif
