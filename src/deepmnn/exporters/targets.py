"""What a converted model can be exported to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from deepmnn.exporters.android.export import check_android, export_android
from deepmnn.exporters.mnn.export import ExportReport, check_place, export


class ExportTarget(NamedTuple):
    """check: raises what an export to a path would, without one. export: does it."""

    check: Callable[..., None]
    export: Callable[..., ExportReport]


TARGETS = {
    "mnn": ExportTarget(check_place, export),
    "android": ExportTarget(check_android, export_android),
}
"""What `deepmnn export --target` names."""
