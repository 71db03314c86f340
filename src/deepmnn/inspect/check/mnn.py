"""stub"""
from __future__ import annotations
def check_folder(folder): return []
