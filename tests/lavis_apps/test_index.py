"""The index as it lies on the disk, and exact search over its vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lavis_apps import index as index_module
from lavis_apps.index import check_model, model_identity, nearest, read_index
from shared.options import MissingError, UserError
from tests.lavis_apps.fake_models import IDENTITY, FakeEmbedder, draw_pictures, make_index
from tests.tiny_models import tiny_blip


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def by_loop(vectors: np.ndarray, query: np.ndarray, n: int) -> list[tuple[int, float]]:
    """Every row one by one, in Python's own floats; equal scores by row."""
    scored = [
        (row, sum(float(a) * float(b) for a, b in zip(vector, query, strict=True)))
        for row, vector in enumerate(vectors)
    ]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:n]


@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("block", [1, 64, 200, 1000])
def test_nearest_finds_what_a_loop_over_all_rows_finds(n, block):
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng.standard_normal((200, 16))), unit(rng.standard_normal((3, 16)))
    rows, cosines = nearest(vectors, queries, n, block=block)
    assert rows.shape == cosines.shape == (3, n)
    for i, query in enumerate(queries):
        expected = by_loop(vectors, query, n)
        assert rows[i].tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(cosines[i], [score for _, score in expected], atol=1e-12)


def test_cosines_that_float32_cannot_tell_apart_are_still_in_order():
    rng = np.random.default_rng(1)
    base = rng.standard_normal(64)
    vectors = unit(base + 1e-6 * rng.standard_normal((3000, 64)))
    query = unit(rng.standard_normal((1, 64)))
    expected = [row for row, _ in by_loop(vectors, query[0], 50)]
    plain = np.argsort(-(vectors @ query[0]), kind="stable")[:50].tolist()
    assert plain != expected  # or this test would show nothing
    assert nearest(vectors, query, 50, block=512)[0][0].tolist() == expected


def test_equal_rows_come_in_the_order_of_the_index():
    vectors = np.tile(unit(np.array([[3, 1, 2]])), (500, 1))
    rows, cosines = nearest(vectors, unit(np.array([[1, 1, 1]])), 20, block=99)
    assert rows[0].tolist() == list(range(20))
    assert len(set(cosines[0].tolist())) == 1


def test_more_than_there_are_gives_all_of_them():
    vectors = unit(np.eye(4))
    rows, cosines = nearest(vectors, unit(np.array([[4, 3, 2, 1]])), 9)
    assert rows.tolist() == [[0, 1, 2, 3]]
    assert cosines.shape == (1, 4)


def test_a_query_alone_scores_as_among_others():
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng.standard_normal((1000, 32))), unit(rng.standard_normal((16, 32)))
    together = nearest(vectors, queries, 10)
    for i in range(16):
        alone = nearest(vectors, queries[i : i + 1], 10, block=333)
        assert np.array_equal(alone[0][0], together[0][i])
        assert np.array_equal(alone[1][0], together[1][i])


@pytest.fixture
def index_folder(tmp_path) -> Path:
    return make_index(tmp_path, 6)


def test_an_index_is_read_memory_mapped(index_folder):
    index = read_index(index_folder, check_hash=True)
    assert isinstance(index.vectors, np.memmap)
    assert index.vectors.dtype == np.float32
    assert index.vectors.shape == (6, FakeEmbedder.size)
    assert index.images == [f"{i:04}.png" for i in range(6)]
    assert index.root.resolve() == (index_folder.parent / "pictures").resolve()
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)


def test_no_index_says_how_to_build_one(tmp_path):
    with pytest.raises(MissingError, match=r"build_index\.py --images FOLDER --output"):
        read_index(tmp_path)


