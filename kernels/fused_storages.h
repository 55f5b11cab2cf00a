/* Includes FUSED, the file of a family's backward through an activation, once per storage type.

   STORE and SUFFIX name what arrays hold, REAL is what a buffer holds (buffers.h), and COMPUTED the
   loops that work on it: for halves FUSED_HALVES. */

#define STORE store_t_f32
#define REAL float
#define SUFFIX f32
#define COMPUTED f32
#include FUSED
#undef COMPUTED
#undef SUFFIX
#undef STORE
#define HALF
#define COMPUTED FUSED_HALVES
#define STORE store_t_f16
#define SUFFIX f16
#include FUSED
#undef SUFFIX
#undef STORE
#define STORE store_t_bf16
#define SUFFIX bf16
#include FUSED
#undef SUFFIX
#undef STORE
#undef COMPUTED
#undef HALF
#undef REAL
#define STORE store_t_f64
#define REAL double
#define SUFFIX f64
#define COMPUTED f64
#include FUSED
#undef COMPUTED
#undef SUFFIX
#undef REAL
#undef STORE

#undef FUSED_HALVES
#undef FUSED
