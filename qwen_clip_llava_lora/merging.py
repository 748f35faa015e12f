"""The steps of `merge_model.py`: what the parts are, how they fit, the weights one shard at a time.

Names on disk are those of the published llava-hf folders: `language_model.model.*`,
`language_model.lm_head.weight` (not when it is tied to the embeddings), `multi_modal_projector.*`,
`vision_tower.vision_model.*`. transformers 5.23 loads them without a missing or unexpected weight
and saves a model loaded from them under the same names. (A LLaVA that transformers 5 made from
nothing lacks the level `vision_model` in its files.) vLLM's LlavaForConditionalGeneration has
modules of exactly these names: `CLIPVisionModel` and `SiglipVisionModel` keep their layers under
`vision_model`, and its weight mapper turns the newer `model.language_model.` and `lm_head.` into
these (vllm/model_executor/models/{llava,clip,siglip}.py, read, not run). It takes CLIP and SigLIP
towers, not Chinese-CLIP, and finds the language model's class by `text_config.architectures`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwen_clip_llava_lora.settings import ARCHITECTURES
from shared.chat_templates import chat_style, special_tokens
from shared.conversations import IMAGE_TAG, answer_end
from shared.llava_parts import (
    PAD_TOKEN,
    llava_config,
    load_tokenizer,
    part_config,
    prepare_tokenizer,
    vision_part,
)
from shared.options import UserError, read_json, write_json
from shared.vision_families import llava_image_tokens
from shared.weight_files import ShardWriter, Weight, grown, read_file, read_folder

if TYPE_CHECKING:
    from transformers import LlavaConfig, PretrainedConfig

COMPONENTS = {"vision tower": "vision_tower.", "projector": "multi_modal_projector.",
              "language model": "language_model."}  # fmt: skip
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
PROJECTOR_FILE = "projector.safetensors"
# In front of a template that takes texts alone: a list of parts becomes the text that the model was
# made for, with <image> where a picture is. Processors and vLLM's server give lists.
PARTS_AS_TEXT = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['content'] is iterable and message['content'] is not string -%}
    {%- set joined = namespace(text='') -%}
    {%- for part in message['content'] -%}
      {%- set shown = '<image>\\n' if part['type'] in ('image', 'image_url') else part['text'] -%}
      {%- set joined.text = joined.text + shown -%}
    {%- endfor -%}
    {%- set flat.messages = flat.messages + [dict(message, content=joined.text)] -%}
  {%- else -%}
    {%- set flat.messages = flat.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


@dataclass(frozen=True)
class Parts:
    """Language model and tower: configurations, and folders where they are on disk."""

    text: PretrainedConfig
    vision: PretrainedConfig
    text_folder: Path | None
    vision_folder: Path | None


def read_parts(language_model: str, vision_tower: str) -> Parts:
    """Both configurations, checked for what a LLaVA can hold. Raises UserError, MissingError."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text, text_folder = part_config(language_model, ARCHITECTURES)
    whole, vision_folder = part_config(vision_tower, ARCHITECTURES)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"--language_model {language_model}: a {text.model_type}, which transformers does not "
            "know as a language model"
        )
    for flag, config in (("--language_model", text), ("--vision_tower", whole)):
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(
                f"{flag}: its weights are quantised, and a picture's vectors must go through the "
                "weights that were trained; give the model in bf16, fp16 or fp32"
            )
    try:
        vision = vision_part(whole)
    except UserError as error:
        raise UserError(f"--vision_tower {vision_tower}: {error}") from error
    return Parts(text, vision, text_folder, vision_folder)


