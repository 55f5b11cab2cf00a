"""Speed and accuracy of normcore's kernels on real data: ``python -m bench``.

================  =========================================================================
`bench.cases`     the one list of cases, and the photographs and digits behind them
`bench.problem`   a case's arrays, its oracle results and its error measures
`bench.engines`   who computes: normcore's backends and the peers, one class each
`bench.limits`    the yardstick: compiled copy, triad and read probes
`bench.measure`   verify first, then interleaved rounds, best of many
`bench.api`       the public API: whole calls, small calls, the import
`bench.targets`   what was promised, against what was measured
`bench.report`    tables and JSON; `bench.figure` the picture
`bench.machine`   where it was measured
================  =========================================================================
"""
