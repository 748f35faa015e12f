"""One loaded base and its adapters, asked in turn: what demo.py puts side by side.

A side is the base or one adapter. Going to a side switches peft's LoRA layers (arXiv 2106.09685) on
or off and copies that adapter's other trained parameters (projector.safetensors) over the base's;
behind each answer the base is back, bit for bit, so that memory holds one base, the LoRA matrices
and a copy of each trained projector. Tokenizer and image processor are those that evaluate.py would
use for that side: pictures padded, or within pixel bounds, as the adapter was trained.

    contrast = load_contrast("MERGED", ["RUN/adapter"], device="cpu")
    asked = Asked("What is it?", (picture,))
    for number, reply in contrast.ask(["base", "RUN"], asked, Decoding()):
        print(number, reply.text)

Greedy answers are evaluate.py's. Reads a model folder and adapter folders of train.py; writes
nothing. Shapes: A tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qwen_clip_llava_lora.components import component_of, components_of
from qwen_clip_llava_lora.training_model import trained_map
from shared.answering import text_problem
from shared.loading import load_adapter
from shared.options import UserError, read_json
from shared.vision_families import open_family
from shared.vision_families_adapters import (
    PROJECTOR_FILE,
    adapter_manifest,
    check_base,
    fill_parameters,
    read_tensors,
)
from shared.vision_families_base import THOUGHT
from shared.vision_language import VisionLanguage, load_vision_language

if TYPE_CHECKING:
    from peft import PeftModel
    from PIL.Image import Image

    from shared.answering import Answer, ChoiceScore

BASE = "base"
LORA_FILE, PEFT_PREFIX = "adapter_model.safetensors", "base_model.model."  # as peft writes them
HALF_CHARACTER = "\ufffd"  # what a decoder shows of a character whose last bytes are to come


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen: temperature 0 takes the likeliest, as evaluate.py does.

    `top_p` and `repetition_penalty` are transformers' own; the penalty is of the answer's tokens,
    not of the prompt's. Raises UserError for values that mean nothing.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 is none"),
            ("seed", 0 <= self.seed < 2**63, "0 or more"),
        ):
            if not fits:
                raise UserError(f"{name} {getattr(self, name)}: {what}")


@dataclass(frozen=True)
class Asked:
    """A prompt with its pictures; `target` is a reference answer whose likelihood is wanted."""

    prompt: str
    images: tuple[Image, ...] = ()
    target: str | None = None


@dataclass(frozen=True)
class Reply:
    """What a side has said so far; `answer` when it has ended. `seconds` since the side began.

    `likelihood` is of the target, `no_likelihood` why there is none. A stopped answer has neither.
    """

    text: str
    seconds: float
    answer: Answer | None = None
    stopped: bool = False
    likelihood: ChoiceScore | None = None
    no_likelihood: str | None = None


@dataclass(frozen=True)
class Side:
    """The base, or an adapter: how it is asked, its LoRA's name in peft, its own parameters."""

    asker: VisionLanguage
    folder: Path | None = None
    lora: str | None = None
    parameters: Mapping[str, Tensor] | None = None


class Contrast:
    """The base and its adapters in one model; one answer at a time, whoever asks."""

    def __init__(
        self,
        sides: Mapping[str, Side],
        model: nn.Module,
        view: PeftModel | None,
        counts: Mapping[str, int],
    ) -> None:
        self.sides = sides
        self.model = model
        self.view = view
        self.counts = counts  # component -> the base's parameters
        self.lock = threading.Lock()
        touched = {name for side in sides.values() for name in side.parameters or ()}
        self._parameters = {n: p for n, p in model.named_parameters() if n in touched}
        self._of_base = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._without_lora()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @contextmanager
    def side(self, name: str) -> Iterator[VisionLanguage]:
        """The model as that side; the base again behind it. Hold the lock: there is one model."""
        side = self.sides[name]
        try:
            self._copy(side.parameters or {})
            if self.view is not None and side.lora is not None:
                self.view.base_model.enable_adapter_layers()
                self.view.set_adapter(side.lora)
            yield side.asker
        finally:
            self._copy(self._of_base)
            self._without_lora()

    def _without_lora(self) -> None:
        if self.view is not None:
            self.view.base_model.disable_adapter_layers()

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    def ask(
        self,
        names: Sequence[str],
        asked: Asked,
        decoding: Decoding,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, Reply]]:
        """Replies of the sides in turn, growing token by token: (place in `names`, reply).

        The model works in a thread of its own, which alone holds the lock: a visitor who leaves in
        the middle leaves no lock behind. It ends at the next token when `stop()` is true or nobody
        reads on. Raises UserError when this cannot be asked.
        """
        unread = threading.Event()
        told: SimpleQueue[tuple[int, Reply] | Exception | None] = SimpleQueue()

        def stopped() -> bool:
            return unread.is_set() or stop()

        def work() -> None:
            try:
                with self.lock, torch.no_grad():
                    for number, name in enumerate(names):
                        with self.side(name) as asker:
                            for reply in replies(asker, asked, decoding, stopped):
                                told.put((number, reply))
                told.put(None)
            except Exception as error:
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (said := told.get()) is not None:
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            unread.set()


