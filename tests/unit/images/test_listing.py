"""Listing folders: what is read, what is left out and how it is counted, links, own directories and junk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deit.images import sniffing
from deit.images.listing import LeftOut, OtherKind, is_own_directory, is_system_name, list_folder, path_key
from deit.images.sniffing import FileKind
from tests.helpers import pattern


def write(root: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def image(path: Path, image_format: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern(9, 7).save(path, image_format)


@given(st.lists(st.lists(st.sampled_from(["a", "a-b", "a.b", "b", "é"]), min_size=1, max_size=3), max_size=8))
def test_path_key_sorts_like_paths(lists: list[list[str]]) -> None:
    paths = ["/".join(components) for components in lists]
    assert sorted(paths, key=path_key) == [str(path) for path in sorted(map(Path, paths))]


def test_images_are_recognized_by_ending_or_content(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c", "d.jpg_large", "e.JPG~", "f.unknown", "g.Jpeg"):
        image(tmp_path / name)
    image(tmp_path / "h.avif", "AVIF")
    image(tmp_path / "i", "AVIF")
    image(tmp_path / "j.download", "WEBP")
    listing = list_folder(tmp_path)
    expected = ["a.jfif", "b.jpe", "c", "d.jpg_large", "e.JPG~", "f.unknown", "g.Jpeg", "h.avif", "i", "j.download"]
    assert listing.images == expected
    assert not listing.left_out.counts


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "0.jpg")
    write(tmp_path, "cat/notes.txt", "cat/more.csv", "README", content=b"text\n")
    write(tmp_path, "cat/clip.MP4", "cat/clip", content=b"\0\0\0\x18ftypisom\0\0\0\0isommp41")
    write(tmp_path, "cat/phone.HEIC", "dog/no ending", content=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    write(tmp_path, "dog/raw.NEF", "dog/drawing.svg", "dog/all.zip", "dog/odd.xyz", content=b"\xfe\xfe\0\x01")
    write(tmp_path, "dog/nothing")
    left_out = list_folder(tmp_path).all_left_out()
    assert left_out.counts == {
        FileKind.TEXT: 3,
        FileKind.VIDEO: 2,
        FileKind.HEIC: 2,
        FileKind.RAW: 1,
        FileKind.OTHER_IMAGE: 1,
        FileKind.ARCHIVE: 1,
        FileKind.OTHER: 1,
        FileKind.EMPTY: 1,
    }
    text = left_out.describe()
    assert text.startswith("3 text files (README, cat/more.csv, cat/notes.txt), 2 HEIC images (")
    assert "pip install 'deit[heic]'" in text
    assert "1 camera raw image (dog/raw.NEF)" in text


def test_heic_images_are_read_with_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.heic", "b.HEIF", "c", content=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(sniffing, "reads_heic", lambda: True)
    assert list_folder(tmp_path).images == ["a.heic", "b.HEIF", "c"]


def test_files_are_opened_only_if_their_ending_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.jpg", "b.PNG", "c.txt", "d.mp4", "e.heic", "f.zip")
    monkeypatch.setattr("deit.images.listing.sniff", lambda path: pytest.fail(f"opened {path}"))
    assert list_folder(tmp_path).images == ["a.jpg", "b.PNG"]


JUNK = [
    *("__MACOSX/cat/._0.jpg", "cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "cat/.ipynb_checkpoints/0-checkpoint.jpg"),
    *("cat/._0.jpg", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini", ".thumbnails/a.png", "$RECYCLE.BIN/S-1/a.jpg"),
    *("System Volume Information/a.jpg", "lost+found/a.jpg", "@Recycle/a.jpg", "#recycle/a.jpg", ".Trash/a.jpg"),
    *(".git/a.png", "__pycache__/a.png", ".venv/lib/a.png", "node_modules/x/a.png", "Catalog Previews.lrdata/a.jpg"),
    *("env/pyvenv.cfg", "cat/0.jpg@SynoEAStream", "Photos Library.photoslibrary/originals/a.jpg", "cat/AlbumArtSmall.jpg"),
]


@pytest.mark.parametrize("name", JUNK)
def test_files_of_other_programs_are_left_out(tmp_path: Path, name: str) -> None:
    image(tmp_path / "cat" / "0.jpg")
    image(tmp_path / name)
    listing = list_folder(tmp_path)
    assert listing.image_paths() == ["cat/0.jpg"]
    assert listing.all_left_out().counts == {OtherKind.SYSTEM: 1}
    assert not listing.all_left_out().describe()
    assert "1 hidden or system file" in listing.all_left_out().describe(hidden=True)


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("thumbs", True),
        ("recycle", True),
        ("recycled", True),
        ("eaDir", True),
        ("a@b.jpg", False),
        ("temp", True),
        ("lost", True),
    ],
)
def test_names_that_only_resemble_those_of_other_programs(name: str, is_folder: bool) -> None:
    assert not is_system_name(name, is_folder)


OWN = [
    ("run.json", "recipe.toml", "checkpoints/1/model.safetensors", "best/config.json"),
    ("config.json", "model.safetensors", "training.json"),
    ("config.json", "model.safetensors.index.json"),
    ("config.json", "pytorch_model.bin"),
    ("bundle.json", "preprocessor_config.json", "model.onnx"),
    ("cache.json", "view-000000.bin"),
    ("cache.json", "view-000001.part"),
    ("adapter_config.json", "adapter_model.safetensors"),
]


@pytest.mark.parametrize("files", OWN)
@pytest.mark.parametrize("where", ["teacher", "runs/teacher", "out/2024/teacher"])
def test_own_directories_are_left_out(tmp_path: Path, files: tuple[str, ...], where: str) -> None:
    for name in ("cat/0.jpg", "dog/0.jpg"):
        image(tmp_path / name)
    write(tmp_path / where, *files)
    image(tmp_path / where / "sample images" / "0.jpg")
    listing = list_folder(tmp_path)
    assert list(listing.folders) == ["cat", "dog"]
    assert listing.all_left_out().counts == {OtherKind.OWN: 1}
    assert where.partition("/")[0] in listing.all_left_out().describe()
    assert is_own_directory(tmp_path / where)
    assert not is_own_directory(tmp_path)


def test_output_of_quickstart_is_left_out(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "0.jpg")
    for run in ("teacher", "student"):
        write(tmp_path / "quickstart" / run, "run.json", "recipe.toml")
    image(tmp_path / "quickstart" / "digits" / "0.png", "PNG")
    assert list_folder(tmp_path).image_paths() == ["cat/0.jpg"]
    assert list_folder(tmp_path / "quickstart").image_paths() == ["digits/0.png"]  # asked for, it is read


@pytest.mark.parametrize("files", [("config.json",), ("cache.json", "labels.txt"), ("run.json",), ("model.safetensors",)])
def test_class_folders_with_such_a_file_are_read(tmp_path: Path, files: tuple[str, ...]) -> None:
    write(tmp_path / "cat", *files)
    image(tmp_path / "cat" / "2021" / "0.jpg")
    write(tmp_path / "dog", "config.json", "model.safetensors")
    image(tmp_path / "dog" / "0.jpg")  # images beside the files of a model
    assert list_folder(tmp_path).image_paths() == ["cat/2021/0.jpg", "dog/0.jpg"]


def test_empty_output_folder_is_left_out(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "0.jpg")
    for name in ("runs", "exports", "empty class"):
        (tmp_path / name).mkdir()
    assert list(list_folder(tmp_path).folders) == ["cat", "empty class"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    image(root / "cat" / "0.jpg")
    image(elsewhere / "dogs" / "1.jpg")
    (root / "dog").symlink_to(elsewhere / "dogs")
    (root / "cat" / "one more.jpg").symlink_to(elsewhere / "dogs" / "1.jpg")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "far up").symlink_to("/")
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (elsewhere / "dogs" / "back").symlink_to(elsewhere / "dogs")
    (root / "cat" / "gone.jpg").symlink_to(elsewhere / "gone.jpg")
    (root / "cat" / "sister").symlink_to(root / "dog")
    listing = list_folder(root)
    assert listing.image_paths() == ["cat/0.jpg", "cat/one more.jpg", "dog/1.jpg"] or listing.count() == 3
    assert listing.all_left_out().counts == {OtherKind.REPEATED_LINK: 4, OtherKind.BROKEN_LINK: 2}


def test_a_folder_is_read_before_links_to_it(tmp_path: Path) -> None:
    image(tmp_path / "zebra" / "0.jpg")
    (tmp_path / "ape").symlink_to(tmp_path / "zebra")
    assert list_folder(tmp_path).image_paths() == ["zebra/0.jpg"]


def test_linked_root_is_read(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "cat" / "0.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert list_folder(tmp_path / "link").image_paths() == ["cat/0.jpg"]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    for name in ("a.jpg", "b"):
        os.mkfifo(tmp_path / name)
    image(tmp_path / "c.jpg")
    listing = list_folder(tmp_path)
    assert listing.images == ["c.jpg"]
    assert listing.left_out.counts == {OtherKind.SPECIAL: 2}


def test_what_cannot_be_opened_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "cat" / "0.jpg")
    write(tmp_path, "secret/0.jpg", "cat/secret")
    scandir = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refuse(path: object) -> FileKind:
        raise PermissionError(13, f"Permission denied: {path}")

    monkeypatch.setattr(os, "scandir", denied)
    monkeypatch.setattr("deit.images.listing.sniff", refuse)
    listing = list_folder(tmp_path)
    assert listing.image_paths() == ["cat/0.jpg"]
    assert listing.all_left_out().counts == {OtherKind.DENIED: 1, OtherKind.DENIED_FILE: 1}
    assert "1 folder that cannot be opened (secret)" in listing.all_left_out().describe()
    with pytest.raises(PermissionError):
        list_folder(tmp_path / "secret")


def test_order_is_that_of_the_paths(tmp_path: Path) -> None:
    for name in ("b/x.jpg", "a b/x.jpg", "a/z.jpg", "a/B/x.jpg", "a/y.jpg", "ä.jpg"):
        image(tmp_path / name)
    listing = list_folder(tmp_path)
    assert listing.image_paths() == [str(path) for path in sorted(map(Path, listing.image_paths()))]
    assert listing.count() == 6
    shutil.rmtree(tmp_path / "a")
    assert list_folder(tmp_path).count() == 3


def test_few_examples_are_kept_of_many_entries() -> None:
    left_out = LeftOut()
    for number in range(1000):
        left_out.add(FileKind.TEXT, f"{number}.txt")
    other = LeftOut()
    other.add(FileKind.TEXT, "other.txt", 234)
    other.add(OtherKind.LOOSE, "a.jpg")
    left_out.update(other)
    assert left_out.examples[FileKind.TEXT] == ["0.txt", "1.txt", "2.txt"]
    assert left_out.describe() == "1,234 text files (0.txt, ...), 1 loose image beside class folders (a.jpg)"


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20), st.booleans())
def test_any_name_is_classified(name: str, is_folder: bool) -> None:
    assert is_system_name(name, is_folder) in (True, False)


def test_decoder_reads_what_is_listed(tmp_path: Path) -> None:
    from deit.images.decoding import open_image

    Image.new("1", (3, 2)).save(tmp_path / "bitmap.pbm")
    Image.new("L", (3, 2)).save(tmp_path / "gray.pgm")
    Image.new("RGB", (3, 2)).save(tmp_path / "bare.dib")  # without the header of a file
    pattern(3, 2).save(tmp_path / "windows.dib", "BMP")
    image(tmp_path / "two.mpo", "MPO")
    listing = list_folder(tmp_path)
    assert len(listing.images) == 4
    assert {open_image(tmp_path / name).mode for name in listing.images} == {"RGB"}
