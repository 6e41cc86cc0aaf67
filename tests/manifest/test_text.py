"""Manifests that another program saved: read, or refused with the cause."""

import codecs
import tracemalloc

import pytest

from splitter.manifest import partition as manifest
from splitter.manifest import text as manifest_text
from splitter.manifest.partition import Partition
from splitter.manifest.text import ManifestError

NAMES = ("a.jpg", "b.jpg", "manifest.csv")
PLAIN = "subjectId,imageName,note\n1,a.jpg,Ångström\n2,b.jpg,\n"


def cut(data: bytes, *images: str) -> Partition:
    names = (*(images or NAMES[:2]), "manifest.csv")
    return manifest.partition_export(names, lambda _: data, "imageName", 10)


def refusal_of(data: str | bytes, *images: str) -> str:
    with pytest.raises(ManifestError) as refusal:
        cut(data if isinstance(data, bytes) else data.encode(), *images)
    return str(refusal.value)


def saved_with(separator: str) -> str:
    return PLAIN.replace(",", separator)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        ("\ufeff" + saved_with(";"), "separated by semicolons"),
        ("Höhe;imageName\n1;a\n".encode("cp1252"), "separated by semicolons"),
        (saved_with("\t"), "separated by tabs"),
        (saved_with("|"), "separated by the character '|'"),
        ("sep=;\n" + saved_with(";"), "begins with the line 'sep=;'"),
        (PLAIN.encode("cp1252"), "Windows-1252: row 2 (subjectId '1') then has '1,a.jpg,Ångström'"),
        (PLAIN.encode("mac_roman"), "MacRoman: row 2 (subjectId '1') then has '1,a.jpg,Ångström'"),
        (PLAIN.encode("utf-16-be"), "saved as UTF-16"),
        ("imageName\na.jpg\n".encode("utf-16-le"), "saved as UTF-16"),
        ("Florida, 2026\n" + PLAIN, "header, the names of its columns, in row 2"),
        ("Florida,,\n\n" + PLAIN, "in row 3, below a title"),
        (PLAIN + "Total,2\n", "looks like a total ('Total, 2')"),
        (PLAIN + "Total,,2\n", "looks like a total ('Total, 2')"),
        (PLAIN.replace("imageName", "imagename"), "but one named 'imagename'"),
        (PLAIN.replace("imageName", "Image Name"), "but one named 'Image Name'"),
        (PLAIN + "imageName,x\na.jpg,1\n", "names of its columns, once more in row 4"),
        ('imageName,note\na.jpg,x\nb.jpg,5\\" tall\n', "after a backslash in row 3"),
    ],
)
def test_a_table_of_another_program_is_refused_with_the_cause(
    data: str | bytes, cause: str
) -> None:
    sentence = refusal_of(data)
    assert cause in sentence
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (codecs.BOM_UTF16_LE + PLAIN.encode("utf-16-le"), "saved as UTF-16"),
        (codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), "saved as UTF-16"),
        (codecs.BOM_UTF16_LE + saved_with("\t").encode("utf-16-le"), "'Unicode Text'"),
        (2 * codecs.BOM_UTF8 + PLAIN.encode(), "more than one byte order mark"),
        ((PLAIN + ",,\n,,\n").encode(), "2 rows with nothing but empty cells"),
        ((PLAIN + ",,,,,,\n").encode(), "1 row with nothing but empty cells: row 4"),
        (PLAIN.replace("\n", ",,\n").encode(), "2 columns at its right end"),
        (PLAIN.replace("note\n", "note,,\n").encode(), "2 columns at its right end"),
    ],
    ids=["UTF-16", "big-endian", "Unicode Text", "two BOMs", "commas", "more", "columns", "header"],
)
def test_a_table_with_one_reading_is_read_with_a_warning(data: bytes, warning: str) -> None:
    parts = cut(data)
    assert [batch.manifest.decode() for batch in parts.batches] == [PLAIN]
    [problem] = parts.warnings
    assert warning in str(problem)


@pytest.mark.parametrize(
    "name",
    ["imageName ", "\u00a0imageName", "imageName\u200b", "\u2060imageName\t", "image\u200bName"],
)
def test_the_image_column_is_found_with_blanks_around_its_name(name: str) -> None:
    text = PLAIN.replace("imageName", name)
    parts = cut(text.encode())
    assert parts.batches[0].images == ("a.jpg", "b.jpg")
    assert "invisible characters in its name" in str(parts.warnings[0])
    assert parts.batches[0].manifest.decode() == text


def test_a_column_without_a_name_that_has_a_cell_is_kept() -> None:
    text = "imageName,,\na.jpg,,\nb.jpg,x,\n"
    parts = cut(text.encode())
    assert parts.batches[0].manifest.decode() == text
    assert parts.warnings == ()


def test_a_blank_before_a_quotation_mark_is_passed_over_as_zooniverse_does() -> None:
    parts = cut(b'imageName, place\na.jpg, "Tallahassee, FL"\nb.jpg,"he said, ""so"""\n')
    table = manifest_text.read(parts.batches[0].manifest, "imageName")
    assert [cells for _, cells in table.rows] == [
        ["a.jpg", "Tallahassee, FL"],
        ["b.jpg", 'he said, "so"'],
    ]
    assert "blanks between commas and opening quotation marks" in str(parts.warnings[0])


def test_lines_are_counted_by_carriage_returns_too() -> None:
    text = "imageName,note\ra.jpg,1\rb.jpg,é\r"
    assert "row 3 then has" in refusal_of(text.encode("cp1252"))
    assert "row 3 names 'c.jpg'" in refusal_of("imageName,x\ra.jpg,1\rc.jpg,2\r")


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["manifest.xlsx", "a.jpg"], "'manifest.xlsx', an Excel workbook"),
        (["export/manifest.tsv", "a.jpg"], "'export/manifest.tsv', a table with tabs"),
        (["manifest.txt", "a.jpg", "readme.txt"], "'manifest.txt', a manifest with another name"),
        (["manifest.csv.txt", "a.jpg"], "'manifest.csv.txt', a manifest with another name"),
        (["a/b/manifest.csv"], "'a/b/manifest.csv', too deep inside"),
    ],
)
def test_another_table_in_the_manifests_place_is_named(names: list[str], cause: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        manifest.find(names)
    assert cause in str(refusal.value)
    assert "has no manifest.csv" in str(refusal.value)


@pytest.mark.parametrize("cell", ["x;y", "\0", "Total", "imageNames", "sep=;", " x", 'a "b"'])
def test_a_cell_that_looks_like_a_fault_is_kept(cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    parts = cut(f"note,imageName\n{quoted},a.jpg\n".encode())
    table = manifest_text.read(parts.batches[0].manifest, "imageName")
    assert [cells for _, cells in table.rows] == [[cell, "a.jpg"]]
    assert parts.warnings == ()


def test_a_second_header_is_found_where_it_is_shorter_and_a_file_has_its_name() -> None:
    sentence = refusal_of("imageName,,\na.jpg\nimageName\n", "a.jpg", "imageName")
    assert "names of its columns, once more in row 3" in sentence


@pytest.mark.parametrize("row", ["1", "1,c.jpg,"], ids=["misfit", "missing image"])
def test_all_faulty_rows_are_counted_and_few_are_kept(row: str) -> None:
    data = PLAIN + f"{row}\n" * 20_000
    tracemalloc.start()
    try:
        assert "20,000 rows" in refusal_of(data)
        assert tracemalloc.get_traced_memory()[1] < 2_500_000  # all rows take four megabytes
    finally:
        tracemalloc.stop()
