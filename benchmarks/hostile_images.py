"""Memory and time that images take which are small on disk and large once decoded, or slow to decode.

    python -m benchmarks.hostile_images [--only NAME] [--write]

Each file is read in a process of its own by each reader: ``exact`` (evaluation), ``fast`` (prediction) and ``train`` (a random
crop). A file is either refused, or read within the limits that docs/guides/data.md states: 1.5 GB of additional memory and 5 s
of CPU time on one core. ``largest`` files are just small enough to be accepted, by the estimate of :mod:`deit.images.cost`.

The last line printed is the result as JSON. ``--write`` writes ``hostile_images.json`` and ``hostile_images.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from benchmarks.reporting import environment, publish
from deit.data.loader import TrainSamples
from deit.data.sources import FileSource
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.mixing import Mixing
from deit.errors import ImageError
from deit.images.decoding import configure_pillow, open_image
from deit.images.processor import DeiTImageProcessor
from deit.inference.decoding import fast_pixels

READERS = ("exact", "fast", "train")
MAX_GB, MAX_CPU_SECONDS = 1.5, 5.0
Chunks = Iterator[bytes]


def png(width: int, height: int, color: int = 2, depth: int = 8, *, extra: bytes = b"", noise: bool = False) -> Chunks:
    """Yields a PNG with a flat image, or one of repeated noise, which takes long to unpack."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row_bytes = (width * channels * depth + 7) // 8
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    if color == 3:
        yield _chunk(b"PLTE", bytes(range(256)) * 3) + _chunk(b"tRNS", bytes(range(256)))
    yield extra
    row = (
        b"\x01" + np.random.default_rng(0).integers(0, 32, row_bytes, np.uint8).tobytes()
        if noise
        else b"\0" + b"\x81" * row_bytes
    )
    packer = zlib.compressobj(1)
    for _ in range(height):
        if packed := packer.compress(row):
            yield _chunk(b"IDAT", packed)
    yield _chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(
    width: int, height: int, bits: tuple[int, ...] = (8,), kind: int = 1, photometric: int = 1, tile: int = 0, more: int = 0
) -> Chunks:
    """Yields a deflated TIFF of one strip, or of one tile, with pixels of one value."""
    tags: list[tuple[int, int, tuple[int, ...]]] = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, bits), (259, 3, (8,)), (262, 3, (photometric,)),
        (277, 3, (len(bits),)), (339, 3, (kind,) * len(bits)),
    ]  # fmt: skip
    if len(bits) == 4 and photometric == 2:
        tags.append((338, 3, (2,)))
    columns, rows = (tile, tile) if tile else (width, height)
    packer = zlib.compressobj(1)
    row = (b"\x3f\x80\0\0"[::-1] if kind == 3 else b"\x7f\x40"[: bits[0] // 8][::-1]) * (columns * len(bits))
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    names = (324, 325) if tile else (273, 279)
    tags += [(322, 4, (tile,)), (323, 4, (tile,))] if tile else [(278, 4, (height,))]
    tags += [(names[0], 4, (8,)), (names[1], 4, (len(data),))]
    tags += [(40_000 + index, 4, (index,)) for index in range(more)]
    directory, outside = b"", b""
    end = 8 + len(data) + 2 + 12 * len(tags) + 4
    for number, code, values in sorted(tags):
        packed = struct.pack(f"<{len(values)}{'H' if code == 3 else 'I'}", *values)
        field = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", end + len(outside))
        outside += packed if len(packed) > 4 else b""
        directory += struct.pack("<HHI", number, code, len(values)) + field
    yield struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data
    yield struct.pack("<H", len(tags)) + directory + b"\0\0\0\0" + outside


def saved(image: Image.Image, format_name: str, **options: Any) -> Chunks:
    """Yields a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, format_name, **options)
    yield file.getvalue()


def many_scans(width: int, height: int, scans: int) -> Chunks:
    """Yields a progressive JPEG whose last scan is repeated."""
    content = b"".join(saved(Image.new("L", (width, height)), "JPEG", progressive=True))
    last = content.rindex(b"\xff\xda")
    yield content[:last] + content[last:-2] * scans + content[-2:]


def bmp_rle(width: int, height: int, body: bytes) -> Chunks:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    yield b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body


def many_frames(frames: int) -> Chunks:
    """Yields a GIF of 65,535 x 2,000 pixels with many empty frames."""
    content = b"".join(saved(Image.new("P", (4, 4)), "GIF"))
    frame = content[content.index(b"\x2c") : -1]
    yield content[:6] + struct.pack("<HH", 65_535, 2_000) + content[10:-1] + frame * frames + b";"


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def zipped_chunk(name: bytes, head: bytes, count: int) -> bytes:
    """Returns a chunk of a PNG whose text or color profile is 100 MB once unpacked."""
    return _chunk(name, head + zlib.compress(bytes(10**8), 9)) * count


FLAT = (128, 128, 128)
FILES: dict[str, Callable[[], Chunks]] = {
    "float TIFF, largest": lambda: tiff(10_200, 10_200, (32,), kind=3),
    "float TIFF, 300 Mpx": lambda: tiff(17_400, 17_400, (32,), kind=3),
    "16-bit gray TIFF, largest": lambda: tiff(13_300, 13_300, (16,)),
    "RGBA TIFF, largest": lambda: tiff(10_500, 10_500, (8, 8, 8, 8), photometric=2),
    "CMYK TIFF, largest": lambda: tiff(10_500, 10_500, (8, 8, 8, 8), photometric=5),
    "16-bit RGB TIFF": lambda: tiff(9_000, 9_000, (16, 16, 16), photometric=2),
    "LAB TIFF": lambda: tiff(7_000, 7_000, (8, 8, 8), photometric=8),
    "TIFF of 16 x 16 in a tile of 2 GB": lambda: tiff(16, 16, (8, 8, 8), photometric=2, tile=26_000),
    "TIFF of 5,000 tags": lambda: tiff(100, 100, (8,), more=5_000),
    "gray PNG, largest": lambda: png(13_300, 13_300, 0),
    "16-bit gray PNG, largest": lambda: png(13_300, 13_300, 0, 16),
    "RGB PNG, largest": lambda: png(13_300, 13_300),
    "RGB PNG, noise": lambda: png(8_500, 8_500, noise=True),
    "RGBA PNG, largest": lambda: png(10_800, 10_800, 6),
    "RGBA PNG, 178 Mpx": lambda: png(13_377, 13_377, 6),
    "LA PNG, largest": lambda: png(11_500, 11_500, 4),
    "palette PNG with transparency": lambda: png(11_500, 11_500, 3),
    "16-bit RGB PNG": lambda: png(11_000, 11_000, 2, 16),
    "sideways PNG": lambda: png(13_000, 13_000, extra=_chunk(b"eXIf", exif(6).tobytes()[6:])),
    "1-bit PNG": lambda: png(13_300, 13_300, 0, 1),
    "PNG, 10^6 x 1": lambda: png(10**6, 1),
    "PNG, 65,535 x 1": lambda: png(65_535, 1),
    "PNG, 1 x 65,535": lambda: png(1, 65_535),
    "PNG, 65,535 x 2,700": lambda: png(65_535, 2_700),
    "PNG with texts of 100 MB": lambda: png(9, 9, extra=zipped_chunk(b"zTXt", b"a\0\0", 9)),
    "PNG with a profile of 100 MB": lambda: png(9, 9, extra=zipped_chunk(b"iCCP", b"a\0\0", 1)),
    "JPEG, largest": lambda: saved(Image.new("RGB", (13_377, 13_377), FLAT), "JPEG"),
    "progressive JPEG, largest": lambda: saved(
        Image.new("RGB", (13_377, 13_377), FLAT), "JPEG", progressive=True, subsampling=0
    ),
    "sideways JPEG, largest": lambda: saved(Image.new("RGB", (13_377, 13_377), FLAT), "JPEG", exif=exif(6)),
    "JPEG of 2,000 scans": lambda: many_scans(8_000, 8_000, 2_000),
    "small JPEG of 100,000 scans": lambda: many_scans(600, 600, 100_000),
    "WebP, 60 Mpx": lambda: saved(Image.new("RGB", (7_700, 7_700), FLAT), "WEBP", method=0, quality=1),
    "WebP, 16,383 x 10,900": lambda: saved(Image.new("RGB", (16_383, 10_900), FLAT), "WEBP", method=0, quality=1),
    "lossless WebP, 60 Mpx": lambda: saved(Image.new("RGBA", (7_700, 7_700), FLAT), "WEBP", method=0, quality=0, lossless=True),
    "AVIF, 36 Mpx": lambda: saved(Image.new("RGB", (6_000, 6_000), FLAT), "AVIF", speed=10),
    "GIF, 65,535 x 2,000, 100,000 frames": lambda: many_frames(100_000),
    "RLE BMP, empty rows": lambda: bmp_rle(4_600, 4_600, b"\1\1\0\0" * 4_600 + b"\0\1"),
    "RLE BMP, 178 Mpx": lambda: bmp_rle(13_300, 13_300, b"\1\1\0\0" * 13_300 + b"\0\1"),
    "PPM as text": lambda: iter([b"P3 1300 1300 255\n" + b"1 2 3 " * 1_300**2]),
    "PPM as text, 9 Mpx": lambda: iter([b"P3 3000 3000 255\n" + b"1 2 3 " * 3_000**2]),
    "PPM of 7 bits": lambda: iter([b"P6 1200 1200 127\n" + bytes(3 * 1_200**2)]),
    "PPM with a comment of 100 MB": lambda: iter([b"P6 #" + b"x" * 10**8 + b"\n9 9 255\n" + bytes(243)]),
    "PFM, largest": lambda: iter([b"Pf\n11000 11000\n-1.0\n", *(bytes(44_000) for _ in range(11_000))]),
}  # fmt: skip


def reader(name: str) -> Callable[[Path], Any]:
    """Returns a function that reads a file as evaluation, prediction or training does."""
    processor = DeiTImageProcessor.for_size(224, 224)
    if name == "exact":
        return lambda path: processor.pixels(open_image(path))
    if name == "fast":
        return lambda path: fast_pixels(processor, path)
    transform = TrainTransform(Augmentation(crop="simple"), 224, 224)

    def train(path: Path) -> np.ndarray:
        source = FileSource(path.parent, (path.name,), ("a",), np.zeros(1, np.int64))
        return TrainSamples(source, transform, Mixing(), seed=0).sample(0, 0)

    return train


def memory(field: str) -> float:
    """Returns a size from ``/proc/self/status`` in GB: ``VmRSS`` now, or ``VmHWM`` at its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def measure(path: Path, reader_name: str) -> dict[str, Any]:
    """Reads a file in a process of its own; returns its outcome, additional memory in GB and CPU time in seconds."""
    inlet, outlet = os.pipe()
    process = os.fork()
    if not process:
        read = reader(reader_name)
        before, start = memory("VmRSS"), time.process_time()
        try:
            read(path)
            outcome = ""
        except ImageError as error:
            outcome = str(error)
        measured = {
            "refused": outcome.replace(str(path), "IMAGE"),
            "gb": memory("VmHWM") - before,
            "cpu_s": time.process_time() - start,
        }
        os.write(outlet, json.dumps(measured).encode())
        os._exit(0)
    os.close(outlet)
    with os.fdopen(inlet, "rb") as pipe:
        content = pipe.read()
    os.waitpid(process, 0)
    row: dict[str, Any] = (
        json.loads(content) if content else {"refused": "the process died", "gb": float("inf"), "cpu_s": float("inf")}
    )
    return {**row, "within": row["gb"] <= MAX_GB and row["cpu_s"] <= MAX_CPU_SECONDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure only files whose name contains this")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args()
    configure_pillow()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(name for name in FILES if options.only in name):
            path = Path(folder) / f"{number}.image"
            if not (writer := os.fork()):  # so that the memory of writing does not count
                with path.open("wb") as file:
                    file.writelines(FILES[name]())
                os._exit(0)
            os.waitpid(writer, 0)
            row: dict[str, Any] = {"file": name, "megabytes": path.stat().st_size / 1e6}
            row |= {reader_name: measure(path, reader_name) for reader_name in READERS}
            rows.append(row)
            path.unlink()
            print(json.dumps(row), flush=True)
    versions = {"Pillow": PIL.__version__, "NumPy": np.__version__, "torch": torch.__version__}
    result = {**environment(torch.device("cpu"), versions), "files": rows}
    publish(result, table(result), "hostile_images" if options.write else None)


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    failures = sum(not row[name]["within"] for row in result["files"] for name in READERS)
    lines = [
        "# Images that are small on disk",
        "",
        f"{result['date']}, {result['hardware']}, {result['software']}.",
        "Additional memory and CPU time to read a file for evaluation (exact), prediction (fast) and training. Limits:",
        f"{MAX_GB} GB and {MAX_CPU_SECONDS:.0f} s. Outside the limits: {failures} of {len(READERS) * len(result['files'])}.",
        "Command: `python -m benchmarks.hostile_images --write`.",
        "",
        "| file | MB | exact | fast | training | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in result["files"]:
        cells = [f"{row[name]['gb']:.2f} GB, {row[name]['cpu_s']:.1f} s" for name in READERS]
        refused = "refused" if row["exact"]["refused"] else ""
        lines.append(f"| {row['file']} | {row['megabytes']:.2f} | {' | '.join(cells)} | {refused} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
