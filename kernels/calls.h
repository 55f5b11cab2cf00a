/* One call of a kernel as plain C, for calls_cy.pyx: past the Python arguments and their checks,
   which are more than half of the time of a call with a small array. */
#ifndef NORMCORE_CALLS_H
#define NORMCORE_CALLS_H

#include <stddef.h>

/* One value per channel, in float32 or float64; neither: not given. */
typedef struct {
    const float *single;
    const double *double_;
} Parameter;

typedef struct {
    float *single;
    double *double_;
} WritableParameter;

/* What is not given is NULL. */
typedef struct {
    char *y;                /* backward: dx */
    const char *x;
    const char *dy;         /* backward */
    const char *residual;
    int storage;            /* of y, x, dy and residual: Storage in array.pxi */
    ptrdiff_t statistics;   /* how many there are */
    Parameter mean;         /* apply, backward; neither in rows: nothing is centred */
    Parameter var;          /* apply */
    const double *rstd;     /* backward */
    double *to_mean;        /* forward; NULL in rows: nothing is centred */
    double *to_var;         /* forward, but not of rows */
    double *to_rstd;        /* forward */
    Parameter weight;
    Parameter bias;
    WritableParameter dweight, dbias;   /* backward */
    int training;           /* backward, but not of rows: by statistics of the batch */
    ptrdiff_t parameters;   /* elements of weight and bias */
    double eps;
    int activation;
    ptrdiff_t sizes[3];     /* of the family */
    int threads;
} Call;

/* The running statistics after a forward, of `size` channels. */
typedef struct {
    WritableParameter mean;
    WritableParameter var;
    long long *tracked;     /* num_batches_tracked, or NULL */
    const double *new_mean;
    const double *new_var;
    ptrdiff_t size;
    double momentum;
    double count;
    int skip_nonfinite;
} Update;

/* Return 0; 1 if the call has to go another way, and nothing was written; or -1 with a Python
   exception set: there was no memory. */
typedef int (*call_t)(const Call *call);

/* NULL: every call has to go another way. */
typedef struct {
    call_t apply;           /* not of rows */
    call_t forward;
    call_t backward;
} Passes;

typedef struct {
    void (*update)(const Update *update);
} RunningPasses;

#define NORMCORE_PASSES "normcore.kernels.passes"
#define NORMCORE_RUNNING "normcore.kernels.running"

#endif
