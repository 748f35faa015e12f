"""Options: who wins over whom, what is refused, and the folder that remembers a run."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from shared import options as options_module
from shared.options import (
    REPO_ROOT,
    ModelOptions,
    ToyOptions,
    UserError,
    check_output_folder,
    environment,
    flag_is_set,
    guarded,
    manifest_value,
    parse_options,
    parse_training_options,
    portable_path,
    read_json,
    resolved_config,
    start_run,
    write_json,
)


@dataclass
class Options(ModelOptions, ToyOptions):
    """Sample and run"""

    model: str = field(default="default/model", metadata={"help": "which model"})
    limit: int = field(default=1000, metadata={"help": "questions"})
    pictures: Literal["own", "shuffled"] = field(default="own", metadata={"help": "which"})
    names: list[str] = field(default_factory=list, metadata={"help": "several"})
    batch_size: int | None = field(default=None, metadata={"help": "questions at once"})
    output_dir: str | None = field(default=None, metadata={"help": "run folder"})


TOY = {"model": "toy/model", "limit": 7}


def parse(*argv: str, **keywords) -> Options:
    return parse_options(Options, description="A test.", argv=argv, toy_defaults=TOY, **keywords)


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# Precedence


def test_flags_win_over_yaml_over_toy_defaults_over_defaults(tmp_path):
    file = yaml_file(tmp_path, "limit: 20\npictures: shuffled\nnames: [a, b]\n")
    plain = parse()
    assert (plain.limit, plain.model, plain.pictures) == (1000, "default/model", "own")
    assert (parse("--toy").limit, parse("--toy").model) == (7, "toy/model")
    from_yaml = parse(file)
    assert (from_yaml.limit, from_yaml.pictures, from_yaml.names) == (20, "shuffled", ["a", "b"])
    assert (parse(file, "--toy").limit, parse(file, "--toy").model) == (20, "toy/model")
    assert parse(file, "--toy", "--limit", "3", "--model", "mine").limit == 3
    assert parse(file, "--toy", "--limit", "3", "--model", "mine").model == "mine"


def test_toy_may_stand_in_the_yaml_and_a_flag_takes_it_back(tmp_path):
    file = yaml_file(tmp_path, "toy: true\n")
    drawn = []
    assert parse(file, prepare_toy=lambda: drawn.append(1)).limit == 7
    assert drawn == [1]
    assert parse(file, "--toy", "false", prepare_toy=lambda: drawn.append(2)).limit == 1000
    assert drawn == [1]  # the toy data is only drawn for a toy run


@pytest.mark.parametrize("form", ["false", "False", "no", "0", "n", "f"])
@pytest.mark.parametrize("joined", [True, False], ids=["equals", "space"])
def test_toy_false_in_all_its_forms_is_no_toy(form, joined):
    argv = [f"--toy={form}"] if joined else ["--toy", form]
    assert not flag_is_set(argv, "toy")
    options = parse(*argv)
    assert (options.toy, options.limit) == (False, 1000)


@pytest.mark.parametrize(
    "argv", [["--toy"], ["--toy", "true"], ["--toy=yes"], ["--toy", "--limit", "9"]]
)
def test_toy_true_in_all_its_forms(argv):
    assert flag_is_set(argv, "toy")
    options = parse(*argv)
    assert (options.toy, options.model) == (True, "toy/model")


def test_a_yaml_value_may_look_like_a_flag_or_be_empty(tmp_path):
    """`model: --x` used to be read as a flag of its own and end in an argparse error."""
    assert parse(yaml_file(tmp_path, 'model: "--x"\n')).model == "--x"
    assert parse(yaml_file(tmp_path, 'model: ""\nlimit: -5\n')).limit == -5
    assert parse(yaml_file(tmp_path, "output_dir: null\n")).output_dir is None


# Refused


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_flag_names_the_nearest(capsys):
    assert "unknown option --limt; did you mean --limit?" in refused(capsys, "--limt", "5")
    assert "unknown option --limt=5; did you mean --limit?" in refused(capsys, "--limt=5")
    assert "unknown option --zzz; --help lists them" in refused(capsys, "--zzz")
    assert "unknown option stray" in refused(capsys, "--limit", "5", "stray")


def test_an_unknown_yaml_key_names_the_file_and_the_nearest(capsys, tmp_path):
    message = refused(capsys, yaml_file(tmp_path, "limits: 5\n"))
    assert "options.yaml: unknown option --limits; did you mean --limit?" in message


def test_abbreviations_are_not_guessed(capsys):
    """argparse takes `--lim` for `--limit`; a later option `--lime` would change its meaning."""
    assert "unknown option --lim; did you mean --limit?" in refused(capsys, "--lim", "5")


def test_a_broken_or_missing_yaml_is_one_message(capsys, tmp_path):
    assert "cannot be read" in refused(capsys, str(tmp_path / "absent.yaml"))
    assert "cannot be read" in refused(capsys, yaml_file(tmp_path, "limit: [1\n"))
    assert "expected a mapping" in refused(capsys, yaml_file(tmp_path, "- limit\n"))
    assert "expected flags or one .yaml file" in refused(capsys, "limit")


def test_a_wrong_value_is_refused_by_name(capsys):
    assert "--pictures: invalid choice: 'others'" in refused(capsys, "--pictures", "others")
    assert "--limit: invalid int value: 'many'" in refused(capsys, "--limit", "many")


# The run folder


def config(**changes) -> dict:
    return resolved_config(dataclasses.replace(Options(), **changes), script="test")


def test_the_same_command_continues_another_configuration_is_refused(tmp_path):
    run = tmp_path / "run"
    assert start_run(run, config(limit=5)) is False
    assert set(p.name for p in run.iterdir()) == {"config.json", "environment.json", ".lock"}
    assert start_run(run, config(limit=5)) is True
    with pytest.raises(UserError, match=r"limit: 5 there, 6 now") as refusal:
        start_run(run, config(limit=6))
    assert "--output_dir" in str(refusal.value)
    assert "model" not in str(refusal.value).split("(")[1]  # only what differs is named
    assert read_json(run / "config.json")["limit"] == 5


def test_options_that_change_no_result_may_differ(tmp_path):
    start_run(tmp_path, config(batch_size=32, toy=True))
    assert start_run(tmp_path, config(batch_size=4, toy=False, dry_run=False, output_dir="x"))


def test_a_configuration_that_an_older_version_did_not_have_is_named(tmp_path):
    start_run(tmp_path, {"limit": 5})
    with pytest.raises(UserError, match="new_option: None there, 3 now"):
        start_run(tmp_path, {"limit": 5, "new_option": 3})


def test_of_a_group_of_options_only_the_one_that_differs_is_named(tmp_path):
    """One changed training flag used to print two whole dictionaries of twenty."""
    flags = {"seed": 0, "optim_args": None, "schedule": {"kind": "cosine", "floor": 0.1}}
    start_run(tmp_path, {"limit": 5, "training": flags})
    changed = flags | {"seed": 1, "schedule": {"kind": "cosine", "floor": 0.2}}
    with pytest.raises(UserError) as refusal:
        start_run(tmp_path, {"limit": 5, "training": changed})
    assert "(training.schedule.floor: 0.1 there, 0.2 now; training.seed: 0 there, 1 now). " in str(
        refusal.value
    )
    assert "cosine" not in str(refusal.value)
    with pytest.raises(UserError, match=r"training.weight_decay: None there, 0.1 now"):
        start_run(tmp_path, {"limit": 5, "training": flags | {"weight_decay": 0.1}})
    with pytest.raises(UserError, match=r"asked: 'x' there, \{'beams': 5\} now"):
        start_run(run_of(tmp_path / "other", asked="x"), {"asked": {"beams": 5}})


def run_of(folder: Path, **options) -> Path:
    start_run(folder, options)
    return folder


def test_tuples_in_a_configuration_equal_their_json(tmp_path):
    start_run(tmp_path, {"sizes": (1, 2)})
    assert start_run(tmp_path, {"sizes": (1, 2)})


def test_a_start_that_died_between_its_two_files_gets_its_environment(tmp_path):
    """config.json is written first; a run killed right then was never given environment.json."""
    start_run(tmp_path, {"limit": 5})
    (tmp_path / "environment.json").unlink()
    start_run(tmp_path, {"limit": 5})
    assert read_json(tmp_path / "environment.json")["python"]


def test_paths_inside_the_repository_are_written_portably(monkeypatch, tmp_path):
    inside = str(REPO_ROOT / "shared" / "options.py")
    assert portable_path(inside) == "shared/options.py"
    assert portable_path("/somewhere/else") == "/somewhere/else"
    assert config(model=inside)["model"] == "shared/options.py"
    monkeypatch.chdir(REPO_ROOT / "shared")
    assert config(model="../shared/options.py")["model"] == "shared/options.py"
    assert config(model="org/name")["model"] == "org/name"  # a Hub id is no path
    monkeypatch.chdir(tmp_path)
    assert config(model=inside)["model"] == "shared/options.py"


def test_a_long_text_with_a_slash_is_not_taken_for_a_path():
    """A prompt of 300 characters with "and/or" in it ended in `OSError: File name too long`."""
    prompt = "Answer with one word and/or number. " * 10
    assert config(model=prompt)["model"] == prompt


def test_an_unwritable_output_folder_is_one_message(tmp_path):
    """A file stands where the run folder should be made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run: cannot be written: "):
        start_run(tmp_path / "file" / "run", config())


