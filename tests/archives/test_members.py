"""The names of an archive's files: the same on every system, or unusable."""

import pytest

from splitter.archives.members import LINK, ArchiveError, Limits, Names, is_noise, plain


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("Export\\a.jpg", "Export/a.jpg"),
        ("Export//a.jpg", "Export/a.jpg"),
        ("Export/./a.jpg", "Export/a.jpg"),
        ("//a.jpg", "a.jpg"),
        ("/Export/a.jpg", "Export/a.jpg"),
        ("../a.jpg", "../a.jpg"),
        ("Export/", "Export/"),
        ("Export/.", "Export/"),
        (".", ""),
    ],
)
def test_a_path_is_the_same_on_every_system(raw: str, path: str) -> None:
    assert plain(raw) == path


@pytest.mark.parametrize(
    "name", ["__MACOSX/._a.jpg", "Export/.DS_Store", "._a.jpg", "Thumbs.db", "Icon\r"]
)
def test_noise_of_desktop_systems_is_no_part_of_an_export(name: str) -> None:
    names = Names(Limits())
    assert is_noise(name)
    assert not is_noise("__MACOSX.jpg")
    assert names.claim(name, is_folder=False) is None
    assert not names.unusable


@pytest.mark.parametrize(
    "name",
    ["", "/../passwd", "../a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:/a.jpg", "a\0.jpg", "\x7f.jpg"],
)
def test_an_unsafe_name_is_unusable_with_a_reason(name: str) -> None:
    names = Names(Limits())
    assert names.claim(name, is_folder=False) is None
    [why] = names.unusable.values()
    assert "name" in why.text


def test_a_link_is_unusable() -> None:
    names = Names(Limits())
    assert names.claim("a.jpg", is_folder=False, why_not=LINK()) is None
    assert names.unusable == {"a.jpg": LINK()}


@pytest.mark.parametrize("second", ["a.jpg", "./a.jpg"])
def test_of_two_files_of_one_name_neither_counts(second: str) -> None:
    names = Names(Limits())
    first = names.claim("a.jpg", is_folder=False)
    names.claim(second, is_folder=False)
    assert names.unusable.keys() == {first}
    assert "twice" in names.unusable["a.jpg"].text


@pytest.mark.parametrize("second", ["A.JPG", "u\u0308.jpg"])
def test_of_two_names_that_are_one_on_many_systems_the_second_is_unusable(second: str) -> None:
    names = Names(Limits())
    for name in ("a.jpg", "\u00fc.jpg"):
        assert names.claim(name, is_folder=False) == name
    assert names.claim(second, is_folder=False) is None
    assert "many systems take" in names.unusable[second].text


def test_more_entries_than_allowed_end_the_reading() -> None:
    names = Names(Limits(max_members=2))
    names.claim("folder/", is_folder=True)
    names.claim("a.jpg", is_folder=False)
    with pytest.raises(ArchiveError, match="more than 2 files"):
        names.claim("b.jpg", is_folder=False)
