"""Downloading and unpacking: content is verified, failures leave nothing behind, and no member leaves the folder."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from deit.data.datasets.cifar import CIFAR10, cifar_splits
from deit.data.datasets.download import Remote, ensure, unpack
from deit.data.opening import open_data
from deit.errors import DataError
from tests.unit.data.layouts import cifar10

URL = "https://example.org/things.tar.gz"


def archive(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def remote(content: bytes, md5: str | None = None, size: int | None = None) -> Remote:
    digest = md5 or hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Remote(URL, digest, len(content) if size is None else size, "things")


class Response(io.BytesIO):
    def __init__(self, content: bytes, length: int | None = None) -> None:
        super().__init__(content)
        self.headers = {} if length is None else {"Content-Length": str(length)}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """Replaces the network by one response or failure. Returns the list of requested URLs."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    requested: list[str] = []

    def set_response(response: Any) -> list[str]:
        def urlopen(url: str, timeout: float) -> Any:
            assert timeout > 0
            requested.append(url)
            if isinstance(response, Exception):
                raise response
            return response

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return requested

    return set_response


def test_missing_archive_is_downloaded_once(tmp_path: Path, network: Callable[[Any], list[str]]) -> None:
    content = archive(tmp_path / "a", ("things/deep/a.txt", b"hello"), ("other/b.txt", b""))
    requested = network(Response(content, len(content)))
    root = tmp_path / "new folder"
    for _ in range(2):
        ensure(root, "Things", remote(content))
    assert requested == [URL]
    assert (root / "things" / "deep" / "a.txt").read_text() == "hello"
    assert [path.name for path in root.iterdir()] == ["things"]


def test_archive_provided_by_the_user_is_unpacked(tmp_path: Path, network: Callable[[Any], list[str]]) -> None:
    requested = network(urllib.error.URLError("no network"))
    content = archive(tmp_path / "things.tar.gz", ("things/a.txt", b"hello"))
    with pytest.raises(DataError, match="is not the file that the authors of Things published"):
        ensure(tmp_path, "Things", remote(content, md5="0" * 32))
    ensure(tmp_path, "Things", remote(content))
    assert requested == []
    assert {path.name for path in tmp_path.iterdir()} == {"things", "things.tar.gz"}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (urllib.error.URLError("Name or service not known"), r"Things cannot be downloaded \(Name or service not known\)"),
        (urllib.error.HTTPError(URL, 404, "Not Found", {}, None), r"\(Not Found\)"),  # type: ignore[arg-type]
        (TimeoutError("timed out"), r"\(timed out\)"),
        (ConnectionResetError("reset by peer"), r"\(reset by peer\)"),
        (IncompleteRead(b""), r"\(IncompleteRead"),
    ],
)
def test_failed_download_is_an_error_with_a_remedy(
    tmp_path: Path, network: Callable[[Any], list[str]], failure: Exception, message: str
) -> None:
    network(failure)
    with pytest.raises(DataError, match=message) as caught:
        ensure(tmp_path, "Things", remote(b"x"))
    assert caught.value.remedy == f"download {URL} elsewhere and put it into {tmp_path}"
    assert list(tmp_path.iterdir()) == []


def test_disabled_downloads_are_not_attempted(
    tmp_path: Path, network: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = network(Response(b""))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"CIFAR-10 is not in .*HF_HUB_OFFLINE disables downloads: download https.*binary\.tar\.gz"
    ):
        open_data(f"cifar10:{tmp_path}")
    assert requested == []


@pytest.mark.parametrize("spoil", ["cut", "other", "long", "short header"])
def test_wrong_download_is_an_error(tmp_path: Path, network: Callable[[Any], list[str]], spoil: str) -> None:
    content = archive(tmp_path / "a", ("things/a.txt", bytes(100)))
    wanted = remote(content)
    responses = {
        "cut": Response(content[:-1], len(content)),
        "other": Response(b"x" * len(content)),
        "long": Response(content * 40_000),
        "short header": Response(content, len(content) + 5),
    }
    network(responses[spoil])
    message = "far larger than Things" if spoil == "long" else "is truncated or another file"
    with pytest.raises(DataError, match=message):
        ensure(tmp_path / "root", "Things", wanted)
    assert list((tmp_path / "root").iterdir()) == []


def test_insufficient_disk_space_is_an_error_before_the_download(
    tmp_path: Path, network: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = network(Response(b""))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match=r"iNaturalist 2018 needs 240\.1 GB .*DEIT_DATA"):
        open_data(f"inaturalist-2018:{tmp_path}")
    assert requested == []


def test_archive_members_stay_inside_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("../evil.txt", "things/../../evil.txt"):
        archive(tmp_path / "a.tgz", ("things/a.txt", b""), (name, b"x"))
        with pytest.raises(DataError, match="cannot be unpacked"):
            unpack(tmp_path / "a.tgz", root, "things")
    archive(tmp_path / "a.tgz", ("things", b""), kind=tarfile.SYMTYPE, target="/etc")
    with pytest.raises(DataError, match="holds no things"):
        unpack(tmp_path / "a.tgz", root, "things")
    assert list(root.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"root", "a.tgz"}
    archive(tmp_path / "a.tgz", ("things/a.txt", b""), (f"{tmp_path}/evil.txt", b"x"))  # taken as a relative one, and left out
    unpack(tmp_path / "a.tgz", root, "things")
    assert [path.name for path in root.rglob("*")] == ["things", "a.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"root", "a.tgz"}


def test_archive_is_unpacked_once_by_several_programs(tmp_path: Path) -> None:
    archive(tmp_path / "a.tgz", *((f"things/{index}", bytes(1000)) for index in range(50)))

    def unpack_all(_: int) -> list[str]:
        unpack(tmp_path / "a.tgz", tmp_path, "things")
        return sorted(path.name for path in (tmp_path / "things").iterdir())

    with ThreadPoolExecutor(4) as programs:
        assert list(programs.map(unpack_all, range(4))) == [sorted(map(str, range(50)))] * 4
    assert {path.name for path in tmp_path.iterdir()} == {"things", "a.tgz"}


def test_decompression_bomb_is_an_error(tmp_path: Path) -> None:
    archive(tmp_path / "a.tgz", ("things/zeros", bytes(30 * 2**20)))
    assert (tmp_path / "a.tgz").stat().st_size < 2**18
    with pytest.raises(DataError, match="unpacks to far more than its size"):
        unpack(tmp_path / "a.tgz", tmp_path, "things")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_damaged_archive_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tgz cannot be unpacked"):
        unpack(tmp_path / "a.tgz", tmp_path, "things")
    whole = archive(tmp_path / "a.tgz", ("things/a", bytes(range(256)) * 400))
    (tmp_path / "a.tgz").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"a\.tgz cannot be unpacked"):
        unpack(tmp_path / "a.tgz", tmp_path, "things")


def test_cifar_is_downloaded_and_opened(tmp_path: Path, network: Callable[[Any], list[str]]) -> None:
    cifar10(tmp_path / "made", 20)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    content = (tmp_path / "a.tgz").read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    made = replace(CIFAR10, remote=replace(CIFAR10.remote, md5=digest))
    requested = network(Response(content, len(content)))
    train = cifar_splits(made, tmp_path / "root").train
    assert requested == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    assert len(train.labels) == 100
