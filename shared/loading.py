"""From a name to a model: where the weights are, device, dtype, 4/8-bit, adapter, what fits.

Nothing is downloaded here and no remote code runs: a model is a folder, or a Hub id whose files
`python -m shared.download` (or an earlier use of the Hub cache) brought to this machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.options import DATA_ROOT, MissingError, UserError, read_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

GIB = 1024**3
CARD_SIZES_GIB = (8, 16, 24)
SMALL_MODEL_BYTES = 50e6
HASHED_PIECES, HASHED_BYTES = 256, 16 * 1024  # of each weight file; all of a small one


def model_folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a model given as folder or Hub id. Raises MissingError with commands."""
    given = Path(name)
    if given.is_file():
        raise UserError(
            f"{given}: a file; --model takes the folder that holds config.json and the weights"
        )
    if given.is_dir():
        if not (given / "config.json").is_file():
            raise UserError(f"{given}: no config.json in it, so it is not a model folder")
        return given
    downloaded = DATA_ROOT / "models" / name
    if revision is None and (downloaded / "config.json").is_file():
        return downloaded
    from huggingface_hub import try_to_load_from_cache

    if given.is_absolute() or len(given.parts) > 2 or {".", "..", "~"} & {name.split("/")[0]}:
        raise MissingError(f"{name}: no such folder; --model takes a model's folder, or a Hub id")
    if len(given.parts) == 2:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
    raise MissingError(
        f"the model {name} is not on this machine.\n"
        f"  real weights: python -m shared.download {name}\n"
        "  without any download: the same command with --toy"
    )


def pick_device(requested: str = "auto") -> torch.device:
    """auto -> the first GPU if torch sees one, else the CPU. Raises UserError for an absent one."""
    import torch

    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise UserError(
            f"--device {requested}: not a device name (auto, cpu, cuda, cuda:1)"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {requested}: this torch sees no GPU; `python -m shared.doctor` says why"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {requested}: this machine has {torch.cuda.device_count()} GPU(s)"
        )
    return device


def pick_dtype(requested: str, device: torch.device) -> torch.dtype:
    """auto -> bfloat16 on a GPU that computes in it, float16 on an older one, float32 on a CPU."""
    import torch

    if requested != "auto":
        return getattr(torch, requested)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def quantization_config(
    kind: str, dtype: torch.dtype, skip_modules: Sequence[str]
) -> BitsAndBytesConfig | None:
    """None, 8-bit, or 4-bit NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3).

    `skip_modules` stay in `dtype`: what is small and sensitive (projections, heads, towers).
    Raises UserError when bitsandbytes is missing.
    """
    if kind == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--quantization {kind} needs bitsandbytes: pip install bitsandbytes, "
            "or use --quantization none"
        ) from error
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip_modules))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip_modules),
    )


