import csv
import io
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from splitter.archives import Limits
from splitter.manifest import partition as manifest
from splitter.manifest import text as manifest_text
from splitter.manifest.diagnosis import explain
from splitter.manifest.partition import Batch, Partition
from splitter.manifest.text import ManifestError, UnreadableError, is_blank

Table = list[list[str]]

FIXTURES = Path(__file__).parent.parent / "fixtures"
IMAGE = "imageName"
BATCH_SIZES = st.integers(1, 4)
TRICKY_CELLS = ["", "NA", "007", "1e5", "nan", "null", " ", "\0", "\ufeff", '"', "\\", '5\\" tall']


def cells(without: str = "") -> st.SearchStrategy[str]:
    allowed = st.characters(exclude_categories=["Cs"], exclude_characters=without)
    dense = st.sampled_from(
        [character for character in '\\"",\n\r\t a' if character not in without]
    )
    return st.text(allowed) | st.text(dense) | st.sampled_from(TRICKY_CELLS)


def tables(cell: st.SearchStrategy[str], min_width: int = 1) -> st.SearchStrategy[Table]:
    """A header and at least one row; the last column names the image, others may share a name."""

    def of_width(width: int) -> st.SearchStrategy[Table]:
        row = st.lists(cell, min_size=width, max_size=width).filter(
            lambda cells: cells[-1] != IMAGE and (width == 1 or not is_blank(cells))
        )
        header = st.lists(
            cell.filter(lambda name: name != IMAGE), min_size=width - 1, max_size=width - 1
        )
        without_bom = header.filter(lambda names: not "".join(names[:1]).startswith("\ufeff"))
        return st.builds(
            lambda names, rows: [[*names, IMAGE], *rows],
            without_bom,
            st.lists(row, min_size=1, max_size=9),
        )

    return st.integers(min_width, 4).flatmap(of_width)


