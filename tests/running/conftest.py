"""What all tests of runs share."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Tiny GEMMs on several threads spend their time waiting for each other."""
    with threadpool_limits(1):
        yield