def keep_trainable_after_inference(model: nn.Module) -> None:
    """Stop bitsandbytes 0.50 from repacking 4-bit weights on CPUs with AVX512-BF16.

    `Linear4bit.forward` repacks a weight at its first use without gradients, after which the layer
    has no (or wrong) gradients: a validation in the middle of training would silently end it
    (bitsandbytes/nn/modules.py, attribute support_avx512bf16_for_cpu).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet_libraries() -> None:
    """Progress bars for weights and warnings that ask for nothing are not for the user's screen."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # 8-bit layers say at every call that they compute in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # bitsandbytes on a CPU recommends an optional package for speed at every load
    warnings.filterwarnings("ignore", message=".*kernels.*")
    # peft 0.21 reads an attribute that transformers 5.23 has renamed
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def weight_files(folder: Path) -> list[Path]:
    """A model folder's safetensors; where it has none, its `pytorch_model*.bin`."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def use_one_thread_if_small(folder: Path, device: torch.device) -> None:
    """On a CPU, matrices of a few hundred columns are faster on one thread than on many."""
    import torch

    size = sum(file.stat().st_size for file in weight_files(folder))
    if device.type == "cpu" and size < SMALL_MODEL_BYTES:
        torch.set_num_threads(1)


def load_pretrained(
    model_class: type,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str,
    skip_modules: Sequence[str],
) -> nn.Module:
    """`model_class.from_pretrained` on one device, in eval mode.

    Raises UserError with the cause; also when the files lack a weight, for which transformers puts
    random numbers and a warning. Safetensors are read; of a folder that has none, `.bin` files with
    `weights_only=True`, which builds tensors and nothing else.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    quiet_libraries()
    use_one_thread_if_small(folder, device)
    config = quantization_config(quantization, dtype, skip_modules)
    placement = {} if config is None else {"device_map": {"": device}}
    try:
        model, found = model_class.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=config,
            local_files_only=True,
            use_safetensors=not any(f.suffix == ".bin" for f in weight_files(folder)),
            weights_only=True,
            output_loading_info=True,
            **placement,
        )
    except UnpicklingError as error:
        raise UserError(
            f"{folder}: its .bin files hold more than tensors, and unpickling that could run code: "
            "refused"
        ) from error
    except SafetensorError as error:
        raise UserError(
            f"{folder}: its weights are broken or incomplete ({error}); download the model again"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        advice = "" if quantization == "none" else "; --quantization none loads it in --dtype"
        raise UserError(f"{folder}: the model cannot be loaded ({error}){advice}") from error
    absent = sorted(found["missing_keys"])
    if absent:
        raise UserError(
            f"{folder}: {len(absent)} weights are not in its files ({absent[0]}, ...) and would be "
            "random; download the model again"
        )
    keep_trainable_after_inference(model)
    if config is None:
        model = model.to(device)
    return model.eval()


def load_adapter(
    model: nn.Module, adapter: Path, base_folder: Path, name: str = "default"
) -> nn.Module:
    """Put a PEFT adapter on a base model after `check_adapter` found that they belong together.

    A model that has adapters already (a `PeftModel`) gets one more, of another `name`. A plain PEFT
    folder (no manifest) loads with a warning. Raises UserError otherwise.
    """
    import warnings

    from peft import PeftModel

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    saved = check_adapter(base, adapter, base_folder)
    if not (adapter / "manifest.json").is_file():
        warnings.warn(
            f"{adapter} has no manifest of this project: prompt, data and base can't be checked, "
            "only shapes are",
            stacklevel=2,
        )
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(adapter, name, local_files_only=True)
        else:
            model = PeftModel.from_pretrained(model, adapter, name, local_files_only=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{adapter}: peft cannot load it ({type(error).__name__}: {error})"
        ) from error
    own = [n for n, _ in model.named_parameters() if ".lora_" in n and name in n.split(".")]
    spelled = {n: ".".join(part for part in n.split(".") if part != name) for n in own}
    spelled |= {
        n: s.removesuffix(".weight") for n, s in spelled.items() if "magnitude" in s
    }  # DoRA
    absent = [n for n in own if spelled[n] not in saved]
    if absent:
        raise UserError(f"{adapter}: {len(absent)} matrices are not in its file ({absent[0]}, ...)")
    keep_trainable_after_inference(model)
    return model.eval()


def check_adapter_folder(adapter: Path) -> dict[str, Any]:
    """The adapter's manifest ({} of a plain PEFT folder); raises UserError for any other folder."""
    if not (adapter / "adapter_config.json").is_file():
        if (adapter / "adapter" / "adapter_config.json").is_file():
            raise UserError(f"{adapter} is a run folder: you mean --adapter {adapter / 'adapter'}")
        raise UserError(f"{adapter}: no adapter_config.json in it, so it is not an adapter folder")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter}: no adapter_model.safetensors in it: its weights are missing")
    found = {}
    for name in ("adapter_config.json", "manifest.json"):
        file = adapter / name
        found[name] = read_json(file) if file.is_file() else {}
        if not isinstance(found[name], dict):
            raise UserError(
                f"{file}: expected a JSON object, found a {type(found[name]).__name__}; this "
                "adapter folder is damaged or made by another program"
            )
    return found["manifest.json"]


def check_adapter(model: nn.Module, adapter: Path, base_folder: Path | None) -> set[str]:
    """Names of the adapter's matrices when folder, base and every shape fit, else UserError.

    No weight is read, so `model` may be on the meta device (`--dry_run`). An adapter of `train.py`
    has a manifest whose base fingerprint must equal this base's, when the base is on this machine.
    """
    manifest = check_adapter_folder(adapter)
    if manifest and base_folder is not None:
        trained_on, here = manifest.get("base_fingerprint"), fingerprint(base_folder)
        if trained_on != here:
            raise UserError(
                f"{adapter} was trained on {manifest.get('base_model')} (fingerprint "
                f"{trained_on}), not on {base_folder} ({here}). Give that base with --model, or "
                "train an adapter for this one."
            )
    return check_adapter_shapes(model, adapter)


