/* Goes along elements that are written: of a row (rows.h) or of a strip's row (cols.h). Included
   by both, once per storage type.

   ALONG(OUT, VALUE): OUT[i] = VALUE(STORED, KEPT) for i < len, where STORED(p) are the elements of
   p from i on and KEPT(p) those of an array in the type that is computed in, whole vectors or the
   first k of one. Stores are to whole lines from the first one on, if there are a few. If `stream`
   is set they bypass the caches, and ASK(i) is done for every line.

   A line that begins or ends elsewhere waits in `shared`: stored in two parts, it would first be
   read from memory, and the streamed stores behind it would wait for that. Forward, (131072, 256)
   took 1.50 of the copy and takes 1.12, (32768, 1024) 1.21 and 1.06; (32, 96, 3136) over its middle
   axis took 0.12 of the copy and 0.2 of the triad more. */

#define WHOLE(p) NAME(load)((p) + i)
#define WHOLE_KEPT(p) COMPUTE(load)((p) + i)
#define SOME(p) NAME(load_some)((p) + i, k)
#define SOME_KEPT(p) COMPUTE(load_some)((p) + i, k)
#define PART(OUT, END, VALUE)                                                                  \
    while (i < (END)) {                                                                        \
        const ptrdiff_t k = (END) - i < WIDTH ? (END) - i : WIDTH;                             \
        NAME(store_some)((OUT) + i, VALUE(SOME, SOME_KEPT), k);                                \
        i += k;                                                                                \
    }
/* What comes before the first whole line. */
#define HEAD(OUT, VALUE)                                                                       \
    if (len >= 4 * LINE) {                                                                     \
        STORE *line = (STORE *)shared->line;                                                   \
        const ptrdiff_t head = line_head(OUT, sizeof(STORE), len);                             \
        PART(shared->began ? line + (LINE - head) : OUT, head, VALUE)                          \
        if (shared->began)                                                                     \
            for (ptrdiff_t e = 0; e < LINE; e += WIDTH)                                        \
                NAME(stream)(OUT + (head - LINE) + e, NAME(load)(line + e));                   \
    }
#define LINES(OUT, VALUE, ASKED)                                                               \
    while (i + LINE <= len) {                                                                  \
        ASKED;                                                                                 \
        for (const ptrdiff_t end = i + LINE; i < end; i += WIDTH)                              \
            NAME(stream)(OUT + i, VALUE(WHOLE, WHOLE_KEPT));                                   \
    }
#define REST(OUT, VALUE)                                                                       \
    {                                                                                          \
        STORE *behind = shared->goes_on && len >= 4 * LINE ? (STORE *)shared->line - i : OUT;  \
        for (; i + WIDTH <= len; i += WIDTH)                                                   \
            NAME(store)(behind + i, VALUE(WHOLE, WHOLE_KEPT));                                 \
        PART(behind, len, VALUE)                                                               \
    }
#define ALONG(OUT, VALUE)                                                                      \
    {                                                                                          \
        ptrdiff_t i = 0;                                                                       \
        HEAD(OUT, VALUE)                                                                       \
        if (stream && len >= 4 * LINE)                                                         \
            LINES(OUT, VALUE, ASK(i))                                                          \
        REST(OUT, VALUE)                                                                       \
    }
