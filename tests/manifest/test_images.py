"""What is said of images that are not in the archive, but something like them is."""

import pytest

from splitter.manifest.images import instead


@pytest.mark.parametrize(
    ("cell", "images", "pair"),
    [
        ("A.JPG", ["a.jpg"], "the archive has 'a.jpg' for 'A.JPG': other letter case"),
        ("a.jpg ", ["a.jpg"], "the archive has 'a.jpg' for 'a.jpg ': the manifest has blanks"),
        ("a.jpg", ["a.jpg "], "the archive has 'a.jpg ' for 'a.jpg': the file's name has blanks"),
        ("a.jpg", ["images/a.jpg"], "has 'images/a.jpg' for 'a.jpg': the image stands in a folder"),
        ("C:\\herbarium\\a.jpg", ["a.jpg"], "the manifest has a path"),
        ("images/a.jpg", ["a.jpg"], "the manifest has a path"),
        ("https://example.org/images/a.jpg?x=1", ["a.jpg"], "the manifest has a URL"),
        ("\uff41.jpg", ["a.jpg"], "letters spelled in another way"),
        ("├àngstr├Âm.jpg", ["Ångström.jpg"], "letters in another encoding"),
        ("Ångström.jpg", ["├àngstr├Âm.jpg"], "letters in another encoding"),
        ("a.jpeg", ["a.jpg"], "the archive has 'a.jpg' for 'a.jpeg': another extension"),
        ("a", ["a.jpg"], "another extension"),
    ],
)  # fmt: skip
def test_of_an_image_that_is_not_there_it_is_said_what_is_instead(
    cell: str, images: list[str], pair: str
) -> None:
    assert pair in instead([cell], images, [*images, "manifest.csv"])


def test_an_image_that_nothing_is_like_is_only_named() -> None:
    assert instead(["z.jpg"], ["a.jpg"], ["a.jpg", "manifest.csv"]) == ""
    assert instead([], ["a.jpg"], ["a.jpg"]) == ""


def test_of_many_missing_images_the_first_that_has_something_like_it_is_shown() -> None:
    images = ["b.jpg", "c.jpg"]
    assert "'b.jpg' for 'B.jpg'" in instead(["z.jpg", "B.jpg", "C.jpg"], images, images)


def test_another_name_is_shown_before_another_extension() -> None:
    images = ["a.png", "b.jpg"]
    assert "'b.jpg' for 'B.JPG'" in instead(["a.jpg", "B.JPG"], images, images)


def test_a_file_beside_the_manifests_folder_is_found_too() -> None:
    assert "has 'elsewhere/a.jpg' for" in instead(["a.jpg"], [], ["elsewhere/a.jpg"])
