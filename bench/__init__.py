"""Speed and accuracy of normcore's kernels on real data: ``python -m bench``.

================  =========================================================================
`bench.cases`     the one list of cases, and the photographs and digits behind them
`bench.layout`    a case as the kernels see it, and the parts an oracle may work on alone
`bench.tasks`     what of a case is timed: kernels, outputs, bytes
`bench.problem`   a case's arrays, its oracle results and its error measures
`bench.engines`   who computes: normcore's backends, their rivals (`bench.unfused`) and the
                  peers (`bench.textbook`, `bench.pytorch`)
`bench.limits`    the yardstick: compiled probes that only move the bytes
`bench.measure`   verify first, then interleaved rounds, best of many
`bench.api`       the public API: whole calls, small calls, the import
`bench.targets`   what was promised, against what was measured
`bench.report`    tables and JSON; `bench.figure` the picture
`bench.machine`   where it was measured
================  =========================================================================
"""
