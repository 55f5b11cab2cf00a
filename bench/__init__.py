"""Speed, accuracy and effect of normcore's layers on real data: ``python -m bench COMMAND``.

================  =========================================================================
`bench.speed`     the default command: everything below, in the order of a run
`bench.compare`   two runs: what became slower beyond the noise
`bench.readme`    README's tables and figures from a run's JSON
`bench.large`     up to 4 GB and past 2^31 elements
`bench.training`  what normalization does to training: a package with files of its own
`bench.test_speed`  the same cases for pytest-benchmark: ``pytest bench``
================  =========================================================================

================  =========================================================================
`bench.cases`     the one list of cases; `bench.data` the photographs and digits in them
`bench.layout`    a case as the kernels see it, and the parts an oracle may work on alone
`bench.tasks`     what of a case is timed: kernels, outputs, bytes
`bench.problem`   a case's arrays, its oracle results and its error measures
`bench.engines`   who computes: normcore's backends, their rivals (`bench.unfused`) and the
                  peers (`bench.peers`, one file each)
`bench.limits`    the yardstick: compiled probes that only move the bytes
`bench.bare`      the same bytes in the order of a norm: sums first, then writing
`bench.measure`   verify first, then interleaved rounds, best of many
`bench.sweeps`    series: against size, threads, and error at a large offset
`bench.api`       the public API: whole calls and small calls
`bench.processes` what needs a fresh process: import, first call, peak memory
`bench.targets`   what was promised, against what was measured
`bench.record`    a run as JSON; `bench.report` as tables; `bench.figures` as pictures
                  (`bench.bars`, `bench.curves`)
`bench.machine`   where it was measured
================  =========================================================================

Another command is a module or package with `add_arguments` and `main`, named in `bench.__main__`.
"""
