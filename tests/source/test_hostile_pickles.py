"""Small PyTorch files that ask for the moon: an error in words, at once, in little memory.

Every program of the stack machine is written by hand, as an attacker would.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from deepmnn.errors import CheckpointError
from deepmnn.source.torch_file import read_torch
from source.limited import outcome
from source_memory import peak_of

N = 200_000
PROTO, STOP = b"\x80\x02", b"."
EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, MARK, DUP, NONE = b"}", b"]", b")", b"(", b"2", b"N"
ONE = b"K\x01"


def call(name: str, arguments: bytes) -> bytes:
    """module.name(*arguments)."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + arguments + b"R"


def long(value: int, opcode: bytes = b"\x8a") -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    size = len(data).to_bytes(1 if opcode == b"\x8a" else 4, "little")
    return opcode + size + data


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def storage(kind: str = "torch.FloatStorage", key: str = "0") -> bytes:
    module, _, name = kind.rpartition(".")
    parts = text("storage") + f"c{module}\n{name}\n".encode() + text(key) + text("cpu") + ONE
    return MARK + parts + b"tQ"


def tensor(offset: bytes, shape: bytes, strides: bytes, kind: str = "torch.FloatStorage") -> bytes:
    arguments = MARK + storage(kind) + offset + shape + strides + b"\x89"
    return call(
        "torch._utils._rebuild_tensor_v2", arguments + call("collections.OrderedDict", b")") + b"t"
    )


def entry(value: bytes) -> bytes:
    return EMPTY_DICT + text("x") + value + b"s"


GOOD = tensor(b"K\x00", ONE + b"\x85", ONE + b"\x85")
HUGE = long(1 << 47)

