"""A converted model in the formats of others: MNN's folder, and a phone's project around it."""

from deepmnn.exporters.android.export import export_android
from deepmnn.exporters.mnn.export import ExportReport, export

TARGETS = {"mnn": export, "android": export_android}
"""What `deepmnn export --target` names."""

__all__ = ["TARGETS", "ExportReport", "export", "export_android"]
