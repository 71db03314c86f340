"""What a model can be exported to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from deepmnn.exporters.android.export import check_android, export_android
from deepmnn.exporters.exported import Exported
from deepmnn.exporters.gguf.export import check_gguf, export_gguf
from deepmnn.exporters.hf.export import check_hf, export_hf
from deepmnn.exporters.mnn.export import ExportReport, check_place, export

Report = Exported | ExportReport
"""What an export tells of what it wrote."""


class ExportTarget(NamedTuple):
    """check: raises what an export to a path would, without one. export: does it. options: what it
    takes besides. restores: it reads a source, not a converted model.
    """

    check: Callable[..., None]
    export: Callable[..., Report]
    options: frozenset[str]
    restores: bool = False


_FOR_MNN = frozenset({"mla", "bits", "block_size", "calibration", "samples", "no_calibration"})

TARGETS = {
    "mnn": ExportTarget(check_place, export, _FOR_MNN),
    "android": ExportTarget(check_android, export_android, _FOR_MNN),
    "hf": ExportTarget(check_hf, export_hf, frozenset({"type"}), restores=True),
    "gguf": ExportTarget(check_gguf, export_gguf, frozenset({"type"}), restores=True),
}
"""What `deepmnn export --target` names."""
