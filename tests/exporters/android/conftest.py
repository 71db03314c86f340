"""The exported project, compiled for this machine over a fake MNN and a few classes of Android."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deepmnn.exporters.android import write_project

HERE = Path(__file__).parent
ANDROID = "{http://schemas.android.com/apk/res/android}"
LINT = ("--release", "17", "-Xlint:all", "-Werror")


def sh(*command: str | Path, cwd: Path | None = None) -> str:
    """What the command prints; its failure fails the test, with all of it."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("android") / "app"
    write_project(target, "model", context_length=4096)
    return target


@pytest.fixture(scope="session")
def jdk() -> Path:
    """The home of a JDK 17 or later."""
    javac = shutil.which("javac")
    if not javac:
        pytest.skip("no javac: the Java of the Android project is not tested")
    home = Path(javac).resolve().parents[1]
    version = sh(javac, "-version").split()[1]
    if int(version.split(".")[0]) < 17 or not (home / "include/jni.h").is_file():
        pytest.skip(f"javac {version} in {home}: a JDK 17 with jni.h is needed")
    return home


def write_r(project: Path, folder: Path) -> Path:
    """R.java, as Android's build makes it from res/: here with the resources themselves."""
    values: dict[str, list[tuple[str, str]]] = {"string": [], "integer": []}
    for file in sorted((project / "app/src/main/res/values").glob("*.xml")):
        for element in ElementTree.parse(file).getroot():
            text = element.text or ""
            literal = text if element.tag == "integer" else f'"{text}"'
            values[element.tag].append((element.attrib["name"], literal))
    layout = ElementTree.parse(project / "app/src/main/res/layout/chat.xml")
    views = [e for e in layout.iter() if f"{ANDROID}id" in e.attrib]
    names = [view.attrib[f"{ANDROID}id"].removeprefix("@+id/") for view in views]
    lines = ["package org.deepmnn.chat;", "import android.view.View;", "import android.widget.*;"]
    lines += ["import java.util.Map;", "public final class R {"]
    count = 0
    for kind, entries in {
        **values,
        "id": [(n, "") for n in names],
        "layout": [("chat", "")],
    }.items():
        lines.append(f"public static final class {kind} {{")
        for name, _ in entries:
            count += 1
            lines.append(f"public static final int {name} = {count};")
        lines.append("}")
    pairs = [f"{kind}.{name}, {value}" for kind in values for name, value in values[kind]]
    lines.append(f"public static final Map<Integer, Object> VALUES = Map.of({', '.join(pairs)});")
    lines.append("public static Map<Integer, View> inflate(int id) {")
    for name, view in zip(names, views, strict=True):
        enabled = view.attrib.get(f"{ANDROID}enabled", "true")
        lines.append(f"{view.tag} {name} = new {view.tag}(); {name}.setEnabled({enabled});")
    lines.append(f"return Map.of({', '.join(f'R.id.{n}, {n}' for n in names)});" + "}}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "R.java"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def classes(project: Path, jdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app and the scenarios, compiled: no warning, no class of Android that is not here."""
    target = tmp_path_factory.mktemp("classes")
    compiler = (jdk / "bin/javac", *LINT, "-encoding", "UTF-8", "-d", target, "-cp", target)
    stubs = [*(HERE / "java/android").rglob("*.java"), write_r(project, target / "generated")]
    sh(*compiler, *stubs, *(project / "app/src/main/java").rglob("*.java"))
    sh(*compiler, "-Xlint:-try", *(HERE / "java/org").rglob("*.java"))  # they close what is open
    return target


@pytest.fixture(scope="session")
def bridge(project: Path, jdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of libdeepmnn.so, built by the project's own CMakeLists.txt."""
    compiler, cmake = shutil.which("g++"), shutil.which("cmake")
    if not compiler or not cmake:
        pytest.skip("no g++ or no cmake: the JNI bridge is not tested")
    mnn = tmp_path_factory.mktemp("mnn")
    shutil.copytree(HERE / "fake_mnn/llm", mnn / "include/llm")
    libraries = mnn / "lib/host"
    libraries.mkdir(parents=True)
    shared = (compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    fake = HERE / "fake_mnn/fake_llm.cc"
    sh(*shared, f"-I{mnn / 'include'}", fake, "-pthread", "-o", libraries / "libllm.so")
    for name in ("MNN", "MNN_Express"):
        sh(*shared, "-x", "c++", os.devnull, "-o", libraries / f"lib{name}.so")
    build = mnn / "build"
    jni = f"-I{jdk / 'include'} -I{jdk / 'include/linux'} -Werror"
    options = (f"-DMNN={mnn}", "-DANDROID_ABI=host", f"-DCMAKE_CXX_FLAGS={jni}")
    sh(cmake, "-S", project / "app/src/main/cpp", "-B", build, *options)
    sh(cmake, "--build", build)
    return build


def write_model(folder: Path) -> None:
    """A model folder as far as the app looks into it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    manifest = {"files": {"config.json": {"nbytes": 2, "crc32": 1}}}
    (folder / "deepmnn.json").write_text(json.dumps(manifest, indent=1))


Run = Callable[..., str]


@pytest.fixture
def scenario(classes: Path, jdk: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Runs a scenario in a JVM that watches the use of JNI; hands back what it prints."""
    write_model(tmp_path / "model")
    (tmp_path / "models").symlink_to(".")

    def run(group: str, name: str, *options: str, native: bool = True) -> str:
        path = request.getfixturevalue("bridge") if native else tmp_path
        java = (jdk / "bin/java", "-ea", "-Xcheck:jni", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
        flags = (f"-Djava.library.path={path}", "-Dfile.encoding=UTF-8", *options)
        out = sh(*java, *flags, "-cp", classes, "org.deepmnn.Scenario", group, name, tmp_path)
        assert not re.search("WARNING in native method|FATAL", out), out
        return out

    return run
