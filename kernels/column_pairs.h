/* bfloat16 columns in pairs of vectors, the even ones and the odd ones (load_pair in halves.h): a
   part of columns.h. What is read needs no shuffle then, nor does what is stored: 1
   instruction instead of 2 for 16 elements, and 4 instead of 6. Inference of (65536, 256) takes 1.04
   of the copy and took 1.24, dx 1.06 of the triad and 1.25.

   Rows are whole lines that are read from the first line on, rotated (see WALK), so that the
   columns of every row lie alike; the coefficients are sorted once for a block. */

/* Coefficients as they lie in a row, sorted. Of those that are NaN the lower half is 0, as that of
   what is read: no NaN then rounds to something else. */
INLINE void NAME(sort_coefficients)(REAL *to, const REAL *packed, ptrdiff_t cols) {
    VEC pair[2];
    for (ptrdiff_t j = 0; j < cols; j += 2 * FLOATS) {
        pair[0] = load_f32(packed + j);
        pair[1] = load_f32(packed + j + FLOATS);
        NAME(sort)(pair);
        store_f32(to + j, quiet_bf16(pair[0]));
        store_f32(to + j + FLOATS, quiet_bf16(pair[1]));
    }
}

/* The even ones and the odd ones of 2 * FLOATS elements, the latter from their second half. */
#define EVEN(p) first_of_pair_bf16(p)
#define ODD(p) second_of_pair_bf16((p) - FLOATS)
#define IN_PAIRS(OUT, SIZE, VALUE, ADVANCE)                                                    \
    if (block->cols % LINE == 0 && block->cols <= PAIRED && block->rows >= 8) {                \
        const ptrdiff_t cols = block->cols, begin = line_head(OUT, sizeof(STORE), cols);       \
        __attribute__((aligned(64))) REAL sorted[(SIZE) * PAIRED];                             \
        ptrdiff_t j = begin;                                                                   \
        for (int k = 0; k < (SIZE); k++)                                                       \
            NAME(sort_coefficients)(sorted + k * PAIRED, &ONE(k, begin), cols);                \
        FEW(0, begin);                                                                         \
        for (ptrdiff_t r = 1;; r++, j = begin) {                                               \
            const ptrdiff_t end = r == block->rows ? cols : cols + begin;                      \
            for (; j + LINE <= end; j += LINE) {                                               \
                if (stream == TO_MEMORY) {                                                     \
                    ASK(j);                                                                    \
                }                                                                              \
                for (ptrdiff_t i = j; i < j + LINE; i += 2 * FLOATS) {                         \
                    const VEC even = VALUE(EVEN, KEPT, i);                                     \
                    const VEC odd = VALUE(ODD, KEPT, i + FLOATS);                              \
                    if (stream)                                                                \
                        stream_clean_pair_bf16(OUT + i, even, odd);                            \
                    else                                                                       \
                        store_clean_pair_bf16(OUT + i, even, odd);                             \
                }                                                                              \
            }                                                                                  \
            if (r == block->rows)                                                              \
                break;                                                                         \
            ADVANCE;                                                                           \
        }                                                                                      \
        FEW(j, cols - j);                                                                      \
        return;                                                                                \
    }
#define KEPT(k, j) load_f32(sorted + (k) * PAIRED + ((j) - begin))
