import unicodedata
from pathlib import Path

import pytest

from alexlab.data.class_names import display_names, read_class_names
from alexlab.errors import ConfigError


def test_unnamed_classes_keep_their_folder_name() -> None:
    names = {unicodedata.normalize("NFD", "café"): "Kaffee", "n02": "other"}
    assert display_names(["café", "tea"], names) == ["Kaffee", "tea"]
    assert display_names(["a"], None) == ["a"]


def test_classes_with_the_same_display_name_are_told_apart() -> None:
    names = {"n02012849": "crane", "n03126707": "crane", "n02086240": "Shih-Tzu"}
    found = display_names(["n02012849", "n02086240", "n03126707"], names)
    assert found == ["crane (n02012849)", "Shih-Tzu", "crane (n03126707)"]
    assert display_names(["crane", "crate", "crane"], None) == ["crane (0)", "crate", "crane (2)"]


def test_names_of_other_classes_only_are_rejected() -> None:
    with pytest.raises(ConfigError, match="class_names must name at least one of the classes a, b; it only names x"):
        display_names(["a", "b"], {"x": "y"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must map folder names to display names"),
        (b"{", "class_names must be a JSON file; .* is not: Expecting property name"),
        (b"[" * 100_000, "class_names must be a JSON file"),
        ('{"n02": "Hündin"}'.encode("latin-1"), "class_names must be a JSON file in UTF-8; .* is not: 'utf-8' codec"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_is_not_a_json_object_of_strings_is_rejected(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "names.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_class_names(tmp_path / "names.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_encodings_are_detected(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"n02": "Hündin"}', encoding=encoding)
    assert read_class_names(tmp_path / "names.json") == {"n02": "Hündin"}
