"""Output: tables for people, JSON and CSV for programs, in any encoding and on any terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from deit.cli import main
from deit.cli.main import app
from deit.cli.output import Column, Output, print_json, print_separated, print_table
from deit.errors import UserError
from deit.system.progress import print_status

ENCODINGS = ("ascii", "cp1252", "latin-1", "shift_jis", "utf-8")
NAMES = ("plain", "café", "птица", "鳥", "🦜", "\udcff.jpg", "a\x1b[2Jb", "\u202egpj.exe", "new\nline", "tab\there")
LONG = "a very long class name with words " * 8


class Stream(io.TextIOWrapper):
    """A stream of an encoding, as the standard streams are."""

    def __init__(self, encoding: str, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined,no-any-return]


def redirect(monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool = False) -> Stream:
    stream = Stream(encoding, terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_valid_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = redirect(monkeypatch, encoding)
    print_json({name: name for name in NAMES})
    assert json.loads(stream.text()) == {name: name for name in NAMES}
    assert "\x1b" not in stream.text()
    assert "\u202e" not in stream.text()
    assert ("птица" in stream.text()) == (encoding == "utf-8")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_table_is_printed_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = redirect(monkeypatch, encoding)
    print_table(["class", "images"], [[name, 1] for name in NAMES], title="птица")
    lines = stream.text().splitlines()
    assert len(lines) == len(NAMES) + 2
    assert all(line.endswith(" 1") for line in lines[2:])
    assert "\x1b" not in stream.text()
    assert lines[0] == ("птица" if encoding in ("utf-8", "shift_jis") else ascii("птица").strip("'"))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_separated_values_are_read_back(monkeypatch: pytest.MonkeyPatch, delimiter: str, encoding: str) -> None:
    stream = redirect(monkeypatch, encoding)
    rows = [[name, 1 / 3, None, 10**20] for name in (*NAMES, 'quo"te', "a,b", "a\r\nb", "", " space ", "=1+1")]
    print_separated([Column("class"), Column("top-1", "{:.1%}", "top1"), Column("none"), Column("n")], rows, delimiter)
    text = stream.text()
    found = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    assert found[0] == ["class", "top1", "none", "n"]
    assert len(found) == len(rows) + 1
    assert all(row[1:] == [repr(1 / 3), "", str(10**20)] for row in found[1:])
    if encoding == "utf-8":
        assert [row[0] for row in found[1:] if "udcff" not in row[0]] == [row[0] for row in rows if row[0] != "\udcff.jpg"]
    assert text.endswith("\r\n" if delimiter == "," else "\n")


@given(st.lists(st.tuples(st.text(), st.floats() | st.none() | st.integers()), max_size=5))
def test_any_table_is_printed_and_read_back(rows: list[tuple[str, Any]]) -> None:
    stream = Stream("utf-8")
    original, sys.stdout = sys.stdout, stream
    try:
        print_separated([Column("a"), Column("b")], rows, ",")
        found = list(csv.reader(io.StringIO(stream.text(), newline="")))
        print_table(["a", "b"], rows)
        print_json([list(row) for row in rows if not isinstance(row[1], float) or math.isfinite(row[1])])
    finally:
        sys.stdout = original
    expected = [[name.encode("utf-8", "backslashreplace").decode(), "" if b is None else str(b)] for name, b in rows]
    assert found[1:] == expected


def test_no_line_is_broken_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = redirect(monkeypatch, "utf-8")
    print_table(["class", "path", "images"], [[LONG, "/a/b/" + "c" * 300, 12345], ["x", "y", 1]], title=LONG)
    title, header, first, second = stream.text().splitlines()
    assert title == LONG
    assert first == f"{LONG} {' '}{'/a/b/' + 'c' * 300}   12345"
    assert header.split() == ["class", "path", "images"]
    assert second.split() == ["x", "y", "1"]


@pytest.mark.parametrize("columns", [20, 40, 80])
@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_text_is_folded_on_a_terminal_and_numbers_are_not(monkeypatch: pytest.MonkeyPatch, columns: int, term: str) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", term)
    stream = redirect(monkeypatch, "utf-8", terminal=True)
    print_table(["class", Column("top-1", "{:.2%}"), "images"], [[LONG, 0.98765, 1234567], ["鳥" * 30, 1.0, 1]])
    lines = stream.text().splitlines()
    assert max(map(cell_len, lines)) <= max(columns, 12 + 2 + 7 + 2 + 7)
    assert any("98.77%" in line and "1234567" in line for line in lines)
    assert "\x1b" not in stream.text()
    words = "".join(line[:12] if columns < 40 else line for line in lines)
    assert words.count("鳥") == 30 or columns < 40


@pytest.mark.parametrize("flags", [["--json", "--csv"], ["--csv", "--tsv"], ["--json", "--tsv"], ["--json", "--csv", "--tsv"]])
@pytest.mark.parametrize("command", [["model", "list"], ["data", "list"], ["recipe", "list"]])
def test_one_format_at_a_time(command: list[str], flags: list[str]) -> None:
    with pytest.raises(UserError, match="--json, --csv and --tsv exclude each other: pass one of them"):
        CliRunner().invoke(app, [*command, *flags], catch_exceptions=False)


@pytest.mark.parametrize(
    ("command", "header"),
    [
        (["model", "list"], ["model", "parameters", "gmacs", "top1"]),
        (["model", "show", "deit-tiny-patch16-224"], ["setting", "value"]),
        (["data", "list"], ["name", "classes", "train", "validation", "test", "terms", "origin"]),
        (["recipe", "list"], ["recipe", "purpose"]),
        (["info"], ["kind", "name", "value", "detail"]),
    ],
)
def test_lists_as_csv_and_tsv(command: list[str], header: list[str]) -> None:
    tables = []
    for flag, delimiter in (("--csv", ","), ("--tsv", "\t")):
        result = CliRunner().invoke(app, [*command, flag], catch_exceptions=False)
        assert result.exit_code == 0
        tables.append(list(csv.reader(io.StringIO(result.stdout, newline=""), delimiter=delimiter)))
    assert tables[0] == tables[1]
    assert tables[0][0] == header
    assert all(len(row) == len(header) for row in tables[0])
    assert len(tables[0]) > 3


def test_numbers_for_people_and_programs() -> None:
    def printed(*flags: str) -> str:
        return CliRunner().invoke(app, ["model", "list", *flags], catch_exceptions=False).stdout

    rows = {row["name"]: row for row in json.loads(printed("--json"))}
    (row,) = [line for line in printed("--csv").splitlines() if line.startswith("deit-tiny-patch16-224,")]
    assert row.split(",")[1] == str(rows["deit-tiny-patch16-224"]["parameters"])
    assert "5.7 M" in printed()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["predict", "--help"], 0),
        (["data", "list"], 0),
        (["info"], 0),
        (["model", "show", "птица/🦜\udcff"], 2),
        (["--птица"], 2),
        (["train", "птица\x1b[2J", "--recipe", "鳥"], 2),
        (["evaluate", "鳥", "\u202e птица"], 2),
    ],
)
def test_program_runs_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str, arguments: list[str], code: int) -> None:
    out, errors = Stream(encoding), Stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "argv", ["deit", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.run()
    assert (caught.value.code or 0) == code
    text = out.text() if code == 0 else errors.text()
    assert text
    assert "\x1b[2J" not in text
    assert (errors if code == 0 else out).text() == ""


def test_status_goes_to_standard_error_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    print_status("Reading a\x1b[2J\u202e")
    assert capsys.readouterr() == ("", "Reading a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}\n")
    monkeypatch.setattr(sys, "stderr", None)  # closed
    print_status("nobody reads this")


def test_emoji_and_words_with_joiners_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    family, word = "👨\u200d👩\u200d👧", "می\u200cخ"
    print_table(["class"], [[family], [word]])
    print_json([family, word])
    out = capsys.readouterr().out
    assert out.count(family) == out.count(word) == 2


def test_cells_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[b]class[/b]"], [["[bold]птица[/bold]"], [":smile:"]])
    assert capsys.readouterr().out.split() == ["[b]class[/b]", "[bold]птица[/bold]", ":smile:"]


def test_people_see_what_programs_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    for output in (Output(), Output(as_csv=True), Output(as_tsv=True)):
        output.line("a note")
        output.table(["a", Column("b", "{:.0%}")], [["x", 0.125]], title="a title")
    assert capsys.readouterr().out == "a note\na title\na    b\nx  12%\na,b\r\nx,0.125\r\na\tb\nx\t0.125\n"
