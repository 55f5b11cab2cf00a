# The plain calls of batch normalization.


cdef class BatchCalls(Plain):
    """Batch normalization."""

    cdef const Passes *batch(self, Call *call, cnp.ndarray x, object axis) except? NULL:
        # The sizes of batch normalization; NULL: axis is not plain.
        cdef long along = 0
        cdef int ndim = cnp.PyArray_NDIM(x)
        cdef Sizes sizes
        if ndim < 2 or not is_long(axis, &along) or not -ndim <= along < ndim:
            return NULL
        sizes = sizes_around(x, along + ndim if along < 0 else along)
        call.statistics = call.parameters = sizes.along
        if sizes.behind == 1:
            give_sizes(call, 1, sizes.before, sizes.along)
            return self.nc
        give_sizes(call, sizes.before, sizes.along, sizes.behind)
        return self.nchw

    def batch_apply(
        self, object x, object running_mean, object running_var, object weight, object bias,
        object eps, object axis, object out, object residual, object activation,
    ):
        """y of batch normalization by running statistics."""
        cdef Call call
        cdef const Passes *passes
        cdef cnp.npy_intp c
        if not self.give_x(&call, x, residual, activation) or not is_eps(eps, &call.eps):
            return None
        passes = self.batch(&call, x, axis)
        c = call.statistics
        if not (
            passes != NULL
            and is_parameter(running_mean, &c, 1, &call.mean)
            and is_parameter(running_var, &c, 1, &call.var)
            and is_optional(weight, &c, 1, &call.weight)
            and is_optional(bias, &c, 1, &call.bias)
        ):
            return None
        y = self.give_y(&call, x, out, residual, weight, bias, running_mean, running_var)
        return y if y is not None and is_done(passes.apply, &call) else None

    cdef object start_training(
        self, Call *call, Update *update, const Passes **passes, object x, object weight,
        object bias, object running_mean, object running_var, object num_batches_tracked,
        object momentum, object eps, object axis, object out, object residual, object activation,
    ):
        # The y that a training forward is to write, or None.
        cdef cnp.npy_intp c
        if not self.give_x(call, x, residual, activation):
            return None
        passes[0] = self.batch(call, x, axis)
        if passes[0] == NULL:
            return None
        c = call.statistics
        update.count = cnp.PyArray_SIZE(x) // c
        if not (
            update.count > 1
            and is_eps(eps, &call.eps)
            and is_momentum(momentum, &update.momentum)
            and is_optional(weight, &c, 1, &call.weight)
            and is_optional(bias, &c, 1, &call.bias)
        ):
            return None
        update.size = 0
        if running_mean is not None or running_var is not None:
            update.size = c
            if not is_running(running_mean, c, &update.mean):
                return None
            if not is_running(running_var, c, &update.var):
                return None
        update.tracked = NULL
        if num_batches_tracked is not None:
            if not (
                is_readable(num_batches_tracked) and cnp.PyArray_SIZE(num_batches_tracked) == 1
                and cnp.PyArray_TYPE(num_batches_tracked) == cnp.NPY_INT64
                and cnp.PyArray_ISWRITEABLE(num_batches_tracked)
            ):
                return None
            update.tracked = <long long *>cnp.PyArray_DATA(num_batches_tracked)
        return self.give_y(call, x, out, residual, weight, bias, running_mean, running_var)

    def batch_train(
        self, object x, object running_mean, object running_var, object weight, object bias,
        object momentum, object eps, object axis, object out, object residual, object activation,
    ):
        """y of batch normalization in training; the running statistics move, if there are any."""
        cdef Call call
        cdef Update update
        cdef const Passes *passes
        update.skip_nonfinite = False
        y = self.start_training(
            &call, &update, &passes, x, weight, bias, running_mean, running_var, None, momentum,
            eps, axis, out, residual, activation)
        if y is None:
            return None
        return y if self.forward(passes, &call, True, &update) else None

    def batch_forward(
        self, object x, object weight, object bias, object running_mean, object running_var,
        object num_batches_tracked, object momentum, object eps, object axis, object out,
        bint skip_nonfinite, object residual, object activation,
    ):
        """(y, mean, rstd) of batch normalization in training, which moves the state."""
        cdef Call call
        cdef Update update
        cdef const Passes *passes
        cdef cnp.npy_intp c
        cdef cnp.ndarray mean, rstd
        update.skip_nonfinite = skip_nonfinite
        y = self.start_training(
            &call, &update, &passes, x, weight, bias, running_mean, running_var,
            num_batches_tracked, momentum, eps, axis, out, residual, activation)
        if y is None:
            return None
        c = call.statistics
        mean, rstd = new_statistic(1, &c), new_statistic(1, &c)
        call.to_mean, call.to_rstd = doubles(mean), doubles(rstd)
        return (y, mean, rstd) if self.forward(passes, &call, True, &update) else None

    def batch_backward(
        self, object dy, object x, object mean, object rstd, object weight, object bias,
        object training, object axis, object out,
    ):
        """(dx, dweight, dbias) of batch normalization, without an activation."""
        cdef Call call
        cdef const Passes *passes
        cdef cnp.npy_intp c
        if not self.give_x(&call, x, None, None) or type(training) is not bool:
            return None
        passes = self.batch(&call, x, axis)
        if passes == NULL:
            return None
        call.training = training
        c = call.statistics
        return self.backward(
            passes, &call, x, dy, mean, rstd, &c, 1, True, weight, bias, &c, 1, out)