def plan_config(parts: Parts, tokenizer: Any, vision_feature_layer: int, multiple: int) -> Any:
    """The LLaVA's configuration. Without a tokenizer on disk `<image>` is taken for the last row.

    Embedding rows: enough for every token, rounded up to a multiple, never fewer than there are.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    n_layers = parts.vision.num_hidden_layers
    if not -n_layers - 1 <= vision_feature_layer <= n_layers:
        raise UserError(
            f"--vision_feature_layer {vision_feature_layer}: the tower has hidden states "
            f"{-n_layers - 1} to {n_layers} (negative: from its end)"
        )
    n_tokens = 0 if tokenizer is None else max(tokenizer.get_vocab().values()) + 1
    rows = -(-max(parts.text.vocab_size, n_tokens) // multiple) * multiple
    image_token = rows - 1 if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    config = llava_config(
        parts.vision,
        parts.text,
        image_token_index=image_token,
        vision_feature_layer=vision_feature_layer,
    )
    config.text_config.vocab_size = rows
    config.architectures = ["LlavaForConditionalGeneration"]
    config.image_aspect_ratio = "square"  # the way of the tower's image processor
    if not config.text_config.architectures:  # vLLM finds the language model by it
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(parts.text)]
        config.text_config.architectures = [causal.__name__]
    for part in (config, config.vision_config, config.text_config):
        part._name_or_path = ""
    room = getattr(config.text_config, "max_position_embeddings", None)
    if room is not None and llava_image_tokens(config) >= room:
        raise UserError(
            f"a picture has {llava_image_tokens(config)} tokens with this tower, the language "
            f"model has room for {room}"
        )
    return config


# The tokenizer


def ready_tokenizer(folder: Path, chat_template: str | None) -> tuple[Any, list[str]]:
    """Tokenizer with `<image>`, a padding token of its own and a template that shows the picture.

    Returns what was done, for the screen. A missing BOS stays missing (Qwen has none). Raises
    UserError where the template is missing or leaves the picture or the question out.
    """
    tokenizer = load_tokenizer(folder)
    done = prepare_tokenizer(tokenizer)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        done.append(
            f"its padding was the end token: {PAD_TOKEN} (id {tokenizer.pad_token_id}) is it now"
        )
    if chat_template is not None:
        tokenizer.chat_template = read_template(Path(chat_template))
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(
            f"{folder}: its tokenizer has no chat template (a base model?); give the chat or "
            "instruct model, or --chat_template FILE.jinja with the prompt that it shall learn"
        )
    done += show_pictures(tokenizer, folder)
    return tokenizer, done


def read_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat_template {file}: cannot be read: {error}") from error


def show_pictures(tokenizer: Any, folder: Path) -> list[str]:
    """Make a template of texts take a picture as a part of a list too, with the same result."""
    from jinja2 import TemplateError

    question = "Qprobe7"

    def rendered(content: Any) -> str | None:
        try:
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError):
            return None

    def shows(text: str | None) -> bool:
        return text is not None and text.count(IMAGE_TAG) == 1 and question in text

    parts = [{"type": "image"}, {"type": "text", "text": question}]
    done, as_text = [], rendered(f"{IMAGE_TAG}\n{question}")
    if shows(as_text) and rendered(parts) != as_text:
        tokenizer.chat_template = PARTS_AS_TEXT + tokenizer.chat_template
        done.append("its chat template takes pictures as parts of a list too")
    if not shows(rendered(parts)):
        raise UserError(
            f"{folder}: its chat template does not show a picture and a question that come "
            "together; give another with --chat_template FILE.jinja"
        )
    try:
        chat_style(tokenizer)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return done


def generation_settings(folder: Path, text: PretrainedConfig, tokenizer: Any) -> dict[str, Any]:
    """The language model's, with the padding token and the end that its template writes."""
    file = folder / "generation_config.json"
    settings = read_json(file) if file.is_file() else {}
    ends = settings.get("eos_token_id", text.eos_token_id)
    ends = [*ends] if isinstance(ends, list) else [ends]
    end = answer_end(tokenizer, None)
    if end in special_tokens(tokenizer):
        ends.append(tokenizer.convert_tokens_to_ids(end))
    ends = [*dict.fromkeys(e for e in (*ends, tokenizer.eos_token_id) if e is not None)]
    settings["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    settings["pad_token_id"] = tokenizer.pad_token_id
    return settings


def check_image_size(image_processor: Any, vision: PretrainedConfig, folder: Path) -> None:
    """Raises UserError when the folder's image processor makes pictures of another size."""
    from PIL import Image

    made = image_processor([Image.new("RGB", (48, 40))], return_tensors="pt")["pixel_values"].shape
    if tuple(made[-2:]) != (vision.image_size, vision.image_size):
        raise UserError(
            f"{folder}: its image processor makes pictures of {made[-1]} x {made[-2]}, the tower "
            f"takes {vision.image_size} x {vision.image_size}; download the folder again"
        )


# The weights


def on_disk(name: str) -> str:
    """Name of a weight in transformers' module -> name in the file."""
    for prefix, stored in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(prefix):
            return stored + name.removeprefix(prefix)
    raise UserError(f"{name}: no part of a LLaVA")


def wanted_weights(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Names on disk and shapes of every weight of the LLaVA, from its configuration alone."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {on_disk(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def check_head(text: PretrainedConfig) -> None:
    """A LLaVA has the language model without its head, and one matrix as head: raises UserError
    for a model with more."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text)
    inside = f"{model.base_model_prefix}."
    more = [n for n in model.state_dict() if not n.startswith(inside) and n != "lm_head.weight"]
    if more or inside != "model.":
        raise UserError(
            f"--language_model: a {text.model_type} has {(more or [inside])[0]}, for which a LLaVA "
            "has no place"
        )


def part_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters per component; a tied head counts once."""
    return {
        component: sum(math.prod(s) for name, s in shapes.items() if name.startswith(prefix))
        for component, prefix in COMPONENTS.items()
    }


def gather(config: LlavaConfig, parts: Parts) -> dict[str, Weight]:
    """Every weight of tower and language model under its new name, none read yet.

    A tower's names may begin with `vision_model.` (a whole CLIP, older files), a language model's
    with `model.` or not (one saved without head). Raises UserError for missing weights and shapes
    that are not those of config.json.
    """
    assert parts.text_folder is not None
    assert parts.vision_folder is not None
    sources = {"vision_tower.": parts.vision_folder, "language_model.": parts.text_folder}
    wanted = wanted_weights(config)
    found: dict[str, Weight] = {}
    for prefix, folder in sources.items():
        stored, absent = read_folder(folder), []
        for name, shape in wanted.items():
            if not name.startswith(prefix):
                continue
            known_as = name.removeprefix(prefix)  # vision_model.*, model.*, lm_head.weight
            bare = known_as.removeprefix("vision_model.").removeprefix("model.")
            weight = stored.get(known_as, stored.get(bare))
            if weight is None:
                absent.append(known_as)
                continue
            if name in (EMBEDDING, HEAD) and weight.shape[0] < shape[0]:
                weight = grown(weight, shape[0])
            if weight.shape != shape:
                raise UserError(
                    f"{folder}: {known_as} is {weight.shape}, its config.json says {shape}: they "
                    "don't belong together; download it again"
                )
            found[name] = weight
        if absent:
            raise UserError(
                f"{folder}: {len(absent)} weights are not in its files ({absent[0]}, ...): is it "
                "the right folder, and whole? (A mixture of experts keeps them in another form, "
                "which is not read here.)"
            )
    return found


def stored_dtype(weights: Mapping[str, Weight]) -> torch.dtype:
    """That of the smallest matrix: the cheapest to read."""
    matrices = [weight for weight in weights.values() if len(weight.shape) == 2]
    return min(matrices, key=lambda weight: math.prod(weight.shape)).read().dtype


def fresh_projector(config: LlavaConfig, seed: int) -> dict[str, Tensor]:
    """A projector as `LlavaForConditionalGeneration(config)` would draw it, fp32, names on disk.

    Only it is made; the global random state stays as it is.
    """
    from transformers import LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaMultiModalProjector(config)
        projector.apply(model._init_weights)
    return {f"multi_modal_projector.{n}": t for n, t in projector.state_dict().items()}


def find_projector(given: str) -> Path:
    """The file behind --projector: itself, or in a run's adapter folder. Raises UserError."""
    path = Path(given)
    for candidate in (path, path / PROJECTOR_FILE, path / "adapter" / PROJECTOR_FILE):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"--projector {given}: no {PROJECTOR_FILE} there; give the run folder of an earlier "
        "train.py (preset align), or the file"
    )


def read_projector(config: LlavaConfig, file: Path) -> dict[str, Tensor]:
    """Of an earlier training, here or in llava_repro. Raises UserError for other widths."""
    places = {"0": "linear_1", "2": "linear_2"}  # the original's names, mm_projector.0 and .2
    found = {}
    for name, weight in read_file(file).items():
        layer, _, kind = name.rpartition("projector.")[2].partition(".")
        if "projector." in name:
            found[f"multi_modal_projector.{places.get(layer, layer)}.{kind}"] = weight
    shapes = {n: w.shape for n, w in found.items()}
    own = {n: s for n, s in wanted_weights(config).items() if n.startswith("multi_modal_projector")}
    if shapes != own:
        raise UserError(f"{file}: a projector of {shapes}, these parts need {own}")
    return {name: weight.read() for name, weight in found.items()}


def write_weights(
    folder: Path, weights: Mapping[str, Weight], dtype: torch.dtype | None, shard_bytes: int
) -> None:
    """All weights, one shard in memory at a time, in `dtype` if given."""
    from tqdm import tqdm

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in tqdm(weights, desc="merging", unit="tensor", disable=None):
            tensor = weights[name].read()
            yield name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

    writer = ShardWriter(folder, limit=shard_bytes)
    writer.add(tensors())
    writer.finish()


def write_settings(
    folder: Path, config: LlavaConfig, generation: dict[str, Any], dtype: torch.dtype
) -> None:
    config.dtype = dtype
    config.text_config.dtype = config.vision_config.dtype = dtype
    config.save_pretrained(folder)
    write_json(folder / "generation_config.json", generation)


def file_hash(file: Path | str | None) -> str | None:
    """Of a file that an option names: the same name may hold something else later."""
    if file is None:
        return None
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
