"""Kinds of files by their endings and first bytes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.images.decoding import FORMATS, open_image
from deit.images.sniffing import (
    HEAD_BYTES,
    KIND_OF_ENDING,
    FileKind,
    ending_of,
    has_image_ending,
    kind_of_content,
    sniff,
)
from tests.helpers import pattern


@pytest.mark.parametrize("name", [*FORMATS, "MPO"])
def test_content_of_every_format_that_is_decoded_is_an_image(name: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    pattern(9, 7).save(file, name)
    assert kind_of_content(file.getvalue()[:HEAD_BYTES]) is FileKind.IMAGE
    (tmp_path / "photo").write_bytes(file.getvalue())
    assert sniff(tmp_path / "photo") is FileKind.IMAGE
    assert open_image(tmp_path / "photo").size == (9, 7)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", FileKind.EMPTY),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", FileKind.HEIC),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", FileKind.HEIC),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", FileKind.IMAGE),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", FileKind.VIDEO),
        (b"RIFF\0\0\0\0AVI LIST", FileKind.VIDEO),
        (b"RIFF\0\0\0\0WAVEfmt ", FileKind.AUDIO),
        (b"PK\x03\x04\x14\0", FileKind.ARCHIVE),
        (b"%PDF-1.7", FileKind.DOCUMENT),
        (b"8BPS\0\x01", FileKind.OTHER_IMAGE),
        ("été; кошка\n".encode(), FileKind.TEXT),
        (b"\xef\xbb\xbfpath,label\r\n", FileKind.TEXT),
        (("a" * (HEAD_BYTES - 1) + "é").encode()[:HEAD_BYTES], FileKind.TEXT),  # a character that is cut off
        (b"BMI of all patients", FileKind.TEXT),
        (b"P5 is a page", FileKind.IMAGE),  # a PGM header: the check before training says that it is none
        (b"\xfe\xfe\x01\x02", FileKind.OTHER),
        (b"\0" * 64, FileKind.OTHER),
    ],
)
def test_kind_of_content(head: bytes, kind: FileKind) -> None:
    assert kind_of_content(head) is kind


@given(st.binary(max_size=HEAD_BYTES))
def test_any_content_has_a_kind(head: bytes) -> None:
    assert kind_of_content(head) in FileKind


@pytest.mark.parametrize(
    ("name", "ending"), [("a.JPG", "jpg"), ("a.tar.gz", "gz"), ("a", ""), (".hidden", ""), ("a.", ""), ("é.Jfif", "jfif")]
)
def test_ending(name: str, ending: str) -> None:
    assert ending_of(name) == ending


@pytest.mark.parametrize("name", ["a.JPG", "b c.webp", "x/y.jfif", "a.jpe", "a.avif", "a.TIFF", "a.pgm", "a.mpo"])
def test_endings_of_images(name: str) -> None:
    assert has_image_ending(name)
    assert has_image_ending(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "png", "a.svg", "a.nef", "a.jpg.zip", "jpg/a", ".png"])
def test_endings_of_other_files(name: str) -> None:
    assert not has_image_ending(name)


def test_endings_are_listed_once() -> None:
    from deit.images.sniffing import _ENDINGS

    assert sum(len(endings.split()) for endings in _ENDINGS.values()) == len(KIND_OF_ENDING)