PROGRAMS: dict[str, bytes] = {
    "a key of nested tuples": EMPTY_DICT + EMPTY_TUPLE + b"\x85" * N + ONE + b"s",
    "a value of nested tuples": entry(EMPTY_TUPLE + b"\x85" * N),
    "nested tuples": EMPTY_TUPLE + b"\x85" * N,
    "nested lists": EMPTY_LIST + b"]a" * N,
    "nested dicts": (EMPTY_DICT + text("model")) * N + EMPTY_DICT + b"s" * N,
    "dicts": MARK + EMPTY_DICT * N + b"t",
    "marks": MARK * N,
    "tuples twice as large each time": EMPTY_TUPLE + (DUP + b"\x86") * N,
    "a memo twice as large each time": EMPTY_TUPLE + b"q\x00" + b"h\x00h\x00\x86q\x00" * (N // 8),
    "a far memo": EMPTY_TUPLE + b"r\xff\xff\xff\x7f",
    "a memo with gaps": EMPTY_TUPLE + b"r\xff\xff\x0f\x00" * 100_000,
    "memos": EMPTY_TUPLE + b"\x94" * N,
    "a bytearray": call("builtins.bytearray", long(2 << 30) + b"\x85"),
    "a bytearray, as it was called": call("__builtin__.bytearray", long(2 << 30) + b"\x85"),
    "a range": call("builtins.range", long(2 << 30) + b"\x85"),
    "a set": call("builtins.set", EMPTY_LIST + b"\x85"),
    "a size": call("torch.Size", EMPTY_LIST + long(1 << 40) + b"a\x85"),
    "a device": call("torch.device", long(1 << 40) + b"\x85"),
    "an integer": long((1 << 255 * 8) - 1 >> 1, b"\x8b"),
    "an integer longer than the file": b"\x8b" + struct.pack("<I", 1 << 31) + b"1",
    "a text longer than the file": b"X" + struct.pack("<I", (1 << 32) - 1) + b"1",
    "a text longer than memory": b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"1",
    "bytes longer than memory": b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"1",
    "a storage": tensor(b"K\x00", HUGE + b"\x85", ONE + b"\x85"),
    "a tensor far away": entry(tensor(HUGE, ONE + b"\x85", ONE + b"\x85")),
    "a huge tensor": entry(tensor(b"K\x00", HUGE + HUGE + b"\x86", ONE + ONE + b"\x86")),
    "an endless tensor": entry(tensor(b"K\x00", HUGE + b"\x85", b"K\x00\x85")),
    "a repeated tensor": entry(tensor(b"K\x00", long(1 << 28) + b"\x85", b"K\x00\x85")),
    "a tensor of many dimensions": entry(
        tensor(b"K\x00", MARK + ONE * N + b"t", MARK + ONE * N + b"t")
    ),
    "a negative size": entry(tensor(b"K\x00", b"J\xff\xff\xff\xff\x85", ONE + b"\x85")),
    "a true size": entry(tensor(b"K\x00", b"\x88\x85", ONE + b"\x85")),
    "a size of text": entry(tensor(b"K\x00", text("9") + b"\x85", ONE + b"\x85")),
    "a size of tuples": entry(tensor(b"K\x00", EMPTY_TUPLE + b"\x85" * N, ONE + b"\x85")),
    "strides for other dimensions": entry(tensor(b"K\x00", ONE + b"\x85", ONE + ONE + b"\x86")),
    "an unknown storage": entry(tensor(b"K\x00", ONE + b"\x85", ONE + b"\x85", "torch.XStorage")),
    "a storage by a nested name": EMPTY_TUPLE + b"\x85" * N + b"Q",
    "a sparse tensor": entry(call("torch._utils._rebuild_sparse_tensor", EMPTY_TUPLE)),
    "a tensor made of tensors": entry(
        call("torch._tensor._rebuild_from_type_v2", MARK + NONE * 4 + b"t") * 2 + b"0"
    ),
    "parameters in parameters": entry(
        b"ctorch._utils\n_rebuild_parameter\n" * 1000 + EMPTY_TUPLE + b"R\x85" * 1000
    ),
    "code": call("os.system", text("true") + b"\x85"),
    "code by another opcode": text("os") + text("system") + b"\x93" + text("true") + b"\x85R",
    "an object": b"ccollections\nUserDict\n" + EMPTY_TUPLE + b"\x81}b",
    "names of two long texts": EMPTY_DICT
    + (text("a" * N) + b"q\x000" + b"h\x00h\x00\x930" * 10_000),
    "classes": MARK + b"ca\nb\n" * (N // 5) + b"t",
    "an extension": b"\x82\x01",
    "an opcode of protocol 0": b"I1\n",
    "nothing": b"",
    "a list that is a dict": EMPTY_DICT + ONE + b"a" + ONE + b"a",
    "too few items": b"s",
    "an empty stack": b"0",
    "no mark": b"t",
    "an odd number of items": EMPTY_DICT + MARK + text("x") + b"u",
    "a key that nobody can print": EMPTY_DICT + b"X\x03\0\0\0\xed\xa0\x80" + ONE + b"s",
    "a text of other bytes": b"X\x02\0\0\0\xff\xfe",
}


def write(path: Path, program: bytes, records: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", PROTO + program + STOP)
        for name, data in ({"data/0": bytes(4)} if records is None else records).items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize("case", PROGRAMS)
def test_refused_in_little_memory(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "a.pt", PROGRAMS[case])
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    assert len(str(caught.value)) < 1000


def test_every_program_in_a_child(tmp_path: Path) -> None:
    """None needs more than 256 MiB, nor more than a minute with all others."""
    for number, program in enumerate(PROGRAMS.values()):
        write(tmp_path / f"{number}.pt", program)
    said = outcome(
        "from deepmnn.source.torch_file import read_torch",
        """for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            read_torch(path)
            print("read", path)
        except DeepmnnError:
            pass""",
        tmp_path,
    )
    assert said == "read"


def test_the_program_of_a_tensor(tmp_path: Path) -> None:
    """What the others are damaged versions of."""
    path = write(
        tmp_path / "a.pt", entry(GOOD), {"data/0": struct.pack("<f", 2.5), "version": b"3\n"}
    )
    assert read_torch(path)["x"].read().tolist() == [2.5]
    assert torch.load(path, weights_only=True)["x"].tolist() == [2.5]


@pytest.mark.parametrize("program", ["code", "code by another opcode"])
def test_code_is_named(tmp_path: Path, program: str) -> None:
    with pytest.raises(CheckpointError, match=r"never loaded: 'os\.system'"):
        read_torch(write(tmp_path / "a.pt", PROGRAMS[program]))


def test_values_beside_the_tensors_are_not_looked_at(tmp_path: Path) -> None:
    """A deep value and a long name do not keep the tensors from being read."""
    deep = text("deep") + EMPTY_TUPLE + b"\x85" * 1000 + b"s"
    program = entry(GOOD) + deep + EMPTY_TUPLE + b"\x85" * 1000 + ONE + b"s"
    assert list(read_torch(write(tmp_path / "a.pt", program))) == ["x"]


# ------------------------------------------------------------------------------- archives


def test_records_as_the_library_finds_them(tmp_path: Path) -> None:
    """Also behind other bytes of a record's header, with 64-bit sizes, and far into the file."""
    for case in ("plain", "zip64", "far", "many"):
        path = tmp_path / f"{case}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = b"PK\5\6" * 3
            with archive.open("a/data.pkl", "w", force_zip64=case == "zip64") as record:
                record.write(PROTO + entry(GOOD) + STOP)
            if case == "many":
                for number in range(70_000):  # more than 16 bits count
                    archive.writestr(f"a/data/{number + 1}", b"")
            if case == "far" and archive.fp is not None:
                archive.start_dir = 5 << 30  # a sparse file
                archive.fp.seek(5 << 30)
            with archive.open("a/data/0", "w", force_zip64=case == "zip64") as record:
                record.write(struct.pack("<f", 3.5))
        assert read_torch(path)["x"].read().tolist() == [3.5], case
        path.unlink()


@pytest.mark.parametrize("field", range(4, 46, 2))
def test_a_directory_that_lies(tmp_path: Path, field: int) -> None:
    """Any field of a record's entry set to anything: refused, or of no account."""
    path = write(tmp_path / "a.pt", entry(GOOD))
    data = path.read_bytes()
    begin = data.index(b"PK\1\2")
    for value in (b"\xff\xff", b"\1\0", b"\xff\x7f"):
        path.write_bytes(data[: begin + field] + value + data[begin + field + 2 :])
        try:
            assert read_torch(path)["x"].read().shape == (1,)
        except CheckpointError:
            continue


def test_records_on_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", entry(GOOD), {"data/0": bytes(4), "data/1": bytes(4)})
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    third = data.index(b"PK\1\2", second + 1)
    data[third + 42 : third + 46] = data[second + 42 : second + 46]
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="records overlap"):
        read_torch(path)


def test_two_records_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", entry(GOOD), {"data/0": bytes(4), "data/1": bytes(4)})
    path.write_bytes(path.read_bytes().replace(b"data/1", b"data/0"))
    with pytest.raises(CheckpointError, match="directory is damaged"):
        read_torch(path)


def test_a_compressed_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"(" * (64 << 20))
    said = outcome(
        "from deepmnn.source.torch_file import read_torch",
        "read_torch(Path(sys.argv[1]))",
        path,
        1 << 26,
    )
    assert "compressed" in said


@pytest.mark.slow
@pytest.mark.parametrize("piece", [EMPTY_DICT + b"q\x00", b"U\x02ab"])
def test_a_large_pickle_takes_four_times_its_size(tmp_path: Path, piece: bytes) -> None:
    """6 MB of what takes most memory for each byte that is written."""
    size = 6 << 20
    path = write(tmp_path / "a.pt", NONE + piece * (size // len(piece)))

    def read() -> None:
        with pytest.raises(CheckpointError):
            read_torch(path)

    _, peak = peak_of(read)
    assert peak < (64 << 20) + 4 * size


def test_a_long_pickle_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="before byte 8388609"):
        read_torch(write(tmp_path / "a.pt", (NONE + b"0") * (5 << 20)))


def test_a_directory_of_nothing_but_records(tmp_path: Path) -> None:
    """8 MB of entries of the central directory, which all are another name."""
    count = 150_000
    listed = b"".join(
        b"PK\1\2" + bytes(24) + struct.pack("<HHH", 8, 0, 0) + bytes(8) + bytes(4) + b"%08x" % i
        for i in range(count)
    )
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(listed), 4, 0)
    (tmp_path / "a.pt").write_bytes(b"PK\3\4" + listed + end)
    said = outcome(
        "from deepmnn.source.torch_file import read_torch",
        "read_torch(Path(sys.argv[1]))",
        tmp_path / "a.pt",
        len(listed) * 10,
    )
    assert "no whole zip archive" in said
