"""Options of every script and the folder of a run.

A script declares one plain dataclass; this module turns it into flags (`--help` in about two
seconds: no torch), reads one optional YAML file whose keys are the same names, and lets flags win
over it. `--toy` only changes defaults: a script passes them as `toy_defaults`, and nothing outside
this module and `shared/toy_world/` asks whether a run is a toy. A run folder holds `config.json`
(resolved options, written first) and `environment.json`; the same command continues an unfinished
run, another configuration in the same folder is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

if TYPE_CHECKING:
    from transformers import HfArgumentParser, TrainingArguments

REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_ROOT = REPO_ROOT / "data"
OUTPUTS = REPO_ROOT / "outputs"
IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss's default: a label that is not learned

# Options that may change between two starts of one run: they don't change what comes out.
RESULT_NEUTRAL = frozenset({"output_dir", "batch_size", "dry_run", "toy"})

LOCK_FILE = ".lock"
LOCK_WAIT_S = 8
_LOCKED: dict[Path, Any] = {}  # run folders of this process, each with its lock, until it ends

OptionsT = TypeVar("OptionsT")


class UserError(Exception):
    """Something the user can mend; scripts print it without a traceback and exit with 2."""


class MissingError(UserError):
    """Data or weights are not here; the message names the download and the toy command."""


@dataclass
class ModelOptions:
    """Model"""

    model: str = field(metadata={"help": "folder, or Hub id downloaded with shared.download"})
    revision: str | None = field(
        default=None, metadata={"help": "commit of the Hub model; recorded with the run"}
    )
    quantization: Literal["none", "int8", "nf4"] = field(
        default="none", metadata={"help": "weights of the language model (bitsandbytes)"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "auto: bfloat16 where the GPU has it, float32 on a CPU"},
    )


@dataclass
class ToyOptions:
    """Toy world and rehearsal"""

    toy: bool = field(
        default=False,
        metadata={"help": "the embedded synthetic world: no download, minutes on a laptop"},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "read data and config, print the plan, load no weights, exit"},
    )


def parse_options(
    option_class: type[OptionsT],
    *,
    description: str,
    argv: Sequence[str] | None = None,
    toy_defaults: Mapping[str, Any] | None = None,
    prepare_toy: Callable[[], object] | None = None,
) -> OptionsT:
    """Flags (and one YAML file) -> an instance of `option_class`.

    Precedence: flag, YAML, `toy_defaults` (when toy), the dataclass's default. `prepare_toy` draws
    the toy data when `--toy` is given. Unknown keys end the program with the nearest name.
    """
    parser = make_parser(option_class, description=description)
    argv = expand_yaml(parser, sys.argv[1:] if argv is None else argv)
    toy = flag_is_set(argv, "toy")
    if toy:
        parser.set_defaults(**dict(toy_defaults or {}))
    (options,) = parse_known(parser, argv)
    if toy and prepare_toy is not None:
        prepare_toy()
    return options


def parse_training_options(
    option_class: type[OptionsT],
    *,
    description: str,
    training_defaults: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    toy_defaults: Mapping[str, Any] | None = None,
    prepare_toy: Callable[[], object] | None = None,
) -> tuple[OptionsT, TrainingArguments]:
    """Like `parse_options`, joined with every flag of `transformers.TrainingArguments`.

    `training_defaults` are this script's values for fields of TrainingArguments; `toy_defaults` may
    name fields of both. `option_class` has `batch_size` (None, or an alias of
    --per_device_train_batch_size) and `device`, which maps to TrainingArguments' `use_cpu`. Raises
    UserError for numbers that no training can have.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):  # without the 4 to 9 seconds of importing TrainingArguments
        parser = make_parser(option_class, description=description)
        shown = " ".join(f"--{name} {value}" for name, value in training_defaults.items())
        parser.epilog = (
            "Every flag of transformers.TrainingArguments works too; this script's defaults: "
            f"{shown}. --help_all lists them all."
        )
        parser.print_help()
        sys.exit(0)
    from transformers import TrainingArguments

    parser = make_parser(option_class, TrainingArguments, description=description)
    if "--help_all" in argv:
        parser.print_help()
        sys.exit(0)
    parser.set_defaults(**training_defaults)
    argv = expand_yaml(parser, argv)
    toy = flag_is_set(argv, "toy")
    if toy:
        parser.set_defaults(**dict(toy_defaults or {}))
    spelled = {token.split("=")[0].replace("-", "_") for token in argv if token.startswith("--")}
    if {"__batch_size", "__per_device_train_batch_size"} <= spelled:
        parser.error("--batch_size is an alias of --per_device_train_batch_size: give one of them")
    given, _ = parser.parse_known_args(argv)
    if given.device.startswith("cuda:"):
        parser.error(
            f"--device {given.device}: in training the GPU is chosen by CUDA_VISIBLE_DEVICES or by "
            "accelerate launch"
        )
    if given.device == "cpu":
        parser.set_defaults(use_cpu=True)
    if "__num_train_epochs" in spelled and "__max_steps" not in spelled:
        parser.set_defaults(max_steps=-1)  # a default number of steps would win over it
    if "__batch_size" in spelled:
        parser.set_defaults(per_device_train_batch_size=given.batch_size)
    try:
        options, training = parse_known(parser, argv)
    except (ImportError, ValueError) as error:  # TrainingArguments' own checks of its flags
        parser.error(str(error))
    from shared.training_flags import check_numbers

    check_numbers(training)
    if toy and prepare_toy is not None:
        prepare_toy()
    return options, training


