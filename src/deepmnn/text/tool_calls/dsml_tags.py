"""The tags of DSML."""

from __future__ import annotations

from dataclasses import dataclass

DSML = "｜DSML｜"
"""In every tag; a special token of the models that were trained with it."""


@dataclass(frozen=True)
class DsmlTags:
    """What the tags are called."""

    block: str
    invoke: str
    parameter: str

    @property
    def block_begin(self) -> str:
        """<｜DSML｜function_calls>"""
        return f"<{DSML}{self.block}>"

    @property
    def block_end(self) -> str:
        """</｜DSML｜function_calls>"""
        return f"</{DSML}{self.block}>"

    @property
    def invoke_begin(self) -> str:
        """<｜DSML｜invoke, which a name follows."""
        return f"<{DSML}{self.invoke}"

    @property
    def invoke_end(self) -> str:
        """</｜DSML｜invoke>"""
        return f"</{DSML}{self.invoke}>"

    @property
    def parameter_begin(self) -> str:
        """<｜DSML｜parameter, which a name and a type follow."""
        return f"<{DSML}{self.parameter}"

    @property
    def parameter_end(self) -> str:
        """</｜DSML｜parameter>"""
        return f"</{DSML}{self.parameter}>"


V32 = DsmlTags("function_calls", "invoke", "parameter")
V4 = DsmlTags("tool_calls", "invoke", "parameter")
V41 = DsmlTags(" calls", " invoke", " parameter")
ALL_TAGS = (V32, V4, V41)
