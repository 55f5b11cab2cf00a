"""Optional packages: who needs one that is missing learns which extra installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import optional packages inside of this; `name` is the extra that has them.

    Raises
    ------
    ImportError
        For a package that is not installed, with the command that installs it.

    Examples
    --------
    >>> with extra("torch"):
    ...     import a_package_that_nobody_has
    Traceback (most recent call last):
        ...
    ImportError: a_package_that_nobody_has is not installed: pip install normcore[torch]
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "normcore"):
            raise
        raise ImportError(
            f"{package} is not installed: pip install normcore[{name}]", name=package
        ) from error
