"""Building an index: each readable picture once, whatever stops the build or changes the folder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps import index_building, index_pictures
from lavis_apps.build_index import IndexOptions, main
from lavis_apps.index import Index, model_identity, read_index
from lavis_apps.index_building import build, make_plan
from lavis_apps.index_pictures import opened, scan, sized_batches
from shared.options import LOCK_FILE, REPO_ROOT, UserError, take_lock
from tests.lavis_apps.fake_models import (
    IDENTITY,
    FakeEmbedder,
    draw_pictures,
    expected_vectors,
    make_index,
)
from tests.tiny_models import tiny_blip

posix = pytest.mark.skipif(os.name != "posix", reason="links, signals and modes of Unix")


def never() -> FakeEmbedder:
    raise AssertionError("the model was opened though nothing is to encode")


def renew(folder: Path, embedder: Any = None, batch_size: int = 4) -> tuple[Any, FakeEmbedder]:
    """Build FOLDER/index of FOLDER/pictures; what was built, and the model with its counts."""
    embedder = embedder or FakeEmbedder()
    built = build(
        folder / "pictures", folder / "index", IDENTITY, lambda: embedder,
        batch_size=batch_size, progress=False,
    )  # fmt: skip
    return built, embedder


def check_whole(folder: Path, names: list[str]) -> Index:
    """The index holds exactly these pictures, each with its own vector, and no rest of a build."""
    index = read_index(folder / "index", check_hash=True)
    assert index.images == names
    assert index.manifest["count"] == len(names)
    expected = expected_vectors(folder / "pictures", names)
    np.testing.assert_allclose(index.vectors, expected, atol=1e-6)
    files = {path.name for path in (folder / "index").iterdir()} - {LOCK_FILE}
    assert files == {"manifest.json", index.manifest["vectors"]}
    return index


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1003])
def test_none_is_lost_and_none_doubled(tmp_path, n):
    """LAVIS' builder loses one picture a flush and the last batch."""
    draw_pictures(tmp_path / "pictures", n)
    built, embedder = renew(tmp_path, batch_size=8)
    check_whole(tmp_path, [f"{i:04}.png" for i in range(n)])
    assert embedder.batches == [8] * (n // 8) + ([n % 8] if n % 8 else [])
    assert (built.count, built.n_added, built.n_kept, built.unreadable) == (n, n, 0, {})


# A build that is killed -----------------------------------------------------------------------

N_KILLED = 5  # pictures, in batches of two: six flushes of batches, the vectors', the manifest's


def killed_at(folder: Path, number: int, when: str) -> None:
    """In a process of its own: build, and die by SIGKILL around the flush of that number."""
    real, done = index_building.flush, 0

    def flush(file: Any, more: bytes = b"") -> None:
        nonlocal done
        done += 1
        if done == number:
            if when == "half written":
                real(file, more[: len(more) // 2])
            elif when == "after":
                real(file, more)
            os.kill(os.getpid(), signal.SIGKILL)
        real(file, more)

    index_building.flush = flush
    renew(folder, batch_size=2)


@posix
@pytest.mark.parametrize("earlier", [False, True], ids=["first build", "renewal"])
@pytest.mark.parametrize("when", ["before", "half written", "after"])
@pytest.mark.parametrize("number", range(1, 9))
def test_killed_at_any_write_and_started_again(tmp_path, number, when, earlier):
    if earlier:
        make_index(tmp_path, 3)
        draw_pictures(tmp_path / "pictures", N_KILLED, start=3)
    else:
        draw_pictures(tmp_path / "pictures", N_KILLED)
    process = multiprocessing.get_context("fork").Process(
        target=killed_at, args=(tmp_path, number, when)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    n = N_KILLED + 3 * earlier
    if earlier:  # the old index stands
        index = read_index(tmp_path / "index", check_hash=True)
        assert index.images == [f"{i:04}.png" for i in range(3)]
    _, embedder = renew(tmp_path, batch_size=2)
    check_whole(tmp_path, [f"{i:04}.png" for i in range(n)])
    batches_kept = min((number - (when != "after")) // 2, 3)
    lost = N_KILLED - min(2 * batches_kept, N_KILLED)
    # of a batch whose lines were half written, one picture's may be whole
    assert embedder.n_pictures in ({lost, lost - 1} if when == "half written" else {lost})


@posix
def test_killed_in_the_middle_of_a_batch(tmp_path):
    """The model itself is at work when SIGKILL comes from outside."""
    draw_pictures(tmp_path / "pictures", 12)
    code = f"""
import time
from pathlib import Path
from tests.lavis_apps.fake_models import FakeEmbedder
from tests.lavis_apps.test_build_index import renew
class Slow(FakeEmbedder):
    def image_features(self, images):
        if len(self.batches) == 2:
            print("third batch", flush=True)
            time.sleep(60)
        return super().image_features(images)
renew(Path({str(tmp_path)!r}), Slow())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "third batch\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "index" / "manifest.json").exists()
    built, embedder = renew(tmp_path)
    assert (built.n_resumed, embedder.n_pictures) == (8, 4)
    check_whole(tmp_path, [f"{i:04}.png" for i in range(12)])


def test_a_full_disk_is_told_and_gone_on_from(tmp_path, monkeypatch):
    draw_pictures(tmp_path / "pictures", 6)
    real = index_building.flush

    def full(file, more=b""):
        if "manifest" in file.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, more)

    monkeypatch.setattr(index_building, "flush", full)
    with pytest.raises(UserError, match="No space left on device"):
        renew(tmp_path)
    monkeypatch.undo()
    _, embedder = renew(tmp_path, embedder=FakeEmbedder())
    assert embedder.n_pictures == 0
    check_whole(tmp_path, [f"{i:04}.png" for i in range(6)])


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"not json\n", b'{"size": 0, "model": {}}\n'])
def test_an_unfinished_build_without_use_is_made_anew(tmp_path, content):
    draw_pictures(tmp_path / "pictures", 3)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "unfinished.jsonl").write_bytes(content)
    (tmp_path / "index" / "unfinished.f32").write_bytes(b"\0" * 10)
    _, embedder = renew(tmp_path)
    assert embedder.n_pictures == 3
    check_whole(tmp_path, ["0000.png", "0001.png", "0002.png"])


def test_two_builds_of_one_index_at_once(tmp_path, monkeypatch):
    index = make_index(tmp_path, 2)
    monkeypatch.setattr(index_building, "LOCK_WAIT_S", 0)
    lock = take_lock(index / LOCK_FILE, index, 0)
    with pytest.raises(UserError, match="another process writes in this folder"):
        renew(tmp_path)
    lock.release()
    renew(tmp_path)


# A folder that changes ------------------------------------------------------------------------


def test_only_new_and_changed_pictures_are_encoded(tmp_path):
    make_index(tmp_path, 10)
    pictures = tmp_path / "pictures"
    draw_pictures(pictures, 2, start=10)
    Image.new("RGB", (5, 4), "orange").save(pictures / "0003.png")
    (pictures / "0007.png").unlink()
    built, embedder = renew(tmp_path)
    assert embedder.n_pictures == 3
    check_whole(tmp_path, [f"{i:04}.png" for i in range(12) if i != 7])
    counts = (built.count, built.n_added, built.n_changed, built.n_removed, built.n_kept)
    assert counts == (11, 2, 1, 1, 8)


def test_nothing_changed_loads_no_model_and_writes_no_vectors(tmp_path):
    index = make_index(tmp_path, 5)
    (vectors,) = index.glob("vectors-*")
    before = vectors.stat().st_mtime_ns
    built = build(tmp_path / "pictures", index, IDENTITY, never, progress=False)
    assert (built.count, built.n_kept) == (5, 5)
    assert vectors.stat().st_mtime_ns == before
    check_whole(tmp_path, [f"{i:04}.png" for i in range(5)])


def test_the_time_of_change_counts_where_the_size_is_the_same(tmp_path):
    make_index(tmp_path, 3)
    file = tmp_path / "pictures" / "0001.png"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    built, embedder = renew(tmp_path)
    assert (embedder.n_pictures, built.n_changed) == (1, 1)


def test_a_picture_that_broke_leaves_and_one_that_was_mended_comes(tmp_path):
    make_index(tmp_path, 3)
    broken, mended = tmp_path / "pictures" / "0001.png", tmp_path / "pictures" / "new.png"
    whole = broken.read_bytes()
    broken.write_text("no picture")
    mended.write_text("no picture")
    built, _ = renew(tmp_path)
    assert set(built.unreadable) == {"0001.png", "new.png"}
    assert (built.n_removed, built.n_kept) == (1, 2)
    check_whole(tmp_path, ["0000.png", "0002.png"])
    mended.write_bytes(whole)
    built, embedder = renew(tmp_path)
    assert (list(built.unreadable), embedder.n_pictures) == (["0001.png"], 1)
    check_whole(tmp_path, ["0000.png", "0002.png", "new.png"])


def test_a_folder_that_moved_is_not_encoded_again(tmp_path):
    index = make_index(tmp_path, 4)
    moved = tmp_path / "elsewhere"
    (tmp_path / "pictures").rename(moved)
    build(moved, index, IDENTITY, never, progress=False)
    assert read_index(index).root == moved


def test_another_folders_pictures_don_t_replace_an_index(tmp_path):
    index = make_index(tmp_path, 4)
    other = draw_pictures(tmp_path / "other", 2, start=50)
    before = (index / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="none of its pictures is in"):
        build(other, index, IDENTITY, never, progress=False)
    assert (index / "manifest.json").read_bytes() == before


def test_another_models_index_is_not_gone_on_with(tmp_path):
    index = make_index(tmp_path, 2)
    other = IDENTITY | {"fingerprint": "2222"}
    with pytest.raises(UserError, match="2222"):
        build(tmp_path / "pictures", index, other, never, progress=False)


def test_another_models_unfinished_index_is_not_gone_on_with(tmp_path):
    draw_pictures(tmp_path / "pictures", 6)

    class Stopped(FakeEmbedder):
        def image_features(self, images):
            if self.batches:
                raise KeyboardInterrupt
            return super().image_features(images)

    with pytest.raises(KeyboardInterrupt):
        renew(tmp_path, Stopped())
    other = IDENTITY | {"fingerprint": "2222"}
    with pytest.raises(UserError, match="2222"):
        build(tmp_path / "pictures", tmp_path / "index", other, never, progress=False)
    _, embedder = renew(tmp_path)
    assert embedder.n_pictures == 2


# What lies in folders -------------------------------------------------------------------------


def test_every_kind_of_picture_is_in_it_and_every_other_file_is_told(tmp_path):
    """CMYK, 16 bits, animated, turned by EXIF, one pixel, 20,000 wide; broken ones between them."""
    folder = draw_pictures(tmp_path / "pictures", 1)
    Image.new("CMYK", (4, 4), (0, 99, 99, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "grey16.png")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (40, 20), "red")
    half.paste("blue", (0, 0, 20, 20))
    half.save(folder / "turned.jpg", exif=exif, quality=100)
    Image.new("RGB", (1, 1), "green").save(folder / "one.png")
    Image.new("RGB", (20_000, 3), "orange").save(folder / "wide.png")
    Image.new("RGB", (4, 4), "teal").save(folder / "UPPER.JPG")
    (folder / "text.jpg").write_text("these are words")
    (folder / "empty.png").write_bytes(b"")
    cut = (folder / "turned.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(cut[: len(cut) * 2 // 3])
    (folder / "notes.txt").write_text("no picture, and it does not say it is one")
    (folder / "folder.jpg").mkdir()
    draw_pictures(folder / "folder.jpg" / ".hidden", 1)
    built, _ = renew(tmp_path)
    index = read_index(tmp_path / "index")
    assert index.images == sorted(
        ["0000.png", "cmyk.jpg", "grey16.png", "animated.gif", "turned.jpg", "one.png", "wide.png",
         "UPPER.JPG", "folder.jpg/.hidden/0000.png"]
    )  # fmt: skip
    told = {row["path"]: row["reason"] for row in index.manifest["unreadable"]}
    assert told == built.unreadable
    assert told.keys() == {"text.jpg", "empty.png", "truncated.jpg"}
    assert told["text.jpg"] == "not a picture that Pillow can read"
    assert "truncated" in told["truncated.jpg"].lower()
    vectors = dict(zip(index.images, index.vectors, strict=True))
    seen = {name: (vector * 1e4).round().reshape(-1) for name, vector in vectors.items()}
    assert seen["animated.gif"][0] > 0 > seen["animated.gif"][2]  # red: the first frame
    assert seen["turned.jpg"][2] > 0 > seen["turned.jpg"][26]  # blue is above, red below
    assert seen["grey16.png"][0] > 0  # 40,000 of 65,535 is above the middle, not white


def test_a_picture_in_a_batch_of_broken_ones(tmp_path):
    folder = draw_pictures(tmp_path / "pictures", 1, start=5)
    for i in range(9):
        (folder / f"{i:04}.jpg").write_text("broken")
    built, embedder = renew(tmp_path, batch_size=3)
    assert (built.count, len(built.unreadable), embedder.batches) == (1, 9, [1])
    check_whole(tmp_path, ["0005.png"])


@pytest.mark.parametrize(
    "name",
    ["line\nbreak.png", "日本 语.png", "Zoë's 🖼.PNG", "a b'\"c.png", "%41.png", "-n.png"],
)
def test_names_of_every_kind(tmp_path, name):
    draw_pictures(tmp_path / "pictures", 1)
    (tmp_path / "pictures" / "0000.png").rename(tmp_path / "pictures" / name)
    renew(tmp_path)
    check_whole(tmp_path, [name])
    json.loads((tmp_path / "index" / "manifest.json").read_text(encoding="ascii"))


@posix
def test_names_that_differ_in_case_and_names_that_are_no_utf8(tmp_path):
    draw_pictures(tmp_path / "pictures", 3)
    names = ["A.png", "a.png", b"\xff.png".decode("utf-8", "surrogateescape")]
    for i, name in enumerate(names):
        (tmp_path / "pictures" / f"{i:04}.png").rename(tmp_path / "pictures" / name)
    renew(tmp_path)
    check_whole(tmp_path, names)
    _, embedder = renew(tmp_path)
    assert embedder.n_pictures == 0


@posix
def test_links_show_no_picture_twice_and_none_from_outside(tmp_path):
    outside = draw_pictures(tmp_path / "outside", 1, start=90)
    folder = draw_pictures(tmp_path / "pictures" / "a", 2).parent
    shutil.copy(folder / "a" / "0000.png", folder / "blob")
    (folder / "copy.png").symlink_to(folder / "a" / "0000.png")
    (folder / "again").symlink_to(folder / "a")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "named1.png").symlink_to("blob")
    (folder / "named2.png").symlink_to("blob")
    (folder / "away.png").symlink_to(outside / "0090.png")
    (folder / "away").symlink_to(outside)
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "round.png").symlink_to("round.png")
    os.mkfifo(folder / "pipe.png")
    built, _ = renew(tmp_path)
    check_whole(tmp_path, ["a/0000.png", "a/0001.png", "named1.png"])
    outward = "a link that leads out of the folder: not followed"
    nothing = "a link to nothing"
    assert built.unreadable == {
        "away.png": outward, "away": outward, "gone.png": nothing, "round.png": nothing,
    }  # fmt: skip


@posix
def test_a_file_that_becomes_a_link_outwards_is_not_opened(tmp_path):
    """Between the reading of the folder and the opening of the picture."""
    outside = draw_pictures(tmp_path / "outside", 1)
    folder = draw_pictures(tmp_path / "pictures", 1)
    (folder / "0000.png").unlink()
    (folder / "0000.png").symlink_to(outside / "0000.png")
    assert opened(folder, "0000.png") == "leads out of the folder: not opened"
    assert opened(folder, "../outside/0000.png") == "leads out of the folder: not opened"


def test_a_picture_that_goes_while_the_index_is_built(tmp_path):
    assert opened(draw_pictures(tmp_path, 1), "9999.png") == "no such picture"


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    folder = draw_pictures(tmp_path / "pictures", 2)
    (folder / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(index_pictures.os, "scandir", scandir)
    pictures, problems = scan(folder, tmp_path / "index")
    assert len(pictures) == 2
    assert problems == {"closed/": "the folder cannot be read: Permission denied"}


def test_the_index_may_lie_among_the_pictures(tmp_path):
    folder = draw_pictures(tmp_path / "pictures", 3)
    inside = folder / "index"
    for _ in range(2):
        build(folder, inside, IDENTITY, FakeEmbedder, progress=False)
    draw_pictures(inside, 1, start=70)  # whatever is put there is not the folder's
    assert [picture.image for picture in scan(folder, inside)[0]] == [
        "0000.png", "0001.png", "0002.png",
    ]  # fmt: skip
    assert read_index(inside).manifest["count"] == 3


# What cannot be ------------------------------------------------------------------------------


def test_a_folder_without_pictures_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.txt").write_text("words")
    with pytest.raises(UserError, match=r"pictures: no picture in it \(looked for \.bmp"):
        renew(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        build(tmp_path / "nowhere", tmp_path / "index", IDENTITY, never)
    with pytest.raises(UserError, match="a file; --images takes a folder"):
        build(tmp_path / "pictures" / "notes.txt", tmp_path / "index", IDENTITY, never)
    assert not (tmp_path / "index").exists()


def test_a_folder_of_broken_pictures_alone_is_an_error(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_text("words")
    with pytest.raises(UserError, match=r"none of its 1 pictures can be read\n  a\.jpg: not a"):
        renew(tmp_path)
    assert not (tmp_path / "index" / "manifest.json").exists()
    draw_pictures(tmp_path / "pictures", 1)
    renew(tmp_path)
    check_whole(tmp_path, ["0000.png"])


def test_an_emptied_folder_does_not_empty_its_index(tmp_path):
    index = make_index(tmp_path, 2)
    before = (index / "manifest.json").read_bytes()
    for file in (tmp_path / "pictures").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no picture in it"):
        renew(tmp_path)
    assert (index / "manifest.json").read_bytes() == before


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    draw_pictures(tmp_path / "pictures", 1)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty, and no index in it"):
        renew(tmp_path)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="a file; --output is the folder"):
        build(tmp_path / "pictures", tmp_path / "index" / "thesis.txt", IDENTITY, never)


def test_a_manifest_of_something_else_is_not_replaced(tmp_path):
    draw_pictures(tmp_path / "pictures", 1)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text('{"synthetic": true}')
    with pytest.raises(UserError, match="not the manifest of an index"):
        renew(tmp_path)


# The model ------------------------------------------------------------------------------------


def test_a_full_gpu_halves_the_batch(tmp_path):
    class Small(FakeEmbedder):
        def image_features(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().image_features(images)

    draw_pictures(tmp_path / "pictures", 11)
    _, embedder = renew(tmp_path, Small(), batch_size=8)
    assert embedder.n_pictures == 11
    assert max(embedder.batches) == 2
    check_whole(tmp_path, [f"{i:04}.png" for i in range(11)])


def test_a_gpu_too_small_for_one_picture_is_told(tmp_path):
    class Full(FakeEmbedder):
        def image_features(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    draw_pictures(tmp_path / "pictures", 3)
    with pytest.raises(UserError, match=r"one picture \(0000\.png\): free it, or give --device"):
        renew(tmp_path, Full())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_features_that_are_no_numbers_stop_the_build(tmp_path, value):
    class Broken(FakeEmbedder):
        def image_features(self, images):
            features = super().image_features(images)
            features[1] = value
            return features

    draw_pictures(tmp_path / "pictures", 3)
    with pytest.raises(UserError, match=r"0001\.png: the model's features of it are no finite"):
        renew(tmp_path, Broken())


def test_features_in_bfloat16_are_of_length_one_in_the_index(tmp_path):
    class Half(FakeEmbedder):
        def image_features(self, images):
            return super().image_features(images).bfloat16()

    draw_pictures(tmp_path / "pictures", 5)
    renew(tmp_path, Half())
    index = read_index(tmp_path / "index")
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)


def test_a_batch_of_large_pictures_is_a_small_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(index_pictures, "PIXELS_AT_ONCE", 250)
    folder = tmp_path / "pictures"
    folder.mkdir()
    sides = [10, 10, 10, 40, 10, 2, 2]  # the fourth alone has more than 250 pixels
    for i, side in enumerate(sides):
        Image.new("RGB", (side, side)).save(folder / f"{i}.png")
    (folder / "7.png").write_text("broken")
    batches = sized_batches(folder, scan(folder, tmp_path)[0], 3)
    names = [[picture.image[0] for picture in batch] for batch in batches]
    assert names == [["0", "1"], ["2"], ["3"], ["4", "5", "6"], ["7"]]


# The script -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> str:
    return str(tiny_blip("matching", tmp_path_factory.mktemp("blip")))


def test_the_script_builds_with_a_blip_and_tells_what_it_did(tmp_path, blip, capsys):
    folder = draw_pictures(tmp_path / "pictures", 3)
    (folder / "bad.jpg").write_text("words")
    given = {"images": str(folder), "output": str(tmp_path / "index"), "model": blip}
    main(IndexOptions(**given, batch_size=2))
    said = capsys.readouterr()
    assert "3 pictures (3 new, 0 changed; 0 kept, 0 removed), 1 unreadable" in said.out
    assert "not in the index: bad.jpg: not a picture that Pillow can read" in said.err
    index = read_index(tmp_path / "index")
    assert index.manifest["model"] == model_identity(blip)
    assert index.manifest["size"] == 16
    assert index.model == str(Path(blip).resolve())
    before = (tmp_path / "index" / "manifest.json").read_bytes()
    main(IndexOptions(**given))
    assert (tmp_path / "index" / "manifest.json").read_bytes() == before


def test_a_rehearsal_counts_and_writes_nothing(tmp_path, blip, capsys):
    folder = draw_pictures(tmp_path / "pictures", 3)
    output = tmp_path / "index"
    main(IndexOptions(images=str(folder), output=str(output), model=blip, dry_run=True))
    assert f"3 in {folder}, 3 to encode" in capsys.readouterr().out
    assert not output.exists()


def test_the_toys_index_is_not_where_one_of_cocos_val2014_goes(tmp_path, blip, monkeypatch, capsys):
    coco, toy = tmp_path / "coco" / "val2014", tmp_path / "toy" / "val2014"
    places = {"TOY_IMAGES": toy, "TOY_INDEX": tmp_path / "index_toy", "RUNS": tmp_path}
    for name, value in places.items():
        monkeypatch.setattr(f"lavis_apps.build_index.{name}", value)
    for folder, index in ((coco, tmp_path / "index_val2014"), (toy, tmp_path / "index_toy")):
        draw_pictures(folder, 1)
        main(IndexOptions(images=str(folder), model=blip, dry_run=True))
        assert f"index:    {index}," in capsys.readouterr().out


def test_drawn_pictures_make_a_synthetic_index(tmp_path, blip):
    folder = draw_pictures(tmp_path / "set" / "val", 1)
    given = {"images": str(folder), "output": str(tmp_path / "index"), "model": blip}
    (tmp_path / "set" / "manifest.json").write_text('["somebody\'s own"]')
    main(IndexOptions(**given))
    assert not read_index(tmp_path / "index").synthetic
    (tmp_path / "set" / "manifest.json").write_text('{"synthetic": true}')
    main(IndexOptions(**given))
    assert read_index(tmp_path / "index").synthetic


def test_options_that_cannot_be():
    with pytest.raises(UserError, match="--batch_size 0"):
        IndexOptions(batch_size=0)
    with pytest.raises(UserError, match="--images"):
        main(IndexOptions())


def test_help_answers_at_once():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "lavis_apps/build_index.py", "--help"],
        cwd=REPO_ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--images" in done.stdout
    assert time.perf_counter() - started < 60


def test_a_plan_changes_nothing(tmp_path):
    make_index(tmp_path, 2)
    draw_pictures(tmp_path / "pictures", 1, start=2)
    before = {path: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    plan = make_plan(tmp_path / "pictures", tmp_path / "index", IDENTITY)
    assert [picture.image for picture in plan.todo] == ["0002.png"]
    assert {path: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before
