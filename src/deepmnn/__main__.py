"""The `deepmnn` command, also `python -m deepmnn`."""

import signal
import sys
from types import FrameType


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported ends quietly too. A process
    that is told to end (SIGTERM: docker stop, systemd) tidies up as after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _end)
    try:
        from deepmnn.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
