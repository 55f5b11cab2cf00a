"""The ufuncs against the oracle, in every layout, and what calls them: dask and xarray."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import normcore as nc
from normcore import reference

gufuncs = pytest.importorskip("normcore.gufuncs", reason="built without a C compiler")

INSTANCE = {1: gufuncs.instance_norm1d, 2: gufuncs.instance_norm2d, 3: gufuncs.instance_norm3d}
BOUNDS = {"float16": 1e-3, "float32": 1e-6, "float64": 4e-15}
EACH_DTYPE = pytest.mark.parametrize("dtype", BOUNDS)


def _layer(x, weight, bias, eps=1e-5):
    return reference.batch_norm_forward(x, weight, bias, eps, (x.ndim - 1,))[0]


def _instance(x, weight, bias, axes):
    around = (slice(None), *[None] * axes)
    over = tuple(range(x.ndim - axes, x.ndim))
    return reference.batch_norm_forward(x, weight[around], bias[around], 1e-5, over)[0]


def _given(shape, parameters, dtype="float32", offset=10.0):
    random = np.random.default_rng(0)
    x = (random.standard_normal(shape) + offset).astype(dtype)
    weight, bias = random.uniform(0.5, 1.5, (2, parameters))
    wide = "float64" if dtype == "float64" else "float32"
    return x, weight.astype(wide), bias.astype(wide)


def _assert_close(found, truth, dtype):
    assert found.dtype == dtype
    assert np.all(np.abs(found - truth) <= BOUNDS[dtype] * np.maximum(1, np.abs(truth)))


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(7,), (3, 1), (5, 64), (4, 3, 129), (2, 3, 4, 700)], ids=str)
def test_layer_and_rms_norm(shape, dtype):
    x, weight, bias = _given(shape, shape[-1], dtype)
    _assert_close(gufuncs.layer_norm(x, weight, bias, 1e-5), _layer(x, weight, bias), dtype)
    wide = x.astype(np.float64)
    truth = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
    _assert_close(gufuncs.rms_norm(x, weight, 1e-5), truth, dtype)


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(4, 5, 70), (3, 5, 6, 7), (2, 5, 3, 4, 5)], ids=str)
def test_instance_norm_has_a_weight_per_channel(shape, dtype):
    x, weight, bias = _given(shape, 5, dtype)
    found = INSTANCE[len(shape) - 2](x, weight, bias, 1e-5)
    _assert_close(found, _instance(x, weight, bias, len(shape) - 2), dtype)


def _layouts(x):
    yield x
    yield np.asfortranarray(x)
    yield np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1]
    wide = np.zeros((*x.shape[:2], 2 * x.shape[2]), x.dtype)
    wide[..., ::2] = x
    yield wide[..., ::2]
    yield np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)
    yield x.astype(x.dtype.newbyteorder())
    fixed = x.copy()
    fixed.flags.writeable = False
    yield fixed


def test_every_layout_of_input_and_output_gives_the_same_bits():
    x, weight, bias = _given((300, 4, 65), 65)
    spread = np.repeat(weight, 3)[::3]
    expected = gufuncs.layer_norm(x, weight, bias, 1e-5)
    for layout in _layouts(x):
        assert np.array_equal(gufuncs.layer_norm(layout, spread, bias, 1e-5), expected)
    for layout in _layouts(np.empty_like(x)):
        if layout.flags.writeable and layout.dtype.isnative:
            assert gufuncs.layer_norm(x, weight, bias, 1e-5, out=layout) is layout
            assert np.array_equal(layout, expected)
    same = x.copy()
    gufuncs.layer_norm(same, weight, bias, 1e-5, out=same)
    assert np.array_equal(same, expected)


def test_other_axes():
    x, weight, bias = _given((6, 33, 4, 5), 33)
    found = gufuncs.layer_norm(x, weight, bias, 1e-5, axes=[1, 0, 0, (), 1])
    truth = np.moveaxis(_layer(np.moveaxis(x, 1, -1), weight, bias), -1, 1)
    _assert_close(found, truth, "float32")
    last = gufuncs.instance_norm2d(
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
        *(weight, bias, 1e-5),
        axes=[(1, 2), (), (), (), (1, 2)],
    )
    _assert_close(last.transpose(0, 3, 1, 2), _instance(x, weight, bias, 2), "float32")


def test_everything_broadcasts():
    x, weight, bias = _given((3, 4, 20), 20)
    weights, epses = weight * np.arange(1, 5)[:, None], np.array([[1e-5], [1e-2], [1.0]])
    found = gufuncs.layer_norm(x, weights.astype(np.float32), bias, epses)
    for i in range(3):
        for j in range(4):
            truth = _layer(x[i, j], weights[j], bias, epses[i, 0])
            _assert_close(found[i, j], truth, "float32")
    per_row = gufuncs.instance_norm1d(x, weights[:, 0], bias[:3, None], epses)
    assert per_row.shape == x.shape
    np.testing.assert_allclose(
        per_row[2, 1], _layer(x[2, 1], weights[1, 0], bias[2], 1.0), rtol=1e-5, atol=1e-6
    )


def test_threads_give_the_same_bits_and_may_call_at_once():
    x, weight, bias = _given((2000, 257), 257)
    with nc.num_threads(1):
        expected = gufuncs.layer_norm(x, weight, bias, 1e-5)
    with nc.num_threads(2):
        assert np.array_equal(gufuncs.layer_norm(x, weight, bias, 1e-5), expected)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: gufuncs.layer_norm(x, weight, bias, 1e-5), range(8)):
            assert np.array_equal(found, expected)


def test_many_short_rows_are_taken_in_parts():
    x = np.random.default_rng(0).standard_normal((150_001, 3))
    found = gufuncs.instance_norm1d(x, 2, 1, 1e-5)
    np.testing.assert_allclose(found, _layer(x, 2.0, 1.0), rtol=1e-12, atol=1e-12)


def test_nan_and_infinity_stay_in_their_rows_without_a_warning():
    x, weight, bias = _given((5, 40), 40)
    expected = gufuncs.layer_norm(x, weight, bias, 1e-5)
    x[1, 3], x[3, 0], x[3, 1] = np.nan, np.inf, -np.inf
    found = gufuncs.layer_norm(x, weight, bias, 1e-5)
    assert np.isnan(found[[1, 3]]).all()
    assert np.array_equal(found[::2], expected[::2])


def test_empty_arrays_and_wrong_shapes():
    assert gufuncs.layer_norm(np.ones((0, 4)), np.ones(4), np.zeros(4), 1e-5).shape == (0, 4)
    assert gufuncs.layer_norm(np.ones((3, 0)), np.ones(0), np.zeros(0), 1e-5).shape == (3, 0)
    with pytest.raises(ValueError, match="core dimension"):
        gufuncs.layer_norm(np.ones((3, 4)), np.ones(5), np.zeros(4), 1e-5)
    with pytest.raises(TypeError, match="layer_norm"):
        gufuncs.layer_norm(np.ones(4, complex), np.ones(4), np.zeros(4), 1e-5)


def test_dtypes_follow_x():
    x, weight, bias = _given((3, 8), 8)
    assert gufuncs.layer_norm(x, weight.astype(np.float64), bias, 1e-5).dtype == np.float32
    assert gufuncs.layer_norm(x.astype(np.float16), weight, bias, 1e-5).dtype == np.float16
    assert gufuncs.layer_norm(x.astype(np.int64), weight, bias, 1e-5).dtype == np.float64


def test_they_are_ufuncs_that_pickle():
    for name in gufuncs.__all__:
        function = getattr(gufuncs, name)
        assert isinstance(function, np.ufunc)
        assert function.signature
        assert pickle.loads(pickle.dumps(function)) is function


def test_dask_arrays_are_normalized_chunk_by_chunk():
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x, weight, bias = _given((9, 6, 8, 40), 40)
    lazy = gufuncs.layer_norm(da.from_array(x, chunks=(2, 3, 8, 40)), weight, bias, 1e-5)
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.float32
    assert lazy.chunks == ((2, 2, 2, 2, 1), (3, 3), (8,), (40,))
    expected = gufuncs.layer_norm(x, weight, bias, 1e-5)
    assert np.array_equal(lazy.compute(scheduler="threads"), expected)
    plane = gufuncs.instance_norm2d(da.from_array(x, chunks=(4, 6, 8, 40)), weight[:6], 0, 1e-5)
    truth = gufuncs.instance_norm2d(x, weight[:6], 0, 1e-5)
    assert np.array_equal(plane.compute(scheduler="threads"), truth)


@pytest.mark.parametrize("chunks", [None, {"time": 3}])
def test_xarray_applies_them(chunks):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    x, weight, bias = _given((9, 20, 6), 20)
    array = xarray.DataArray(x, dims=("time", "feature", "place"), coords={"time": range(9)})
    if chunks is not None:
        pytest.importorskip("dask", reason="dask is not installed")
        array = array.chunk(chunks)
    found = xarray.apply_ufunc(
        gufuncs.layer_norm,
        *(array, weight, bias, 1e-5),
        input_core_dims=[["feature"], ["feature"], ["feature"], []],
        output_core_dims=[["feature"]],
        dask="allowed",
    )
    assert found.dims == ("time", "place", "feature")
    truth = _layer(np.moveaxis(x, 1, -1), weight, bias)
    _assert_close(found.values, truth, "float32")
