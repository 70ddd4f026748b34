"""Captions: from a table, beside the video, of its folder, for all, or none, in this order."""

from __future__ import annotations

import json

import pytest

from mmaudio.data.captions import Captions, find_caption
from mmaudio.data.video_files import find_videos
from mmaudio.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Videos by name, with captions of every kind."""
    folder = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4", "sub/c.mp4", "sub/deep/d.mp4", "other/e.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "a.txt").write_text("\ufeffa bell\n rings ", encoding="utf-8")
    (folder / "sub" / "caption.txt").write_text("rain\n")
    return folder


def test_captions_are_looked_up_in_order(root, tmp_path):
    table = tmp_path / "words.tsv"
    table.write_text("video\tstart\tid\tcaption\nb\t\t\tof the video\nb.mp4\t4.0\t\tof the clip\n\t\tx_7\tby its id\n")
    captions = Captions(root, "a prompt", table)
    assert captions.find("b.mp4", "b_0", 0.0) == "of the video"
    assert captions.find("b.mp4", "b_4", 4.0) == "of the clip"
    assert captions.find("a.mp4", "x_7", 0.0) == "by its id"
    assert captions.find("a.mp4", "a_0", 0.0) == "a bell rings"
    assert captions.find("sub/c.mp4", "c_0", 0.0) == "rain"
    assert captions.find("sub/deep/d.mp4", "d_0", 0.0) == "rain"
    assert captions.find("other/e.mp4", "e_0", 0.0) == "a prompt"
    assert Captions(root).find("other/e.mp4", "e_0", 0.0) == ""
    assert captions.unused() == []
    assert find_caption(root / "sub" / "c.mp4", "no") == "rain"


@pytest.mark.parametrize("names", [("c", "sub/c"), ("c.mp4", "sub/c"), ("sub/c", "sub/c.mp4")])
def test_the_most_exact_video_name_wins_in_any_row(root, tmp_path, names):
    loose, exact = names
    for order in (names, names[::-1]):
        table = tmp_path / "words.csv"
        table.write_text("video,caption\n" + "".join(f"{name},of {name}\n" for name in order))
        captions = Captions(root, table=table)
        assert captions.find("sub/c.mp4", "c_0", 0.0) == f"of {exact}"
        assert [row.video for row in captions.unused()] == [loose]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".tsv"])
def test_every_table_format_is_read(root, tmp_path, suffix):
    rows = [{"video": "sub/c.mp4", "caption": 'wind, "strong"\tand cold'}, {"video": "gone.mp4", "caption": "lost"}]
    table = tmp_path / f"words{suffix}"
    if suffix == ".jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        separator = "," if suffix == ".csv" else "\t"
        quoted = ['"' + row["caption"].replace('"', '""') + '"' for row in rows]
        table.write_text(
            "\n".join(
                [
                    f"video{separator}caption",
                    *(f"{r['video']}{separator}{q}" for r, q in zip(rows, quoted, strict=True)),
                ]
            )
        )
    captions = Captions(root, table=table)
    assert captions.find("sub/c.mp4", "c_0", 0.0) == 'wind, "strong" and cold'
    assert [row.video for row in captions.unused()] == ["gone.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "ends in .tsv, .csv, .jsonl"),
        ("none.tsv", None, "not there"),
        ("a.tsv", "name\ttext\n", "name the columns"),
        ("a.csv", "video,caption,start\na.mp4,bell,soon\n", "line 2: start 'soon'"),
        ("a.csv", "video,caption\n,bell\n", "line 2: a caption, and a video"),
        ("a.jsonl", '{"video": "a.mp4"}', "line 1: a caption, and a video"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x"}\n{"video"', "line 2"),
        ("a.jsonl", '["a.mp4"]', "is expected"),
        ("a.jsonl", "[" * 100_000, "line 1"),
        ("a.tsv", 'video\tcaption\na.mp4\t"Loud bell\nb.mp4\train\n', 'line 2: .*stands in "quotes"'),
        ("a.tsv", "video\tcaption\nb.mp4\train\na.mp4\ta bell\trings\n", "line 3: more cells"),
        ("a.csv", "video,caption,caption\na.mp4,bell,rain\n", "one caption"),
        ("a.csv", "video,caption\na.mp4,bell\na.mp4,rain\n", "line 3: a second caption for a.mp4"),
        ("a.csv", "video,caption\na.mp4," + "x" * 200_000, "line 2: field larger"),
        ("a.csv", "video,caption\na.mp4," + "x" * 20_000, "line 2: 20000 characters"),
    ],
)
def test_an_invalid_caption_table_is_refused(root, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        Captions(root, table=tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'video,caption\na.mp4,"a bell\nrings"\n'),
        ("a.tsv", "video\tcaption\r\na.mp4\ta bell\u0085rings\r\n"),
        ("a.csv", "\ufeffvideo,caption,\na.mp4,a bell rings,,\n\na.mp4,a bell  rings,,\n"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "a bell\u2028rings"}\n'),
    ],
)
def test_a_line_break_in_a_caption_becomes_a_space(root, tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert Captions(root, table=tmp_path / name).find("a.mp4", "a_0", 0.0) == "a bell rings"


def test_a_text_file_that_is_no_caption_is_refused(root):
    (root / "b.txt").write_text("x" * 200_000)
    with pytest.raises(DataError, match=r"b\.txt: 200000 characters; a caption has at most 10000"):
        Captions(root).find("b.mp4", "b_0", 0.0)


def write_table(path, rows, column="video"):
    """A table of captions."""
    path.write_text(f"{column}\tcaption\n" + "".join(f"{video}\t{caption}\n" for video, caption in rows.items()))
    return path


@pytest.mark.parametrize(
    "name",
    ["b.txt", "b.TXT", "b.Txt", "b.mp4.txt", "b.mp4.TXT", "b.caption", "b.CAPTION", "b.mp4.caption", "caption.TXT"],
)
def test_a_text_file_of_the_usual_names_is_a_caption_and_no_video(root, name):
    (root / name).write_text("a dog")
    assert Captions(root, "a prompt").find("b.mp4", "b_0", 0.0) == "a dog"
    assert find_caption(root / "b.mp4", "") == "a dog"
    assert [path.name for path in find_videos(root)] == ["a.mp4", "b.mp4"]


def test_the_first_of_several_text_files_counts(root):
    for name in ("b.caption", "b.mp4.txt", "b.TXT", "b.txt"):
        (root / name).write_text(name)
        assert find_caption(root / "b.mp4", "") == name


@pytest.mark.parametrize("column", ["video", "video_path", "file_name", "path"])
def test_absolute_paths_from_elsewhere_match_by_name(root, tmp_path, column):
    rows = {"C:\\clips\\a.mp4": "a bell", "/data/far/sub/c.mp4": "rain", "/data/d": "wind", "videos/b.mp4": "a horn"}
    captions = Captions(root, "none", write_table(tmp_path / "words.tsv", rows, column))
    captions.match_videos(["a.mp4", "b.mp4", "sub/c.mp4", "other/c.mp4", "sub/deep/d.mp4"])
    for video, caption in {"a.mp4": "a bell", "b.mp4": "a horn", "sub/c.mp4": "rain", "sub/deep/d.mp4": "wind"}.items():
        assert captions.find(video, "", 0.0) == caption
    assert captions.find("other/c.mp4", "", 0.0) == "none"
    assert captions.unused() == []


def test_a_path_that_could_mean_several_videos_matches_none(root, tmp_path):
    videos = ["a.mp4", "sub/c.mp4", "other/c.mp4", "sub/deep/d.mp4"]
    rows = {
        "/data/c.mp4": "two videos have the name",
        "/x/d.mp4": "two paths",
        "/y/d.mp4": "have the name",
        "other/deep/d.mp4": "of a video that is not there any more",
        f"{root.as_posix()}/other/d.mp4": "of another such video",
        "a.mp4": "a bell",
    }
    captions = Captions(root, "", write_table(tmp_path / "words.tsv", rows))
    captions.match_videos(videos)
    assert [captions.find(video, "", 0.0) for video in videos] == ["a bell", "rain", "", "rain"]
    assert len(captions.unused()) == 5


def test_a_table_of_which_no_row_matches_is_an_error(root, tmp_path):
    expected = r"words.tsv: none of its 2 rows names a video or a clip here; a row has x/1\.mp4, a video is a\.mp4"
    table = write_table(tmp_path / "words.tsv", {"x\\1.mp4": "a bell", "2": "rain"})
    with pytest.raises(DataError, match=expected):
        Captions(root, table=table).match_videos(["a.mp4", "b.mp4"])
    captions = Captions(root, table=write_table(table, {"clip_7": "a bell"}, "id"))
    captions.match_videos(["a.mp4"])
    captions.find("a.mp4", "clip_8", 0.0)
    with pytest.raises(DataError, match=r"none of its 1 rows .* a row has clip_7, a video is a\.mp4"):
        captions.check_used(["a.mp4"])


def test_a_text_file_that_is_not_utf8_leaves_out_that_caption(root):
    for name in ("a.txt", "sub/caption.txt"):
        (root / name).write_bytes(b"caf\xe9")
    captions = Captions(root, "a prompt")
    for video in ("a.mp4", "a.mp4", "b.mp4", "sub/c.mp4"):
        assert captions.find(video, "", 0.0) == "a prompt"
    assert captions.unreadable == dict.fromkeys(
        [root / "a.txt", root / "sub/caption.txt"], "no UTF-8 text; save it as UTF-8"
    )
    with pytest.raises(DataError, match=r"a\.txt: no UTF-8 text"):
        find_caption(root / "a.mp4", "")


def test_a_video_with_the_longest_name_has_captions_of_all_sources(tmp_path):
    video = tmp_path / ("x" * 251 + ".mp4")  # x.mp4.txt would be too long
    video.touch()
    assert find_caption(video, "a prompt") == "a prompt"
    (tmp_path / "caption.txt").write_text("rain")
    assert find_caption(video, "a prompt") == "rain"
    video.with_suffix(".txt").write_text("a bell")
    assert find_caption(video, "a prompt") == "a bell"
