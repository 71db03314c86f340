"""The zip archive that torch.save writes: where in the file its records are.

Records lie uncompressed, each behind a local header of 30 bytes, its name and padding. The central
directory near the end of the file lists them (APPNOTE.TXT of PKWARE, 4.3.7 to 4.3.16).
"""

from __future__ import annotations

import struct

from deepmnn.errors import CheckpointError
from deepmnn.source.regular_file import RegularFile

RE_DOWNLOAD = "The file is damaged or incomplete; copy or download it again."

MAX_DIRECTORY_BYTES = 1 << 26
"""Room for the names of far more tensors than any model has."""

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""How files of torch before 1.6 begin: a pickled magic number."""

_END, _END64, _LOCATOR, _LISTED = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_MAX_COMMENT = 0xFFFF
_IN_ZIP64 = 0xFFFFFFFF


class TorchArchive:
    """The records of a file that torch.save wrote.

    Raises CheckpointError when it is another file, is damaged, or is no state dict.

    Attributes:
        records: name, without the archive's folder → its bytes [begin, end) in the file.
    """

    def __init__(self, file: RegularFile) -> None:
        self.file = file
        _check_magic(file)
        try:
            found = self._listed()
        except struct.error:
            raise self._damaged("its directory is cut off") from None
        pickles = [name for name in found if name.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            raise self._damaged("it has no data.pkl")
        folder = min(pickles, key=len).removesuffix("data.pkl")
        self.records = {name.removeprefix(folder): place for name, place in found.items()}
        self._check_kind()

    def read(self, name: str, limit: int) -> bytes:
        """A record of at most `limit` bytes. Raises CheckpointError."""
        begin, end = self.records[name]
        if end - begin > limit:
            raise CheckpointError(f"{self.file.path}: {name} has {end - begin} bytes", f"{limit}")
        return self.file.read(begin, end - begin, name).tobytes()

    def _listed(self) -> dict[str, tuple[int, int]]:
        """Every record's name and place, no two on the same bytes."""
        count, nbytes, offset = self._directory()
        data, at = self.file.read(offset, nbytes).tobytes(), 0
        sizes: dict[str, int] = {}
        headers: list[int] = []
        for _ in range(count):
            fields = struct.unpack_from("<4s4xHH8xLLHHH8xL", data, at)
            magic, flags, method, packed, size, *lengths, header = fields
            name = data[at + 46 : at + 46 + lengths[0]].decode("utf-8", "replace")
            extra = data[at + 46 + lengths[0] : at + 46 + sum(lengths[:2])]
            size, packed, header = _zip64([size, packed, header], extra)
            at += 46 + sum(lengths)
            if magic != _LISTED or name in sizes or at > nbytes:
                raise self._damaged("its directory is damaged")
            if method or flags & 1 or packed != size:
                raise CheckpointError(
                    f"{self.file.path} is compressed or encrypted ({name!r:.80})",
                    "the uncompressed records that torch.save writes",
                    self._save_again(),
                )
            sizes[name] = size
            headers.append(header)
        begins = self._data_begins(headers)
        found = {n: (b, b + size) for (n, size), b in zip(sizes.items(), begins, strict=True)}
        self._check_apart(sorted(found.values()), offset)
        return found

    def _check_apart(self, places: list[tuple[int, int]], offset: int) -> None:
        ends = [0, *(end for _, end in places)]
        if any(begin < end for (begin, _), end in zip(places, ends, strict=False)):
            raise self._damaged("records overlap")
        if ends[-1] > offset:
            raise self._damaged("a record reaches beyond the file")

    def _directory(self) -> tuple[int, int, int]:
        """Records, and the bytes and offset of their list."""
        begin = max(0, self.file.size - 22 - _MAX_COMMENT)
        tail = self.file.read(begin, self.file.size - begin).tobytes()
        at = tail.rfind(_END)
        while at >= 0 and int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail) - at - 22:
            at = tail.rfind(_END, 0, at)  # this one was in the comment that ends the file
        if at < 0:
            raise self._damaged("its end is missing")
        count, nbytes, offset = struct.unpack_from("<10xHLL", tail, at)
        if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
            (end64,) = struct.unpack_from("<8xQ", tail, at - 20)
            record = self.file.read(end64, 56, "its directory").tobytes()
            if not record.startswith(_END64):
                raise self._damaged("its directory is damaged")
            count, nbytes, offset = struct.unpack_from("<32xQQQ", record)
        if nbytes > MAX_DIRECTORY_BYTES or offset + nbytes > self.file.size:
            raise self._damaged(f"its directory has {nbytes} bytes at byte {offset}")
        return count, nbytes, offset

    def _data_begins(self, headers: list[int]) -> list[int]:
        """Where the records' data begins: local headers have lengths of their own."""
        local = self.file.read_each(headers, 30, "the header of a record")
        lengths = (struct.unpack("<26xHH", header) for header in local)
        return [at + 30 + name + extra for at, (name, extra) in zip(headers, lengths, strict=True)]

    def _check_kind(self) -> None:
        if "constants.pkl" in self.records:
            raise CheckpointError(
                f"{self.file.path} is a TorchScript program",
                "a state dict",
                "Save its weights: "
                f"torch.save(torch.jit.load({self.file.path.name!r}).state_dict(), PATH)",
            )
        if "byteorder" in self.records and self.read("byteorder", 16) == b"big":
            raise CheckpointError(
                f"{self.file.path} was saved on a big-endian machine", "little-endian numbers"
            )

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file.path} is no whole zip archive: {reason}",
            "a file written by torch.save",
            RE_DOWNLOAD,
        )

    def _save_again(self) -> str:
        name = self.file.path.name
        return f"Save it again: torch.save(torch.load({name!r}, weights_only=True), PATH)"


def _check_magic(file: RegularFile) -> None:
    magic = file.read(0, min(len(_LEGACY_MAGIC), file.size)).tobytes()
    if magic == _LEGACY_MAGIC:
        raise CheckpointError(
            f"{file.path} has the file format of torch before 1.6",
            "the zip format that torch.save writes since then",
            f"Save it again: torch.save(torch.load({file.path.name!r}, weights_only=True), PATH)",
        )
    if not magic.startswith(b"PK"):
        what = f"begins with {magic!r}" if magic else "is empty"
        raise CheckpointError(f"{file.path} {what}", "a file written by torch.save", RE_DOWNLOAD)


def _zip64(fields: list[int], extra: bytes) -> list[int]:
    """Sizes and offset, those that need 64 bits taken from the extra field 1."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = struct.iter_unpack("<Q", extra[at + 4 :][: size // 8 * 8])
            return [next(wide, (0,))[0] if field == _IN_ZIP64 else field for field in fields]
        at += 4 + size
    return fields
