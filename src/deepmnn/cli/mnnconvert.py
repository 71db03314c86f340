"""deepmnn mnnconvert: MNNConvert's command line, for models that MNN's own cannot read."""

from __future__ import annotations

from typer import Context, Exit

SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""The flags are not typer's: they are spelled as MNNConvert spells them."""


def mnnconvert(context: Context) -> None:
    """Convert with the flags of MNN's own MNNConvert (--help lists them)."""
    from mnnconvert.command import main

    raise Exit(main(context.args, "deepmnn mnnconvert"))
