"""Each check of the doctor against made-up machines, and the whole on this one."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared import datasets_index, doctor, machine
from shared import doctor_checks as checks
from shared.datasets_index import Archive, Pictures
from shared.options import REPO_ROOT

RANGE = ">=2.9,<3"
CPU = {"torch": "2.13.0+cpu", "cuda": None, "hip": None, "available": False, "devices": []}
CARD = {"name": "NVIDIA A10", "total": 24 * 10**9}
GPU = {**CPU, "torch": "2.13.0+cu130", "cuda": "13.0", "available": True, "devices": [CARD]}


def driver(cuda: str) -> dict[str, str]:
    return {"driver": "535.86.10", "cuda": cuda}


@pytest.mark.parametrize(
    ("version", "status"), [((3, 11, 0), "ok"), ((3, 14, 1), "ok"), ((3, 10, 9), "missing")]
)
def test_python(version, status):
    assert checks.check_python(version).status == status


def test_packages_absent_and_outside_their_range_are_named():
    wanted = ["torch>=2.9,<3", "huggingface_hub>=1.0", "peft>=0.20"]
    good = {"torch": "2.13.0+cpu", "huggingface-hub": "2.4.0", "peft": "0.20"}
    assert checks.check_packages(wanted, good).status == "ok"
    bad = checks.check_packages(wanted, {"torch": "2.6.0", "huggingface-hub": "1.0"})
    assert bad.status == "missing"
    assert "not installed: peft" in bad.detail
    assert "torch 2.6.0 (>=2.9,<3)" in bad.detail
    assert "huggingface" not in bad.detail
    assert bad.mend == "make setup"


@pytest.mark.parametrize(
    ("facts", "driver_seen", "status", "said", "wheel"),
    [
        (GPU, driver("13.0"), "ok", "NVIDIA A10 24.0 GB", None),
        (CPU, None, "ok", "no NVIDIA GPU here", None),
        (CPU, driver("12.4"), "warning", "CPU build, but there is a GPU", "cu126"),
        (CPU, driver("13.1"), "warning", "CPU build, but there is a GPU", "cu130"),
        (CPU, driver("14.0"), "warning", "CPU build, but there is a GPU", "cu130"),
        (
            {**GPU, "available": False},
            driver("12.2"),
            "warning",
            "built for CUDA 13.0, newer than the driver allows",
            "cu126",
        ),
        ({**GPU, "available": False}, None, "warning", "no driver answers", None),
        (
            {**GPU, "available": False},
            driver("13.0"),
            "warning",
            "sees no GPU although there is one",
            None,
        ),
        ({**GPU, "available": False}, driver("11.8"), "warning", "too old for every torch", None),
        (
            {**GPU, "gpu_error": "AcceleratorError: no kernel image"},
            driver("13.0"),
            "missing",
            "cannot compute on it: AcceleratorError: no kernel image",
            "cu126",
        ),
        ({"error": "ImportError: libfoo.so"}, None, "missing", "ImportError: libfoo.so", None),
    ],
)
def test_torch_build_against_driver(facts, driver_seen, status, said, wheel):
    result = checks.check_torch(facts, driver_seen, RANGE)
    assert result.status == status
    assert said in result.detail
    assert bool(result.mend) == (status != "ok")
    found = re.search(r"whl/(\w+)$", result.mend)
    assert (found[1] if found else None) == wheel
    if wheel:
        assert '"torch>=2.9,<3"' in result.mend


@pytest.mark.parametrize(
    ("version", "requires", "error", "status"),
    [
        (None, [], None, "ok"),
        ("0.28.0", ["numpy", "torch==2.13.0", "pillow>=5.3"], None, "ok"),
        ("0.24.1", ["numpy", "torch (==2.9.1)"], None, "missing"),
        ("0.28.0", ["torch==2.13.0"], "RuntimeError: operator torchvision::nms", "missing"),
        ("0.28.0", ["torchfoo==1.0"], None, "ok"),
    ],
)
def test_a_torchvision_of_another_torch_is_found(version, requires, error, status):
    result = checks.check_torchvision("2.13.0+cpu", version, requires, error)
    assert result.status == status
    assert ("uninstall" in result.mend) == (status == "missing")


def test_a_four_bit_layer_must_really_compute():
    good = checks.check_bitsandbytes({**CPU, "bitsandbytes": "0.50.2", "nf4": True}, ">=0.49")
    assert good.status == "ok"
    assert "NF4 computes on the CPU" in good.detail
    bad = checks.check_bitsandbytes({**GPU, "nf4_error": "RuntimeError: libcudart"}, ">=0.49")
    assert bad.status == "missing"
    assert "libcudart" in bad.detail
    assert '"bitsandbytes>=0.49"' in bad.mend
    crashed = checks.check_bitsandbytes({"error": "crashed with exit status -11"}, ">=0.49")
    assert crashed.status == "missing"
    assert "exit status -11" in crashed.detail


@pytest.mark.parametrize(
    ("ram_gb", "gpus_gb", "experiment", "status"),
    [
        (1, [], None, "missing"),
        (4, [], None, "ok"),
        (4, [], "blip2_qlora", "missing"),
        (12, [], "blip2_qlora", "warning"),
        (32, [], "blip2_qlora", "ok"),
        (12, [24], "blip2_qlora", "ok"),
        (12, [8], "blip2_qlora", "ok"),
        (12, [6], "blip2_qlora", "warning"),
        (1, [24], "blip2_qlora", "missing"),
        (None, [24], "blip2_qlora", "warning"),
        (5, [], "llava_repro", "missing"),
        (20, [], "llava_repro", "warning"),
        (32, [], "llava_repro", "ok"),
        (12, [16], "llava_repro", "ok"),
        (12, [12], "llava_repro", "warning"),
    ],
)
def test_memory(ram_gb, gpus_gb, experiment, status):
    ram = None if ram_gb is None else ram_gb * 10**9
    model = doctor.NEEDS[experiment, False].memory if experiment else None
    result = checks.check_memory(ram, [g * 10**9 for g in gpus_gb], model, "toy command")
    assert result.status == status
    assert bool(result.mend) == (status != "ok")
    if ram_gb in (5, 20):
        assert "LLaVA-1.5-7B" in result.detail
        assert "BLIP-2" not in result.detail
    if ram_gb == 5:
        assert result.mend == "toy command"


def test_disk():
    assert checks.check_disk(20 * 10**9, Path("data"), 15 * 10**9).status == "ok"
    assert checks.check_disk(10 * 10**9, Path("data"), 15 * 10**9).status == "warning"
    assert checks.check_disk(10**8, Path("data"), 0).status == "missing"


PICTURES = Archive(
    name="val2014.zip",
    urls=[],
    bytes=1,
    unpacked_bytes=1,
    pictures=Pictures(folder="val2014", count=3, prefix="", url=""),
)
QUESTIONS = Archive(name="q.zip", urls=[], bytes=1, unpacked_bytes=1, files={"q.json": {}})


@pytest.mark.parametrize(
    ("questions", "pictures", "absent", "status", "said"),
    [
        (False, 0, None, "missing", "not there: q.json; val2014/ 0 of 3 pictures"),
        (True, 2, None, "missing", "val2014/ 2 of 3 pictures"),
        (True, 2, 1, "missing", "1 of the default sample's are missing"),
        (True, 2, 0, "ok", "the default sample is complete"),
        (True, 3, None, "ok", "val2014/ 3 of 3 pictures"),
    ],
)
def test_a_split_is_in_place_whole_or_as_the_default_sample(
    tmp_path, questions, pictures, absent, status, said
):
    (tmp_path / "val2014").mkdir()
    for i in range(pictures):
        (tmp_path / f"val2014/{i}.jpg").write_text("")
    if questions:
        (tmp_path / "q.json").write_text("")
    result = checks.check_split("vqav2_val", [QUESTIONS, PICTURES], tmp_path, "fetch it", absent)
    assert result.status == status
    assert said in result.detail
    assert result.mend == ("" if status == "ok" else "fetch it")


def test_a_model_that_is_absent_or_incomplete(tmp_path):
    absent = checks.check_model("org/m", None, [], "fetch it")
    assert (absent.status, absent.mend) == ("missing", "fetch it")
    cut = checks.check_model("org/m", tmp_path, ["model.safetensors is cut off"], "fetch it")
    assert cut.status == "missing"
    assert "cut off" in cut.detail
    assert checks.check_model("org/m", tmp_path, [], "fetch it").status == "ok"


def test_caption_programs_say_why_they_cannot_run_and_what_mends_it():
    assert checks.check_meteor(None, True).status == "ok"
    bare = checks.check_meteor("no Java on the path", False)
    assert (bare.status, bare.detail) == ("missing", "no Java on the path")
    assert re.search(r"default-jre-headless && .* install \"pycocoevalcap", bare.mend)
    assert "jre" not in checks.check_meteor("no meteor-1.5.jar: pip install it", True).mend
    assert checks.check_spice(None).status == "ok"
    assert "openjdk-11" in checks.check_spice("SPICE needs Java 8 or 11; this is Java 17").mend
    assert (
        "Spice()" in checks.check_spice("SPICE: no stanford-corenlp-3.6.0.jar in the folder").mend
    )
    nothing = checks.check_spice("SPICE: no spice-1.0.jar: pip install pycocoevalcap, or SPICE_JAR")
    assert "pycocoevalcap" in nothing.mend
    assert "leave it out" in checks.check_spice("SPICE's database has no version for arm64").mend


@pytest.mark.parametrize("experiment", ["blip2_qlora", "llava_repro", "qwen_clip_llava_lora"])
@pytest.mark.parametrize("toy", [["--toy"], []])
def test_caption_programs_are_no_condition(monkeypatch, capsys, experiment, toy):
    examined(monkeypatch, "meteor", "spice")
    assert exit_status("--for", experiment, *toy) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^warning +METEOR 1.5 +gone \(without it .*nltk", shown, re.MULTILINE)
    assert re.search(r"^warning +SPICE +gone", shown, re.MULTILINE)


def test_captions_are_not_of_the_open_set_experiment(monkeypatch, capsys):
    examined(monkeypatch, "meteor")
    exit_status("--for", "llava_openset")
    assert "METEOR" not in capsys.readouterr().out


def test_optional_tools_are_warnings_with_a_command():
    assert checks.check_browser(True, "/usr/bin/chromium").status == "ok"
    assert "playwright install" in checks.check_browser(True, None).mend
    assert "install playwright" in checks.check_browser(False, "/usr/bin/chromium").mend
    assert checks.check_font("NotoSansCJK.ttc").status == "ok"
    assert checks.check_font(None).status == "warning"


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        (
            "| NVIDIA-SMI 535.86.10   Driver Version: 535.86.10   CUDA Version: 12.2 |",
            {"driver": "535.86.10", "cuda": "12.2"},
        ),
        (
            "| NVIDIA-SMI 610.57.04   KMD Version: 610.57.04   CUDA UMD Version: 13.3 |",
            {"driver": "610.57.04", "cuda": "13.3"},
        ),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", None),
    ],
)
def test_the_driver_is_read_from_both_headings_of_nvidia_smi(heading, expected):
    assert machine.parse_driver(heading) == expected


def test_a_probe_that_crashes_keeps_what_it_told_before(monkeypatch):
    """A torch whose library crashes takes its process with it, not the doctor's."""

    def crashing(command: list[str], **keywords: object) -> subprocess.CompletedProcess:
        code = 'import os; print(\'{"torch": "2.13"}\', flush=True); os.abort()'
        return run([command[0], "-c", code], **keywords)

    run = subprocess.run
    monkeypatch.setattr(machine.subprocess, "run", crashing)
    facts = machine.run_probe()
    assert facts["torch"] == "2.13"
    assert "crashed" in facts["error"]


