"""Memory and time that files take which were made to exhaust a reader: weights, configurations, logs and labels.

    python -m benchmarks.hostile_files [--write]

Each file is read in a process of its own. It is to be refused, or read, within 2 s and 500 MB of additional memory. Linux only.

The last line printed is the result as JSON. ``--write`` writes ``hostile_files.json`` and ``hostile_files.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import environment, publish
from deit.checkpoints.run_log import read_log
from deit.checkpoints.tensors import open_tensors
from deit.data.datasets.mat_files import read_mat
from deit.errors import DeiTError
from deit.recipes.schema import Recipe
from deit.system.files import read_json

MAX_SECONDS, MAX_MB = 2.0, 500
HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
STORAGE = b"(X\x07\0\0\0storagectorch\nByteStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x05\0\0\0\0\x10tQ"


def legacy(content: bytes) -> bytes:
    """Returns a file of torch.save in its legacy format."""
    return HEAD + b"\x80\x02" + content + b"."


def safetensors_file(header: str) -> bytes:
    """Returns a safetensors file without values."""
    return struct.pack("<Q", len(header)) + header.encode()


def zip_file(members: Mapping[str, bytes]) -> bytes:
    """Returns an archive as torch.save writes it."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        file.seek(0)
        return file.read()


def mat_file(element: bytes) -> bytes:
    """Returns a MATLAB file with one compressed element."""
    packed = zlib.compress(element, 9)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + struct.pack("<II", 15, len(packed)) + packed


def collisions() -> bytes:
    """Returns a pickled dictionary whose keys have one hash."""
    keys = (b"\x8a\x0a" + (number * (2**61 - 1)).to_bytes(10, "little") + b"N" for number in range(1, 80_000))
    return legacy(b"}(" + b"".join(keys) + b"u")


def nested_keys() -> bytes:
    """Returns a pickled key that takes 2**60 steps to hash."""
    return legacy(b"}K\x01\x85" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(60)) + b"Ns")


def tensor_header(count: int) -> str:
    """Returns a safetensors header of empty tensors."""
    return "{" + ",".join(f'"{n:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(count)) + "}"


ATTACKS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "legacy pickle: a size of 68 GB of bytes": (lambda: legacy(b"ctorch\nSize\n" + STORAGE + b"\x85R"), open_tensors),
    "legacy pickle: an allocation": (lambda: legacy(b"ctorch\nByteStorage\n\x8a\x05\0\0\0\0\x10\x85R"), open_tensors),
    "legacy pickle: keys of one hash": (collisions, open_tensors),
    "legacy pickle: a nested key": (nested_keys, open_tensors),
    "legacy pickle: a distant memo": (lambda: legacy(b"Nr\xff\xff\xff\xff"), open_tensors),
    "legacy pickle: a million lists": (lambda: legacy(b"]" * 1_000_000), open_tensors),
    "legacy pickle: a million brackets": (lambda: legacy(b"(" * 1_000_000), open_tensors),
    "zip: a pickle of 200,000 lists": (lambda: zip_file({"a/data.pkl": b"\x80\x02" + b"]" * 200_000 + b"."}), open_tensors),
    "zip: 50,000 members": (lambda: zip_file({f"a/{number}": b"" for number in range(50_000)}), open_tensors),
    "safetensors: 66,000 tensors": (lambda: safetensors_file(tensor_header(66_000)), open_tensors),
    "safetensors: deep nesting": (lambda: safetensors_file('{"a":' * 500_000), open_tensors),
    "JSON: 5 million lists": (lambda: b'{"a":[' + b"[]," * 5_000_000 + b"0]}", read_json),
    "JSON: 300,000 objects": (lambda: b'{"a":[' + b'{"b":0},' * 300_000 + b"0]}", read_json),
    "JSON: deep nesting": (lambda: b'{"a":' + b"[" * 10_000_000, read_json),
    "JSON: a number of 15 MB": (lambda: b'{"a":' + b"9" * 15_000_000 + b"}", read_json),
    "TOML: deep nesting": (lambda: b"a = " + b"[" * 100_000, lambda path: Recipe.load(path)),
    "TOML: a long dotted key": (lambda: b"a" + b".a" * 60_000 + b" = 1", lambda path: Recipe.load(path)),
    "TOML: many tables": (lambda: b"".join(b"[a.b%d]\n" % number for number in range(10_000)), lambda path: Recipe.load(path)),
    "log: 16 MB of brackets": (lambda: b"[" * 16_000_000, lambda path: read_log(path.parent)),
    "log: 5 million lists": (lambda: b"[" + b"[]," * 5_000_000 + b"0]", lambda path: read_log(path.parent)),
    "MATLAB: a decompression bomb": (lambda: mat_file(bytes(2**30)), lambda path: read_mat(path, "labels")),
    "MATLAB: 8 million elements": (lambda: mat_file(bytes(2**26 - 2**12)), lambda path: read_mat(path, "labels")),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Reads a file in a new process.

    Returns:
        Size of the file, seconds, additional megabytes at the peak, and the outcome.
    """
    make, read = ATTACKS[name]
    path = folder / "log.jsonl"
    path.write_bytes(make())
    receive, send = os.pipe()
    if not (child := os.fork()):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, start = memory("VmRSS"), time.perf_counter()
        try:
            read(path)
            outcome = "read"
        except DeiTError as error:
            outcome = type(error).__name__
        except BaseException as error:  # noqa: BLE001
            outcome = f"not ours: {type(error).__name__}"
        seconds = time.perf_counter() - start
        os.write(send, json.dumps([seconds, (memory("VmHWM") - before) / 1000, outcome]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as results:
        seconds, megabytes, outcome = json.loads(results.read() or '[0, 0, "crash"]')
    os.waitpid(child, 0)
    return {"file": name, "bytes": path.stat().st_size, "seconds": seconds, "mb": megabytes, "outcome": outcome}


def memory(field: str) -> int:
    """Returns a field of ``/proc/self/status``, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as a Markdown page."""
    rows = [
        f"| {row['file']} | {row['bytes']:,} | {row['seconds']:.2f} | {max(row['mb'], 0):.0f} | {row['outcome']} |"
        for row in result["files"]
    ]
    slowest, largest = (max(row[key] for row in result["files"]) for key in ("seconds", "mb"))
    return "\n".join(
        [
            "# Files that exhaust a reader",
            "",
            f"{result['date']}, {result['hardware']}; {result['software']}.",
            f"The slowest took {slowest:.2f} s (limit {MAX_SECONDS:.0f} s), the largest {largest:.0f} MB (limit {MAX_MB} MB).",
            "",
            "| file | bytes | seconds | MB at the peak | outcome |",
            "|---|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the files in benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [measure(name, Path(folder)) for name in ATTACKS]
    result = {**environment(torch.device("cpu"), {"torch": torch.__version__}), "files": files}
    publish(result, table(result), "hostile_files" if arguments.write else None)


if __name__ == "__main__":
    main()
