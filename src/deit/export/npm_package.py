"""Gets files of an npm package, verified by its pinned integrity, and keeps them in the cache."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from deit.errors import UserError, WorkError
from deit.system.files import new_directory
from deit.system.home import cache_directory
from deit.system.progress import print_status

MAX_FILE_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class NpmPackage:
    """A version of an npm package, and the files of it that are needed.

    Attributes:
        name: of the package.
        version: of the package.
        integrity: of its archive, as npm states it: ``sha512-`` and the digest in base64.
        files: paths in the package, which differ in their file names.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]


def check_available(package: NpmPackage) -> None:
    """Checks that the files are in the cache, or that npm is installed.

    Raises:
        UserError: neither.
    """
    if not _cached(package).is_dir() and shutil.which("npm") is None:
        raise UserError(f"npm is not installed, which downloads {package.name}", "install Node.js, of which npm is a part")


def package_files(package: NpmPackage) -> Path:
    """Returns a directory with the files of a package, which is downloaded only if they are not in the cache.

    Raises:
        UserError: npm is not installed.
        WorkError: npm fails, or its archive is not the pinned one.
    """
    directory = _cached(package)
    if not directory.is_dir():
        check_available(package)
        with tempfile.TemporaryDirectory() as folder:
            archive = _download(package, Path(folder))
            check_integrity(archive, package)
            with new_directory(directory) as draft:
                extract(archive, package.files, draft)
    return directory


def check_integrity(archive: Path, package: NpmPackage) -> None:
    """Checks that an archive is the pinned one.

    Raises:
        WorkError: it is another.
    """
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != package.integrity:
        raise WorkError(
            f"What npm downloaded is not {package.name} {package.version} as it was published: its checksum differs",
            "check npm's registry setting with `npm config get registry`",
        )


def extract(archive: Path, files: Collection[str], directory: Path) -> None:
    """Writes some files of a package's archive to a directory, each under its file name. Nothing else is unpacked.

    Raises:
        WorkError: a file is missing or too large.
    """
    with tarfile.open(archive, "r:gz") as content:
        members = {member.name: member for member in content if member.isreg()}
        for name in files:
            member = members.get(f"package/{name}")
            file = None if member is None or member.size > MAX_FILE_BYTES else content.extractfile(member)
            if file is None:
                raise WorkError(f"{archive.name} has no file {name} of at most {MAX_FILE_BYTES >> 20} MiB")
            (directory / Path(name).name).write_bytes(file.read())


def _cached(package: NpmPackage) -> Path:
    return cache_directory() / "npm" / f"{package.name}-{package.version}"


def _download(package: NpmPackage, folder: Path) -> Path:
    """Downloads the archive of a package with npm, from the registry of the user's configuration."""
    npm = shutil.which("npm")
    assert npm is not None
    specification = f"{package.name}@{package.version}"
    print_status(f"Downloading {package.name} {package.version} with npm")
    command = [npm, "pack", specification, "--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        problem = done.stderr if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    archive = next(folder.glob("*.tgz"), None)
    if problem or archive is None:
        reason = " ".join(problem.split())[:300] or "no archive"
        raise WorkError(f"npm cannot download {specification} ({reason})", "check the network and `npm config list`")
    return archive
