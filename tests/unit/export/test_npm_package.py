"""Files of an npm package: pinned, unpacked by name only, and downloaded once."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from deit.errors import UserError, WorkError
from deit.export import npm_package
from deit.export.npm_package import NpmPackage, check_available, check_integrity, extract, package_files

MEMBERS = {
    "package/dist/run.mjs": b"run",
    "package/README.md": b"read me",
    "package/../../evil.mjs": b"evil",
    "/package/dist/root.mjs": b"evil",
}


def archive(path: Path, members: dict[str, bytes]) -> NpmPackage:
    """Writes the archive of a package, and returns the package that pins it."""
    with tarfile.open(path, "w:gz") as content:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            content.addfile(member, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return NpmPackage("a-package", "1.2.3", f"sha512-{digest}", ("dist/run.mjs",))


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, NpmPackage]:
    """An npm that copies an archive and notes its arguments, first on the PATH. Returns its folder, and the package."""
    folder = tmp_path / "bin"
    folder.mkdir()
    package = archive(folder / "archive.tgz", MEMBERS)
    script = folder / "npm"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> "{folder}/calls"\ncp "{folder}/archive.tgz" a-package-1.2.3.tgz\n', encoding="utf-8"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "a cache"))
    return folder, package


def test_files_are_downloaded_once(fake_npm: tuple[Path, NpmPackage], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, package = fake_npm
    directory = package_files(package)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"run.mjs": b"run"}
    assert (folder / "calls").read_text(encoding="utf-8").startswith("pack a-package@1.2.3 --ignore-scripts")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    check_available(package)
    assert package_files(package) == directory
    with pytest.raises(UserError, match="npm is not installed"):
        check_available(replace(package, version="1.2.4"))


def test_other_archive_is_refused(fake_npm: tuple[Path, NpmPackage], tmp_path: Path) -> None:
    folder, package = fake_npm
    archive(folder / "archive.tgz", {**MEMBERS, "package/dist/run.mjs": b"changed"})
    with pytest.raises(WorkError, match=r"not a-package 1\.2\.3 as it was published: its checksum differs"):
        package_files(package)
    assert not list((tmp_path / "a cache").rglob("run.mjs"))
    with pytest.raises(WorkError, match="checksum"):
        check_integrity(folder / "archive.tgz", package)


def test_failure_of_npm_is_an_error_with_its_reason(fake_npm: tuple[Path, NpmPackage]) -> None:
    folder, package = fake_npm
    (folder / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(WorkError, match=r"npm cannot download a-package@1.2.3 \(npm error code ENOTFOUND\)"):
        package_files(package)
    (folder / "npm").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    with pytest.raises(WorkError, match="no archive"):
        package_files(package)


def test_only_named_files_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a" / "b" / "out"
    out.mkdir(parents=True)
    archive(tmp_path / "archive.tgz", MEMBERS)
    extract(tmp_path / "archive.tgz", ["dist/run.mjs"], out)
    assert sorted(path.name for path in tmp_path.rglob("*.mjs")) == ["run.mjs"]
    with pytest.raises(WorkError, match=r"has no file dist/root.mjs"):
        extract(tmp_path / "archive.tgz", ["dist/root.mjs"], out)
    monkeypatch.setattr(npm_package, "MAX_FILE_BYTES", 2)
    with pytest.raises(WorkError, match=r"has no file dist/run.mjs of at most"):
        extract(tmp_path / "archive.tgz", ["dist/run.mjs"], out)
