# The plain calls of layer, RMS, group and instance normalization.


cdef class SampleCalls(BatchCalls):
    """Normalization of each sample by itself, too."""

    cdef bint layer_sizes(
        self, Call *call, cnp.npy_intp *shape, int *outer, cnp.ndarray x, object normalized_shape,
    ) except -1:
        # The sizes of layer norm over the last axes; `outer` axes of x are before them, whose
        # lengths are left in `shape`. False: not plain.
        cdef int ndim = cnp.PyArray_NDIM(x), i, inner = 1
        cdef long length
        cdef object given = normalized_shape
        if type(normalized_shape) is tuple:
            inner = len(<tuple>normalized_shape)
        outer[0] = ndim - inner
        if inner == 0 or outer[0] < 0:
            return False
        give_sizes(call, 1, 1, 1)
        for i in range(ndim):
            shape[i] = cnp.PyArray_DIM(x, i)
            if i < outer[0]:
                call.sizes[0] *= shape[i]
                continue
            call.sizes[1] *= shape[i]
            if type(normalized_shape) is tuple:
                given = (<tuple>normalized_shape)[i - outer[0]]
            if not is_long(given, &length) or length != shape[i]:
                return False
        call.statistics = call.sizes[0]
        call.parameters = call.sizes[1]
        return True

    cdef bint layer(
        self, Call *call, cnp.npy_intp *shape, int *outer, object x, object normalized_shape,
        object weight, object bias, object eps, object residual, object activation, bint centre,
    ) except -1:
        # A forward of layer norm. False: not plain.
        cdef int inner
        if not self.give_x(call, x, residual, activation):
            return False
        if centre or eps is not None:
            if not is_eps(eps, &call.eps):
                return False
        else:
            call.eps = DBL_EPSILON if call.storage == F64 else FLT_EPSILON
        if not self.layer_sizes(call, shape, outer, x, normalized_shape):
            return False
        inner = cnp.PyArray_NDIM(x) - outer[0]
        return (
            is_optional(weight, shape + outer[0], inner, &call.weight)
            and is_optional(bias, shape + outer[0], inner, &call.bias)
        )

    def layer_apply(
        self, object x, object normalized_shape, object weight, object bias, object eps, object out,
        object residual, object activation, bint centre,
    ):
        """y of layer normalization over the last axes; of RMS normalization without `centre`."""
        cdef Call call
        cdef cnp.npy_intp shape[cnp.NPY_MAXDIMS]
        cdef int outer
        if not self.layer(
            &call, shape, &outer, x, normalized_shape, weight, bias, eps, residual, activation,
            centre
        ):
            return None
        y = self.give_y(&call, x, out, residual, weight, bias, None, None)
        if y is None:
            return None
        return y if self.forward(self.rows, &call, centre, NULL) else None

    def layer_forward(
        self, object x, object normalized_shape, object weight, object bias, object eps, object out,
        object residual, object activation, bint centre,
    ):
        """(y, mean, rstd) of the same; mean is None without `centre`."""
        cdef Call call
        cdef cnp.npy_intp shape[cnp.NPY_MAXDIMS]
        cdef int outer
        cdef cnp.ndarray mean = None, rstd
        if not self.layer(
            &call, shape, &outer, x, normalized_shape, weight, bias, eps, residual, activation,
            centre
        ):
            return None
        y = self.give_y(&call, x, out, residual, weight, bias, None, None)
        if y is None:
            return None
        rstd = new_statistic(outer, shape)
        call.to_rstd = doubles(rstd)
        if centre:
            mean = new_statistic(outer, shape)
            call.to_mean = doubles(mean)
        return (y, mean, rstd) if self.forward(self.rows, &call, centre, NULL) else None

    def layer_backward(
        self, object dy, object x, object mean, object rstd, object normalized_shape,
        object weight, object bias, object out, bint centre,
    ):
        """(dx, dweight, dbias) of layer norm, without an activation; mean counts with `centre`."""
        cdef Call call
        cdef cnp.npy_intp shape[cnp.NPY_MAXDIMS]
        cdef int outer
        if not self.give_x(&call, x, None, None):
            return None
        if not self.layer_sizes(&call, shape, &outer, x, normalized_shape):
            return None
        return self.backward(
            self.rows, &call, x, dy, mean, rstd, shape, outer, centre, weight, bias,
            shape + outer, cnp.PyArray_NDIM(x) - outer, out)

    cdef const Passes *group_sizes(
        self, Call *call, cnp.npy_intp *shape, cnp.ndarray x, object num_groups, object axis,
    ) except? NULL:
        # The sizes of group norm, of instance norm if num_groups is None; the shape of its
        # statistics. NULL: not plain.
        cdef long along = 0, groups
        cdef int ndim = cnp.PyArray_NDIM(x)
        cdef cnp.npy_intp n, c
        cdef Py_ssize_t count
        cdef Sizes sizes
        if not is_long(axis, &along):
            return NULL
        if along < 0:
            along += ndim
        # Channels in the middle are moved.
        if ndim < 2 or not (along == 1 or along == ndim - 1 and along > 1):
            return NULL
        sizes = sizes_around(x, along)
        n, c = cnp.PyArray_DIM(x, 0), sizes.along
        count = sizes.before // n * sizes.behind
        groups = c
        if num_groups is None:
            if count == 1:
                return NULL
        elif (
            not is_long(num_groups, &groups) or groups < 1 or c % groups != 0
            or cnp.PyArray_SIZE(x) == groups
        ):
            return NULL
        shape[0], shape[1] = n, groups
        call.statistics = n * groups
        call.parameters = c
        if c > 1 and (along > 1 or count == 1):
            give_sizes(call, n, count, c)
            return self.nc
        give_sizes(call, 1, n * c, count)
        return self.nchw

    cdef const Passes *group(
        self, Call *call, cnp.npy_intp *shape, object x, object num_groups, object weight,
        object bias, object eps, object axis, object residual, object activation,
    ) except? NULL:
        # A forward of group norm. NULL: not plain.
        cdef const Passes *passes
        cdef cnp.npy_intp c
        if not self.give_x(call, x, residual, activation) or not is_eps(eps, &call.eps):
            return NULL
        passes = self.group_sizes(call, shape, x, num_groups, axis)
        if passes == NULL:
            return NULL
        c = call.parameters
        if not (is_optional(weight, &c, 1, &call.weight) and is_optional(bias, &c, 1, &call.bias)):
            return NULL
        return passes

    def group_apply(
        self, object x, object num_groups, object weight, object bias, object eps, object axis,
        object out, object residual, object activation,
    ):
        """y of group normalization; of instance normalization if num_groups is None."""
        cdef Call call
        cdef cnp.npy_intp shape[2]
        cdef const Passes *passes = self.group(
            &call, shape, x, num_groups, weight, bias, eps, axis, residual, activation)
        if passes == NULL:
            return None
        y = self.give_y(&call, x, out, residual, weight, bias, None, None)
        if y is None:
            return None
        return y if self.forward(passes, &call, True, NULL) else None

    def group_forward(
        self, object x, object num_groups, object weight, object bias, object eps, object axis,
        object out, object residual, object activation,
    ):
        """(y, mean, rstd) of the same."""
        cdef Call call
        cdef cnp.npy_intp shape[2]
        cdef cnp.ndarray mean, rstd
        cdef const Passes *passes = self.group(
            &call, shape, x, num_groups, weight, bias, eps, axis, residual, activation)
        if passes == NULL:
            return None
        y = self.give_y(&call, x, out, residual, weight, bias, None, None)
        if y is None:
            return None
        mean, rstd = new_statistic(2, shape), new_statistic(2, shape)
        call.to_mean, call.to_rstd = doubles(mean), doubles(rstd)
        return (y, mean, rstd) if self.forward(passes, &call, True, NULL) else None

    def group_backward(
        self, object dy, object x, object mean, object rstd, object num_groups, object weight,
        object bias, object axis, object out,
    ):
        """(dx, dweight, dbias) of group normalization, without an activation."""
        cdef Call call
        cdef cnp.npy_intp shape[2]
        cdef cnp.npy_intp c
        cdef const Passes *passes
        if not self.give_x(&call, x, None, None):
            return None
        passes = self.group_sizes(&call, shape, x, num_groups, axis)
        if passes == NULL:
            return None
        call.training = True
        c = call.parameters
        return self.backward(
            passes, &call, x, dy, mean, rstd, shape, 2, True, weight, bias, &c, 1, out)
