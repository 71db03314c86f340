"""The command line: verbs of deepmnn whose model is a flag, `--model`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deepmnn import cli

VERBS = ("profile",)


def main(arguments: Sequence[str]) -> None:
    """Runs a verb, and exits as it does. Its other flags are those of deepmnn's verb."""
    parser = argparse.ArgumentParser(
        prog="mnn_tools",
        allow_abbrev=False,
        description="Profiles a model: where its time and its memory go.",
        epilog="All other flags are those of: deepmnn profile --help",
    )
    parser.add_argument("verb", choices=VERBS, help="what to do")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a .mnn file or a folder that deepmnn exported, a converted model, or a checkpoint",
    )
    found, others = parser.parse_known_args(arguments)
    cli.main([found.verb, *others, "--", found.model])
