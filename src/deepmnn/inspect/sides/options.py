"""How a model is run as a side of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn import _core
from deepmnn.api.options import BACKENDS, KV_DTYPES, MLA_FORMS
from deepmnn.errors import RequestError
from deepmnn.graph.levels import MAX_LEVEL, pass_names
from deepmnn.quant.recipe import Recipe

TORCH = "torch"
"""The backend that is none of deepmnn's."""

SIDES = (*BACKENDS, TORCH)

MOST_THREADS = 1024
"""The core takes no more."""


@dataclass(frozen=True, kw_only=True)
class SideOptions:
    """How a model is run as a side of a comparison.

    Attributes:
        backend: "cpu", "reference", "mnn" or "torch"; None: "mnn" for an exported folder, else
            "cpu".
        quant: how a checkpoint is converted for "cpu" and "mnn"; None: as `deepmnn.load` does.
        optimize_level: 0 to 3; None: that of a converted model, 3 for a checkpoint on "cpu", 0 on
            "reference". A converted model at another level runs with its numbers in float32.
        disabled: passes that are left out; a converted model then runs as above.
        threads, isa, mla_form, kv_dtype: as of `LoadOptions`.
    """

    backend: str | None = None
    quant: str | Recipe | None = None
    optimize_level: int | None = None
    disabled: frozenset[str] = frozenset()
    threads: int | None = None
    isa: str | None = None
    mla_form: str = "auto"
    kv_dtype: str = "f32"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("backend", self.backend, (None, *SIDES)),
            ("isa", self.isa, (None, *_core.isas())),
            ("kv_dtype", self.kv_dtype, tuple(KV_DTYPES)),
            ("mla_form", self.mla_form, MLA_FORMS),
            ("optimize_level", self.optimize_level, (None, *range(MAX_LEVEL + 1))),
        ):
            if value not in known:
                expected = ", ".join(str(each) for each in known if each is not None)
                raise RequestError(f"{name} is {value!r:.40}", f"one of {expected}")
        plain = self.as_it_is and self.kv_dtype == "f32" and self.mla_form == "auto"
        if self.backend == TORCH and not (plain and self.quant is None and self.isa is None):
            raise RequestError(
                "PyTorch runs a checkpoint as it is",
                "no level, passes, recipe, KV cache format or instruction set for it",
                "Leave them out, or choose another backend.",
            )
        if self.backend in ("reference", "mnn") and self.isa is not None:
            raise RequestError(
                f"an instruction set is given for the backend {self.backend!r}",
                "the backend 'cpu', our engine, or none given",
            )
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise RequestError(f"{self.threads} threads", f"1 to {MOST_THREADS}")
        unknown = sorted(self.disabled.difference(pass_names()))
        if unknown:
            raise RequestError(f"no pass is called {unknown[0]!r:.40}", ", ".join(pass_names()))

    @property
    def as_it_is(self) -> bool:
        """Whether a converted model runs with the graph that it has."""
        return self.optimize_level is None and not self.disabled

    @property
    def level(self) -> int:
        """At which a checkpoint runs."""
        if self.optimize_level is not None:
            return self.optimize_level
        return 0 if self.backend == "reference" else MAX_LEVEL
