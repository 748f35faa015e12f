"""Downloads against a local server that breaks off, changes its files or is not there at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from shared import datasets_index, download, fetch, hub_models
from shared.fetch import BrokenFileError, FetchError, UnreachableError
from shared.options import REPO_ROOT, UserError

UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing listens there


class FileServer:
    """Serves `files` (path -> bytes); the switches below make it behave like a bad one."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.break_after: list[int] = []  # body bytes of the next answers, then the line is cut
        self.statuses: list[int] = []  # of the next answers, instead of the file
        self.ranges = True
        self.honours_if_range = True
        self.etags = True
        self.content_type = "application/octet-stream"
        self.gated = False
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def do_GET(self) -> None:
                outer.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *arguments: None  # a cut line is meant
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = handler.path.split("?")[0]
        asked = handler.headers.get("Range")
        self.requests.append((path, asked))
        if self.statuses or path not in self.files:
            handler.send_response(self.statuses.pop(0) if self.statuses else 404)
            if path.startswith("/api/models/"):
                handler.send_header("X-Error-Code", "RepoNotFound")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if self.gated and "/resolve/" in path:
            handler.send_response(401)
            handler.send_header("X-Error-Code", "GatedRepo")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content = self.files[path]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        condition = handler.headers.get("If-Range")
        start = 0
        if asked and self.ranges and (not self.honours_if_range or condition in (None, etag)):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
        if start >= len(content) and start:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", span)
        if self.etags:
            handler.send_header("ETag", etag)
        handler.send_header("Content-Type", self.content_type)
        for key, value in self.headers.get(path, {}).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if not body:
            return
        rest = content[start:]
        if self.break_after:
            handler.wfile.write(rest[: self.break_after.pop(0)])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(2)
        else:
            handler.wfile.write(rest)