def check_adapter_shapes(model: nn.Module, adapter: Path) -> set[str]:
    """Names in the file, each of which must fit a linear layer of the model. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    weights = adapter / "adapter_model.safetensors"
    modules = dict(model.named_modules())
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error})") from error
    for key, shape in shapes.items():
        name, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        module = modules.get(name)
        if module is None or not hasattr(module, "in_features"):
            raise UserError(f"{adapter}: no layer of this base model fits its {name or key}")
        wanted = module.in_features if part.startswith("A") else module.out_features
        found = shape[1] if part.startswith("A") else shape[0]
        if wanted != found:
            raise UserError(
                f"{adapter}: layer {name} was trained for width {found}, this base has {wanted}"
            )
    return set(shapes)


def fingerprint(folder: Path) -> str:
    """A short hash of a model folder that tells two bases apart without reading gigabytes.

    The architecture (config.json without version notes) and, of each weight file, the size and
    pieces spread over it: a base with a merged adapter begins with the same tensors.
    """
    config = read_json(folder / "config.json")
    for volatile in ("transformers_version", "_name_or_path", "dtype", "torch_dtype"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(f"{size}".encode())
        with file.open("rb") as content:
            for piece in range(HASHED_PIECES):
                content.seek(size * piece // HASHED_PIECES)
                digest.update(content.read(HASHED_BYTES))
    return digest.hexdigest()[:16]


def adapter_fingerprint(adapter: str | None) -> str | None:
    """A short hash of an adapter's weights: the same folder may hold a newly trained one."""
    if adapter is None:
        return None
    check_adapter_folder(Path(adapter))
    weights = Path(adapter) / "adapter_model.safetensors"
    with weights.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB that a run needs on one card, part by part; a bound from sizes, not a measurement."""

    weights: float
    trainable: float  # fp32 weights, gradients, two Adam moments
    activations: float
    overhead: float = 1.0  # CUDA context, kernels' workspaces, fragmentation

    @property
    def total(self) -> float:
        return self.weights + self.trainable + self.activations + self.overhead

    def fits(self, size: int) -> bool:
        """Whether a card of `size` GB holds it; a twentieth is left to the driver."""
        return self.total <= size * 0.95

    def __str__(self) -> str:
        cards = ", ".join(
            f"{size} GB: {'fits' if self.fits(size) else 'does not fit'}" for size in CARD_SIZES_GIB
        )
        return (
            f"about {self.total:.1f} GiB (weights {self.weights:.1f}, training state "
            f"{self.trainable:.1f}, activations {self.activations:.1f}, overhead "
            f"{self.overhead:.1f}); {cards}"
        )


def weight_bytes(
    n_parameters: dict[str, int], quantized: Sequence[str], quantization: str, dtype_bytes: int
) -> float:
    """Bytes of the weights per component; `quantized` components use the quantised width.

    NF4 with double quantisation takes 4 bits and 0.127 bits of constants per weight (QLoRA paper,
    section 3: 0.5 bits reduced to 0.127).
    """
    per_weight = {"none": float(dtype_bytes), "int8": 1.0, "nf4": (4 + 0.127) / 8}[quantization]
    return sum(
        count * (per_weight if name in quantized else dtype_bytes)
        for name, count in n_parameters.items()
    )


def trainable_report(model: nn.Module, components: dict[str, str]) -> dict[str, dict[str, int]]:
    """Per component: parameters and trainable parameters. `components` maps a name to a substring.

    The first component whose substring is in a parameter's name gets it; the rest is "other".
    """
    report = {name: {"parameters": 0, "trainable": 0} for name in [*components, "other"]}
    for name, parameter in model.named_parameters():
        owner = next((c for c, part in components.items() if part in name), "other")
        # 4-bit weights are stored two to a byte; their real count is in the quantisation state
        state: Any = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        report[owner]["parameters"] += count
        report[owner]["trainable"] += count if parameter.requires_grad else 0
    return {name: counts for name, counts in report.items() if counts["parameters"]}
