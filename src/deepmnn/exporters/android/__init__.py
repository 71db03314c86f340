"""Exported models on Android: the Android Studio project, and what MNN's own chat app needs.

`template/` is that project, in Java with a JNI bridge in C++; docs/android.md tells how to use it.
"""

from __future__ import annotations

from deepmnn.exporters.android.chat_app import check_folder, phone_name
from deepmnn.exporters.android.project import write_project

__all__ = ["check_folder", "phone_name", "write_project"]