def test_a_probe_that_is_slow_is_no_broken_torch(monkeypatch):
    """On a loaded machine the doctor advised to install torch again."""

    def slow(command: list[str], **keywords: object) -> subprocess.CompletedProcess:
        code = 'import time; print(\'{"torch": "2.13"}\\n{"cut\', flush=True); time.sleep(60)'
        return run([command[0], "-c", code], **keywords)

    run = subprocess.run
    monkeypatch.setattr(machine.subprocess, "run", slow)
    facts = machine.run_probe(timeout_s=2)
    assert facts["torch"] == "2.13"
    assert facts["timeout"].startswith("did not answer in 2 s; is the machine busy?")
    busy = checks.check_bitsandbytes(facts, ">=0.49")
    assert (busy.status, busy.mend) == ("warning", "")
    del facts["torch"]
    busy = checks.check_torch(facts, None, ">=2.9")
    assert (busy.status, busy.mend) == ("warning", "")
    assert "cannot be imported" not in busy.detail


# The whole


def test_a_data_root_with_only_the_default_sample_is_enough(tmp_path):
    """Three official questions on one picture: fewer than the sample's 1,000, so all are in it."""
    rows = [{"image_id": 1, "question_id": i, "question": "What?"} for i in range(3)]
    answers = [{"answer": "cat", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
    annotations = [
        {
            "image_id": 1,
            "question_id": i,
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": "cat",
            "answers": answers,
        }
        for i in range(3)
    ]
    index = datasets_index.load_index()

    def val() -> checks.Result:
        return next(r for r in doctor.dataset_results(index, tmp_path) if r.key == "vqav2_val")

    questions_file = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions_file.write_text(json.dumps({"questions": rows}))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(
        json.dumps({"annotations": annotations})
    )
    assert val().status == "missing"
    assert "1 of the default sample's are missing" in val().detail
    assert val().mend == f"python -m shared.download vqav2 --limit 1000 --data_root {tmp_path}"
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/COCO_val2014_000000000001.jpg").write_bytes(b"x")
    assert val().status == "ok"
    questions_file.write_text('{"questions": [')
    assert val().status == "missing"
    assert "not valid JSON" in val().detail


def all_ok() -> list[checks.Result]:
    keys = sorted(doctor.ALL.useful)
    return [checks.Result(key, "ok", "fine", "好") for key in keys]


def examined(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    results = [
        dataclasses.replace(r, status="missing", detail="gone", mend="mend it", absent=True)
        if r.key in missing
        else r
        for r in all_ok()
    ]
    monkeypatch.setattr(doctor, "examine", lambda experiment, toy, data_root: results)


def exit_status(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        doctor.main(argv)
    return caught.value.code


@pytest.mark.parametrize(
    ("missing", "toy", "real"),
    [
        ([], 0, 0),
        (["bitsandbytes"], 1, 1),
        (["vqav2_val"], 0, 1),
        (["Salesforce/blip2-opt-2.7b"], 0, 1),
        (["toy_models"], 1, 0),
        (["vqav2_train"], 0, 0),
        (["coco2017_val"], 0, 0),
        (["browser", "font"], 0, 0),
        (["llava-hf/llava-1.5-7b-hf", "pope"], 0, 0),
    ],
)
def test_the_exit_status_says_whether_the_experiment_can_run(monkeypatch, missing, toy, real):
    examined(monkeypatch, *missing)
    assert exit_status("--for", "blip2_qlora", "--toy") == toy
    assert exit_status("--for", "blip2_qlora") == real
    assert exit_status() == 0


@pytest.mark.parametrize(
    ("missing", "toy", "real"),
    [
        ([], 0, 0),
        (["packages"], 1, 1),
        (["bitsandbytes"], 0, 0),
        (["toy_models"], 1, 0),
        (["llava-hf/llava-1.5-7b-hf"], 0, 1),
        (["vqav2_val"], 0, 1),
        (["pope", "gqa", "textvqa", "scienceqa"], 0, 0),
        (["google/siglip-so400m-patch14-384", "llava_mix665k"], 0, 0),
        (["Salesforce/blip2-opt-2.7b"], 0, 0),
    ],
)
def test_what_llava_cannot_do_without(monkeypatch, missing, toy, real):
    examined(monkeypatch, *missing)
    assert exit_status("--for", "llava_repro", "--toy") == toy
    assert exit_status("--for", "llava_repro") == real


@pytest.mark.parametrize(
    ("missing", "toy", "real"),
    [
        ([], 0, 0),
        (["packages"], 1, 1),
        (["toy_models"], 1, 0),
        (["coco2017_val"], 0, 1),
        (["llava-hf/llava-1.5-7b-hf"], 0, 1),
        (["coco2017_train"], 0, 0),
        (["bitsandbytes"], 0, 0),
        (["vqav2_val", "coco2014"], 0, 0),
    ],
)
def test_what_the_open_set_experiment_cannot_do_without(monkeypatch, missing, toy, real):
    examined(monkeypatch, *missing)
    assert exit_status("--for", "llava_openset", "--toy") == toy
    assert exit_status("--for", "llava_openset") == real


@pytest.mark.parametrize(
    ("missing", "toy", "real"),
    [
        ([], 0, 0),
        (["packages"], 1, 1),
        (["toy_models"], 1, 0),
        (["Salesforce/blip-image-captioning-base"], 0, 1),
        (["Salesforce/blip-vqa-base", "Salesforce/blip-itm-base-coco"], 0, 0),
        (["vqav2_val", "coco2014", "bitsandbytes"], 0, 0),
    ],
)
def test_what_the_lavis_apps_cannot_do_without(monkeypatch, missing, toy, real):
    examined(monkeypatch, *missing)
    assert exit_status("--for", "lavis_apps", "--toy") == toy
    assert exit_status("--for", "lavis_apps") == real


def test_coco_2017_is_asked_for_by_split(tmp_path, monkeypatch):
    """Instances and val pictures are enough for the default split; those of train are another."""
    monkeypatch.setattr(doctor, "DATA_ROOT", tmp_path)
    index = datasets_index.load_index()
    root = tmp_path / "coco2017"
    for name in index["archives"]["annotations_trainval2017.zip"].files:
        write(root, name)
    write(root, *(f"val2017/{i}.jpg" for i in range(5000)))
    found = {r.key: r for r in doctor.dataset_results(index, tmp_path / "vqav2")}
    assert found["coco2017_val"].status == "ok"
    assert found["coco2017_train"].status == "missing"
    assert found["coco2017_train"].mend == "python -m shared.download coco2017 --splits train"
    (root / "val2017/0.jpg").unlink()
    found = {r.key: r for r in doctor.dataset_results(index, tmp_path / "vqav2")}
    assert found["coco2017_val"].status == "missing"
    assert found["coco2017_val"].mend == "python -m shared.download coco2017 --splits val"


def test_an_absent_model_or_data_set_says_what_it_is_for(monkeypatch, capsys):
    part = "meta-llama/Llama-3.2-1B-Instruct"
    examined(monkeypatch, part, "pope", "llava_pretrain", "Salesforce/blip2-opt-2.7b")
    exit_status("--for", "llava_repro")
    shown = capsys.readouterr().out
    assert f"warning  {part}  gone (to train the small English model)" in shown
    assert re.search(r"^warning +LLaVA stage 1 data +gone \(to train", shown, re.MULTILINE)
    assert re.search(r"^warning +POPE +gone$", shown, re.MULTILINE)
    assert "blip2" not in shown


def test_without_an_experiment_what_is_not_here_is_one_line_and_all_fits_a_screen(
    monkeypatch, capsys
):
    gone = [r.key for r in all_ok() if r.key not in doctor.BASE | doctor.PAGES | {"bitsandbytes"}]
    examined(monkeypatch, *gone)
    exit_status()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    line = next(line for line in lines if line.startswith("warning  not here"))
    assert all(doctor.title(key, "en") in line for key in gone)
    assert (
        lines[lines.index(line) + 1].split("mend: ")[1].startswith("python -m shared.doctor --for")
    )
    exit_status("--json")
    results = json.loads(capsys.readouterr().out)["results"]
    assert {r["key"] for r in results if r["absent"]} == set(gone)  # each on its own there


def test_toy_models_are_one_line_that_names_the_broken_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "DATA_ROOT", tmp_path)
    for name, size in (("clip", 8), ("llava", 7)):
        folder = tmp_path / "toy_models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        header = b'{"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}'
        weights = len(header).to_bytes(8, "little") + header + bytes(size)
        (folder / "model.safetensors").write_bytes(weights)
    whole = doctor.toy_models_result(["clip"])
    assert (whole.status, whole.mend) == ("ok", "")
    result = doctor.toy_models_result(["clip", "qwen2", "llava"])
    assert result.status == "missing"
    assert "qwen2: config.json is missing" in result.detail
    assert "llava: model.safetensors is cut off" in result.detail
    mended = re.findall(r"toy_models/(\w+)", result.mend)
    assert mended == ["qwen2", "llava"]


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_a_data_set_by_other_programs_needs_its_files_and_one_of_its_picture_folders(tmp_path):
    pope = datasets_index.load_index()["by_hand"]["pope"]
    nothing = checks.check_by_hand(pope, tmp_path)
    assert (nothing.status, nothing.absent) == ("missing", True)
    assert nothing.mend.startswith("python -m shared.download pope")
    write(tmp_path, *pope.files)
    # of VQAv2 only the default sample's pictures are here, which are not POPE's
    write(tmp_path, *(f"vqav2/val2014/{i}.jpg" for i in range(600)))
    some = checks.check_by_hand(pope, tmp_path)
    assert (some.status, some.absent) == ("missing", False)
    assert some.detail == "not there: pope/val2014/"
    write(tmp_path, *(f"pope/val2014/{i}.jpg" for i in range(499)))
    assert checks.check_by_hand(pope, tmp_path).status == "missing"
    write(tmp_path, "pope/val2014/499.jpg")
    assert checks.check_by_hand(pope, tmp_path).status == "ok"


def test_the_files_asked_for_are_those_that_the_benchmarks_read(tmp_path):
    """Toy data sets in the official layouts, under the names of the real ones."""
    from llava_repro.tasks import TASKS
    from shared.toy_world import benchmarks

    for name in ("pope", "gqa", "textvqa", "scienceqa"):
        folder = tmp_path / TASKS[name].data_folder
        getattr(benchmarks, f"ensure_{name}")(folder)
        by_hand = datasets_index.load_index()["by_hand"][name]
        absent = [n for n in by_hand.absent(tmp_path) if not n.endswith("/")]
        assert absent == [], name


def test_what_an_experiment_can_do_without_is_a_warning_and_other_things_are_not_shown(
    monkeypatch, capsys
):
    examined(monkeypatch, "vqav2_train", "coco2017_val")
    exit_status("--for", "blip2_qlora")
    shown = capsys.readouterr().out
    assert re.search(r"^warning +VQAv2 train +gone\n +mend: mend it$", shown, re.MULTILINE)
    assert "COCO 2017" not in shown
    assert shown.endswith("blip2_qlora can run\n")


def test_json_and_chinese(monkeypatch, capsys):
    examined(monkeypatch, "vqav2_val")
    exit_status("--for", "blip2_qlora", "--json")
    content = json.loads(capsys.readouterr().out)
    assert content["can_run"] is False
    lines = {r["key"]: r for r in content["results"]}
    assert lines["vqav2_val"]["mend"] == "mend it"
    exit_status("--for", "blip2_qlora", "--language", "zh")
    shown = capsys.readouterr().out
    assert "不能运行，缺少 VQAv2 val" in shown
    columns = {
        doctor.display_width(line.split("好")[0]) for line in shown.splitlines() if "好" in line
    }
    assert len(columns) == 1  # aligned although Chinese characters take two columns


@pytest.mark.slow
def test_this_machine_is_examined_without_a_traceback():
    """The environment of the tests has everything but, perhaps, data: packages must be found."""
    done = subprocess.run(
        [sys.executable, "-m", "shared.doctor", "--json"],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = {r["key"]: r for r in json.loads(done.stdout)["results"]}
    assert lines["packages"]["status"] == "ok", lines["packages"]
    assert lines["bitsandbytes"]["status"] == "ok", lines["bitsandbytes"]
    assert all(r["mend"] for r in lines.values() if r["status"] != "ok")


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; from shared.doctor import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--for" in done.stdout
