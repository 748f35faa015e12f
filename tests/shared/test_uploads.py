"""Only what lies in Gradio's upload folder is opened; through each page: tests/*/test_demo.py."""

from pathlib import Path

import pytest

from shared.options import UserError
from shared.uploads import is_upload, open_upload


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads" / "abc").mkdir(parents=True)
    return tmp_path


def test_a_file_in_the_folder_is_one(folder: Path) -> None:
    assert is_upload(str(folder / "uploads" / "abc" / "dog.jpg"))


def test_others_are_not(folder: Path) -> None:
    secret = folder / "secret.jpg"
    secret.write_bytes(b"")
    link = folder / "uploads" / "abc" / "link.jpg"
    link.symlink_to(secret)
    paths = (secret, folder / "uploads" / ".." / "secret.jpg", link, folder / "uploads2" / "a.jpg")
    for path in (*map(str, paths), "a\0b", "dog.jpg", "", None, {"path": "x"}, 3):
        assert not is_upload(path), path
    with pytest.raises(UserError, match="only an uploaded picture"):
        open_upload({"path": str(secret)}, "{name}: {cause}")
    with pytest.raises(UserError, match="only an uploaded picture"):
        open_upload({}, "{name}: {cause}")


def test_a_broken_upload_is_named_as_its_owner_knows_it(folder: Path) -> None:
    file = folder / "uploads" / "abc" / "x1.jpg"
    file.write_text("no picture")
    with pytest.raises(UserError, match=r"^holiday\.jpg is broken: (?!.*x1)"):
        open_upload({"path": str(file), "orig_name": "holiday.jpg"}, "{name} is broken: {cause}")
    with pytest.raises(UserError, match=r"^x1\.jpg is broken"):
        open_upload(str(file), "{name} is broken: {cause}")
