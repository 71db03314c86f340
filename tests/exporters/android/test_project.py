"""The files of the Android Studio project, and how it is written."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deepmnn.errors import RequestError, StorageError
from deepmnn.exporters.android import project as module
from deepmnn.exporters.android import write_project

TEMPLATE = module.TEMPLATE
DOCS = Path(__file__).parents[3] / "docs/android.md"
ANDROID = "{http://schemas.android.com/apk/res/android}"
FILES = sorted(str(path.relative_to(TEMPLATE)) for path in TEMPLATE.rglob("*") if path.is_file())


def test_the_project_is_the_template_with_its_blanks_filled(tmp_path: Path) -> None:
    target = tmp_path / "new" / "app"
    write_project(target, "R1-Distill_1.5B", 131072)
    written = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert written == sorted([*FILES, "deepmnn.json"])
    values = ElementTree.parse(target / "app/src/main/res/values/model.xml").getroot()
    assert {v.attrib["name"]: v.text for v in values} == {
        "model_folder": "R1-Distill_1.5B",
        "context_tokens": "131072",
    }
    for name in FILES:
        assert not re.search("@[A-Z_]+@", (target / name).read_text(encoding="utf-8")), name
    assert [path.name for path in target.parent.iterdir()] == ["app"]


def test_a_reader_has_it_before_him_in_ten_minutes() -> None:
    lines = {name: (TEMPLATE / name).read_text(encoding="utf-8").count("\n") for name in FILES}
    assert sum(lines.values()) < 1500
    assert max(lines.values()) < 250


def test_xml_is_well_formed_and_the_manifest_asks_for_nothing() -> None:
    files = [name for name in FILES if name.endswith(".xml")]
    assert len(files) == 4
    for name in files:
        ElementTree.parse(TEMPLATE / name)
    manifest = ElementTree.parse(TEMPLATE / "app/src/main/AndroidManifest.xml").getroot()
    assert not [e.tag for e in manifest.iter() if "permission" in e.tag or "feature" in e.tag]
    exported = [
        e.attrib[f"{ANDROID}name"] for e in manifest.iter() if f"{ANDROID}exported" in e.attrib
    ]
    assert exported == [".ChatActivity"]


def test_every_text_that_the_layout_and_the_manifest_name_is_there() -> None:
    main = TEMPLATE / "app/src/main"
    strings = ElementTree.parse(main / "res/values/strings.xml").getroot()
    names = {element.attrib["name"] for element in strings}
    used = set()
    for file in (main / "res/layout/chat.xml", main / "AndroidManifest.xml"):
        used |= set(re.findall('"@string/([a-z_]+)"', file.read_text(encoding="utf-8")))
    java = (main / "java/org/deepmnn/chat/ChatActivity.java").read_text(encoding="utf-8")
    assert used | set(re.findall(r"R\.string\.(\w+)", java)) == names | {"model_folder"}


def test_gradle_files_name_one_ndk_one_mnn_and_existing_files() -> None:
    gradle = (TEMPLATE / "app/build.gradle").read_text()
    for opening, closing in ("()", "[]", "{}"):
        assert gradle.count(opening) == gradle.count(closing)
    for name in re.findall(r"rootProject\.file\('([^']+)'\)", gradle):
        assert name.split("/")[0] == "mnn" or (TEMPLATE / name).is_file(), name
    (cmake,) = re.findall("path '(.+)'", gradle)
    assert (TEMPLATE / "app" / cmake).is_file()
    assert "abiFilters 'arm64-v8a'" in gradle
    assert "arm64-v8a" in (TEMPLATE / "FetchMnn.java").read_text()


def test_what_is_fetched_is_pinned() -> None:
    lines = (TEMPLATE / "mnn.sha256").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[0-9a-f]{64}  https://\S+", line) for line in lines)
    archive, *headers = (line.split()[1] for line in lines)
    assert "/releases/download/3.6.1/mnn_3.6.1_android_" in archive
    assert len({header.split("/alibaba/MNN/")[1][:41] for header in headers}) == 1  # one commit
    assert len(headers) == 16
    assert headers[-1].endswith("/include/llm/llm.hpp")


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", ".hidden", "-x", "ä", "a'b", "a\n"])
def test_names_that_adb_would_not_take_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="the model folder"):
        write_project(tmp_path / "app", name, 4096)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("context", [0, -1])
def test_a_context_of_no_tokens_is_refused(tmp_path: Path, context: int) -> None:
    with pytest.raises(RequestError, match="1 or more"):
        write_project(tmp_path / "app", "m", context)


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    for target in (full, full / "mine", full / "mine" / "below"):
        with pytest.raises(StorageError):
            write_project(target, "m", 1)
    assert [path.name for path in full.iterdir()] == ["mine"]
    empty = tmp_path / "empty"
    empty.mkdir()
    write_project(empty, "m", 1)
    assert (empty / "app/build.gradle").is_file()

    def full_disk(self: object, name: str, data: bytes) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(module.DirectoryWriter, "add_file", full_disk)
    with pytest.raises(StorageError, match="full"):
        write_project(tmp_path / "half", "m", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_the_documentation_names_what_is_there() -> None:
    text = DOCS.read_text(encoding="utf-8")
    sha256 = (TEMPLATE / "mnn.sha256").read_text().splitlines()[1].split()[0]
    assert sha256 in text
    for name in set(re.findall(r"`([\w/.-]+\.(?:java|cc|gradle|sha256|txt|xml))`", text)):
        assert any(file.endswith(name) for file in FILES), name
