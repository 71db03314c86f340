"""Who holds the memory of a process that runs a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deepmnn import _core
from deepmnn.backends.base import Backend, Cache
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.inspect.profile.result import Owner
from deepmnn.inspect.profile.system import mapped, resident

REST = "Python and the rest"


def owners(
    backend: Backend,
    cache: Cache,
    cached_nbytes: int,
    held: Mapping[str, tuple[int, int, int]],
    directory: Path,
) -> tuple[Owner, ...]:
    """What is held now, the most first; what is nobody else's is the rest.

    cached_nbytes: the most that was in the KV cache. held: as `_core.Model.memory` tells.
    directory: of the weights.
    """
    now, _ = resident()
    if not (isinstance(backend, CpuBackend) and isinstance(cache, _core.KvCache)):
        return (Owner("process", None, now),)
    found = [
        _weights(backend, directory),
        Owner("KV cache", cache.nbytes, cache.resident_nbytes, cached_nbytes),
        *(Owner(name, *sizes) for name, sizes in held.items()),
    ]
    rest = now - sum(owner.resident for owner in found)
    found.append(Owner(REST, None, max(0, rest)))
    return tuple(sorted(found, key=lambda owner: -owner.resident))


def _weights(backend: CpuBackend, directory: Path) -> Owner:
    plan, counts = backend.model.weight_plan, backend.model.streaming
    if counts:  # the cache of experts grows until it is full
        cached = min(plan.cache_nbytes, int(counts["read_nbytes"]))
        held = plan.memory_nbytes
        return Owner("weights", held, held - plan.cache_nbytes + cached)
    nbytes = backend.model.weight_nbytes
    touched = nbytes if backend.numa != "off" else min(nbytes, mapped(directory))
    return Owner("weights", nbytes, touched)
