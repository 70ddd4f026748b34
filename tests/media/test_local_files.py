"""Names are names: a media file is opened as that file or not at all, and what is in it opens nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from file_server import serve_files
from video_files import RATE, grey_frames, tone, write_tone_video

from mmaudio.errors import DataError
from mmaudio.media.audio import read_audio
from mmaudio.media.audio_file import write_audio
from mmaudio.media.mux import mux_audio, write_video
from mmaudio.media.video import probe

NAMES = (
    "12:30 walk.mp4",
    "file:a.mp4",
    "concat:a.mp4",
    "subfile,,start,0,end,0,,:a.mp4",
    "pipe:0.mp4",
    "data:video.mp4",
    "-dash.mp4",
    "a%03d.mp4",
    "a#b?c&d=e.mp4",
    "http:/127.0.0.1/a.mp4",
    "concat:/a|b.mp4",
    "tcp:/::1/a.mp4",
    "two\nlines.mp4",
    os.fsdecode(b"latin\xe9.mp4"),
    "~/a.mp4",
    "e" * 251 + ".mp4",
)
ADDRESS = "ADDRESS"
PLAYLISTS = {
    "hls": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{ADDRESS}/a.mp4\n#EXT-X-ENDLIST\n",
    "local hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n",
    "ffconcat": f"ffconcat version 1.0\nfile {ADDRESS}/a.mp4\n",
    "local ffconcat": "ffconcat version 1.0\nfile a.mp4\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    f'mimeType="video/mp4"><Representation id="1"><BaseURL>{ADDRESS}/a.mp4</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "address": f"{ADDRESS}/a.mp4\n",
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a video."""
    return write_tone_video(tmp_path_factory.mktemp("videos") / "a.mp4", 1).read_bytes()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_of_any_name_is_read_and_written_by_a_relative_path(tmp_path, monkeypatch, content, name):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert probe(path).duration == pytest.approx(1)
    assert len(read_audio(path)[0]) >= RATE
    output, sound = path.with_suffix(".mkv"), path.with_suffix(".wav")
    mux_audio(path, tone(1), RATE, output)
    assert probe(output).audio_codec == "flac"
    write_audio(sound, tone(1), RATE)
    write_video(path, grey_frames(50), 25)
    assert probe(path).duration == pytest.approx(2)
    assert sorted(path.parent.iterdir()) == sorted([output, path, sound])


def test_a_folder_that_looks_like_an_address_connects_to_nothing(tmp_path, monkeypatch, content):
    with serve_files() as site:
        path = Path(site.address) / "a.mp4"  # http:/127.0.0.1:port/a.mp4
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"^a\.mp4: not there"):
            probe(path)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        assert probe(path).duration == pytest.approx(1)
    assert not site.requests


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_opens_no_other_file_and_connects_to_nothing(tmp_path, content, kind):
    (tmp_path / "a.mp4").write_bytes(content)
    reason = "no video" if kind in ("dash", "address") else "a list of other files or addresses, no video"
    with serve_files(files={"/a.mp4": content}) as site:
        for suffix in (".mp4", ".m3u8", ".ffconcat", ".sdp"):
            path = tmp_path / f"list{suffix}"
            path.write_text(PLAYLISTS[kind].replace(ADDRESS, site.address))
            with pytest.raises(DataError, match=rf"^list{suffix}: {reason}$"):
                probe(path)
    assert not site.requests


def test_tags_in_another_encoding_do_not_make_it_no_video(tmp_path):
    source = write_tone_video(tmp_path / "a.mp4", 1)
    mux_audio(source, tone(1), RATE, tmp_path / "b.mkv", {"title": "caf\u00e9 1"})
    content = (tmp_path / "b.mkv").read_bytes()
    assert "\u00e9".encode() in content
    (tmp_path / "b.mkv").write_bytes(content.replace("\u00e9".encode(), b"\xe9 "))
    assert probe(tmp_path / "b.mkv").codec == "h264"
    mux_audio(tmp_path / "b.mkv", tone(1), RATE, tmp_path / "c.mp4")
    assert probe(tmp_path / "c.mp4").audio_codec == "aac"
