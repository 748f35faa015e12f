"""`make_known_from_coco.py` and the folder that it writes; own pictures beside a split."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_openset import make_known_from_coco
from llava_openset.samples import read_private, read_split
from llava_openset.split_settings import SplitOptions
from llava_openset.split_writing import ensure_toy_split, make_split
from shared.options import REPO_ROOT, MissingError, UserError
from shared.toy_world.shapes import HELD_BACK_SHAPES, KNOWN_SHAPES
from tests.llava_openset.conftest import thing

BIG, SMALL = (10, 10, 50, 50), (70, 70, 20, 20)
DOG, TEDDY, CAT = thing("dog", BIG), thing("teddy bear", BIG), thing("cat", BIG)
ROWS = [
    *[[DOG]] * 8,
    *[[CAT]] * 8,
    *[[TEDDY]] * 12,
    [DOG, thing("teddy bear", SMALL)],
    [TEDDY, thing("dog", (95, 95, 2, 2))],
    [DOG, thing("person", (0, 60, 60, 40), crowd=True)],
    [],
]
FEW = ["--known_classes", "dog", "cat", "--unknown_classes", "teddy bear", "--n_per_class", "3",
       "--validation_per_class", "2", "--min_per_class", "1"]  # fmt: skip


def run(arguments: list[str]) -> None:
    """The script's main with these flags, in this process."""
    before = sys.argv
    sys.argv = ["make_known_from_coco.py", *arguments]
    try:
        make_known_from_coco.main()
    finally:
        sys.argv = before


def flags(root: Path, output: Path) -> list[str]:
    return ["--data_root", str(root), "--output_dir", str(output), *FEW]


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def coco(make_coco: Callable[..., Path]) -> Path:
    return make_coco(ROWS)


@pytest.fixture
def made(coco: Path, tmp_path: Path) -> Path:
    run(flags(coco, tmp_path / "split"))
    return tmp_path / "split"


def test_the_folder_is_the_course_s_with_all_that_was_decided(coco: Path, made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        "known_images", "known_meta.csv", "known_classes.txt", "unknown_images",
        "unknown_meta.csv", "split.json",
    }  # fmt: skip
    assert (made / "known_classes.txt").read_text() == "dog\ncat\n"
    content = json.loads((made / "split.json").read_text())
    assert content["version"] == 1
    assert content["synthetic"] is False
    assert content["seed"] == 0
    assert content["classes"] == {"known": ["dog", "cat"], "unknown": ["teddy bear"]}
    assert content["rules"]["n_per_class"] == 3
    assert content["rules"]["max_other_share"] == 0.05
    assert len(content["samples"]) == 2 * 5 + 10
    for sample in content["samples"]:
        original = coco / "val2017" / Path(sample["file"]).name
        assert (made / sample["file"]).read_bytes() == original.read_bytes()
        assert sample["box"] is None
        assert sample["present"][0] == sample["label"]
        assert sample["known"] == (sample["label"] != "teddy bear")
    assert content["left_out"]["unknown object beside a known class"] == 1
    assert content["left_out"]["another class above 0.05"] == 1
    assert content["left_out"]["picture without an annotated object"] == 1
    assert any("trained on COCO" in caveat for caveat in content["caveats"])


