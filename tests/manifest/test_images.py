"""The reason that is given for an image that the archive has by another name."""

import pytest

from splitter.manifest.images import most_similar


@pytest.mark.parametrize(
    ("cell", "names", "reason"),
    [
        ("A.JPG", ["a.jpg"], "other letter case"),
        ("a.jpg ", ["a.jpg"], "the manifest has blanks"),
        ("a.jpg", ["a.jpg "], "the file's name has blanks"),
        ("a.jpg", ["images/a.jpg"], "in a folder that the manifest does not name"),
        ("C:\\herbarium\\a.jpg", ["a.jpg"], "a path instead of a file name"),
        ("images/a.jpg", ["a.jpg"], "a path instead of a file name"),
        ("https://example.org/images/a.jpg?x=1", ["a.jpg"], "a URL instead of a file name"),
        ('="a.jpg"', ["a.jpg"], "quotation marks or a formula"),
        ("\uff41.jpg", ["a.jpg"], "letters spelled in another way"),
        ("x/a.jpg", ["y/a.jpg"], "in a folder that the manifest does not name"),
        ("├àngstr├Âm.jpg", ["Ångström.jpg"], "letters in another encoding"),
        ("Ångström.jpg", ["├àngstr├Âm.jpg"], "letters in another encoding"),
        ("a.jpeg", ["a.jpg"], "another extension"),
        ("a", ["a.jpg"], "another extension"),
    ],
)
def test_the_most_similar_file_is_named_with_the_difference(
    cell: str, names: list[str], reason: str
) -> None:
    found = most_similar([cell], [*names, "manifest.csv"])
    assert found
    name, file, sentence, difference = found
    assert (name, file) == (cell, names[0])
    assert reason in f"{sentence.template} {difference}"


def test_a_name_without_a_similar_file_has_no_reason() -> None:
    assert most_similar(["z.jpg"], ["a.jpg", "manifest.csv"]) is None
    assert most_similar([], ["a.jpg"]) is None


def test_the_first_missing_image_with_a_similar_file_is_shown() -> None:
    found = most_similar(["z.jpg", "B.jpg", "C.jpg"], ["b.jpg", "c.jpg"])
    assert found is not None
    assert found[:2] == ("B.jpg", "b.jpg")


def test_another_name_is_shown_before_another_extension() -> None:
    found = most_similar(["a.jpg", "B.JPG"], ["a.png", "b.jpg"])
    assert found is not None
    assert found[:2] == ("B.JPG", "b.jpg")
