"""What a model is asked, word by word: one template for each protocol and variant.

The core question (`--question`) ends every prompt; class list and instruction stand before it. The
toy world asks another core question and nothing else differs.

    python llava_openset/evaluate.py --toy --dry_run        # prints every prompt as it is asked

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

QUESTION = (
    "What is the main object in the picture? Answer the question using a single word or phrase."
)
TOY_QUESTION = "What shape is this?"

LIST = "Choose one of these: {classes}.\n{question}"
# Protocol, or protocol and variant -> its text. `course` says in our words what the course
# experiment's instruction said.
TEMPLATES = {
    "course": (
        "You are a vision classifier. The known classes are: {classes}.\n"
        "If the main object clearly belongs to one of them, answer with exactly one word, the name "
        "of that class. Otherwise answer with a short English noun phrase for the object or scene, "
        "not with a full sentence.\n"
        "{question}"
    ),
    "freetext-open": "{question}",
    "freetext-open_unknown": "Answer unknown if you cannot tell what it is.\n{question}",
    "freetext-list": LIST,
    "freetext-list_unknown": "Choose one of these: {classes}, unknown.\n{question}",
    "likelihood": "{question}",
    "two_query": LIST,
}
VARIANTS = {  # of freetext
    "open": "no class list, no unknown option",
    "open_unknown": "no class list, an unknown option",
    "list": "the class list, no unknown option",
    "list_unknown": "the class list and an unknown option",
}
# BLIP-2 has no chat form; this is the form of its paper's VQA prompts.
PLAIN_FORM, BLIP2_FORM = "{}", "Question: {} Answer:"


def prompt_text(key: str, classes: Sequence[str], question: str, form: str = PLAIN_FORM) -> str:
    """The prompt of a key of TEMPLATES with these classes spelled out, in the model's form.

    Behind BLIP-2's "Question:" everything stands on one line, as a line break ends its text.
    """
    text = TEMPLATES[key].replace("{classes}", ", ".join(classes))
    text = text.replace("{question}", question)
    return text if form == PLAIN_FORM else form.replace("{}", " ".join(text.split()))


def prompt_form(model_type: str | None) -> str:
    """The form by config.json's model_type: the chat form is the asker's work."""
    return BLIP2_FORM if model_type == "blip-2" else PLAIN_FORM
