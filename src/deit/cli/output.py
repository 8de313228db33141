"""What a command prints on standard output: lines and tables for people; JSON, CSV or TSV for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from deit.cli.options import Command, with_fields
from deit.errors import UserError
from deit.system.files import json_text
from deit.system.terminal import JOINERS, can_encode, printable, write

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print the table as CSV, with all digits.")]
TsvOption = Annotated[bool, typer.Option("--tsv", help="Print the table separated by tabs, with all digits.")]

FOLDED_WIDTH = 12  # columns; a terminal's column of text is not made narrower
GAP = 2  # columns between two columns of a table
_BEYOND_ASCII = re.compile("[\x7f-\U0010ffff]")


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        title: heading for people.
        text: format of a value for people, such as ``{:.2%}``, or a function that returns its text.
        name: heading in CSV; empty takes the title.
    """

    title: str
    text: str | Callable[[Any], str] = "{}"
    name: str = ""

    def format(self, value: Any) -> str:
        """Returns a value as text for people; None is empty."""
        if value is None:
            return ""
        return self.text.format(value) if isinstance(self.text, str) else self.text(value)


@dataclass(frozen=True)
class Output:
    """The format of a command's output, as options; see :func:`with_output`. At most one of them is set."""

    as_json: JsonOption = False
    as_csv: CsvOption = False
    as_tsv: TsvOption = False

    def __post_init__(self) -> None:
        if self.as_json + self.as_csv + self.as_tsv > 1:
            raise UserError("--json, --csv and --tsv exclude each other", "pass one of them")

    @property
    def for_people(self) -> bool:
        """Whether neither JSON nor a table for programs is wanted."""
        return not (self.as_json or self.as_csv or self.as_tsv)

    def line(self, text: str = "") -> None:
        """Prints a line for people. Programs get only the table."""
        if self.for_people:
            print_line(text)

    def table(self, columns: Sequence[Column | str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """Prints a table of values: formatted for people, and with all digits for programs."""
        described = [Column(column) if isinstance(column, str) else column for column in columns]
        if self.for_people:
            print_table(described, rows, title)
        else:
            print_separated(described, rows, "," if self.as_csv else "\t")


def with_output(command: Command) -> Command:
    """Adds ``--json``, ``--csv`` and ``--tsv`` to a command, which takes them as a keyword argument ``output``."""
    return with_fields(Output, "output")(command)


def print_line(text: str = "") -> None:
    """Prints a line to standard output. Characters that a terminal would act on are replaced."""
    write("\n".join(map(printable, text.split("\n"))) + "\n", sys.stdout)


def print_json(content: Any) -> None:
    """Prints one JSON document to standard output.

    Characters that a terminal would act on are escaped, and so are all beyond ASCII if the encoding of the output lacks one.
    """
    text = json_text(content)
    if not can_encode(text, sys.stdout):
        text = json.dumps(json.loads(text), indent=2) + "\n"
    write(_BEYOND_ASCII.sub(_escaped, text), sys.stdout)


def print_separated(columns: Sequence[Column], rows: Sequence[Sequence[Any]], delimiter: str) -> None:
    """Prints a table as CSV (RFC 4180) or, with tabs, as TSV. Numbers have all their digits, and None is empty."""
    text = io.StringIO(newline="")
    # RFC 4180 ends lines with CR LF; where the stream itself writes LF as CR LF, LF is enough.
    ends = "\r\n" if delimiter == "," and os.linesep == "\n" else "\n"
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ends)
    writer.writerow([column.name or column.title for column in columns])
    writer.writerows(rows)
    write(text.getvalue(), sys.stdout)


def print_table(columns: Sequence[Column | str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Prints a table for people to standard output; columns of numbers are aligned to the right.

    On a terminal, long text is folded to its width. Elsewhere, such as in a pipe or a file, no line is broken.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    described = [Column(column) if isinstance(column, str) else column for column in columns]
    lines = [[printable(column.title) for column in described]]
    lines += [[printable(column.format(value)) for column, value in zip(described, row, strict=True)] for row in rows]
    numeric = [all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(described))]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(described))]
    smallest = [width if number else min(width, FOLDED_WIDTH) for width, number in zip(widths, numeric, strict=True)]

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(lines[0]):
        justify: Literal["left", "right"] = "right" if numeric[index] and index else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=numeric[index], overflow="fold", min_width=smallest[index])
    for line in lines[1:]:
        table.add_row(*map(Text, line))  # Text: class names are not markup

    gaps = GAP * (len(widths) - 1)
    width = sum(widths) + gaps
    if sys.stdout.isatty():
        width = min(width, max(shutil.get_terminal_size().columns, sum(smallest) + gaps))
    text = io.StringIO()
    Console(file=text, color_system=None, width=width).print(table, crop=False)
    if title:  # not as the table's title, which would wrap at the width of the table
        print_line(title)
    write("".join(line.rstrip() + "\n" for line in text.getvalue().splitlines()), sys.stdout)


def _escaped(match: re.Match[str]) -> str:
    letter = match[0]
    if letter.isprintable() or letter in JOINERS:
        return letter
    return json.dumps(letter)[1:-1]
