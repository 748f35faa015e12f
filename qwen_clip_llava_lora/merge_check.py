"""The self-check of `merge_model.py`: the folder as written against the parts it was made from.

Each model is loaded by plain transformers and let go before the next, so that one is in memory at
a time. Equal means equal to the bit: all hidden states of the tower; the language model's last
hidden state and logits on text. Grown embeddings change the shape of the head's product, hence the
order of its sums: its first rows alone give the same bits, the whole product nearly so.

Shapes: V old vocabulary, T text tokens, N image tokens.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwen_clip_llava_lora.merging import Parts
from shared.conversations import IMAGE_TAG
from shared.llava_parts import TOWERS, tower_family
from shared.loading import load_pretrained
from shared.options import UserError
from shared.vision_families import llava_image_tokens

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_TOKENS = 24
NEW_TOKENS = 8
QUESTION = "What is in this picture?"
# Largest difference of a whole head's logits, as a share of the largest logit; see above.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def check_merged(folder: Path, parts: Parts, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Lines that say what was found equal. Raises UserError with what is not."""
    import transformers

    assert parts.text_folder is not None
    assert parts.vision_folder is not None
    placed = {"device": device, "dtype": dtype, "quantization": "none", "skip_modules": ()}
    pixels = random_pixels(parts.vision.image_size).to(device, dtype)
    ids = random_ids(parts.text.vocab_size).to(device)
    tower_class = getattr(transformers, TOWERS[tower_family(parts.vision)])
    with torch.no_grad():
        tower = load_pretrained(tower_class, parts.vision_folder, **placed)
        seen = tower(pixels, output_hidden_states=True).hidden_states
        del tower
        text = load_pretrained(transformers.AutoModelForCausalLM, parts.text_folder, **placed)
        read = text(ids, output_hidden_states=True)
        del text
        gc.collect()
        model = load_pretrained(transformers.LlavaForConditionalGeneration, folder, **placed)
        compare_tower(seen, model.model.vision_tower(pixels, output_hidden_states=True))
        compare_text(read, model(input_ids=ids, output_hidden_states=True), model.lm_head.weight)
        return [
            f"the tower's {len(seen)} hidden states are the source's bit for bit ({dtype})",
            f"the language model's logits on {TEXT_TOKENS} tokens are the source's bit for bit",
            *ask(model, folder),
        ]


def random_pixels(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def random_ids(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (1, TEXT_TOKENS), generator=generator)


def compare_tower(before: tuple[Tensor, ...], output: Any) -> None:
    after = output.hidden_states
    equal = len(before) == len(after) and all(map(torch.equal, before, after))
    if not equal:
        raise UserError(
            "self-check: the tower in the merged folder sees otherwise than its source does; "
            "nothing was written"
        )


def compare_text(before: Any, after: Any, head: Tensor) -> None:
    """Last hidden state, logits by the head's first V rows, and the model's own logits."""
    hidden, rows = after.hidden_states[-1], before.logits.shape[-1]
    same = torch.equal(before.hidden_states[-1], hidden)
    of_old_rows = torch.nn.functional.linear(hidden, head[:rows])  # (1, T, V)
    difference = float((before.logits.float() - after.logits[..., :rows].float()).abs().max())
    allowed = 0.0
    if after.logits.shape[-1] > rows:
        allowed = TOLERANCE[head.dtype] * float(before.logits.abs().max())
    if not (same and torch.equal(before.logits, of_old_rows) and difference <= allowed):
        raise UserError(
            "self-check: the language model in the merged folder answers a text otherwise than its "
            f"source does (logits differ by up to {difference:.3g}): it may scale or cap its "
            "logits, which no LLaVA does; nothing was written"
        )


def ask(model: Any, folder: Path) -> list[str]:
    """Two pictures through the folder's own processor: tokens counted, an answer, logits differ."""
    from transformers import LlavaProcessor

    processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    bos = processor.tokenizer.bos_token
    once = {"add_special_tokens": not (bos and prompt.startswith(bos))}  # Llama 3 writes its own
    n_tokens = llava_image_tokens(model.config)
    logits = []
    for picture in pictures(model.config.vision_config.image_size):
        try:
            inputs = processor(images=picture, text=prompt, return_tensors="pt", **once)
        except ValueError as error:
            raise UserError(f"self-check: the processor fails: {error}") from error
        inputs = inputs.to(model.device, model.dtype)  # the ids stay whole numbers
        counted = int((inputs["input_ids"] == model.config.image_token_id).sum())
        vectors = len(model.get_image_features(inputs["pixel_values"]).pooler_output[0])
        if not counted == vectors == n_tokens:
            raise UserError(
                f"self-check: the processor writes {counted} {IMAGE_TAG} tokens a picture, the "
                f"model makes {vectors} vectors, its configuration says {n_tokens}"
            )
        logits.append(model(**inputs).logits[0, -1])
    if torch.equal(*logits):
        raise UserError("self-check: two different pictures give the same logits")
    new = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    answer = processor.tokenizer.decode(new[0, inputs["input_ids"].shape[1] :])
    return [
        f"a picture is {n_tokens} tokens for the processor and for the model",
        f"two pictures give different logits (by up to {(logits[0] - logits[1]).abs().max():.3g})",
        f"an answer, by a projector that may know nothing yet: {answer!r}",
    ]


def pictures(side: int) -> list[Image]:
    """A dark one with a bright half, and the same turned round."""
    from PIL import Image

    first = Image.new("RGB", (side, side), (20, 40, 120))
    first.paste((240, 220, 40), (0, 0, side // 2, side))
    return [first, first.transpose(Image.Transpose.ROTATE_90)]
