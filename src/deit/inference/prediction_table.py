"""The formats of a table of predictions, which is written in parts: CSV, JSON Lines and Parquet.

CSV and Parquet have the columns ``image``, ``class_1``, ``probability_1`` and so on, most likely first, and ``error``. A row of
JSON Lines is :meth:`Prediction.to_dict`.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from deit.errors import MissingExtraError, UserError
from deit.inference.predictor import Prediction
from deit.system.files import json_line


class TableFormat(Protocol):
    """How predictions are written."""

    def part(self, predictions: Sequence[Prediction]) -> bytes:
        """Returns the content of a part."""

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        """Writes the table of all parts, one after the other."""


def table_format(path: Path, top: int) -> TableFormat:
    """Returns the format of a table by the ending of its name.

    Args:
        path: the table.
        top: number of classes per image.

    Raises:
        MissingExtraError: Parquet, without pyarrow.
        UserError: another ending.
    """
    match path.suffix.lower():
        case ".csv":
            return CsvTable(top)
        case ".jsonl":
            return JsonLinesTable()
        case ".parquet":
            return ParquetTable(top)
    raise UserError(f"{path} has no ending of a table", "pass a name that ends in .parquet, .csv or .jsonl")


def column_names(top: int) -> list[str]:
    """Returns the columns of a table with ``top`` classes per image."""
    return ["image", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability")), "error"]


def row_values(prediction: Prediction, top: int) -> list[Any]:
    """Returns the values of :func:`column_names`; None where there is none."""
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    values: list[Any] = [value for pair in pairs for value in pair] or [None] * (2 * top)
    return [prediction.image, *values, prediction.error or None]


class CsvTable:
    """RFC 4180, in UTF-8, with all digits."""

    def __init__(self, top: int) -> None:
        self._top = top

    def part(self, predictions: Sequence[Prediction]) -> bytes:
        return self._lines([row_values(prediction, self._top) for prediction in predictions])

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        file.write(self._lines([column_names(self._top)]))
        _append(parts, file)

    def _lines(self, rows: Sequence[Sequence[Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        return text.getvalue().encode(errors="surrogateescape")


class JsonLinesTable:
    """One JSON object per line."""

    def part(self, predictions: Sequence[Prediction]) -> bytes:
        return "".join(json_line(prediction.to_dict()) for prediction in predictions).encode()

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        _append(parts, file)


class ParquetTable:
    """Parquet, of which each part is a row group."""

    def __init__(self, top: int) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingExtraError("Writing Parquet", "data") from None
        self._top, self._parquet, self._arrow = top, parquet, pyarrow
        types = {"class": pyarrow.string(), "probability": pyarrow.float64()}
        names = column_names(top)
        fields = [(name, types.get(name.partition("_")[0], pyarrow.string())) for name in names]
        self._schema = pyarrow.schema(fields)

    def part(self, predictions: Sequence[Prediction]) -> bytes:
        columns = zip(*(row_values(prediction, self._top) for prediction in predictions), strict=True)
        arrays = [
            self._arrow.array(map(_valid_text, values), field.type) for values, field in zip(columns, self._schema, strict=True)
        ]
        content = io.BytesIO()
        self._parquet.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema), content)
        return content.getvalue()

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        with self._parquet.ParquetWriter(file, self._schema) as writer:
            for part in parts:
                writer.write_table(self._parquet.read_table(part, schema=self._schema))


def _append(parts: Sequence[Path], file: BinaryIO) -> None:
    for part in parts:
        with part.open("rb") as content:
            shutil.copyfileobj(content, file)


def _valid_text(value: Any) -> Any:
    """Replaces the bytes of a file name that are not UTF-8, which Parquet cannot hold."""
    return value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value