def python_csv(table: Table, lineterminator: str = "\r\n", quote_all: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(
        text,
        lineterminator=lineterminator,
        quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL,
    )
    writer.writerows(table)
    return text.getvalue()


def php_csv(table: Table) -> str:
    """The output of PHP's ``fputcsv`` with its default escape character."""
    return "".join(",".join(map(php_cell, row)) + "\n" for row in table)


def php_cell(cell: str) -> str:
    if not any(character in cell for character in ',"\\\n\r\t '):
        return cell
    written, escaped = "", False
    for character in cell:
        if character == "\\":
            escaped = True
        elif character == '"' and not escaped:
            written += '"'
        else:
            escaped = False
        written += character
    return f'"{written}"'


def split(text: str, batch_size: int) -> list[Batch]:
    table = manifest_text.read(text.encode(), IMAGE)
    return list(manifest.partition(table, batch_size))


def read(data: bytes, max_cells: int = 1000) -> Table:
    """The rows of a manifest below its header."""
    try:
        return [
            cells
            for _, cells in manifest_text.read(data, IMAGE, limits=Limits(max_cells=max_cells)).rows
        ]
    except UnreadableError as failure:
        raise explain(failure) from failure


def table_of(batch: Batch) -> Table:
    """A batch's manifest as Zooniverse's client reads it."""
    return list(csv.reader(io.StringIO(batch.manifest.decode(), newline="")))


def assert_comes_back(table: Table, text: str, batch_size: int) -> None:
    header, *rows = table
    batches = split(text, batch_size)
    assert [table_of(batch)[0] for batch in batches] == [header] * len(batches)
    assert [row for batch in batches for row in table_of(batch)[1:]] == rows
    assert [batch.part for batch in batches] == list(range(1, len(batches) + 1))
    assert [batch.rows for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [name for batch in batches for name in batch.images] == [
        name
        for batch in batches
        for name in dict.fromkeys(row[-1] for row in rows[batch.first_row - 1 : batch.last_row])
    ]


@given(tables(cells()), BATCH_SIZES, st.booleans())
def test_any_table_written_by_python_comes_back_cell_for_cell(
    table: Table, batch_size: int, quote_all: bool
) -> None:
    assert_comes_back(table, python_csv(table, quote_all=quote_all), batch_size)


@given(tables(cells(without="\r")), BATCH_SIZES, st.booleans())
def test_any_table_of_python_with_line_feeds_comes_back_cell_for_cell(
    table: Table, batch_size: int, quote_all: bool
) -> None:
    assert_comes_back(table, python_csv(table, "\n", quote_all), batch_size)


@given(tables(cells(), min_width=2), BATCH_SIZES)
@example([["note", IMAGE], ['on \\"\n', "a.jpg"]], 1)
@example([["note", IMAGE], ["", '\\"\n']], 1)
@example([["note", IMAGE], ['\\",', "\\"], ["\n", "\\"]], 2)
def test_any_table_written_by_php_comes_back_cell_for_cell(table: Table, batch_size: int) -> None:
    assert_comes_back(table, php_csv(table), batch_size)


def test_a_manifest_that_php_wrote_has_the_cells_that_php_was_given() -> None:
    text = (FIXTURES / "php-manifest.csv").read_bytes().decode()
    expected = [
        ["subjectId", "imageName", "locality", "notes", "locality"],
        ["007", "a.jpg", '5\\" tall, wide', "C:\\", "1e5"],
        ["NA", "b.jpg", '\\\\"', 'a\\"b', ""],
        ["3", "c.jpg", "\\", ',"', '"'],
        ["4", "d.jpg", 'on \\"\nthe next line', '""', '\\"'],
        ["5", "e.jpg", '\\",', "\\", "\n"],
        ["6", "f.jpg", "Ångström 標本", "\\\\", '\\""'],
        ["7", "g.jpg", "", '\\"\n', " "],
    ]
    assert php_csv(expected) == text
    assert table_of(split(text, 100)[0]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "imageName,note\r\na.jpg,x\r\n",
        "imageName,note\na.jpg,x",
        "\ufeffimageName,note\na.jpg,x\n",
        '\ufeff"imageName",note\na.jpg,x\n',
        "\n\nimageName,note\n\r\na.jpg,x\n\n",
    ],
    ids=["CRLF", "no line end at the end", "BOM", "BOM before a quote", "blank lines"],
)
def test_line_ends_blank_lines_and_a_bom_do_not_change_the_table(text: str) -> None:
    assert table_of(split(text, 10)[0]) == [["imageName", "note"], ["a.jpg", "x"]]


def test_a_cell_of_200_kib_comes_back() -> None:
    table = [["note", IMAGE], ["x" * 200 * 1024, "a.jpg"]]
    assert table_of(split(python_csv(table), 1)[0]) == table


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "The manifest is empty"),
        ("\n\r\n", "The manifest is empty"),
        ("imageName,note\n", "a header but no rows"),
        ("imageName,note\na.jpg\n", "row 2 has 1 cell instead of 2"),
        ("imageName,note\na.jpg,x,y\n", "row 2 has 3 cells instead of 2"),
        ('imageName,note\na.jpg,"1\n2\r\n3"\nb.jpg\n', "row 3 has 1 cell instead of 2"),
        ('imageName,note\na.jpg,"\\"\n"\nb.jpg\n', "row 3 has 1 cell instead of 2"),
        ('imageName,note\na.jpg,x\nb.jpg,"y\nc.jpg,z\n', "cannot be read from row 3 on (line 3 of"),
        ('imageName,note\na.jpg,"x"y\n', "cannot be read from row 2 on"),
    ],
)
def test_a_table_out_of_shape_is_refused_with_the_line_and_the_cause(
    text: str, complaint: str
) -> None:
    with pytest.raises(ManifestError) as refusal:
        read(text.encode())
    assert complaint in str(refusal.value)


def test_text_that_is_not_utf8_is_refused_with_its_line() -> None:
    latin1 = 'imageName,note\na.jpg,"1\n2"\nb.jpg,Ångström\n'.encode("latin-1")
    with pytest.raises(ManifestError, match=r"not UTF-8\. .*Windows-1252: row 3 then has"):
        read(latin1)


def test_of_many_faults_the_first_three_are_named_and_all_are_counted() -> None:
    short_rows = "imageName,note\n" + "a.jpg\n" * 50
    with pytest.raises(ManifestError) as refusal:
        read(short_rows.encode())
    assert "50 rows of the wrong length: row 2 has" in str(refusal.value)
    assert "row 4 has 1 cell instead of 2; …." in str(refusal.value)
    assert "row 5" not in str(refusal.value)