def change(folder: Path, **fields: object) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "not the manifest of an index"),
        ({"version": 2}, "version 2, this program reads 1"),
        ({"count": 7}, "count is 7, images are 6"),
        ({"images": ["a.png"] * 6}, r"1 different"),
        ({"images": "a.png"}, "no list of paths"),
        ({"images": [1, 2, 3, 4, 5, 6]}, "no list of paths"),
        ({"sizes": [1]}, "sizes are not 6 whole numbers"),
        ({"mtimes_ns": [[]] * 6}, "mtimes_ns are not 6 whole numbers"),
        ({"vectors": "../vectors.npy"}, "not in the index"),
        ({"vectors": "gone.npy"}, "gone.npy: the index is damaged"),
        ({"size": 3}, r"tells of float32 \(6, 3\)"),
        ({"size": None}, "size is missing"),
        ({"model": {"name": "x"}}, "model is without"),
        ({"unreadable": None}, "unreadable is no list"),
        ({"images": ["../../secret.png", *"bcdef"]}, "not inside the pictures' folder"),
        ({"images": ["/etc/secret.png", *"bcdef"]}, "not inside the pictures' folder"),
        ({"images": ["a/../../secret.png", *"bcdef"]}, "not inside the pictures' folder"),
    ],
)
def test_a_manifest_that_is_damaged_or_of_another_version(index_folder, fields, message):
    change(index_folder, **fields)
    with pytest.raises(UserError, match=message):
        read_index(index_folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_manifest_that_is_no_manifest(index_folder, content):
    (index_folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: (not the manifest|.* build it again)"):
        read_index(index_folder)


def test_vectors_that_are_cut_off_or_changed(index_folder):
    (file,) = index_folder.glob("vectors-*.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="damaged"):
        read_index(index_folder)
    file.write_bytes(whole[:-1] + b"\x7f")
    read_index(index_folder)
    with pytest.raises(UserError, match="another hash"):
        read_index(index_folder, check_hash=True)


def test_an_index_that_is_renewed_while_it_is_read(index_folder, monkeypatch):
    """The vectors that the old manifest names are gone when they are to be opened."""
    (file,) = index_folder.glob("vectors-*.npy")
    real = np.load

    def renew_first(path, **options):
        monkeypatch.setattr(index_module.np, "load", real)
        shutil.move(file, index_folder / "vectors-0.npy")
        change(index_folder, vectors="vectors-0.npy")
        return real(path, **options)

    monkeypatch.setattr(index_module.np, "load", renew_first)
    assert len(read_index(index_folder).vectors) == 6


def test_another_models_index_is_refused():
    folder = Path("INDEX")
    check_model(folder, IDENTITY, IDENTITY | {"name": "moved/elsewhere"})
    with pytest.raises(UserError, match=r"an index of fake .*1111.*, not of other .*2222"):
        check_model(folder, IDENTITY, IDENTITY | {"name": "other", "fingerprint": "2222"})
    tuned = IDENTITY | {"adapter": "tuned", "adapter_fingerprint": "3333"}
    with pytest.raises(UserError, match="with tuned"):
        check_model(folder, IDENTITY, tuned)
    with pytest.raises(UserError, match=r"prepared pictures otherwise.*image_mean"):
        check_model(folder, IDENTITY, IDENTITY | {"processor": {"image_mean": [0.5]}})


def test_a_models_identity_is_its_weights_and_its_processor(tmp_path):
    first = tiny_blip("matching", tmp_path / "first", seed=0)
    second = tiny_blip("matching", tmp_path / "second", seed=1)
    one, two = model_identity(str(first)), model_identity(str(second))
    assert one["fingerprint"] != two["fingerprint"]
    assert one["processor"] == two["processor"]
    assert one["processor"]["size"] == {"height": 32, "width": 32}
    assert model_identity(str(first)) == one
    (settings,) = (f for f in first.glob("*processor*.json"))
    settings.write_text(settings.read_text().replace('"do_resize": true', '"do_resize": false'))
    changed = model_identity(str(first))
    assert changed["fingerprint"] == one["fingerprint"]
    with pytest.raises(UserError, match="do_resize"):
        check_model(Path("INDEX"), one, changed)


def test_a_name_that_is_no_utf8_comes_back_whole(tmp_path):
    name = b"caf\xe9 \xff.png".decode("utf-8", "surrogateescape")
    draw_pictures(tmp_path / "pictures", 1)
    (tmp_path / "pictures" / "0000.png").rename(tmp_path / "pictures" / name)
    index = read_index(make_index(tmp_path, 0))
    assert index.images == [name]
    assert (index.root / index.images[0]).is_file()
