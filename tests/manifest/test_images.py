"""The reason that is given for an image that the archive has by another name."""

import pytest

from splitter.manifest import images
from splitter.manifest.images import most_similar
from splitter.sentences import Sentence


@pytest.mark.parametrize(
    ("cell", "names", "reason"),
    [
        ("A.JPG", ["a.jpg"], images.CASE),
        ("a.jpg ", ["a.jpg"], images.BLANKS_IN_CELL),
        ("a.jpg", ["a.jpg "], images.BLANKS_IN_FILE),
        ("a.jpg", ["images/a.jpg"], images.IN_FOLDER),
        ("C:\\herbarium\\a.jpg", ["a.jpg"], images.PATH),
        ("images/a.jpg", ["a.jpg"], images.PATH),
        ("https://example.org/images/a.jpg?x=1", ["a.jpg"], images.URL),
        ('="a.jpg"', ["a.jpg"], images.WRAPPED),
        ("\uff41.jpg", ["a.jpg"], images.SPELLING),
        ("x/a.jpg", ["y/a.jpg"], images.OTHER_FOLDER),
        ("├àngstr├Âm.jpg", ["Ångström.jpg"], images.ENCODING),
        ("Ångström.jpg", ["├àngstr├Âm.jpg"], images.ENCODING),
        ("a.jpeg", ["a.jpg"], images.EXTENSION),
        ("a", ["a.jpg"], images.EXTENSION),
    ],
)
def test_the_most_similar_file_is_named_with_the_difference(
    cell: str, names: list[str], reason: Sentence
) -> None:
    assert most_similar([cell], [*names, "manifest.csv"]) == (reason, cell, names[0])


def test_a_name_without_a_similar_file_has_no_reason() -> None:
    assert most_similar(["z.jpg"], ["a.jpg", "manifest.csv"]) is None
    assert most_similar([], ["a.jpg"]) is None


def test_the_first_missing_image_with_a_similar_file_is_shown() -> None:
    names = ["b.jpg", "c.jpg"]
    assert most_similar(["z.jpg", "B.jpg", "C.jpg"], names) == (images.CASE, "B.jpg", "b.jpg")


def test_another_name_is_shown_before_another_extension() -> None:
    names = ["a.png", "b.jpg"]
    assert most_similar(["a.jpg", "B.JPG"], names) == (images.CASE, "B.JPG", "b.jpg")
