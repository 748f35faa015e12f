"""What the families of vision-language models have in common: prompts, pictures' places, choices.

A family is the tokenizer, image processor and configuration of one model folder, made before any
weight is read, so that data can be encoded and counted without a model. The picture's places in a
prompt are written here, from the picture's size and the image processor's own rule: the processor
classes of Qwen-VL and MiniCPM-V cannot be made without torchvision, this can.

Used through `shared.vision_families`. Reads and writes nothing.
Shapes: P pictures, B prompts, N image tokens of a picture, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from shared.chat_templates import tokenizer_segments
from shared.conversations import (
    IMAGE_TAG,
    escape_tags,
    ids_after,
    pad_id,
    segments_of,
    token_runs,
)
from shared.options import UserError, read_json
from shared.vision_families_adapters import load_parts

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PROBE = "Aprobe7"
THOUGHT = "</think>"  # ends what a model thinks before it answers (Qwen's name)


@dataclass(frozen=True)
class Layout:
    """A picture's places in a prompt, from its size alone.

    `n` is the number of its vectors and of its places. Qwen-VL: `grid` of patches (time, height,
    width). MiniCPM-V: tokens of the whole picture, then of each slice, `columns` slices a row.
    """

    n: int
    grid: tuple[int, int, int] | None = None
    slices: tuple[int, ...] = ()
    columns: int = 0


@dataclass(frozen=True)
class PictureFeatures:
    """A picture as the language model is shown it: (N, D); Qwen3-VL's has more of the same shape,
    which are added behind its first layers (DeepStack)."""

    vectors: Tensor
    layout: Layout
    deep: tuple[Tensor, ...] = ()


class Turns(str):
    """A prompt that is more than one human text; its own text is what records show.

    `turns` are (role, text) with the roles system, human, gpt; the last is human. Raises UserError
    for another order.
    """

    turns: tuple[tuple[str, str], ...]

    def __new__(cls, turns: Iterable[tuple[str, str]]) -> Turns:
        own = tuple((role, text) for role, text in turns)
        talk = [role for role, _ in own]
        talk = talk[1:] if talk[:1] == ["system"] else talk
        if len(talk) % 2 == 0 or talk != (["human", "gpt"] * len(talk))[: len(talk)]:
            raise UserError(
                f"a prompt of turns {[role for role, _ in own]}: human and gpt take turns, a "
                "system turn may come first, the last is human"
            )
        shown = own[0][1] if len(own) == 1 else "\n".join(f"{role}: {text}" for role, text in own)
        self = super().__new__(cls, shown)
        self.turns = own
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:  # a copy is made of the turns again
        return (self.turns,)


class Family:
    """One model folder; `attach` brings the weights.

    `decoder` is what is called with embeddings, mask and cache; `n_image_tokens` is the number of a
    picture's tokens, the largest usual one where pictures differ; `trained_on` is "pad", "square"
    or None (not said). Raises UserError for a folder that cannot be asked.
    """

    model_class: str
    not_quantized: tuple[str, ...]  # small or sensitive: regular expressions of module names
    decoder: nn.Module

    def __init__(
        self,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.pad_id = pad_id(tokenizer)
        self.image_token_id: int | None = config.image_token_id
        self.n_image_tokens = 0
        self.max_length: int | None = getattr(config.text_config, "max_position_embeddings", None)
        self.trained_on: str | None = None
        self.side: int = getattr(config.vision_config, "image_size", 0) or 448
        self.thinks = THOUGHT in (tokenizer.chat_template or "")
        self.end_ids: set[int] = set()
        self.end_text: str | None = None  # an end that is no token: "###", a line break
        self._choice_ids: dict[tuple[str, str], list[int]] = {}

    def attach(self, model: nn.Module) -> None:
        self.model = self.decoder = model
        own = model.generation_config.eos_token_id
        self.end_ids |= {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        self.end_ids -= {None}

    def load_adapter(self, model: nn.Module, adapter: Path) -> nn.Module:
        """The model with the adapter's layers and trained parts in it, without peft's wrapper.
        Raises UserError."""
        return load_parts(model, adapter, self.folder)

    # Pictures

    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        """Each picture once through the tower and what brings it to the language model's width."""
        raise NotImplementedError

    def layout(self, width: int, height: int) -> Layout:
        """Places of a picture of this size, nothing decoded. Raises UserError for a size that the
        image processor refuses."""
        return Layout(self.n_image_tokens)

    def picture_ids(self, layout: Layout, place: int) -> list[int]:
        """What stands for the placeholder of a prompt's picture number `place` (from 0)."""
        return [self.image_token_id or 0] * layout.n

    def pixels(self, images: Sequence[Image]) -> Any:
        try:
            return self.image_processor(list(images), return_tensors="pt")
        except ValueError as error:  # Qwen-VL: more than 200 times as long as wide
            raise UserError(f"a picture cannot be brought to the model's form: {error}") from error

    # Prompts

    def turn_runs(
        self, turns: Sequence[tuple[str, str | None]], generate: bool = False
    ) -> list[tuple[list[int], bool]]:
        """(ids, learned) pieces by the folder's chat template, one placeholder a picture."""
        return token_runs(segments_of(turns, self.tokenizer, None, generate), self.tokenizer)

    def expand(self, ids: Sequence[int], layouts: Sequence[Layout]) -> list[list[int]]:
        """The ids that stand for each of `ids`: itself, or all places of a picture. UserError when
        there are not as many placeholders as pictures."""
        n_places = sum(i == self.image_token_id for i in ids)
        if n_places != len(layouts):
            raise UserError(f"{n_places} {IMAGE_TAG} for {len(layouts)} picture(s)")
        shown = iter(enumerate(layouts))
        pieces = []
        for i in ids:
            if i == self.image_token_id:
                place, layout = next(shown)
                pieces.append(self.picture_ids(layout, place))
            else:
                pieces.append([i])
        return pieces

    def prompt_ids(
        self, prompt: str, layouts: Sequence[Layout] = (), tags_are_meant: bool = False
    ) -> list[int]:
        """Ids up to the answer to come; pictures in front of the first human text, or, where tags
        are meant and there are any, at each `<image>`. UserError when their numbers differ."""
        turns = prompt.turns if isinstance(prompt, Turns) else (("human", prompt),)
        escaped = [
            (role, escape_tags(text, self.tokenizer, tags_are_meant and role == "human"))
            for role, text in turns
        ]
        if not any(IMAGE_TAG in text for role, text in escaped if role == "human") and layouts:
            first = next(i for i, (role, _) in enumerate(escaped) if role == "human")
            tags = "\n".join([IMAGE_TAG] * len(layouts))
            escaped[first] = ("human", f"{tags}\n{escaped[first][1]}")
        runs = self.turn_runs(escaped, generate=True)
        pieces = self.expand([i for ids, _ in runs for i in ids], layouts)
        return [i for piece in pieces for i in piece]

    def lead(self, prompt: str) -> str:
        """What stands between a prompt's end and an answer's first letter: a blank, or nothing; the
        end of an empty thought where the template opens one."""
        raise NotImplementedError

    def choice_ids(self, choice: str, lead: str) -> list[int]:
        """Ids of a choice as the model would write it behind the prompt, without end token."""
        key = (choice, lead)
        if key not in self._choice_ids:
            self._choice_ids[key] = self.ids_behind_prompt(lead + choice.strip())
        return self._choice_ids[key]

    def ids_behind_prompt(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # The language model

    def positions(
        self, input_ids: Tensor, mask: Tensor, pictures: Sequence[PictureFeatures]
    ) -> tuple[Tensor, Tensor]:
        """Positions of the prompts without their padding (B, T), and of what follows (B,);
        `pictures` are those of all prompts, in order."""
        return (mask.cumsum(dim=-1) - 1).clamp(min=0), mask.sum(dim=-1)

    def run_prompts(
        self,
        input_ids: Tensor,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        pictures: Sequence[PictureFeatures],
    ) -> tuple[Any, Tensor]:
        """The cache behind the prompts, and the logits of what comes next (B, V)."""
        output = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values, output.logits[:, -1]

    def forward_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """What a training pass is given besides ids (B, T), mask and pictures."""
        return {}


class ChatFamily(Family):
    """A family whose folder's chat template writes prompt and answer: all but BLIP-2.

    Where the template opens a thought, the lead of an answer is that thought's end: an answer is
    learned and scored with an empty thought, as the template writes a finished one.
    """

    template_advice = "download the model again"

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        use_chat_template(tokenizer, folder, self.template_advice)
        super().__init__(folder, config, tokenizer, image_processor)
        self.probe_template()

    def probe_template(self) -> None:
        (self._prompt_text, _), (answer, _), *_ = tokenizer_segments(
            self.tokenizer, [("human", "Q"), ("gpt", PROBE)], False
        )
        self._lead = answer.partition(PROBE)[0]
        shown = [i for ids, _ in self.turn_runs([("human", f"{IMAGE_TAG}\nQ")], True) for i in ids]
        if shown.count(self.image_token_id) != 1:
            raise UserError(f"{self.folder}: its chat template writes no place for a picture")

    def lead(self, prompt: str) -> str:
        return self._lead

    def ids_behind_prompt(self, text: str) -> list[int]:
        """As `shared.conversations.encode` has an answer behind its prompt, and so as learned."""
        return ids_after(self.tokenizer, text, self._prompt_text)


def use_chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path, advice: str) -> None:
    """The tokenizer's chat template; older folders keep it in chat_template.json. UserError."""
    file = folder / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():
        tokenizer.chat_template = read_json(file).get("chat_template")
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(f"{folder}: its tokenizer has no chat template; {advice}")