@pytest.fixture
def server() -> Iterator[FileServer]:
    running = FileServer()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.0)
    monkeypatch.setattr(fetch, "CHUNK", 1000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def body(n: int = 50_000, seed: int = 1) -> bytes:
    return b"".join(
        hashlib.sha256(bytes([seed, i % 251, i // 251])).digest() for i in range(n // 32)
    )


def get(server: FileServer, target: Path, **keywords: object) -> None:
    urls = [f"{server.url}/f.zip"]
    fetch.fetch(fetch.open_session(), urls, target, show=False, **keywords)


# One file over HTTP


def test_a_connection_that_breaks_is_continued_where_it_broke(server, tmp_path):
    server.files["/f.zip"] = body()
    server.break_after = [20_000, 10_000]
    get(server, tmp_path / "f.zip", size=len(body()), sha256=sha256(body()))
    assert (tmp_path / "f.zip").read_bytes() == body()
    assert server.requests == [
        ("/f.zip", None),
        ("/f.zip", "bytes=20000-"),
        ("/f.zip", "bytes=30000-"),
    ]
    assert os.listdir(tmp_path) == ["f.zip"]


def test_the_next_start_continues_an_interrupted_download(server, tmp_path):
    server.files["/f.zip"] = body()
    server.break_after = [20_000] + [0] * 50
    with pytest.raises(FetchError, match="the same command goes on from there"):
        get(server, tmp_path / "f.zip")
    assert (tmp_path / "f.zip.part").stat().st_size == 20_000
    server.break_after.clear()
    server.requests.clear()
    get(server, tmp_path / "f.zip", sha256=sha256(body()))
    assert server.requests == [("/f.zip", "bytes=20000-")]
    assert (tmp_path / "f.zip").read_bytes() == body()


def test_a_server_without_ranges_sends_the_file_again_from_its_start(server, tmp_path):
    server.files["/f.zip"] = body()
    server.ranges = False
    server.break_after = [20_000]
    get(server, tmp_path / "f.zip")
    assert (tmp_path / "f.zip").read_bytes() == body()


@pytest.mark.parametrize(
    ("honours_if_range", "etags"), [(True, True), (False, True), (False, False)]
)
def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(
    server, tmp_path, honours_if_range, etags
):
    server.honours_if_range, server.etags = honours_if_range, etags
    server.files["/f.zip"] = body(seed=1)
    server.break_after = [20_000] + [0] * 50
    with pytest.raises(FetchError):
        get(server, tmp_path / "f.zip")
    server.break_after.clear()
    server.files["/f.zip"] = body(60_000, seed=2)
    get(server, tmp_path / "f.zip")
    assert (tmp_path / "f.zip").read_bytes() == body(60_000, seed=2)


def test_a_part_that_is_already_whole_is_not_fetched_again(server, tmp_path):
    server.files["/f.zip"] = body()
    (tmp_path / "f.zip.part").write_bytes(body())
    etag = f'"{hashlib.md5(body()).hexdigest()}"'
    note = {"validator": etag, "total": len(body())}
    (tmp_path / "f.zip.part.json").write_text(json.dumps(note))
    get(server, tmp_path / "f.zip")  # answered with 416: nothing follows
    assert server.requests == [("/f.zip", f"bytes={len(body())}-")]
    assert (tmp_path / "f.zip").read_bytes() == body()


def test_a_part_of_unknown_origin_is_not_trusted(server, tmp_path):
    server.files["/f.zip"] = body()
    (tmp_path / "f.zip.part").write_bytes(b"x" * 100)
    get(server, tmp_path / "f.zip")
    assert (tmp_path / "f.zip").read_bytes() == body()


def test_a_wrong_checksum_deletes_the_file_and_gives_both_sums(server, tmp_path):
    server.files["/f.zip"] = body()
    with pytest.raises(BrokenFileError, match="wrong checksum") as caught:
        get(server, tmp_path / "f.zip", sha256="0" * 64)
    assert sha256(body()) in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_another_size_than_the_published_one_is_noticed_before_the_body(server, tmp_path):
    server.files["/f.zip"] = body()
    with pytest.raises(FetchError, match=r"offers 49,984 bytes, the published file has 1,000,000"):
        get(server, tmp_path / "f.zip", size=1_000_000)
    assert os.listdir(tmp_path) == []


def test_a_login_page_is_not_taken_for_the_file(server, tmp_path):
    server.files["/f.zip"] = b"<html>please log in</html>"
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="a web page came instead"):
        get(server, tmp_path / "f.zip")


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.files["/f.zip"] = body()
    server.statuses = [503, 429]
    get(server, tmp_path / "f.zip")
    assert (tmp_path / "f.zip").read_bytes() == body()
    server.requests.clear()
    with pytest.raises(FetchError, match="404"):
        fetch.fetch(fetch.open_session(), [f"{server.url}/no.zip"], tmp_path / "no.zip", show=False)
    assert len(server.requests) == 1


def test_the_second_address_is_used_when_the_first_does_not_answer(server, tmp_path):
    server.files["/f.zip"] = body()
    urls = [f"{UNREACHABLE}/f.zip", f"{server.url}/f.zip"]
    fetch.fetch(fetch.open_session(), urls, tmp_path / "f.zip", show=False)
    assert (tmp_path / "f.zip").read_bytes() == body()


def test_no_network_is_its_own_error(tmp_path):
    with pytest.raises(UnreachableError, match=r"no answer from http://127\.0\.0\.1:9"):
        fetch.fetch(fetch.open_session(), [f"{UNREACHABLE}/f"], tmp_path / "f", show=False)


def test_a_disk_that_fills_up_is_said_and_the_part_stays(server, tmp_path, monkeypatch):
    server.files["/f.zip"] = body()
    original = Path.open

    def open_full(self: Path, mode: str = "r", *arguments: object, **keywords: object):
        opened = original(self, mode, *arguments, **keywords)
        if self.suffix == ".part" and mode in {"ab", "wb"}:
            write = opened.write

            class Full(io.BufferedIOBase):
                def __exit__(self, *e: object) -> None:
                    opened.close()

                def write(self, chunk: bytes) -> int:
                    if opened.tell() >= 10_000:
                        raise OSError(28, "No space left on device")
                    return write(chunk)

            return Full()
        return opened

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match="is full; make room"):
        get(server, tmp_path / "f.zip")
    monkeypatch.undo()
    get(server, tmp_path / "f.zip")
    assert server.requests[-1] == ("/f.zip", "bytes=10000-")
    assert (tmp_path / "f.zip").read_bytes() == body()


# Archives


def make_zip(path: Path, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def test_a_truncated_zip_is_refused_and_nothing_is_unpacked(tmp_path):
    whole = make_zip(tmp_path / "a.zip", {"val2014/x.jpg": body()})
    (tmp_path / "a.zip").write_bytes(whole[:-1000])
    with pytest.raises(BrokenFileError, match=r"a\.zip: not a whole zip file"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out", expected=["val2014/"], tested=False)
    assert not (tmp_path / "out").exists()


def test_a_zip_with_a_damaged_member_is_refused_before_writing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("val2014/x.jpg", body())
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[5_000] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"val2014/x\.jpg in it is damaged"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out", expected=["val2014/"], tested=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "C:/evil"])
def test_a_zip_that_points_outside_is_refused(tmp_path, name):
    make_zip(tmp_path / "a.zip", {"val2014/x.jpg": b"x", name: b"evil"})
    with pytest.raises(BrokenFileError, match="points outside the folder"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out", expected=["val2014/"], tested=True)
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path / "out").exists()


def test_a_zip_with_a_symbolic_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("val2014")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(BrokenFileError, match="points outside"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out", expected=[], tested=True)


def test_another_archive_under_the_right_name_is_refused(tmp_path):
    make_zip(tmp_path / "a.zip", {"train2014/x.jpg": b"x"})
    with pytest.raises(BrokenFileError, match="val2014/ is not in it"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out", expected=["val2014/"], tested=True)


def test_unpacking_keeps_what_was_in_the_folder(tmp_path):
    make_zip(tmp_path / "a.zip", {"val2014/x.jpg": b"new", "val2014/y.jpg": b"y"})
    (tmp_path / "out/val2014").mkdir(parents=True)
    (tmp_path / "out/val2014/x.jpg").write_bytes(b"old")
    (tmp_path / "out/val2014/own.jpg").write_bytes(b"own")
    fetch.unpack(tmp_path / "a.zip", tmp_path / "out", expected=["val2014/"], tested=True)
    found = {p.name: p.read_bytes() for p in (tmp_path / "out/val2014").iterdir()}
    assert found == {"x.jpg": b"new", "y.jpg": b"y", "own.jpg": b"own"}
    assert os.listdir(tmp_path / "out") == ["val2014"]


# The data sets, with a small index of the same form


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


N_IMAGES = 6


@pytest.fixture
def world(server, tmp_path, monkeypatch) -> FileServer:
    """A six-picture VQAv2 on the local server; the default data folder is under tmp_path."""
    questions, annotations, pictures = [], [], {}
    for image in range(1, N_IMAGES + 1):
        pictures[f"val2014/COCO_val2014_{image:012d}.jpg"] = jpeg(image * 20)
        for k in range(2):
            row = {"image_id": image, "question_id": image * 10 + k}
            questions.append({**row, "question": f"What is in picture {image}?"})
            answers = [
                {"answer": "cat", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)
            ]
            annotations.append(
                {
                    **row,
                    "question_type": "what is",
                    "answer_type": "other",
                    "multiple_choice_answer": "cat",
                    "answers": answers,
                }
            )
    questions_name = "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations_name = "v2_mscoco_val2014_annotations.json"
    made = tmp_path / "made"
    made.mkdir()
    zips = {
        "q.zip": {questions_name: json.dumps({"questions": questions}).encode()},
        "a.zip": {annotations_name: json.dumps({"annotations": annotations}).encode()},
        "val2014.zip": pictures,
    }
    index = {
        "archives": {},
        "datasets": {
            "vqav2": {
                "title": "Small VQAv2",
                "homepage": server.url,
                "folder": "vqav2",
                "splits": {"val": list(zips)},
            },
            "coco2014": {
                "title": "Small COCO",
                "homepage": server.url,
                "folder": "vqav2",
                "splits": {"val": ["val2014.zip"]},
            },
        },
        "models": {"blip2-opt-2.7b": {"id": "Salesforce/blip2-opt-2.7b", "bytes": 15_000_000_000}},
        "by_hand": {},
    }
    for name, members in zips.items():
        content = make_zip(made / name, members)
        server.files[f"/{name}"] = content
        index["archives"][name] = {
            "urls": [f"{server.url}/{name}"],
            "bytes": len(content),
            "sha256": sha256(content),
            "unpacked_bytes": sum(len(m) for m in members.values()),
        }
    rows = {"rows": N_IMAGES * 2}
    index["archives"]["q.zip"]["files"] = {questions_name: {"key": "questions", **rows}}
    index["archives"]["a.zip"]["files"] = {annotations_name: {"key": "annotations", **rows}}
    index["archives"]["val2014.zip"]["pictures"] = {
        "folder": "val2014",
        "count": N_IMAGES,
        "prefix": "COCO_val2014_",
        "url": f"{server.url}/val2014/",
    }
    for name, content in pictures.items():
        server.files[f"/{name}"] = content
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(datasets_index, "INDEX_FILE", tmp_path / "index.json")
    monkeypatch.setattr(download, "DATA_ROOT", tmp_path / "data")
    monkeypatch.setattr(hub_models, "DATA_ROOT", tmp_path / "data")
    monkeypatch.setattr(fetch, "SPARE_BYTES", 0)
    return server


def run(*argv: str) -> None:
    download.main([str(a) for a in argv])


def sample_of(limit: int) -> set[str]:
    """The pictures that the default sample asks about, from its definition alone."""
    from shared.vqav2 import sample_questions

    ids = [image for image in range(1, N_IMAGES + 1) for _ in range(2)]
    return {f"COCO_val2014_{i:012d}.jpg" for i in sample_questions(ids, limit, 0)}


def test_the_whole_data_set_arrives_and_a_second_start_fetches_nothing(world, tmp_path, capsys):
    run("vqav2")
    root = tmp_path / "data/vqav2"
    assert len(list((root / "val2014").glob("*.jpg"))) == N_IMAGES
    assert len(json.loads((root / "v2_mscoco_val2014_annotations.json").read_text())["annotations"])
    assert sorted(os.listdir(root)) == [
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
        "val2014",
    ]
    world.requests.clear()
    capsys.readouterr()
    run("vqav2", "coco2014")
    assert world.requests == []
    assert capsys.readouterr().out.count("in place") == 4


def test_limit_fetches_only_the_pictures_of_the_default_sample(world, tmp_path, capsys):
    run("vqav2", "--limit", "3")
    assert {p.name for p in (tmp_path / "data/vqav2/val2014").iterdir()} == sample_of(3)
    assert not any("val2014.zip" in path for path, _ in world.requests)
    world.requests.clear()
    capsys.readouterr()
    run("vqav2", "--limit", "3")
    assert world.requests == []
    assert "pictures of 3 questions (seed 0): in place" in capsys.readouterr().out


def test_a_picture_that_does_not_come_is_named_and_the_others_are_kept(world, tmp_path):
    lost = sorted(sample_of(3))[0]
    content = world.files.pop(f"/val2014/{lost}")
    with pytest.raises(UserError, match=r"1 of \d pictures did not come") as caught:
        run("vqav2", "--limit", "3")
    assert lost in str(caught.value)
    folder = tmp_path / "data/vqav2/val2014"
    assert {p.name for p in folder.iterdir()} == sample_of(3) - {lost}
    world.files[f"/val2014/{lost}"] = content
    run("vqav2", "--limit", "3")
    assert {p.name for p in folder.iterdir()} == sample_of(3)


def test_a_broken_picture_is_not_kept(world, tmp_path):
    broken = sorted(sample_of(3))[0]
    world.files[f"/val2014/{broken}"] = jpeg(9)[:200]
    with pytest.raises(UserError, match="did not come"):
        run("vqav2", "--limit", "3")
    assert not (tmp_path / "data/vqav2/val2014" / broken).exists()


def test_dry_run_shows_sizes_time_and_place_and_asks_no_server(world, tmp_path, capsys):
    run("vqav2", "--dry_run", "--limit", "3")
    shown = capsys.readouterr().out
    assert "q.zip" in shown
    assert "pictures of 3 questions (seed 0): about" in shown
    assert "min at 10.0 MB/s" in shown
    assert str(tmp_path / "data/vqav2") in shown
    assert world.requests == []
    assert not (tmp_path / "data").exists()


def test_no_network_says_which_file_belongs_where(world, tmp_path, monkeypatch):
    index = json.loads((tmp_path / "index.json").read_text().replace(world.url, UNREACHABLE))
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as caught:
        run("vqav2", "--limit", "3")
    message = str(caught.value)
    root = tmp_path / "data/vqav2"
    assert f"{UNREACHABLE}/q.zip" in message
    assert f"goes to {root}/v2_OpenEnded_mscoco_val2014_questions.json" in message
    assert f"go to {root}/val2014/" in message
    assert "python -m shared.download vqav2 --limit 3 --from FOLDER" in message


def test_a_full_disk_is_noticed_before_anything_is_fetched(world, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs .* has 1\.0 kB free"):
        run("vqav2")
    assert world.requests == []


def test_an_archive_broken_on_the_server_is_deleted_and_said(world, tmp_path):
    index = json.loads((tmp_path / "index.json").read_text())
    entry = index["archives"]["val2014.zip"]
    world.files["/val2014.zip"] = world.files["/val2014.zip"][:-300]
    entry["bytes"], entry["sha256"] = len(world.files["/val2014.zip"]), None
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenFileError, match=r"val2014\.zip: not a whole zip file"):
        run("vqav2")
    assert not (tmp_path / "data/vqav2/downloads/val2014.zip").exists()


def test_an_unwritable_place_is_one_message(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run("vqav2", "--data_root", tmp_path / "file/vqav2")


# Files fetched by hand


@pytest.fixture
def by_hand(world, tmp_path) -> Path:
    """A netdisk folder with the three archives, one of them deeper down."""
    folder = tmp_path / "netdisk"
    (folder / "deeper").mkdir(parents=True)
    for name in ("q.zip", "a.zip"):
        (folder / name).write_bytes(world.files[f"/{name}"])
    (folder / "deeper/val2014.zip").write_bytes(world.files["/val2014.zip"])
    return folder


def test_archives_fetched_by_hand_are_unpacked_without_a_network(world, by_hand, tmp_path):
    run("vqav2", "--from", by_hand)
    assert len(list((tmp_path / "data/vqav2/val2014").iterdir())) == N_IMAGES
    assert world.requests == []
    assert (by_hand / "q.zip").exists()


def test_loose_files_fetched_by_hand_are_placed(world, by_hand, tmp_path):
    for archive in [*by_hand.glob("*.zip"), by_hand / "deeper/val2014.zip"]:
        zipfile.ZipFile(archive).extractall(by_hand / "unpacked")
        archive.unlink()
    run("vqav2", "--from", by_hand)
    root = tmp_path / "data/vqav2"
    assert len(list((root / "val2014").iterdir())) == N_IMAGES
    assert (root / "v2_mscoco_val2014_annotations.json").is_file()


def test_a_missing_file_is_named_and_the_rest_is_placed(world, by_hand, tmp_path):
    (by_hand / "a.zip").unlink()
    with pytest.raises(UserError) as caught:
        run("vqav2", "--from", by_hand)
    assert "v2_mscoco_val2014_annotations.json" in str(caught.value)
    assert "val2014/:" not in str(caught.value)
    assert len(list((tmp_path / "data/vqav2/val2014").iterdir())) == N_IMAGES


def test_a_sample_needs_only_its_pictures(world, by_hand, tmp_path):
    zipfile.ZipFile(by_hand / "deeper/val2014.zip").extractall(by_hand)
    (by_hand / "deeper/val2014.zip").unlink()
    run("vqav2", "--limit", "3", "--from", by_hand)
    assert {p.name for p in (tmp_path / "data/vqav2/val2014").iterdir()} == sample_of(3)
    shutil.rmtree(tmp_path / "data")
    lost = sorted(sample_of(3))[0]
    (by_hand / "val2014" / lost).unlink()
    with pytest.raises(UserError, match=f"1 of the sample's .* such as {lost}"):
        run("vqav2", "--limit", "3", "--from", by_hand)


def test_a_repacked_archive_is_refused_with_the_way_out(world, by_hand):
    make_zip(by_hand / "q.zip", {"other.txt": b"x"})
    with pytest.raises(BrokenFileError, match="bytes, the published file has") as e:
        run("vqav2", "--from", by_hand)
    assert str(by_hand / "q.zip") in str(e.value)
    assert "unpack it yourself" in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"questions": [1, 2, 3]}', "3 questions, the published file has 12"),
        ('{"data": []}', "has no list 'questions'"),
        ('{"questions": [', "not valid JSON"),
    ],
)
def test_a_wrong_question_file_is_refused(world, by_hand, content, message):
    (by_hand / "q.zip").unlink()
    (by_hand / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(content)
    with pytest.raises(UserError, match=message):
        run("vqav2", "--from", by_hand)


def test_broken_pictures_are_left_out_and_counted(world, by_hand, capsys):
    zipfile.ZipFile(by_hand / "deeper/val2014.zip").extractall(by_hand)
    (by_hand / "deeper/val2014.zip").unlink()
    (by_hand / "val2014/COCO_val2014_000000000002.jpg").write_text("<html>")
    with pytest.raises(UserError, match="val2014/: 5 of 6 pictures"):
        run("vqav2", "--from", by_hand)
    assert "1 broken pictures left out" in capsys.readouterr().out


# Names and flags


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("vqa2", "vqav2"),
        ("COCO2014", "coco2014"),
        ("blip2-opt-2.7", "blip2-opt-2.7b"),
        ("blip2_flan_t5_xl", "blip2-flan-t5-xl"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(name, suggestion):
    with pytest.raises(UserError, match=f"did you mean {re.escape(suggestion)}\\?"):
        run(name, "--dry_run")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["coco2014", "--limit", "5"], "--limit is a sample of VQAv2"),
        (["blip2-opt-2.7b", "--data_root", "x"], "a model goes to data/models"),
        (["vqav2", "coco2017", "--data_root", "x"], "different places"),
        (["vqav2", "--revision", "x"], "--revision is for models"),
        (["coco2017", "--splits", "test", "--dry_run"], "coco2017 has no split test"),
        (["gqa"], "GQA .* is not fetched by this command"),
    ],
)
def test_flags_that_do_not_belong_together(argv, message):
    with pytest.raises(UserError, match=message):
        run(*argv)


def test_the_committed_index_is_consistent():
    """Each split's archives exist; a checksum names who published it; names are unique."""
    index = datasets_index.load_index()
    sources = index["checksum_sources"]
    for archive in index["archives"].values():
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert archive.checksum_source in sources
        assert archive.contents
        assert all(url.endswith(f"/{archive.name}") for url in archive.urls)
    for entry in index["datasets"].values():
        for names in entry["splits"].values():
            assert set(names) <= set(index["archives"])
    names = [*index["datasets"], *index["by_hand"], *index["models"]]
    assert len(names) == len(set(names))


def test_every_model_of_a_preset_has_a_short_name():
    ids = {entry["id"] for entry in datasets_index.load_index()["models"].values()}
    presets = [p.read_text() for p in REPO_ROOT.glob("llava_repro/configs/*.yaml")]
    parts = {
        part
        for text in presets
        for part in re.findall(r"^(?:vision_tower|language_model): *(\S+)", text, re.MULTILINE)
    }
    assert len(parts) >= 6
    assert parts <= ids


@pytest.mark.parametrize("name", ["pope", "gqa", "textvqa", "scienceqa", "llava_pretrain"])
def test_a_data_set_that_is_not_fetched_here_says_how_it_comes(name):
    entry = datasets_index.load_index()["by_hand"][name]
    with pytest.raises(UserError) as caught:
        run(name)
    message = str(caught.value)
    assert entry.homepage in message
    assert all(command in message for command in entry.commands)
    assert all(f"data/{file}" in message for file in entry.files)


def test_the_data_page_names_every_data_set_and_command():
    page = (REPO_ROOT / "data/README.md").read_text(encoding="utf-8")
    index = datasets_index.load_index()
    for name, entry in index["by_hand"].items():
        assert entry.homepage in page, name
        assert all(command in page for command in entry.commands), name
    for name in (*index["datasets"], *index["models"]):
        assert f"`{name}`" in page


def test_the_command_for_popes_pictures_fetches_each_once(server, tmp_path):
    """The published line, its server replaced by the local one."""
    entry = datasets_index.load_index()["by_hand"]["pope"]
    names = [f"COCO_val2014_{i:012}.jpg" for i in range(30)]
    for name in names:
        server.files[f"/val2014/{name}"] = name.encode()
    rows = [{"question_id": i, "image": name} for i, name in enumerate([*names, *names])]
    folder = tmp_path / "data/pope"
    folder.mkdir(parents=True)
    for split in ("random", "popular"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(text)
    command = entry.commands[1].replace("http://images.cocodataset.org", server.url)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)
    assert {p.name: p.read_bytes() for p in (folder / "val2014").iterdir()} == {
        name: name.encode() for name in names
    }
    assert len(server.requests) == len(names)


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; from shared.download import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'requests', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--from FOLDER" in done.stdout


# Models


def safetensors(n_bytes: int = 64) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(n_bytes)


MODEL = "Salesforce/blip2-opt-2.7b"
COMMIT = "a" * 40
MODEL_FILES = {
    "config.json": b'{"model_type": "blip-2"}',
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": safetensors(40_000),
    "model-2.safetensors": safetensors(50_000),
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
    "preprocessor_config.json": b"{}",
}
NOT_WANTED = {
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "modeling_custom.py": b"remote code",
    "README.md": b"# card",
    "onnx/model.safetensors": b"other format",
}


@pytest.fixture
def hub(server: FileServer) -> FileServer:
    """The parts of the Hub's interface that `huggingface_hub` uses to fetch a public model."""
    everything = MODEL_FILES | NOT_WANTED
    siblings = [{"rfilename": n, "size": len(c)} for n, c in everything.items()]
    tree = [
        {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
        for n, c in everything.items()
    ]
    info = {"_id": "0", "id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings}
    for where in ("", "/revision/main", f"/revision/{COMMIT}"):
        server.files[f"/api/models/{MODEL}{where}"] = json.dumps(info).encode()
    server.files[f"/api/models/{MODEL}/tree/{COMMIT}"] = json.dumps(tree).encode()
    for name, content in everything.items():
        path = f"/{MODEL}/resolve/{COMMIT}/{name}"
        server.files[path] = content
        server.headers[path] = {"X-Repo-Commit": COMMIT}
    return server


def run_in_process_of_its_own(
    tmp_path: Path, endpoint: str, *argv: str
) -> subprocess.CompletedProcess[str]:
    """HF_ENDPOINT is read when huggingface_hub is imported, so it takes a fresh process."""
    code = (
        "import sys; from pathlib import Path; from shared import download, hub_models\n"
        "from shared.options import guarded\n"
        f"hub_models.DATA_ROOT = Path({str(tmp_path / 'data')!r})\n"
        "guarded(lambda: download.main(sys.argv[1:]))"
    )
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=REPO_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_model_comes_from_the_server_that_hf_endpoint_names(hub, tmp_path):
    done = run_in_process_of_its_own(tmp_path, hub.url, "blip2-opt-2.7b")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data/models" / MODEL
    assert {p.name for p in folder.iterdir()} == {*MODEL_FILES, "manifest.json"}
    assert (folder / "model-2.safetensors").read_bytes() == MODEL_FILES["model-2.safetensors"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["revision"] == COMMIT
    assert manifest["source"] == hub.url
    assert manifest["synthetic"] is False
    hub.requests.clear()
    again = run_in_process_of_its_own(tmp_path, hub.url, "blip2-opt-2.7b")
    assert "in place" in again.stdout
    assert hub.requests == []


def test_an_interrupted_model_continues_with_the_same_command(hub, tmp_path):
    """Five cuts are more than the Hub library repeats by itself, so the first command fails."""
    shard = f"/{MODEL}/resolve/{COMMIT}/model-2.safetensors"
    whole = hub.files.pop(shard)
    first = run_in_process_of_its_own(tmp_path, hub.url, "blip2-opt-2.7b")
    assert first.returncode == 2
    assert "the same command goes on" in first.stderr
    assert "Traceback" not in first.stderr
    assert not (tmp_path / "data/models" / MODEL).exists()
    hub.files[shard] = whole
    hub.requests.clear()
    second = run_in_process_of_its_own(tmp_path, hub.url, "blip2-opt-2.7b")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "data/models" / MODEL / "model-2.safetensors").read_bytes() == whole
    assert not [r for r in hub.requests if r[0].endswith("model-1.safetensors")]


def test_dry_run_of_a_model_asks_for_sizes_only(hub, tmp_path):
    done = run_in_process_of_its_own(tmp_path, hub.url, "blip2-opt-2.7b", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "in 7 files" in done.stdout
    assert not [path for path, _ in hub.requests if "/resolve/" in path]
    assert not (tmp_path / "data").exists()


def test_without_a_network_a_model_says_what_to_do(tmp_path):
    done = run_in_process_of_its_own(tmp_path, UNREACHABLE, "blip2-opt-2.7b")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "HF_ENDPOINT=https://hf-mirror.com python -m shared.download" in done.stderr
    assert f"python -m shared.download {MODEL} --from FOLDER" in done.stderr
    assert f"belong in {tmp_path}/data/models/{MODEL}" in done.stderr
    dry = run_in_process_of_its_own(tmp_path, UNREACHABLE, "blip2-opt-2.7b", "--dry_run")
    assert dry.returncode == 0
    assert "about 15.0 GB" in dry.stdout


def test_a_gated_model_says_where_its_terms_are_accepted(hub, tmp_path):
    """Sizes are public, the files are not."""
    hub.gated = True
    done = run_in_process_of_its_own(tmp_path, hub.url, "blip2-opt-2.7b")
    assert done.returncode == 2
    assert f"is gated: accept its terms at {hub.url}/{MODEL}" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_the_hub_does_not_have_gets_the_nearest_name(hub, tmp_path):
    done = run_in_process_of_its_own(tmp_path, hub.url, "Salesforce/blip2-opt-2.7")
    assert done.returncode == 2
    assert "did you mean Salesforce/blip2-opt-2.7b?" in done.stderr


@pytest.fixture
def models_here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(hub_models, "DATA_ROOT", tmp_path / "data")
    return tmp_path / "data/models"


class FakeInfo:
    def __init__(self, names: list[str], sizes: dict[str, int]) -> None:
        self.sha = COMMIT
        sizes = {n: len(c) for n, c in (MODEL_FILES | NOT_WANTED).items()} | sizes
        self.siblings = [type("F", (), {"rfilename": n, "size": sizes[n]}) for n in names]


@pytest.fixture
def fake_hub(models_here, monkeypatch) -> dict:
    """`snapshot_download` and `model_info` replaced; `calls` keeps what they were asked for."""
    import huggingface_hub

    calls: dict = {"names": [*MODEL_FILES, *NOT_WANTED], "files": dict(MODEL_FILES), "sizes": {}}

    def model_info(self, repo_id: str, **keywords: object) -> FakeInfo:
        calls["info"] = {"repo_id": repo_id, **keywords}
        return FakeInfo(calls["names"], calls["sizes"])

    def snapshot_download(repo_id: str, **keywords: object) -> str:
        calls["snapshot"] = {"repo_id": repo_id, **keywords}
        folder = Path(keywords["local_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in calls["files"].items():
            (folder / name).write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_only_safetensors_json_and_tokenizer_files_of_the_resolved_commit_are_asked_for(
    fake_hub, models_here
):
    run("blip2-opt-2.7b", "--revision", "main")
    assert fake_hub["info"]["revision"] == "main"
    assert fake_hub["snapshot"]["revision"] == COMMIT
    assert set(fake_hub["snapshot"]["allow_patterns"]) == set(MODEL_FILES)


def test_a_repository_without_weights_that_are_loaded_here_is_refused(fake_hub):
    fake_hub["names"] = ["config.json", "modeling_custom.py", "onnx/model.safetensors"]
    with pytest.raises(UserError, match="no weights in it that are loaded here"):
        run("blip2-opt-2.7b")
    assert "snapshot" not in fake_hub


def torch_zip(n_bytes: int = 64) -> bytes:
    """What torch.save writes, to the eye of a check that unpickles nothing."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as members:
        members.writestr("archive/data.pkl", b"a pickle")
        members.writestr("archive/data/0", bytes(n_bytes))
    return content.getvalue()


def bin_index(total: int) -> bytes:
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": shards}).encode()


BIN_FILES = {
    "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    "pytorch_model-00001-of-00002.bin": torch_zip(40_000),
    "pytorch_model-00002-of-00002.bin": torch_zip(50_000),
    "pytorch_model.bin.index.json": bin_index(90_000),
    "tokenizer.model": b"pieces",
}


def test_only_where_there_are_no_safetensors_bin_files_are_taken(fake_hub, models_here, capsys):
    fake_hub["names"] = list(MODEL_FILES | NOT_WANTED)
    run("blip2-opt-2.7b")
    assert ".bin" not in capsys.readouterr().out
    others = {"training_args.bin": b"", "pytorch_model.fp16.bin": b"", "consolidated.00.pth": b""}
    fake_hub["names"], fake_hub["files"] = [*BIN_FILES, *others], BIN_FILES
    fake_hub["sizes"] = {n: len(c) for n, c in (BIN_FILES | others).items()}
    run("vicuna-7b-v1.5")
    assert set(fake_hub["snapshot"]["allow_patterns"]) == set(BIN_FILES)
    shown = capsys.readouterr().out
    assert "weights: pytorch_model*.bin (no safetensors there)" in shown
    assert "weights_only=True" in shown
    folder = models_here / "lmsys/vicuna-7b-v1.5"
    assert {p.name for p in folder.iterdir()} == {*BIN_FILES, "manifest.json"}
    assert hub_models.folder_problems(folder) == []
    run("vicuna-7b-v1.5")
    assert "in place" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pytorch_model-00002-of-00002.bin": None}, "of-00002.bin is missing"),
        ({"pytorch_model-00002-of-00002.bin": torch_zip(50_000)[:-30]}, "is cut off"),
        ({"pytorch_model-00002-of-00002.bin": b"<html>no</html>"}, "not a file of torch weights"),
        ({"pytorch_model-00002-of-00002.bin": torch_zip(49)}, "says 90,000"),
        ({"pytorch_model.bin.index.json": b"{"}, "not valid JSON"),
        ({"tokenizer.model": None}, "the tokenizer is missing"),
    ],
)
def test_an_incomplete_folder_of_bin_files_is_refused(models_here, tmp_path, change, message):
    files = {n: c for n, c in (BIN_FILES | change).items() if c is not None}
    write_model(tmp_path / "netdisk/vicuna-7b-v1.5", files)
    with pytest.raises(BrokenFileError, match=message):
        run("vicuna-7b-v1.5", "--from", tmp_path / "netdisk")
    assert not (models_here / "lmsys/vicuna-7b-v1.5").exists()


def test_torchs_older_format_is_known_and_a_lone_file_needs_no_index(models_here, tmp_path):
    files = {
        "config.json": b'{"model_type": "clip", "vision_config": {}}',
        "pytorch_model.bin": b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "preprocessor_config.json": b"{}",
    }
    write_model(tmp_path / "netdisk", files)
    run("clip-vit-large-patch14-336", "--from", tmp_path / "netdisk")
    assert (models_here / "openai/clip-vit-large-patch14-336/pytorch_model.bin").is_file()


@pytest.mark.parametrize(
    ("config", "lacking"),
    [
        ({"model_type": "blip-2"}, ["tokenizer", "preprocessor"]),
        (
            {"model_type": "llava", "vision_config": {}, "text_config": {}},
            ["tokenizer", "preprocessor"],
        ),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip"}, ["tokenizer"]),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ["tokenizer"]),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, ["tokenizer"]),
        (
            {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {}},
            ["preprocessor"],
        ),
        ({"model_type": "siglip", "vision_config": {}, "text_config": {}}, ["preprocessor"]),
        ({"model_type": "siglip_vision_model"}, ["preprocessor"]),
        ({"model_type": "bert"}, []),
    ],
)
def test_each_architecture_has_what_it_cannot_be_used_without(tmp_path, config, lacking):
    folder = write_model(
        tmp_path / "m",
        {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors()},
    )
    problems = " ".join(hub_models.folder_problems(folder))
    for word in ("tokenizer", "preprocessor"):
        assert (word in problems) == (word in lacking), problems
    for name in ("tokenizer.json", "processor_config.json"):
        (folder / name).write_text("{}")
    assert hub_models.folder_problems(folder) == []


def test_a_model_that_does_not_fit_is_not_begun(fake_hub, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs \d+\.\d kB"):
        run("blip2-opt-2.7b")
    assert "snapshot" not in fake_hub


def test_a_file_of_the_wrong_size_keeps_the_model_from_its_place(fake_hub, models_here):
    fake_hub["files"]["model-1.safetensors"] = safetensors(40_000)[:-1]
    with pytest.raises(BrokenFileError, match=r"model-1\.safetensors has .* bytes"):
        run("blip2-opt-2.7b")
    assert not (models_here / MODEL).exists()


def write_model(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("where", ["", "blip2-opt-2.7b", "AI-ModelScope/blip2-opt-2___7b"])
def test_a_model_fetched_by_hand_is_checked_and_placed(models_here, tmp_path, where):
    others = {n: c for n, c in NOT_WANTED.items() if "/" not in n}
    write_model(tmp_path / "netdisk" / where, MODEL_FILES | others)
    if where:
        write_model(tmp_path / "netdisk/another", MODEL_FILES)
    run("blip2-opt-2.7b", "--from", tmp_path / "netdisk")
    assert {p.name for p in (models_here / MODEL).iterdir()} == {*MODEL_FILES, "manifest.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model-2.safetensors": None}, r"model-2\.safetensors is missing"),
        ({"model-2.safetensors": safetensors(900)[:-10]}, r"model-2\.safetensors is cut off"),
        ({"model-2.safetensors": b"<html>no</html>"}, "is not a safetensors file"),
        ({"tokenizer.json": None}, "the tokenizer is missing"),
        ({"preprocessor_config.json": None}, r"preprocessor_config\.json is missing"),
        ({"config.json": b"{"}, "not valid JSON"),
    ],
)
def test_an_incomplete_model_fetched_by_hand_is_refused(models_here, tmp_path, change, message):
    files = {n: c for n, c in (MODEL_FILES | change).items() if c is not None}
    write_model(tmp_path / "netdisk", files)
    with pytest.raises(BrokenFileError, match=message):
        run("blip2-opt-2.7b", "--from", tmp_path / "netdisk")
    assert not (models_here / MODEL).exists()


def test_a_folder_without_or_with_several_models_is_said(models_here, tmp_path):
    (tmp_path / "netdisk").mkdir()
    with pytest.raises(UserError, match="no model in it"):
        run("blip2-opt-2.7b", "--from", tmp_path / "netdisk")
    for name in ("one", "two"):
        write_model(tmp_path / "netdisk" / name, MODEL_FILES)
    with pytest.raises(UserError, match="several models"):
        run("blip2-opt-2.7b", "--from", tmp_path / "netdisk")
