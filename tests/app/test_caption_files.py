"""Captions of the table are written where splitting reads them."""

import pytest

from mmaudio.app.caption_files import write_captions
from mmaudio.data.captions import find_caption
from mmaudio.errors import ConfigError


@pytest.fixture
def videos(tmp_path):
    """Two videos, one of them in a sub-folder with a caption in another kind of file, and a link to outside."""
    root = tmp_path / "videos"
    (root / "sub").mkdir(parents=True)
    (root / "dog.mp4").touch()
    (root / "sub" / "cat.mp4").touch()
    (root / "sub" / "cat.caption").write_text("a cat\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cow.mp4").touch()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    return root


def test_changed_captions_are_written_and_read(videos):
    files = write_captions(videos, [("dog.mp4", "a dog\n barks"), ("sub/cat.mp4", "a cat")])
    assert files == [videos / "dog.txt"] and find_caption(videos / "dog.mp4", "") == "a dog barks"
    assert write_captions(videos, [("sub/cat.mp4", "a cat meows")]) == [videos / "sub" / "cat.caption"]
    assert find_caption(videos / "sub" / "cat.mp4", "") == "a cat meows"


@pytest.mark.parametrize(
    "name",
    ["../elsewhere/cow.mp4", "linked/cow.mp4", "/etc/passwd", "sub/cat.caption", "absent.mp4", "a\0.mp4", "\ud800"],
)
def test_a_row_that_names_no_video_of_the_folder_writes_nothing(videos, name):
    before = {path: path.read_bytes() for path in videos.parent.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError):
        write_captions(videos, [("dog.mp4", "a dog"), (name, "a caption")])
    assert {path: path.read_bytes() for path in videos.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("caption", ["a\x00b", "\x1b[2Jgone", "x" * 10_001])
def test_a_caption_that_no_file_should_have_is_refused(videos, caption):
    with pytest.raises(ConfigError):
        write_captions(videos, [("dog.mp4", caption)])


def test_a_link_in_place_of_a_caption_is_replaced_and_not_followed(videos):
    secret = videos.parent / "secret.txt"
    secret.write_text("secret")
    (videos / "dog.txt").symlink_to(secret)
    write_captions(videos, [("dog.mp4", "a dog")])
    assert secret.read_text() == "secret" and (videos / "dog.txt").read_text() == "a dog\n"


def test_videos_of_one_stem_get_captions_of_their_own(videos):
    (videos / "dog.mov").touch()
    write_captions(videos, [("dog.mp4", "an mp4"), ("dog.mov", "a mov")])
    assert find_caption(videos / "dog.mp4", "") == "an mp4" and find_caption(videos / "dog.mov", "") == "a mov"
    (videos / "dog.txt").write_text("both")
    with pytest.raises(ConfigError, match="several videos"):
        write_captions(videos, [("dog.mp4", "another")])
