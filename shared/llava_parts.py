"""The parts of a LLaVA as their authors publish them, and what makes one folder of them.

A tower's folder may be a whole CLIP with its text half, which is not used. The configuration, the
tokenizer and the processor are made to agree with each other: picture tokens, their number, the
class token. The weights are `shared.weight_files`' and the experiments' own business.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.conversations import IMAGE_TAG
from shared.loading import model_folder
from shared.options import MissingError, UserError, read_json, take_lock

if TYPE_CHECKING:
    from transformers import LlavaConfig, PretrainedConfig

PAD_TOKEN = "<pad>"
# What a tower's config.json is called, whole model or vision part -> class of the vision part
TOWERS = {
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "chinese_clip": "ChineseCLIPVisionModel",
}

# Tokens that the tower puts in front of the patches: CLIP's class token. SigLIP has none.
CLASS_TOKENS = {"clip_vision_model": 1, "chinese_clip_vision_model": 1, "siglip_vision_model": 0}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                   "sentencepiece.bpe.model")  # fmt: skip


def tower_family(config: PretrainedConfig) -> str:
    """clip, siglip or chinese_clip. Raises UserError for another architecture."""
    family = config.model_type.removesuffix("_vision_model")
    if family not in TOWERS:
        raise UserError(
            f"{config.model_type}: not a vision tower that this LLaVA knows ({', '.join(TOWERS)})"
        )
    return family


def known_architecture(name: str, architectures: Path) -> dict[str, Any] | None:
    """Numbers of a published model's config.json out of an experiment's `architectures.json`, for
    plans where the model is not on disk; None where it is not in there."""
    entry = read_json(architectures).get(name)
    return None if entry is None else entry["config"]


def part_config(name: str, architectures: Path) -> tuple[PretrainedConfig, Path | None]:
    """Configuration of a part and its folder, or None where only its published numbers are known.

    Raises MissingError when it is neither on disk nor in `architectures`.
    """
    from transformers import AutoConfig

    try:
        folder = model_folder(name)
    except MissingError:
        numbers = known_architecture(name, architectures)
        if numbers is None:
            raise
        numbers = dict(numbers)
        return AutoConfig.for_model(numbers.pop("model_type"), **numbers), None
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True), folder
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its config.json cannot be used ({error})") from error


def vision_part(config: PretrainedConfig) -> PretrainedConfig:
    """The vision half of a CLIP-like configuration, or the configuration itself."""
    tower_family(config)
    return getattr(config, "vision_config", config)


def llava_config(
    vision: PretrainedConfig,
    text: PretrainedConfig,
    *,
    image_token_index: int,
    vision_feature_layer: int,
) -> LlavaConfig:
    """The configuration of a LLaVA from those of its parts.

    CLIP's class token is dropped (strategy "default"); SigLIP has none to drop ("full"), and
    "default" would silently cost it its first patch. The parts' configurations are copied:
    `LlavaConfig` takes the attention implementation out of what it is given, and a model that is
    left without one attends to padding and to what comes later.
    """
    from transformers import LlavaConfig

    siglip = tower_family(vision) == "siglip"
    return LlavaConfig(
        vision_config=deepcopy(vision),
        text_config=deepcopy(text),
        image_token_index=image_token_index,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="full" if siglip else "default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def prepare_tokenizer(tokenizer: Any) -> list[str]:
    """Give it what a LLaVA needs, in place; returns what was done, for the screen.

    `<image>` becomes one token; a missing padding token becomes the unknown token as in LLaVA, else
    a new one: with the end token as padding, a true end would look like padding.
    """
    done = []
    if tokenizer.convert_tokens_to_ids(IMAGE_TAG) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_TAG], special_tokens=True)
        done.append(f"{IMAGE_TAG} added as token {len(tokenizer) - 1}")
    if tokenizer.pad_token_id is None:
        if tokenizer.unk_token is not None:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        done.append(f"no padding token: {tokenizer.pad_token} (id {tokenizer.pad_token_id}) is it")
    return done


def load_tokenizer(folder: Path) -> Any:
    """Raises UserError, for a folder without any tokenizer with the names of such files."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder}: no tokenizer in it: tokenizer_config.json with tokenizer.json or "
            "tokenizer.model is missing; copy them from where the model comes from, or download "
            "it again; llava_repro/convert.py makes a whole folder of an original LLaVA's"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file: KeyError and others, tokenizers' own plain ones
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({error!r})") from error


def load_image_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: its image processor cannot be loaded ({error})") from error


def save_processor(folder: Path, config: LlavaConfig, tokenizer: Any, image_processor: Any) -> None:
    """Tokenizer and a `LlavaProcessor` that writes as many `<image>` tokens as the model expects.

    What the processor needs for the count is in no tokenizer or image processor: patch size, class
    tokens and strategy; without them it is wrong by one or stops.
    """
    from transformers import LlavaProcessor

    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=CLASS_TOKENS[config.vision_config.model_type],
    ).save_pretrained(folder)


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """`write(staging)` and then one rename: a reader never sees a mixture, and what fails leaves
    nothing. One process at a time: raises UserError when another one writes this folder."""
    staging = folder.with_name(f".unfinished-{folder.name}")
    lock_file = folder.with_name(f"{staging.name}.lock")
    lock = take_lock(lock_file, folder, wait_s=0)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        write(staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            lock_file.unlink(missing_ok=True)
            lock.release()
