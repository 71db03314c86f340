"""Where the time and the memory of a model go: `profile` measures, `Profile` is what it found.

model, ids ──measure──► Profile ──► terminal (cli/profile.py), JSON, page.py, trace.py
"""

from deepmnn.inspect.profile.measure import profile
from deepmnn.inspect.profile.result import Cost, Limits, Owner, Part, Phase, Profile

__all__ = ["Cost", "Limits", "Owner", "Part", "Phase", "Profile", "profile"]
