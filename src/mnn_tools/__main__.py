"""`python -m mnn_tools`."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported ends quietly too."""
    try:
        from mnn_tools.command import main as run

        run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