def load_contrast(
    model: str,
    adapters: Sequence[str],
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    **settings: Any,
) -> Contrast:
    """The base once, with every adapter in it; `settings` as `load_vision_language` takes them.

    Raises UserError for an adapter of another base, or one that doesn't fit.
    """
    base = load_vision_language(
        model, min_pixels=min_pixels, max_pixels=max_pixels, tags_are_meant=True, **settings
    )
    family, loaded = base.family, base.family.model
    components_of(family.config.model_type)  # refuses other families
    map_of_base = trained_map(loaded, family.config.model_type)
    folders = {name: Path(folder) for name, folder in named_adapters(adapters).items()}
    # before LoRA layers stand around the base's, under whose names the parameters were saved
    own = {name: own_parameters(loaded, folder, family.folder) for name, folder in folders.items()}
    sides, view = {BASE: Side(base)}, None
    for number, (name, folder) in enumerate(folders.items()):
        manifest, lora = adapter_manifest(folder), None
        if (folder / "adapter_config.json").is_file():
            lora = f"adapter{number}"
            view = load_adapter(loaded if view is None else view, folder, family.folder, lora)
        bounds = [
            manifest.get(key) if given is None else given
            for key, given in (("min_pixels", min_pixels), ("max_pixels", max_pixels))
        ]
        beside = folder if (folder / "processor_config.json").is_file() else None
        tuned = open_family(family.folder, beside, *bounds)
        tuned.attach(loaded)
        tuned.trained_on = manifest.get("image_aspect_ratio") or tuned.trained_on
        asker = VisionLanguage(tuned, base.image_handling, base.max_new_tokens, True)
        sides[name] = Side(asker, folder, lora, own[name])
    return Contrast(sides, loaded, view, {part: n for part, (n, _) in map_of_base.items()})


def named_adapters(folders: Sequence[str]) -> dict[str, str]:
    """A short name for each: of RUN/adapter the run's, with as much of the path in front as tells
    them apart. Raises UserError for one given twice."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError(f"--adapter {' '.join(folders)}: the same folder is given twice")
    parts = [p.parts[1:-1] if p.name == "adapter" else p.parts[1:] for p in paths]
    for n in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-n:]) for own in parts]
        if len(set(names)) == len(names) and BASE not in names:
            return dict(zip(names, folders, strict=True))
    return {str(path): folder for path, folder in zip(paths, folders, strict=True)}


def own_parameters(model: nn.Module, adapter: Path, folder: Path) -> dict[str, Tensor]:
    """An adapter's trained parameters outside LoRA, in the model's precision; the model itself
    stays as it was. Raises UserError where they don't fit this base."""
    manifest, file = adapter_manifest(adapter), adapter / PROJECTOR_FILE
    if not file.is_file():
        return {}
    check_base(manifest, adapter, folder)
    saved, parameters = read_tensors(file), dict(model.named_parameters())
    before = {n: parameters[n].detach().clone() for n in saved if n in parameters}
    fill_parameters(model, saved, file)
    own = {name: parameters[name].detach().clone() for name in saved}
    with torch.no_grad():
        for name, value in before.items():
            parameters[name].copy_(value)
    return own


@dataclass(frozen=True)
class Trained:
    """What an adapter trained in one component: LoRA weights of a rank, and whole parameters."""

    lora: int = 0
    rank: int | None = None
    whole: int = 0


def trained_of(adapter: Path, model_type: str) -> dict[str, Trained]:
    """component -> what the adapter's files hold for it, by their headers alone."""
    lora: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    rank = None
    if (adapter / "adapter_config.json").is_file():
        rank = read_json(adapter / "adapter_config.json").get("r")
    for name, counts in ((LORA_FILE, lora), (PROJECTOR_FILE, whole)):
        if (adapter / name).is_file():
            for key, size in header_sizes(adapter / name).items():
                counts[component_of(model_type, key.removeprefix(PEFT_PREFIX)) or "other"] += size
    return {
        part: Trained(lora[part], rank if lora[part] else None, whole[part])
        for part in (*components_of(model_type), "other")
        if lora[part] or whole[part]
    }


