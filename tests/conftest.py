"""Makes the helper modules beside this file importable, and the tests' children stoppable."""

import os
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C, and so would the programs that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
