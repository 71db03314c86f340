"""What a converted model can be exported to."""

from deepmnn.exporters.android.export import export_android
from deepmnn.exporters.mnn.export import export

TARGETS = {"mnn": export, "android": export_android}
"""What `deepmnn export --target` names."""