def make_parser(*option_classes: type, description: str) -> HfArgumentParser:
    """An `HfArgumentParser` without abbreviations whose help is grouped by the classes' docstrings.

    Fields that a dataclass inherits stand in the group of the class that declares them.
    """
    from transformers.hf_argparser import HfArgumentParser

    class GroupedParser(HfArgumentParser):
        def _add_dataclass_arguments(self, dtype: type) -> None:
            hints = typing.get_type_hints(dtype)
            fields = {f.name: f for f in dataclasses.fields(dtype)}
            for owner in dtype.__mro__:
                own = [name for name in vars(owner).get("__annotations__", {}) if name in fields]
                if not own:
                    continue
                group = self.add_argument_group((owner.__doc__ or owner.__name__).splitlines()[0])
                for name in own:
                    option = fields.pop(name, None)
                    if option is not None:
                        option.type = hints[name]
                        self._parse_dataclass_field(group, option)

    return GroupedParser(
        option_classes,
        description=description,
        allow_abbrev=False,
        usage="%(prog)s [FILE.yaml] [--flag value ...]",
    )


def parse_known(parser: HfArgumentParser, argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse; an unknown flag ends the program and suggests the nearest known one."""
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(unknown_key_message(unknown[0], known_flags(parser)))
    return tuple(parsed)


def known_flags(parser: HfArgumentParser) -> list[str]:
    return [s for action in parser._actions for s in action.option_strings if s.startswith("--")]


def unknown_key_message(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key.split("=")[0], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists them"
    return f"unknown option {key}{hint}"


def expand_yaml(parser: HfArgumentParser, argv: Sequence[str]) -> list[str]:
    """Replace a leading `FILE.yaml` by its keys as flags, placed first so that given flags win."""
    argv = list(argv)
    if not argv or argv[0].startswith("-"):
        return argv
    path = Path(argv[0])
    if path.suffix not in {".yaml", ".yml"}:
        parser.error(f"{argv[0]}: expected flags or one .yaml file with options")
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"{path}: cannot be read: {error}")
    if not isinstance(content, dict):
        parser.error(f"{path}: expected a mapping of option names to values")
    known = known_flags(parser)
    flags: list[str] = []
    for key, value in content.items():
        flag = f"--{key}"
        if flag not in known:
            parser.error(f"{path}: {unknown_key_message(flag, known)}")
        if value is None:
            continue
        if isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:  # joined by "=", so that a text which begins with a dash is not taken for a flag
            flags.append(f"{flag}={str(value).lower() if isinstance(value, bool) else value}")
    return flags + argv[1:]


def flag_is_set(argv: Sequence[str], name: str) -> bool:
    """Whether a boolean flag is on, as argparse will read it: the last mention counts."""
    state = False
    for i, token in enumerate(argv):
        if token == f"--{name}":
            following = argv[i + 1].lower() if i + 1 < len(argv) else "true"
            state = following not in {"false", "no", "0", "f", "n"}
        elif token.startswith(f"--{name}="):
            state = token.split("=", 1)[1].lower() in {"true", "yes", "1", "t", "y"}
    return state


def guarded(main: Callable[[], object]) -> NoReturn:
    """Run a script's main; user errors become one message and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output (head, less) has closed: no error of ours
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, or the exit would complain once more
        sys.exit(0)
    except KeyboardInterrupt:
        print("stopped; what is finished is saved, the same command goes on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def portable_path(value: str | Path) -> str:
    """A path inside the repository relative to it, so that records don't name a machine."""
    path = Path(value)
    try:
        return path.resolve().relative_to(REPO_ROOT).as_posix()
    except ValueError:
        return str(value)


def resolved_config(options: Any, **extra: Any) -> dict[str, Any]:
    """What `config.json` holds: every option, paths inside the repository made portable."""
    config = dataclasses.asdict(options) | extra
    return {
        key: portable_path(value)
        if isinstance(value, str) and (os.sep in value) and os.path.exists(value)
        else value
        for key, value in config.items()
    }


def start_run(folder: Path, config: Mapping[str, Any], *, command: str | None = None) -> bool:
    """Create or continue a run folder; returns True when an earlier start is continued.

    Raises UserError when the folder holds another configuration (naming the options that differ),
    another process writes there, or it cannot be written. Of several processes that do one run
    together the first one alone calls this.
    """
    lock_run(folder)
    config_file = folder / "config.json"
    if config_file.exists():
        earlier = read_json(config_file)
        if not isinstance(earlier, dict):
            raise UserError(f"{config_file}: not a run's options; give another --output_dir")
        now = json.loads(json.dumps(config))
        kept = [{k: v for k, v in c.items() if k not in RESULT_NEUTRAL} for c in (earlier, now)]
        differing = differences(*kept)
        if differing:
            raise UserError(
                f"{folder} holds a run with other options ({'; '.join(differing)}). "
                "Give another --output_dir, or delete that folder."
            )
    continued = config_file.exists()
    if not continued:
        write_json(config_file, config)
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", environment(command))
    return continued


def lock_run(folder: Path) -> None:
    """Keep other processes out of a run folder until this one ends, however it ends: the system
    drops the lock. Raises UserError when another one has it.

    A killed training's data workers hold its lock for some seconds more, hence the wait. On file
    systems without locks nothing is locked.
    """
    key = folder.resolve()
    if key not in _LOCKED:  # by this very process
        _LOCKED[key] = take_lock(folder / LOCK_FILE, folder, LOCK_WAIT_S)


def take_lock(file: Path, folder: Path, wait_s: float) -> Any:
    """The lock of a folder that this process writes, by a file; None where there are none. Raises
    UserError when another process has it."""
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise UserError(
            f"{folder}: another process writes in this folder. Wait for its end, then the same "
            "command goes on, or give another folder"
        ) from error
    except NotImplementedError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            return None
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return lock


def differences(there: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """ "name: value there, value now" of every option that differs; inside groups: group.name."""
    found = []
    for key in sorted({*there, *now}):
        left, right = there.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{within}{key}.")
        elif left != right:
            found.append(f"{within}{key}: {left!r} there, {right!r} now")
    return found


def read_json(path: Path) -> Any:
    """Parsed JSON; UserError with the file and the place when it is broken or missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {error.lineno}): {error.msg}") from error


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all; UserError when the folder is unwritable or the disk is full."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_output_folder(folder: Path) -> None:
    """Before hours of work: can files be written there? Makes the folder; raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error


def this_command() -> str:
    """The running script and its arguments, as runs and pages record them."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def environment(command: str | None = None) -> dict[str, Any]:
    """Versions, git commit, machine: what somebody needs to run the same again."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "pillow")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": command or this_command(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
        "git": git_state(),
    }


def git_state() -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(REPO_ROOT), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def manifest_value(folder: Path | str, key: str) -> Any:
    """A value of a data or model folder's `manifest.json` (`synthetic`, `data_hash`), or None."""
    manifest = Path(folder) / "manifest.json"
    if not manifest.is_file():
        return None
    content = read_json(manifest)
    if not isinstance(content, dict):
        raise UserError(f"{manifest}: expected a JSON object, found {type(content).__name__}")
    return content.get(key)
