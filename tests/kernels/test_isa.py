from __future__ import annotations

import numpy as np
import pytest

from deepmnn import _core
from deepmnn._core import kernels
from deepmnn.errors import RequestError

X = np.ones(3, np.float32)


def test_scalar_is_always_there_and_last():
    assert _core.isas()[-1] == "scalar"


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("DEEPMNN_ISA", "avx9")
    with pytest.raises(RequestError, match=r"'avx9'; expected one this machine runs: .*scalar"):
        kernels.add(X, X)
    assert np.array_equal(kernels.add(X, X, "scalar"), X + X)  # an argument beats it
    monkeypatch.setenv("DEEPMNN_ISA", "scalar")
    assert np.array_equal(kernels.add(X, X), X + X)


@pytest.mark.parametrize("peak", [kernels.peak_dot, kernels.peak_fma])
def test_peaks_count_their_work(peak, isa):
    assert peak(0, isa) == 0
    assert peak(6, isa) == 3 * peak(2, isa) > 0
