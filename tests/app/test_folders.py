"""Every name that a browser sends stays within the two folders."""

import os

import pytest

from mmaudio.app.folders import Folders, check_name, list_video_folders
from mmaudio.errors import ConfigError

ESCAPES = (
    "",
    "..",
    "../secret.mp4",
    "dogs/../../secret.mp4",
    "/etc/passwd",
    "link.mp4",
    "linked/secret.mp4",
    "circle",
    "dogs\0.mp4",
    "\ud800.mp4",
    "n" * 5000,
    "d/" * 3000,
    "dogs",
    "absent.mp4",
    "<img src=x onerror=alert(1)>",
)


@pytest.fixture
def folders(tmp_path):
    folders = Folders.create(tmp_path / "videos", tmp_path / "output")
    (tmp_path / "secret.mp4").write_text("secret")
    (folders.videos / "dogs").mkdir()
    (folders.videos / "dogs" / "bark.mp4").write_text("video")
    (folders.videos / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (folders.videos / "linked").symlink_to(tmp_path)
    (folders.videos / "circle").symlink_to("circle")
    (folders.videos / ".hidden").mkdir()
    return folders


@pytest.mark.parametrize("name", ESCAPES, ids=lambda name: ascii(name)[:20])
def test_no_name_leads_out_of_the_videos(folders, name):
    with pytest.raises(ConfigError) as error:
        folders.find_video(name)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_a_video_and_a_folder_are_found_by_their_names(folders):
    assert folders.find_video("dogs/bark.mp4").read_text() == "video"
    assert folders.find_video_folder(".") == folders.videos
    assert list_video_folders(folders.videos) == [".", "dogs"]


@pytest.mark.parametrize("name", ["", ".", "../x", "/x", ".uploads/../x", "\0", ".uploads", "\ud800", "n" * 5000])
def test_an_upload_is_a_file_that_was_uploaded(folders, name):
    upload = folders.uploads / "hash" / "a.mp4"
    upload.parent.mkdir(parents=True)
    upload.write_text("video")
    assert folders.find_upload(str(upload)) == upload
    (folders.uploads / "link.mp4").symlink_to(folders.videos / "dogs" / "bark.mp4")
    for path in (name, os.path.join(folders.uploads, name), str(folders.uploads / "link.mp4")):  # noqa: PTH118
        with pytest.raises(ConfigError):
            folders.find_upload(path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", ".x", "a\0", "a b", "<b>", "a" * 65, "a\nb", "$(id)"])
def test_a_new_name_is_one_part_of_a_path(name):
    with pytest.raises(ConfigError):
        check_name(name)
    assert check_name(" dogs-2.b ") == "dogs-2.b"


def test_a_file_in_place_of_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another folder"):
        Folders.create(tmp_path / "file", tmp_path / "output")
