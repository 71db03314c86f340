"""Objects whose making was interrupted are dropped without a word."""

from __future__ import annotations

import gc

import pytest

from deepmnn.engine.driver import Driver
from deepmnn.engine.session import Session
from deepmnn.errors import RequestError


@pytest.mark.parametrize("kind", [Session, Driver])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_was_never_made_is_dropped_quietly(kind: type) -> None:
    made = kind.__new__(kind)
    del made
    gc.collect()


def test_a_session_that_was_never_made_is_closed() -> None:
    session = Session.__new__(Session)
    session.close()
    with pytest.raises(RequestError, match="closed"):
        session.decode(1)
