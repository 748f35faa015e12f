"""A chat with a LLaVA in the terminal: pictures, several turns, answers as they are made.

    python llava_repro/chat.py --toy
    python llava_repro/chat.py --model llava-hf/llava-1.5-7b-hf --quantization nf4 --image photo.jpg
    python llava_repro/chat.py --adapter outputs/llava_repro/RUN/adapter --temperature 0

/image PATH shows a picture with the next question, /reset begins anew, /help lists the commands.
All turns stand in one sequence, so that later answers know the earlier ones; a typed `<image>` is
text. Reads a model and pictures; writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava_repro.asking import TOY_DEFAULTS, AskingOptions, DecodingOptions, is_synthetic
from llava_repro.conversing import Conversation
from shared.images import open_image
from shared.options import ToyOptions, UserError, guarded, parse_options

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_repro.answering import LlavaAnswerer

HELP = """\
/image PATH   a picture for the next question (several: one command each)
/reset        forget the conversation and its pictures
/help         this list
/quit         end (Ctrl+D does too)
Ctrl+C stops an answer; the conversation goes on from the words that were shown."""


@dataclass
class ChatOptions(AskingOptions, DecodingOptions, ToyOptions):
    """Start of the conversation"""

    image: list[str] = field(
        default_factory=list, metadata={"help": "pictures for the first question"}
    )
    # LLaVA's own chat (llava/serve/cli.py) samples at 0.2 and allows 512 tokens
    temperature: float = field(default=0.2, metadata={"help": "0 = greedy, above 0 = sampling"})
    max_new_tokens: int = field(default=512, metadata={"help": "longest answer in tokens"})


def main(options: ChatOptions) -> None:
    decoding = options.decoding()
    if options.dry_run:
        from llava_repro.inference_plan import inference_plan

        print("\n".join(inference_plan(options, decoding)))
        return
    pictures = [open_image(name) for name in options.image]
    from transformers import set_seed

    from llava_repro.answering import load_answerer

    answerer = load_answerer(options, decoding)
    set_seed(options.seed)
    if is_synthetic(options):
        print("SYNTHETIC: a toy model, which knows coloured shapes alone.")
    print("Type a question, or /help.")
    converse(answerer, typed_lines(), pictures)


def typed_lines() -> Iterator[str]:
    """What is typed, line by line, until Ctrl+D; Ctrl+C at the prompt ends too."""
    with_prompt = sys.stdin.isatty()
    if with_prompt:
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 (arrow keys and history)
    while True:
        try:
            yield input("you> " if with_prompt else "")
        except (EOFError, KeyboardInterrupt):
            if with_prompt:
                print()
            return


def converse(answerer: LlavaAnswerer, lines: Iterator[str], pictures: list[Image]) -> None:
    """Answer line by line; `pictures` go with the first question. What fails is said, and it goes
    on."""
    conversation = Conversation()
    for line in lines:
        command, _, argument = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return
        try:
            if command == "/image":
                pictures.append(open_image(unquoted(argument)))
                width, height = pictures[-1].size
                print(f"({width} x {height} pixels, for the next question)")
            elif command == "/reset":
                conversation, pictures = Conversation(), []
                print("(a new conversation)")
            elif command == "/help":
                print(HELP)
            elif command.startswith("/"):
                print(f"{command}: no such command; /help lists them")
            elif line.strip():
                answer(answerer, conversation, line, pictures)
                pictures = []
        except UserError as error:
            print(f"error: {error}")


def unquoted(path: str) -> str:
    """A path as terminals paste it when a file is dropped on them."""
    path = path.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        return path[1:-1]
    return path.replace("\\ ", " ")


def answer(
    answerer: LlavaAnswerer, conversation: Conversation, text: str, pictures: list[Image]
) -> None:
    """One answer, printed as it is made; Ctrl+C stops it."""
    try:
        with closing(conversation.ask(answerer, text, pictures)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print("" if conversation.turns[-1][1] else "(empty answer)")
    except KeyboardInterrupt:
        print(" (stopped)")
    except UserError as error:
        if "room for" in str(error):
            raise UserError(f"{error}; /reset begins a new conversation") from error
        raise


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                ChatOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={**TOY_DEFAULTS, "max_new_tokens": 64},
            )
        )
    )