def partition_export(text: str, names: list[str], batch_size: int = 10) -> Partition:
    def read_member(name: str) -> bytes:
        assert name in names
        return text.encode()

    return manifest.partition_export(names, read_member, IMAGE, batch_size)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("a.jpg\nb.jpg\n", "row 3 names 'b.jpg', which is not in the archive"),
        ("a.jpg\nA.JPG\n", "row 3 names 'A.JPG', which is not in the archive"),
        ('a.jpg\n""\n', "row 3 names no image"),
        ("a.jpg\nmanifest.csv\n", "row 3 names the manifest as its image"),
        ("b.jpg\n" * 9, "9 rows without an image: row 2 names 'b.jpg'"),
    ],
)
def test_a_row_without_its_image_is_refused_with_its_line(rows: str, complaint: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        partition_export("imageName\n" + rows, ["a.jpg", "manifest.csv"])
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.jpg", "manifest.csv"], "manifest.csv"),
        (["export/a.jpg", "export/manifest.csv"], "export/manifest.csv"),
        (["3f2a8d1c-5b7e.csv", "a.jpg"], "3f2a8d1c-5b7e.csv"),
        (["old/3f2a8d1c-5b7e.CSV", "old/a.jpg"], "old/3f2a8d1c-5b7e.CSV"),
        (["other.csv", "manifest.csv"], "manifest.csv"),
        (["manifest.csv", "export/manifest.csv"], "manifest.csv"),
        (["other.csv", "export/manifest.csv"], "export/manifest.csv"),
        (["manifest.csv", "a/b/manifest.csv"], "manifest.csv"),
    ],
)
def test_the_manifest_is_found(names: list[str], found: str) -> None:
    assert manifest.find(names) == found


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "has no manifest.csv"),
        (["a.jpg", "manifest.csv.txt"], "has no manifest.csv"),
        (["a/b/manifest.csv"], "has no manifest.csv"),
        (["1.csv", "2.csv"], r"more than one manifest \('1\.csv', '2\.csv'\)"),
        (["a/manifest.csv", "b/manifest.csv"], "more than one manifest"),
    ],
)
def test_no_manifest_or_two_are_refused(names: list[str], complaint: str) -> None:
    with pytest.raises(ManifestError, match=complaint):
        manifest.find(names)


def test_images_are_beside_the_manifest_and_unlisted_files_are_reported() -> None:
    names = ["x/a.jpg", "x/sub/b.jpg", "x/manifest.csv", "x/readme.txt", "stray.jpg"]
    export = partition_export("imageName\nsub/b.jpg\na.jpg\n", names)
    assert export.folder == "x/"
    assert export.batches[0].images == ("sub/b.jpg", "a.jpg")
    assert export.unlisted == ["x/readme.txt", "stray.jpg"]


def test_an_image_that_several_rows_name_is_in_each_batch_once() -> None:
    export = partition_export("imageName\na\na\nb\na\n", ["a", "b", "manifest.csv"], batch_size=2)
    assert [batch.images for batch in export.batches] == [("a",), ("b", "a")]


def test_the_same_rows_of_another_archive_are_another_batch() -> None:
    batch, other = split("imageName\na\nb\n", 1)
    assert batch.metadata('"tag"') == batch.metadata('"tag"')
    assert batch.metadata('"tag"') != batch.metadata('"other"')
    assert batch.metadata('"tag"') != other.metadata('"tag"')
    assert all(value.isascii() and '"' not in value for value in batch.metadata('"tag"').values())


def test_more_cells_than_allowed_are_refused_with_their_number() -> None:
    text = "imageName,b\n" + "a.jpg,1\n" * 49
    assert len(read(text.encode(), max_cells=100)) == 49
    with pytest.raises(ManifestError, match="more than 99 cells"):
        read(text.encode(), max_cells=99)
    with pytest.raises(ManifestError, match="more than 99 cells"):
        read(b"," * 100, max_cells=99)


def test_more_columns_than_allowed_are_refused_before_they_are_compared() -> None:
    header = IMAGE + ",b" * 999
    assert manifest_text.read(f"{header}\n".encode() + b"a.jpg" + b"," * 999, IMAGE)
    began = time.process_time()
    for end in (b",c", b",c" * 900_000, b',"c"' * 900_000):
        with pytest.raises(ManifestError, match=r"columns, and at most 1,000 .*MAX_COLUMNS"):
            manifest_text.read(header.encode() + end, IMAGE)
    assert time.process_time() - began < 10
