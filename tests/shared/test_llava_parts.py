"""The parts of a LLaVA agree: tower and strategy, tokenizer and padding; folders appear whole."""

from __future__ import annotations

import json

import pytest

from shared.llava_parts import (
    CLASS_TOKENS,
    known_architecture,
    llava_config,
    load_image_processor,
    load_tokenizer,
    part_config,
    prepare_tokenizer,
    tower_family,
    vision_part,
    write_whole,
)
from shared.options import MissingError, UserError
from tests.conftest import tiny_text_config, tiny_vision_config


@pytest.mark.parametrize(
    ("unknown", "padding", "added"), [("<unk>", "<unk>", 1), (None, "<pad>", 2)]
)
def test_a_tokenizer_without_padding_gets_some(llava_parts, unknown, padding, added):
    """The unknown token as in LLaVA, else a new one; never the end token, which is learned."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = json.loads(llava_parts["tokenizer"]("llama").backend_tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<image>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="</s>", unk_token=unknown
    )
    n = len(tokenizer)
    done = prepare_tokenizer(tokenizer)
    assert len(tokenizer) == n + added
    assert tokenizer.pad_token == padding
    assert tokenizer.convert_tokens_to_ids("<image>") == n
    assert ["added" in done[0], padding in done[1]] == [True, True]
    assert prepare_tokenizer(tokenizer) == []


@pytest.mark.parametrize(("vision", "strategy"), [
    ("clip", "default"), ("chinese_clip", "default"), ("siglip", "full"),
])  # fmt: skip
def test_the_strategy_drops_a_class_token_and_nothing_else(vision, strategy):
    tower, text = tiny_vision_config(vision), tiny_text_config("qwen2", tied=True)
    config = llava_config(tower, text, image_token_index=7, vision_feature_layer=-2)
    assert config.vision_feature_select_strategy == strategy
    assert (strategy == "default") == bool(CLASS_TOKENS[tower.model_type])
    assert config.image_seq_length == 16
    assert config.image_token_index == 7
    assert config.tie_word_embeddings
    assert config.vision_config is not tower
    assert config.text_config is not text


def test_a_whole_clip_has_a_vision_part():
    from transformers import CLIPConfig, Qwen2Config

    whole = CLIPConfig(vision_config=tiny_vision_config("clip").to_dict())
    assert tower_family(whole) == tower_family(vision_part(whole)) == "clip"
    assert vision_part(whole).image_size == 32
    with pytest.raises(UserError, match="qwen2: not a vision tower"):
        vision_part(Qwen2Config())


def test_a_part_is_on_disk_or_known_by_its_numbers(tmp_path):
    numbers = {"model_type": "qwen2", "hidden_size": 24}
    file = tmp_path / "architectures.json"
    file.write_text(json.dumps({"someone/model": {"source": "x", "config": numbers}}))
    assert known_architecture("someone/model", file) == numbers
    assert known_architecture("someone/other", file) is None
    config, folder = part_config("someone/model", file)
    assert (config.hidden_size, folder) == (24, None)
    with pytest.raises(MissingError, match="someone/other is not on this machine"):
        part_config("someone/other", file)
    tiny_text_config("llama").save_pretrained(tmp_path / "here")
    config, folder = part_config(str(tmp_path / "here"), file)
    assert (config.model_type, folder) == ("llama", tmp_path / "here")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in it"):
        load_tokenizer(tmp_path)
    for damaged in ("{}", '{"version":', ""):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
            load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="its image processor cannot be loaded"):
        load_image_processor(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"

    def write(text, error=None):
        def fill(staging):
            (staging / "file").write_text(text)
            if error is not None:
                raise error

        return fill

    write_whole(folder, write("first"))
    for error, raised in ((UserError("no"), UserError), (OSError(28, "disk full"), UserError),
                          (KeyboardInterrupt(), KeyboardInterrupt)):  # fmt: skip
        with pytest.raises(raised):
            write_whole(folder, write("second", error))
        assert (folder / "file").read_text() == "first"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write_whole(folder, write("third"))
    assert (folder / "file").read_text() == "third"


def test_two_writers_of_one_folder_are_told_apart(tmp_path):
    """A second one must not take away what the first is writing."""
    folder = tmp_path / "model"

    def first(staging):
        with pytest.raises(UserError, match="another process writes in this folder"):
            write_whole(folder, lambda staging: None)
        (staging / "file").write_text("first")

    write_whole(folder, first)
    assert (folder / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
