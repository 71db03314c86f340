"""`python -m mnnconvert`."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported ends quietly too."""
    try:
        from mnnconvert.command import main as run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
