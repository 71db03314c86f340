"""The `deepmnn` command, also `python -m deepmnn`."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported ends quietly too."""
    try:
        from deepmnn.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
