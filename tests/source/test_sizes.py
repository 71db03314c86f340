"""Sizes that people write."""

import pytest

from deepmnn.errors import RequestError, argument
from deepmnn.source.sizes import nbytes


def test_sizes_have_units() -> None:
    for text, size in {
        "12": 12, "1.5KB": 1500, "3GiB": 3 << 30, "700 MB": 700_000_000, "3.5 GiB": 7 << 29,
        "2TiB": 2 << 40, "3Gi": 3 << 30, "700M": 700_000_000,
    }.items():  # fmt: skip
        assert nbytes(text, "x") == size
    for text in ("", "GB", "-1", "1e9", "1kb", "3g", "3i", "1PB", "9" * 99):
        with pytest.raises(RequestError, match="as in 3GiB"):
            nbytes(text, "x")
    with pytest.raises(RequestError) as caught:
        nbytes("much", argument("memory"))
    assert caught.value.shell == "--memory 'much'; expected bytes, as in 3GiB, 700MB or 123456"
