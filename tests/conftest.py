"""Makes the helper modules beside this file importable, and the tests' children stoppable."""

import os
import signal
import sys
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C, and so would the programs that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

WHOLE = ("models/test_parity.py", "cpu/test_parity.py", "runtime/test_recent_places.py")
"""Sweeps over the tiny configs that `make test` runs whole: every one against the oracle."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Other sweeps run the first two configs of each architecture, and all in `make test-all`."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        given = callspec.params if callspec else {}
        later = "model_type" in given and given.get("index", 0) > 1
        if later and not item.path.as_posix().endswith(WHOLE):
            item.add_marker(pytest.mark.slow)