HOLDER = """
import sys, time
from pathlib import Path
from shared.options import start_run
start_run(Path(sys.argv[1]), {"limit": 5})
if "with a worker" in sys.argv:
    import os
    if os.fork() == 0:
        time.sleep(30)
print("writes", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("more", [[], ["with a worker"]])
def test_a_run_folder_has_one_writer_until_it_ends_or_is_killed(tmp_path, monkeypatch, more):
    """Two evaluations in one folder both did the work and cut each other's lines. A data worker
    that outlives its killed training does not hold the folder."""
    monkeypatch.setattr(options_module, "LOCK_WAIT_S", 0.1)
    command = [sys.executable, "-c", HOLDER, str(tmp_path), *more]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPO_ROOT, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "writes\n"
            with pytest.raises(UserError, match="another process writes in this folder"):
                start_run(tmp_path, {"limit": 5})
            holder.kill()
            holder.wait()
            monkeypatch.setattr(options_module, "LOCK_WAIT_S", 5)
            assert start_run(tmp_path, {"limit": 5}) is True
            assert start_run(tmp_path, {"limit": 5}) is True  # this process has it
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


def test_an_output_folder_is_tried_before_the_work(tmp_path):
    check_output_folder(tmp_path / "new" / "report")
    assert list((tmp_path / "new" / "report").iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(UserError, match=rf"{folder}: cannot be written: "):
            check_output_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_message(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        start_run(tmp_path / "run", config())


def test_a_full_disk_leaves_the_old_file_whole(monkeypatch, tmp_path):
    import errno

    write_json(tmp_path / "a.json", {"old": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"a.json: cannot be written: No space left on device"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"old": 1}


def test_broken_json_names_file_and_line(tmp_path):
    (tmp_path / "a.json").write_text('{\n"limit": 5,\n}\n')
    with pytest.raises(UserError, match=r"a.json: not valid JSON \(line 3\)"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"b.json: cannot be read"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match=r"absent.json: cannot be read"):
        read_json(tmp_path / "absent.json")


def test_the_environment_names_versions_commit_and_command():
    found = environment("evaluate.py --toy")
    assert found["command"] == "evaluate.py --toy"
    assert set(found["packages"]) >= {"torch", "transformers", "peft", "bitsandbytes"}
    import torch

    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["git"]["commit"] is None or len(found["git"]["commit"]) == 40


def test_manifest_values(tmp_path):
    assert manifest_value(tmp_path, "synthetic") is None
    write_json(tmp_path / "manifest.json", {"synthetic": True})
    assert manifest_value(tmp_path, "synthetic") is True


# Ending a script


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("no such file: a.jpg"), 2, "error: no such file: a.jpg"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (None, 0, ""),
    ],
)
def test_a_script_ends_with_a_message_and_no_traceback(capsys, raised, code, said):
    def main() -> None:
        if raised:
            raise raised

    with pytest.raises(SystemExit) as ended:
        guarded(main)
    err = capsys.readouterr().err
    assert ended.value.code == code
    assert said in err
    assert "Traceback" not in err


# Joined with TrainingArguments


@dataclass
class Training(ModelOptions, ToyOptions):
    """Data and adapter"""

    model: str = field(default="default/model", metadata={"help": "which model"})
    lora_rank: int = field(default=16, metadata={"help": "rank"})
    batch_size: int | None = field(default=None, metadata={"help": "alias"})


def parse_training(*argv: str):
    return parse_training_options(
        Training,
        description="A test.",
        argv=argv,
        training_defaults={
            "output_dir": "", "max_steps": 1000, "per_device_train_batch_size": 4,
            "report_to": "none",
        },
        toy_defaults={"model": "toy/model", "max_steps": 40, "per_device_train_batch_size": 8},
    )  # fmt: skip


def test_training_flags_yaml_and_toy_defaults(tmp_path):
    options, training = parse_training()
    assert (options.model, training.max_steps) == ("default/model", 1000)
    options, training = parse_training("--toy")
    assert (options.model, training.max_steps) == ("toy/model", 40)
    file = yaml_file(tmp_path, "max_steps: 11\nlearning_rate: 3e-4\nlora_rank: 4\n")
    options, training = parse_training(file, "--toy", "--max_steps", "12")
    assert (options.lora_rank, training.max_steps, training.learning_rate) == (4, 12, 3e-4)


def test_batch_size_is_an_alias_that_wins_over_defaults():
    assert parse_training()[1].per_device_train_batch_size == 4
    assert parse_training("--toy")[1].per_device_train_batch_size == 8
    assert parse_training("--toy", "--batch_size", "2")[1].per_device_train_batch_size == 2
    assert parse_training("--batch_size=3")[1].per_device_train_batch_size == 3
    given = parse_training("--per_device_train_batch_size", "5")[1]
    assert given.per_device_train_batch_size == 5


def test_epochs_are_not_overruled_by_a_default_number_of_steps(tmp_path):
    """`--num_train_epochs 3` used to do nothing: our default of --max_steps wins over it there."""
    assert parse_training("--num_train_epochs", "3")[1].max_steps == -1
    assert parse_training("--toy", "--num_train_epochs=3")[1].max_steps == -1
    assert parse_training(yaml_file(tmp_path, "num_train_epochs: 3\n"))[1].max_steps == -1
    assert parse_training("--num_train_epochs", "3", "--max_steps", "7")[1].max_steps == 7


@pytest.mark.parametrize(
    "argv",
    [
        ["--batch_size", "2", "--per_device_train_batch_size", "2"],
        ["--batch-size=2", "--per-device-train-batch-size=2"],
    ],
)
def test_both_batch_sizes_are_an_error(capsys, argv):
    with pytest.raises(SystemExit):
        parse_training(*argv)
    assert "give one of them" in capsys.readouterr().err


def test_device_cpu_is_given_to_the_trainer(tmp_path):
    import torch

    assert parse_training("--device", "cpu")[1].use_cpu is True
    assert parse_training("--device=cpu")[1].use_cpu is True
    assert parse_training("--device", "cpu")[1].device == torch.device("cpu")
    assert parse_training()[1].use_cpu is False
    in_yaml = yaml_file(tmp_path, "device: cpu\n")
    assert parse_training(in_yaml)[1].use_cpu is True
    # the flag wins over the file; the first mention used to count
    assert parse_training(in_yaml, "--device", "auto")[1].use_cpu is False


@pytest.mark.parametrize("argv", [["--device", "cuda:1"], ["--device=cuda:1"]])
def test_a_numbered_gpu_is_the_launchers_business(capsys, argv):
    with pytest.raises(SystemExit):
        parse_training(*argv)
    assert "CUDA_VISIBLE_DEVICES" in capsys.readouterr().err


def test_device_without_a_value_is_argparse_s_error(capsys):
    """Used to end in an IndexError."""
    with pytest.raises(SystemExit):
        parse_training("--device")
    assert "expected one argument" in capsys.readouterr().err


def test_an_unknown_training_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        parse_training("--learning_rat", "1")
    assert "did you mean --learning_rate?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--fp16", "true", "--bf16", "true"), "At most one of fp16 and bf16"),
        (("--eval_strategy", "never"), "never"),
        (("--eval_strategy", "steps", "--eval_steps", "2.5"), "--eval_steps must be an integer"),
    ],
)
def test_values_that_transformers_refuses_are_one_message(capsys, flags, said):
    """They used to end in a traceback of TrainingArguments."""
    with pytest.raises(SystemExit) as ended:
        parse_training("--device", "cpu", *flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_no_option_of_train_hides_one_of_the_trainer():
    """`device` is a property there: a field of that name in one class crashed training."""
    from transformers import TrainingArguments

    from blip2_qlora.train import TrainOptions

    ours = {f.name for f in dataclasses.fields(TrainOptions)}
    assert not ours & {f.name for f in dataclasses.fields(TrainingArguments)}


def test_defaults_of_train_are_options():
    """A misspelt default would be an attribute that nobody reads."""
    from transformers import TrainingArguments

    from blip2_qlora.train import TOY_DEFAULTS, TRAINING_DEFAULTS, TrainOptions

    theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
    ours = {f.name for f in dataclasses.fields(TrainOptions)}
    assert set(TRAINING_DEFAULTS) <= theirs
    assert set(TOY_DEFAULTS) <= theirs | ours


# Help


def scripts() -> list[Path]:
    """Scripts of the experiments: files that end in a guarded call."""
    experiments = [p.parent for p in REPO_ROOT.glob("*/__init__.py") if p.parent.name != "shared"]
    return sorted(
        path
        for folder in experiments
        for path in folder.glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    )


def declared_options(script: Path) -> set[str]:
    """Fields of the dataclasses that stand in the script itself."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    return {
        statement.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def child_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("script", scripts(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_help_answers_at_once_and_names_its_options(script, tmp_path):
    """From a foreign folder, in under five seconds of processor time, without torch."""
    before = child_cpu_seconds()
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert child_cpu_seconds() - before < 5
    for name in declared_options(script):
        assert f"--{name}" in done.stdout


def test_help_shows_groups(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for group in ("Model:", "Toy world and rehearsal:", "Sample and run:"):
        assert f"\n{group}\n" in out
    model, toy, own = (
        out.index(g) for g in ("\nModel:", "\nToy world and rehearsal:", "\nSample and run:")
    )
    assert model < out.index("--quantization") < max(toy, own)
    assert "which model" in out


def test_help_of_training_is_short_and_help_all_lists_the_rest(capsys):
    with pytest.raises(SystemExit):
        parse_training("--help")
    short = capsys.readouterr().out
    assert "--lora_rank" in short
    assert "--max_steps 1000" in short
    assert "--deepspeed" not in short
    with pytest.raises(SystemExit):
        parse_training("--help_all")
    assert "--deepspeed" in capsys.readouterr().out
