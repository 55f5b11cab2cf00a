# Family rows as calls_cy.pyx calls it, which has checked everything.

from cpython.pycapsule cimport PyCapsule_New


cdef void start_call(Job *job, const Call *call) noexcept:
    blank_job(
        job, <Storage>call.storage, call.x, call.sizes[1], call.sizes[0] * call.sizes[1])
    make_plan(job, call.sizes[0])
    job.out = call.y


cdef int call_forward(const Call *call) except -1:
    cdef Job job
    cdef Parameter weight = call.weight, bias = call.bias
    start_call(&job, call)
    job.mean = call.to_mean
    job.rstd = call.to_rstd
    job.added = call.residual
    job.eps = call.eps
    job.activation = call.activation
    if not allocate_for(&job, &weight, &bias, 0):
        raise MemoryError
    run(forward_rows, &job, call.sizes[0], call.threads)
    PyMem_RawFree(job.memory)
    return 0


cdef int call_backward(const Call *call) except -1:
    cdef Job job
    cdef Parameter weight = call.weight, bias = call.bias
    cdef WritableParameter dweight = call.dweight, dbias = call.dbias
    start_call(&job, call)
    job.mean = <double *>call.mean.double_
    job.rstd = <double *>call.rstd
    job.dy = call.dy
    make_units(&job)
    if not allocate_for(&job, &weight, &bias, 0):
        raise MemoryError
    run(backward_units, &job, job.units, call.threads)
    give_parameter_grads(&job, &dweight, &dbias)
    PyMem_RawFree(job.memory)
    return 0


cdef Passes _passes = Passes(NULL, call_forward, call_backward)
passes = PyCapsule_New(&_passes, NORMCORE_PASSES, NULL)
