"""A source that is another one with some numbers changed."""

from __future__ import annotations

from deepmnn.source.source import Source


class WrappedSource(Source):
    """Another source in all but its numbers: `read`, and `codes` if it has any, are a subclass's.

    Args:
        source: the other one.
    """

    def __init__(self, source: Source) -> None:
        self.config, self.paths, self.changes = source.config, source.paths, source.changes
        self._source = source

    def names(self) -> list[str]:
        """Those of the source, as all that follows."""
        return self._source.names()

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._source.shape(name)

    def stored_as(self, name: str) -> str:
        """How the source has it."""
        return self._source.stored_as(name)

    def sample(self, name: str) -> bytes:
        """A little of what is stored of a tensor of the source."""
        return self._source.sample(name)

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return self._source.nbytes()

    def left_out(self) -> list[str]:
        """Files that would change the model, and are not read."""
        return self._source.left_out()

    def side_files(self) -> dict[str, bytes]:
        """config.json and the tokenizer's files."""
        return self._source.side_files()