def header_sizes(file: Path) -> dict[str, int]:
    """Tensor name -> how many numbers it has. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            return {
                key: math.prod(content.get_slice(key).get_shape())
                for key in content.keys()  # noqa: SIM118
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


# One side's answer


def replies(
    asker: VisionLanguage, asked: Asked, decoding: Decoding, stop: Callable[[], bool]
) -> Iterator[Reply]:
    """The answer after each token, then whole with its `Answer` and the target's likelihood."""
    started = time.perf_counter()
    shown = asker.encode_images([list(asked.images)]) if asked.images else []
    index = 0 if asked.images else None
    check_room(asker, asked.prompt, shown[0] if shown else None, decoding.max_new_tokens)
    family = asker.family
    state = asker.start(shown, [index], [asked.prompt])
    choose = chooser(decoding, asker.device)
    ids: list[int] = []
    log_probs: list[Tensor] = []
    stopped = False
    while True:
        scores = state.logits.float()  # (1, V)
        allowed = scores
        if family.image_token_id is not None and family.image_token_id < scores.shape[-1]:
            allowed = scores.clone()
            allowed[:, family.image_token_id] = -torch.inf  # no word of an answer
        chosen = choose(ids, allowed)
        ids.append(chosen)
        log_probs.append(scores.log_softmax(dim=-1)[0, chosen])
        stopped = stop()
        if stopped or chosen in family.end_ids or len(ids) == decoding.max_new_tokens:
            break
        if family.end_text is not None and family.end_text in asker.tokenizer.decode(ids):
            break
        yield Reply(text_so_far(asker, ids), time.perf_counter() - started)
        new = torch.tensor([[chosen]], device=asker.device)
        state.logits = asker.go_on(state, new, torch.ones_like(new))[:, -1]
    answer = asker.make_answer(ids, torch.stack(log_probs).cpu())
    seconds = time.perf_counter() - started
    likelihood, problem = None, None
    if asked.target is not None and not stopped:
        problem = asker.choices_problem(asked.prompt, [asked.target])
        if problem is None:
            ((likelihood,),) = asker.choice_log_probs(
                shown, [index], [asked.prompt], [[asked.target]]
            )
    yield Reply(answer.answer, seconds, answer, stopped, likelihood, problem)


def check_room(asker: VisionLanguage, prompt: str, shown: Any, max_new_tokens: int) -> None:
    """Raises UserError where prompt, pictures and answer are longer than the model's context."""
    if problem := text_problem(prompt):
        raise UserError(problem)
    n, longest = len(asker.sent_ids(prompt, shown)), asker.family.max_length
    if longest is not None and n + max_new_tokens > longest:
        raise UserError(
            f"the prompt has {n} tokens with its pictures; beside {max_new_tokens} for the answer "
            f"the model has room for {longest - max_new_tokens}"
        )


def chooser(decoding: Decoding, device: torch.device) -> Callable[[Sequence[int], Tensor], int]:
    """(ids so far, scores (1, V)) -> the next id. The seed's draws are the same for each side."""
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty)))
    if decoding.temperature > 0:
        steps.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_p < 1:
            steps.append(TopPLogitsWarper(float(decoding.top_p)))
    generator = torch.Generator().manual_seed(decoding.seed)

    def choose(ids: Sequence[int], scores: Tensor) -> int:
        said = torch.tensor([list(ids)], dtype=torch.long, device=device)
        scores = steps(said, scores)
        if decoding.temperature == 0:
            return int(scores.argmax(dim=-1))
        probabilities = scores.softmax(dim=-1).cpu()
        return int(torch.multinomial(probabilities[0], 1, generator=generator))

    return choose


def text_so_far(asker: VisionLanguage, ids: Sequence[int]) -> str:
    """What can be shown of an unfinished answer: no half character, no thought that has ended."""
    text = asker.tokenizer.decode(list(ids), skip_special_tokens=True)
    if asker.family.end_text is not None:
        text = text.partition(asker.family.end_text)[0]
    if asker.family.thinks:
        text = text.rpartition(THOUGHT)[2]
    return text.strip().rstrip(HALF_CHARACTER)
