"""A transformer for scikit-learn: `ChannelScaler`. Needs ``pip install normcore[sklearn]``."""

from __future__ import annotations

from typing import Any

try:
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "normcore.sklearn needs scikit-learn: pip install normcore[sklearn]", name=error.name
    ) from error

import numpy as np

from .check import layer_axis
from .functional import batch_norm
from .stats import ChannelStats

__all__ = ["ChannelScaler"]

Array = np.ndarray[Any, Any]

_DTYPES = (np.float64, np.float32, np.float16)
# Added to a variance, it changes none: the smallest number there is.
_NOTHING = 5e-324


class ChannelScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Standardize channels: `sklearn.preprocessing.StandardScaler` for arrays of any rank.

    y = (x - mean) / sqrt(var), with the mean and the population variance of each channel over all
    that `fit` saw

    For (N, C) arrays, channels are features, and it is StandardScaler at the memory limit: one
    pass to fit, one to transform, statistics in float64 that no offset of the data hurts. A channel
    of one value has scale 1, as there. Batches of `partial_fit` may have any sizes, and their order
    changes the statistics by less than 1e-15 of them.

    Unlike StandardScaler it does not ignore NaN: NaN and infinity are refused (impute before).
    Sparse matrices, sample weights and arrays of other libraries are not supported.

    Parameters
    ----------
    with_mean : bool, default=True
        Subtract the mean.
    with_std : bool, default=True
        Divide by the standard deviation.
    axis : int, default=1
        The channel axis: 1 for (N, C) and channels-first arrays, -1 for channels-last.
    copy : bool, default=True
        False: write over X, where that is a floating-point NumPy array.

    Attributes
    ----------
    mean_ : ndarray of shape (C,)
        float64. None without `with_mean` and `with_std`.
    var_ : ndarray of shape (C,)
        Population variance, float64. None without `with_std`.
    scale_ : ndarray of shape (C,)
        The root of `var_`, 1 where that is 0. None without `with_std`.
    n_samples_seen_ : int
        Values per channel; of (N, C) arrays, the number of samples.
    n_features_in_ : int
        The number of channels.
    feature_names_in_ : ndarray of shape (C,)
        Where X had column names that are strings.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.sklearn import ChannelScaler
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    >>> y = ChannelScaler(axis=-1).fit_transform(images)
    >>> y.shape, y.mean((0, 1, 2)).round(9) + 0.0
    ((20, 8, 8, 3), array([0., 0., 0.]))
    """

    def __init__(
        self, *, with_mean: bool = True, with_std: bool = True, axis: int = 1, copy: bool = True
    ) -> None:
        self.with_mean = with_mean
        self.with_std = with_std
        self.axis = axis
        self.copy = copy

    def fit(self, X: Any, y: Any = None) -> ChannelScaler:
        """Take the statistics of X, forgetting all before.

        Parameters
        ----------
        X : array_like
            Two or more axes, among them the channel axis.
        y : None
            Ignored.
        """
        return self._take(X, first=True)

    def partial_fit(self, X: Any, y: Any = None) -> ChannelScaler:
        """Take in the statistics of X, beside those of all batches before.

        Parameters
        ----------
        X : array_like
            As in `fit`, with as many channels as before.
        y : None
            Ignored.
        """
        return self._take(X, first=not hasattr(self, "n_samples_seen_"))

    def transform(self, X: Any) -> Array:
        """Standardized X, in X's dtype if that is a floating-point one, else float64."""
        check_is_fitted(self)
        x = self._given(X, _DTYPES, reset=False)
        mean, var = self._stats.mean, self._stats.var()
        if not self.with_mean:
            mean = np.zeros_like(mean)
        # The variance of a constant channel is 0 and its scale 1.
        var = np.where(var == 0, 1.0, var) if self.with_std else np.ones_like(var)
        return self._normalized(x, X, mean, var)

    def inverse_transform(self, X: Any) -> Array:
        """What `transform` made X of: X * scale + mean."""
        check_is_fitted(self)
        x = self._given(X, _DTYPES, reset=False)
        zero, one = np.zeros(self.n_features_in_), np.ones(self.n_features_in_)
        scale = self.scale_ if self.with_std else None
        return self._normalized(x, X, zero, one, scale, self.mean_ if self.with_mean else None)

    def _take(self, X: Any, first: bool) -> ChannelScaler:
        x = self._given(X, "numeric", reset=first)
        if x.dtype.kind == "f" and x.dtype.type not in _DTYPES:
            x = x.astype(np.float64)
        stats = ChannelStats()
        if not first:
            stats.merge(self._stats)
        stats.update(x)
        self._stats: ChannelStats = stats
        self.n_samples_seen_ = stats.count
        self.mean_ = stats.mean if self.with_mean or self.with_std else None
        var = stats.var()
        self.var_ = var if self.with_std else None
        self.scale_ = np.where(var == 0, 1.0, np.sqrt(var)) if self.with_std else None
        return self

    def _given(self, X: Any, dtype: Any, reset: bool) -> Array:
        # X with its channels on axis 1, where scikit-learn looks for features.
        if isinstance(X, list | tuple):
            X = np.asarray(X)
        ndim = getattr(X, "ndim", 2)
        if ndim > 1 and (axis := layer_axis(self.axis, ndim) % ndim) != 1:
            X = np.moveaxis(np.asarray(X), axis, 1)
        x: Array = validate_data(self, X, dtype=dtype, reset=reset, allow_nd=True)
        return x

    def _normalized(
        self,
        x: Array,
        given: Any,
        mean: Array,
        var: Array,
        weight: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        own = not self.copy and isinstance(given, np.ndarray) and x.flags.writeable
        out = x if own and np.may_share_memory(x, given) else None
        y = batch_norm(x, mean, var, weight, bias, eps=_NOTHING, out=out)
        return np.moveaxis(y, 1, self.axis)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = [np.dtype(dtype).name for dtype in _DTYPES]
        return tags
