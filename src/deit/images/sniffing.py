"""Recognizes the kind of a file, by its ending or its first bytes. Nothing is decoded."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from deit.errors import MissingExtraError

HEAD_BYTES = 64  # enough for every signature below


class FileKind(StrEnum):
    """Kinds of files, as far as data sets are concerned."""

    IMAGE = "image"
    HEIC = "HEIC image"
    RAW = "camera raw image"
    OTHER_IMAGE = "image in an unsupported format"
    VIDEO = "video"
    AUDIO = "audio file"
    TEXT = "text file"
    DOCUMENT = "document"
    ARCHIVE = "archive"
    MODEL = "model file"
    EMPTY = "empty file"
    OTHER = "other file"


_ENDINGS: dict[FileKind, str] = {
    FileKind.IMAGE: "avif avifs bmp gif jfif jif jpe jpeg jpg mpo pbm pgm pjp pjpeg png apng pnm ppm tif tiff webp",
    FileKind.HEIC: "heic heics heif heifs hif",
    FileKind.RAW: "3fr arw cr2 cr3 crw dng erf iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f",
    FileKind.OTHER_IMAGE: (
        "ai cdr cur dcm dds emf eps exr fits hdr icns ico j2k jls jp2 jpf jpx jxl jxr kra mrxs ndpi nii npy npz pcx psb psd "
        "sgi svg svs tga wmf xcf"
    ),
    FileKind.VIDEO: "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv",
    FileKind.AUDIO: "aac aiff flac m4a mid mp3 ogg opus wav wma",
    FileKind.TEXT: (
        "aae cfg conf css csv htm html ini js json jsonl log m md ndjson py rst sh sql thm toml tsv txt xml xmp yaml yml ipynb"
    ),
    FileKind.DOCUMENT: "doc docx key numbers ods odt pages pdf pkl pickle ppt pptx rtf xls xlsx",
    FileKind.ARCHIVE: "7z bz2 gz iso lz4 rar tar tbz2 tgz txz xz zip zst",
    FileKind.MODEL: "bin ckpt gguf h5 hdf5 keras onnx pb pt pth safetensors tflite",
}
KIND_OF_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}

# Brands of the ISO base media format ("ftyp" boxes), by what holds them.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")

_SIGNATURES: tuple[tuple[bytes, FileKind], ...] = (
    (b"\xff\xd8\xff", FileKind.IMAGE),  # JPEG
    (b"\x89PNG\r\n\x1a\n", FileKind.IMAGE),
    (b"GIF87a", FileKind.IMAGE),
    (b"GIF89a", FileKind.IMAGE),
    (b"II*\0", FileKind.IMAGE),  # TIFF
    (b"MM\0*", FileKind.IMAGE),
    (b"II+\0", FileKind.IMAGE),  # BigTIFF
    (b"MM\0+", FileKind.IMAGE),
    (b"8BPS", FileKind.OTHER_IMAGE),
    (b"\0\0\0\x0cjP  ", FileKind.OTHER_IMAGE),
    (b"\xff\x0a", FileKind.OTHER_IMAGE),  # JPEG XL
    (b"\0\0\0\x0cJXL ", FileKind.OTHER_IMAGE),
    (b"PK\x03\x04", FileKind.ARCHIVE),
    (b"\x1f\x8b", FileKind.ARCHIVE),
    (b"Rar!", FileKind.ARCHIVE),
    (b"7z\xbc\xaf", FileKind.ARCHIVE),
    (b"%PDF", FileKind.DOCUMENT),
    (b"\x1aE\xdf\xa3", FileKind.VIDEO),  # Matroska
)


def ending_of(name: str) -> str:
    """Returns the ending of a file name in lower case, without its dot; empty if there is none."""
    stem, dot, ending = name.rpartition(".")
    return ending.lower() if dot and stem else ""


def sniff(path: str | os.PathLike[str]) -> FileKind:
    """Returns the kind of a file by its first bytes.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb", buffering=0) as file:
        return kind_of_content(file.read(HEAD_BYTES))


def kind_of_content(head: bytes) -> FileKind:
    """Returns the kind of a file by its first bytes, up to ``HEAD_BYTES``."""
    if not head:
        return FileKind.EMPTY
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": FileKind.IMAGE, b"AVI ": FileKind.VIDEO, b"WAVE": FileKind.AUDIO}.get(head[8:12], FileKind.OTHER)
    if head[4:8] == b"ftyp":
        brands = {head[start : start + 4] for start in (8, *range(16, len(head) - 3, 4))}
        if brands & set(_AVIF_BRANDS):
            return FileKind.IMAGE
        return FileKind.HEIC if brands & set(_HEIC_BRANDS) else FileKind.VIDEO
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return FileKind.IMAGE
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n":
        return FileKind.IMAGE  # PBM, PGM or PPM
    return FileKind.TEXT if _is_text(head) else FileKind.OTHER


def is_readable(kind: StrEnum) -> bool:
    """Whether files of a kind are read as images: HEIC only if its optional library is installed."""
    return kind is FileKind.IMAGE or (kind is FileKind.HEIC and reads_heic())


@lru_cache(maxsize=1)
def reads_heic() -> bool:
    """Whether the optional library for HEIC images is installed. Does not import it."""
    return find_spec("pillow_heif") is not None


def heic_remedy() -> str:
    """Returns how to make HEIC images readable."""
    return MissingExtraError("A HEIC image", "heic").remedy


def has_image_ending(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends like an image that this package reads. The file is not opened and need not exist."""
    kind = KIND_OF_ENDING.get(ending_of(Path(path).name))
    return kind is not None and is_readable(kind)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not a character that was cut off
            return False
        text = head[: error.start].decode()
    return all(letter.isprintable() or letter in "\t\r\n\f\ufeff" for letter in text)
