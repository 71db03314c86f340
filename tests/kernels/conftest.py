"""Every kernel test runs on each instruction set this machine has; numpy is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from deepmnn import _core


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def unaligned(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same numbers, one element off any vector boundary."""
    room = np.empty(array.size + 1, array.dtype)
    shifted = room[1:].reshape(array.shape)
    shifted[...] = array
    return shifted


@pytest.fixture(name="unaligned")
def unaligned_fixture() -> object:
    return unaligned
