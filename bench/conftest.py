"""Naming this folder asks for measurements: they are switched off where all tests run."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_disable = False
