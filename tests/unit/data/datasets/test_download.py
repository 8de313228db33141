"""Fetching and unpacking: what comes is checked, what fails leaves nothing, nothing lands elsewhere."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
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


class Answer(io.BytesIO):
    def __init__(self, content: bytes, length: int | None = None) -> None:
        super().__init__(content)
        self.headers = {} if length is None else {"Content-Length": str(length)}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """Let the network answer with this, or fail with it; the addresses that were asked for come back."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked: list[str] = []

    def set_answer(answer: Any) -> list[str]:
        def urlopen(url: str, timeout: float) -> Any:
            assert timeout > 0
            asked.append(url)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return set_answer


def test_what_is_missing_is_fetched_once(tmp_path: Path, network: Callable[[Any], list[str]]) -> None:
    content = archive(tmp_path / "a", ("things/deep/a.txt", b"hello"), ("other/b.txt", b""))
    asked = network(Answer(content, len(content)))
    root = tmp_path / "new folder"
    for _ in range(2):
        ensure(root, "Things", remote(content))
    assert asked == [URL]
    assert (root / "things" / "deep" / "a.txt").read_text() == "hello"
    assert [path.name for path in root.iterdir()] == ["things"]


def test_an_archive_that_a_person_put_there_is_unpacked(tmp_path: Path, network: Callable[[Any], list[str]]) -> None:
    asked = network(urllib.error.URLError("no network"))
    content = archive(tmp_path / "things.tar.gz", ("things/a.txt", b"hello"))
    with pytest.raises(DataError, match="is not the file that the authors of Things published"):
        ensure(tmp_path, "Things", remote(content, md5="0" * 32))
    ensure(tmp_path, "Things", remote(content))
    assert asked == []
    assert {path.name for path in tmp_path.iterdir()} == {"things", "things.tar.gz"}


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (urllib.error.URLError("Name or service not known"), r"Things cannot be downloaded \(Name or service not known\)"),
        (urllib.error.HTTPError(URL, 404, "Not Found", {}, None), r"\(Not Found\)"),  # type: ignore[arg-type]
        (TimeoutError("timed out"), r"\(timed out\)"),
        (ConnectionResetError("reset by peer"), r"\(reset by peer\)"),
        (IncompleteRead(b""), r"\(IncompleteRead"),
    ],
)
def test_without_a_network_it_is_said_what_to_do(
    tmp_path: Path, network: Callable[[Any], list[str]], failure: Exception, words: str
) -> None:
    network(failure)
    with pytest.raises(DataError, match=words) as caught:
        ensure(tmp_path, "Things", remote(b"x"))
    assert caught.value.remedy == f"download {URL} elsewhere and put it into {tmp_path}"
    assert list(tmp_path.iterdir()) == []


def test_a_disabled_network_is_not_tried(
    tmp_path: Path, network: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = network(Answer(b""))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"CIFAR-10 is not in .*HF_HUB_OFFLINE disables downloads: download https.*binary\.tar\.gz"
    ):
        open_data(f"cifar10:{tmp_path}")
    assert asked == []


@pytest.mark.parametrize("spoil", ["cut", "other", "long", "short header"])
def test_what_comes_must_be_the_file(tmp_path: Path, network: Callable[[Any], list[str]], spoil: str) -> None:
    content = archive(tmp_path / "a", ("things/a.txt", bytes(100)))
    wanted = remote(content)
    answers = {
        "cut": Answer(content[:-1], len(content)),
        "other": Answer(b"x" * len(content)),
        "long": Answer(content * 40_000),
        "short header": Answer(content, len(content) + 5),
    }
    network(answers[spoil])
    words = "far larger than Things" if spoil == "long" else "is truncated or another file"
    with pytest.raises(DataError, match=words):
        ensure(tmp_path / "root", "Things", wanted)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_full_disk_is_found_beforehand(
    tmp_path: Path, network: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = network(Answer(b""))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match=r"iNaturalist 2018 needs 240\.1 GB .*DEIT_DATA"):
        open_data(f"inaturalist-2018:{tmp_path}")
    assert asked == []


def test_nothing_lands_outside(tmp_path: Path) -> None:
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


def test_an_archive_that_grows_without_bound_is_stopped(tmp_path: Path) -> None:
    archive(tmp_path / "a.tgz", ("things/zeros", bytes(30 * 2**20)))
    assert (tmp_path / "a.tgz").stat().st_size < 2**18
    with pytest.raises(DataError, match="unpacks to far more than its size"):
        unpack(tmp_path / "a.tgz", tmp_path, "things")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
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
    asked = network(Answer(content, len(content)))
    train = cifar_splits(made, tmp_path / "root").train
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    assert len(train.labels) == 100