def test_the_lists_name_each_picture_with_its_label(made: Path) -> None:
    samples = {s.sample_id: s for s in read_split(made).samples}
    seen = []
    for kind in ("known", "unknown"):
        with (made / f"{kind}_meta.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                sample = samples[row["sample_id"]]
                assert sample.file == f"{kind}_images/{row['filename']}"
                assert (row["label"], row["part"]) == (sample.label, sample.part)
                assert sample.known == (kind == "known")
                seen.append(row["sample_id"])
    assert sorted(seen) == sorted(samples)


def test_reading_gives_paths_parts_and_class_indices(made: Path) -> None:
    split = read_split(made)
    assert len(split.part("test")) == 2 * 3 + 6
    assert len(split.part("validation")) == 2 * 2 + 4
    places = {s.label: split.class_index(s) for s in split.samples}
    assert places == {"dog": 0, "cat": 1, "teddy bear": -1}
    for sample in split.samples:
        with Image.open(sample.path) as picture:
            assert picture.size == (100, 100)
    both = [{s.image_id for s in split.part(part)} for part in ("validation", "test")]
    assert not both[0] & both[1]


def test_the_same_command_gives_the_same_files(coco: Path, made: Path) -> None:
    before = files(made)
    run(flags(coco, made))  # in its place: a split by the same rules
    assert files(made) == before
    assert [path.name for path in made.parent.iterdir() if path.name.startswith(".")] == []


def test_other_rules_are_refused_and_named(coco: Path, made: Path) -> None:
    before = files(made)
    with pytest.raises(UserError, match=re.escape("seed: 0 there, 1 now")):
        run([*flags(coco, made), "--seed", "1"])
    with pytest.raises(UserError, match=re.escape("rules.mixed: 'keep' there, 'drop' now")):
        run([*flags(coco, made), "--mixed", "drop"])
    assert files(made) == before


def test_what_is_no_split_is_never_replaced(coco: Path, tmp_path: Path) -> None:
    own = tmp_path / "holiday"
    own.mkdir()
    (own / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds no split"):
        run(flags(coco, own))
    assert files(own).keys() == {"photo.jpg"}
    with pytest.raises(UserError, match="holds no split"):
        run(flags(coco, own / "photo.jpg"))
    (tmp_path / "empty").mkdir()
    run(flags(coco, tmp_path / "empty"))
    assert (tmp_path / "empty" / "split.json").is_file()


def test_a_dry_run_counts_and_writes_nothing(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([*flags(coco, tmp_path / "split"), "--dry_run"])
    assert not (tmp_path / "split").exists()
    text = capsys.readouterr().out
    assert re.search(r"^dog +known +2 +3 +9$", text, re.MULTILINE)
    assert re.search(r"^teddy bear +unknown +4 +6 +12$", text, re.MULTILINE)
    assert "at least 0.1 of it" in text
    assert "left out:      1  unknown object beside a known class" in text


def test_bad_pictures_are_named_counted_and_replaced(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(flags(coco, tmp_path / "whole"))
    dogs = [s for s in read_split(tmp_path / "whole").samples if s.label == "dog"]
    missing, broken, other = (coco / "val2017" / s.path.name for s in dogs[:3])
    missing.unlink()
    broken.write_bytes(broken.read_bytes()[:600])
    Image.new("RGB", (50, 100)).save(other)
    capsys.readouterr()
    run([*flags(coco, tmp_path / "split"), "--n_per_class", "2", "--validation_per_class", "1"])
    text = capsys.readouterr().out
    split = read_split(tmp_path / "split")
    taken = [s for s in split.samples if s.label == "dog"]
    assert len(taken) == 3
    assert not {s.path.name for s in taken} & {p.name for p in (missing, broken, other)}
    content = json.loads((tmp_path / "split" / "split.json").read_text())
    assert content["left_out"]["picture missing or broken"] == len(content["problems"]) >= 1
    for problem in content["problems"]:
        assert problem in text
    reasons = " ".join(content["problems"])
    assert ("no such picture" in reasons) == (missing.name in reasons)
    assert ("50x100 pixels, 100x100 in the annotations" in reasons) == (other.name in reasons)


def test_what_cannot_be_had_is_recorded_and_printed(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([*flags(coco, tmp_path / "split"), "--n_per_class", "30"])
    split = read_split(tmp_path / "split")
    n_dogs = sum(s.label == "dog" and s.part == "test" for s in split.samples)
    key = "dog: test samples that could not be had"
    assert split.left_out[key] == 30 - n_dogs > 0
    assert f"{30 - n_dogs:6}  {key}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"too few test samples .*dog \d"):
        run([*flags(coco, tmp_path / "other"), "--n_per_class", "30", "--min_per_class", "30"])
    assert not (tmp_path / "other").exists()


def test_crops_are_the_pixels_of_their_boxes(coco: Path, tmp_path: Path) -> None:
    run([*flags(coco, tmp_path / "split"), "--unit", "crop", "--min_side", "15", "--context", "0.1",
         "--n_per_class", "2"])  # fmt: skip
    split = read_split(tmp_path / "split")
    assert split.samples
    for sample in split.samples:
        assert sample.box is not None
        x, y, width, height = map(int, sample.box)
        assert (x, y, width, height) in {(5, 5, 60, 60), (68, 68, 24, 24)}
        assert sample.path.suffix == ".png"
        with Image.open(coco / "val2017" / f"{sample.image_id:012d}.jpg") as picture:
            expected = np.asarray(picture.crop((x, y, x + width, y + height)))
        with Image.open(sample.path) as crop:
            assert np.array_equal(np.asarray(crop), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--known_classes", "dgo"], "did you mean 'dog'"),
        (["--known_classes", "xylophone"], "no class of objects named 'xylophone'; it has 6"),
        (["--known_classes", "dog", "dog"], "dog stands twice"),
        (["--unknown_classes", "dog"], "dog: on both lists"),
        (["--known_count", "2"], "no --unknown_classes"),
        (["--annotations", "x.json"], "give both or neither"),
        (["--split", "train2017"], r"shared\.download coco2017"),
        (["--n_per_class", "0"], "at least 1"),
    ],
)
def test_wrong_options_have_one_message(
    coco: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run([*flags(coco, tmp_path / "split"), *arguments])
    assert not (tmp_path / "split").exists()


def test_pictures_that_are_nowhere(coco: Path, tmp_path: Path) -> None:
    shutil.rmtree(coco / "val2017")
    with pytest.raises(MissingError, match=r"val2017: no such folder"):
        run(flags(coco, tmp_path / "split"))
    (coco / "val2017").mkdir()
    with pytest.raises(UserError, match=r"dog 0, cat 0; no use: .*no such picture"):
        run(flags(coco, tmp_path / "split"))


def test_classes_drawn_by_count_are_the_seed_s(coco: Path, tmp_path: Path) -> None:
    arguments = ["--known_count", "2", "--n_per_class", "2", "--validation_per_class", "1",
                 "--min_per_class", "1"]  # fmt: skip
    base = ["--data_root", str(coco), *arguments]
    run([*base, "--output_dir", str(tmp_path / "a")])
    run([*base, "--output_dir", str(tmp_path / "b")])
    a, b = (read_split(tmp_path / name) for name in "ab")
    assert a.classes == b.classes
    assert len(a.classes.known) == 2
    assert len(a.classes.unknown) == 4
    assert a.data_hash == b.data_hash


def test_the_toy_split_is_known_shapes_against_held_back_ones(toy_split: Path) -> None:
    split = read_split(toy_split)
    assert split.synthetic
    assert split.classes.known == KNOWN_SHAPES
    assert set(split.classes.unknown) == set(HELD_BACK_SHAPES)
    for name in KNOWN_SHAPES:
        assert sum(s.label == name for s in split.part("test")) == 20
        assert sum(s.label == name for s in split.part("validation")) == 10
    assert sum(not s.known for s in split.part("test")) == 4 * 20
    assert not any(set(s.present) & set(KNOWN_SHAPES) for s in split.samples if not s.known)
    assert any(len(s.present) > 1 for s in split.samples), "pictures of several objects occur"
    assert not split.left_out.get("picture missing or broken")
    assert any("Synthetic" in caveat for caveat in split.caveats)


def test_a_toy_split_that_stands_is_kept(toy_split: Path) -> None:
    before = (toy_split / "split.json").stat().st_mtime_ns
    assert ensure_toy_split(toy_split) == toy_split
    assert (toy_split / "split.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["root", "folder"])
def test_the_script_runs_from_the_command_line(where: str, tmp_path: Path) -> None:
    folder = REPO_ROOT if where == "root" else REPO_ROOT / "llava_openset"
    script = (
        "llava_openset/make_known_from_coco.py" if where == "root" else "make_known_from_coco.py"
    )
    done = subprocess.run(
        [sys.executable, str(script), "--toy", "--dry_run", "--unit", "crop"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert "80 validation and 160 test samples" in done.stdout
    assert "dry run: nothing was written" in done.stdout


# ------------------------------------------------------------------------------------------------
# a split that somebody touched


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(version=9), "version 9"),
        (lambda c: c.pop("samples"), "no split"),
        (lambda c: c.update(samples=[]), "no sample"),
        (lambda c: c.pop("classes"), "not a whole split"),
        (lambda c: c["samples"][3].pop("label"), "samples[3]: no 'label'"),
        (lambda c: c["samples"][3].update(part="train"), "samples[3]: part is 'train'"),
        (lambda c: c["samples"][3].update(known=False), "samples[3]: label"),
        (lambda c: c["samples"][3].update(file="known_images/no.jpg"), "no such picture"),
        (lambda c: c["samples"][3].update(c["samples"][2]), "stands twice"),
    ],
)
def test_a_damaged_split_is_told(made: Path, edit: Any, message: str) -> None:
    content = json.loads((made / "split.json").read_text())
    edit(content)
    (made / "split.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)):
        read_split(made)


def test_no_split_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"make_known_from_coco\.py"):
        read_split(tmp_path)


# ------------------------------------------------------------------------------------------------
# own pictures


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """private_images/ with three pictures, private_labels.csv beside it."""
    folder = tmp_path / "private_images"
    (folder / "more").mkdir(parents=True)
    for place, name in enumerate(("dorm.jpg", "board.png", "more/class.jpg")):
        Image.new("RGB", (30, 20), (place * 80, 90, 90)).save(folder / name)
    (tmp_path / "private_labels.csv").write_text(
        "filename,label\ndorm.jpg,dorm room\nboard.png,notice board\nmore/class.jpg,classroom\n"
    )
    return folder


def labels(own: Path, text: str | bytes) -> Path:
    path = own.parent / "private_labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_own_pictures_join_a_split_as_unknown_test_samples(made: Path, own: Path) -> None:
    plain = read_split(made)
    split = read_split(made, own)
    added = split.samples[len(plain.samples) :]
    assert [(s.sample_id, s.label, s.part, s.known) for s in added] == [
        ("private/dorm.jpg", "dorm room", "test", False),
        ("private/board.png", "notice board", "test", False),
        ("private/more/class.jpg", "classroom", "test", False),
    ]
    assert {split.class_index(s) for s in added} == {-1}
    assert added[0].file == "private_images/dorm.jpg"
    assert added[0].image_id is None
    assert split.data_hash != plain.data_hash
    Image.new("RGB", (30, 20), (1, 2, 3)).save(own / "dorm.jpg")
    assert read_split(made, own).data_hash != split.data_hash


def test_a_seeded_share_of_them_goes_to_validation(own: Path) -> None:
    def validation(share: float, seed: int) -> set[str]:
        samples = read_private(own, validation_share=share, seed=seed)
        return {s.sample_id for s in samples if s.part == "validation"}

    assert len(validation(0.34, 0)) == 1
    assert validation(0.34, 0) == validation(0.34, 0)
    assert len({tuple(validation(0.34, seed)) for seed in range(12)}) > 1
    assert validation(0.0, 0) == set()


@pytest.mark.parametrize(
    "text",
    [
        "\ufefffilename,label\r\ndorm.jpg,dorm room\r\nboard.png,notice board\r\n"
        "more/class.jpg,classroom\r\n",
        "Filename;Label\ndorm.jpg;dorm room\nboard.png;notice board\nmore/class.jpg;classroom",
        "filename\tlabel\n\ndorm.jpg\tdorm room\nboard.png\tnotice board\n"
        "./more/class.jpg\tclassroom\n\n",
        'label,filename,note\n"dorm room", dorm.jpg ,x\nnotice board,board.png,\n'
        "classroom,more/class.jpg,\n",
    ],
    ids=["bom_crlf", "excel_semicolon", "tab_blank_lines", "other_columns"],
)
def test_forms_of_the_csv(own: Path, text: str) -> None:
    labels(own, text)
    found = {s.path.name: s.label for s in read_private(own)}
    assert found == {
        "dorm.jpg": "dorm room",
        "board.png": "notice board",
        "class.jpg": "classroom",
    }


WHOLE = "filename,label\ndorm.jpg,dorm room\nboard.png,notice board\nmore/class.jpg,classroom\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE + "gone.jpg,desk\n", "line 5: gone.jpg: no such file"),
        (WHOLE + "Dorm.JPG,desk\n", "no such file in private_images/; there is dorm.jpg"),
        (WHOLE + "dorm.jpg,desk\n", "line 5: dorm.jpg stands twice"),
        (WHOLE + "./dorm.jpg,desk\n", "stands twice"),
        (WHOLE + "../secret.jpg,desk\n", "line 5: '../secret.jpg': give a name inside"),
        (WHOLE + "/etc/passwd,desk\n", "'/etc/passwd': give a name inside"),
        (WHOLE + "C:\\a.jpg,desk\n", "with forward slashes"),
        (WHOLE + "more\\class.jpg,desk\n", "with forward slashes"),
        (WHOLE + "note.pdf,desk\n", "not a picture that Pillow can read"),
        (WHOLE + ",desk\n", "line 5: no filename"),
        (WHOLE + "extra.jpg,\n", "line 5: no label"),
        (WHOLE + "extra.jpg\n", "line 5: no label"),
        (WHOLE + "extra.jpg,desk, with lamp\n", "line 5: more fields than columns"),
        (WHOLE.replace("dorm room", "Dog"), "the label 'Dog' is a known class"),
        (WHOLE.replace("dorm room", "two puppies"), "line 2: dorm.jpg: the label 'two puppies'"),
        (WHOLE.replace("dorm room", "a dog and a cat"), "names more than one known class"),
        (WHOLE.replace("board.png,notice board\n", ""), "board.png: no row in private_labels.csv"),
        ("file,class\ndorm.jpg,x\n", "must name the columns filename,label; it has: file, class"),
        ("", "it has: nothing"),
        ("filename,label\n", "no row below its first line"),
        ("filename,label\ndorm.jpg,宿舍\n".encode("gbk"), "not UTF-8"),
    ],
)
def test_each_mistake_has_one_message(own: Path, text: str | bytes, message: str) -> None:
    if message.startswith("not a picture"):
        (own / "note.pdf").write_bytes(b"%PDF-1.4")
    labels(own, text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_private(own, known=["dog", "cat"])
    assert str(own.parent) in str(caught.value)


def test_all_mistakes_are_told_at_once(own: Path) -> None:
    labels(own, "filename,label\ngone.jpg,a\ndorm.jpg,\n")
    with pytest.raises(UserError) as caught:
        read_private(own)
    message = str(caught.value)
    for part in ("gone.jpg: no such file", "line 3: no label", "board.png: no row"):
        assert part in message


def test_labels_may_lie_in_the_folder_or_elsewhere(own: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "private_labels.csv", own / "private_labels.csv")
    assert len(read_private(own)) == 3
    shutil.move(own / "private_labels.csv", tmp_path / "other.csv")
    assert len(read_private(own, tmp_path / "other.csv")) == 3
    with pytest.raises(UserError, match=r"no private_labels\.csv beside it or in it"):
        read_private(own)
    with pytest.raises(UserError, match="no such folder"):
        read_private(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("label", "known"),
    [("Squares", "square"), ("A triangle", "triangle"), ("puppy", "dog"), ("television", "tv")],
)
def test_a_known_class_in_other_words_is_refused(own: Path, label: str, known: str) -> None:
    labels(own, WHOLE.replace("dorm room", label))
    with pytest.raises(UserError, match=f"dorm.jpg: the label '{label}' names .*'{known}'"):
        read_private(own, known=["cup", known])
    assert len(read_private(own, known=["cup"])) == 3


def test_a_label_that_only_holds_a_known_name_is_another_thing(own: Path) -> None:
    labels(own, WHOLE.replace("dorm room", "dog house"))
    assert len(read_private(own, known=["dog", "cat"])) == 3


def test_the_folder_may_be_the_current_one(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    first = read_private(Path("."), Path("../private_labels.csv"))[0]
    assert first.file == "private_images/dorm.jpg"
    assert first.path == own.resolve() / "dorm.jpg"


def test_hidden_and_system_files_need_no_row(own: Path) -> None:
    (own / ".DS_Store").write_bytes(b"x")
    (own / "Thumbs.db").write_bytes(b"x")
    (own / "IMG_0001.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"IMG_0001\.heic: no row") as caught:
        read_private(own)
    assert "DS_Store" not in str(caught.value)
    assert "Thumbs" not in str(caught.value)


def test_options_can_be_built_without_flags(coco: Path, tmp_path: Path) -> None:
    """Other code makes splits by the same options, without a command line."""
    options = SplitOptions(
        data_root=str(coco),
        known_classes=["dog"],
        n_per_class=2,
        validation_per_class=1,
        min_per_class=1,
        output_dir=str(tmp_path / "split"),
    )
    _, _, split = make_split(options)
    assert len(split.part("test")) == 4
