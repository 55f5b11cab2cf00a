# The forward of family rows as calls_cy.pyx calls it, which has checked everything.

from cpython.pycapsule cimport PyCapsule_New


cdef int call_forward(const Call *call) except -1:
    cdef Job job
    cdef Parameter weight = call.weight, bias = call.bias
    blank_job(
        &job, <Storage>call.storage, call.x, call.sizes[1], call.sizes[0] * call.sizes[1])
    make_plan(&job, call.sizes[0])
    job.mean = call.to_mean
    job.rstd = call.to_rstd
    job.out = call.y
    job.added = call.residual
    job.eps = call.eps
    job.activation = call.activation
    if not allocate_for(&job, &weight, &bias, 0):
        raise MemoryError
    run(forward_rows, &job, call.sizes[0], call.threads)
    PyMem_RawFree(job.memory)
    return 0


cdef Passes _passes = Passes(NULL, call_forward)
passes = PyCapsule_New(&_passes, NORMCORE_PASSES, NULL)
