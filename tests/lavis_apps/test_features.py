"""Features: LAVIS' shapes, what is of length one, parity with transformers, files, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps.blip import Blip
from lavis_apps.blip2_features import Blip2
from lavis_apps.clip import Clip, load_clip, middle
from lavis_apps.feature_files import write_features
from lavis_apps.features import (
    BlipFeatures,
    FeatureExtractor,
    Features,
    family_fingerprint,
    open_embedder,
    open_family,
)
from lavis_apps.settings import TOY_MODELS
from shared.images import ImageError
from shared.options import UserError
from tests.tiny_models import tiny_blip, tiny_blip2

TEXTS = ["a red star", "two blue squares, and a picture of the red square!", "x"]
FAMILIES = ("blip", "blip2", "clip")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "blip": tiny_blip("matching", tmp_path_factory.mktemp("blip")),
        "blip2": tiny_blip2(tmp_path_factory.mktemp("blip2")),
        "clip": TOY_MODELS["clip"],
    }


@pytest.fixture(scope="module")
def extractors(folders: dict[str, Path]) -> dict[str, FeatureExtractor]:
    return {family: FeatureExtractor.open(folder) for family, folder in folders.items()}


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


# shapes and lengths ------------------------------------------------------------------------------

TWELVE_TOKENS = "a picture of the red star is there two square"


def of_base_sizes(family: str, folder: Path) -> Any:
    """The published sizes at 224 pixels; random weights, a layer or two, a small vocabulary."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    names = {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2}
    rest: dict[str, Any] = {"folder": folder, "image_size": 224, "synthetic": True}
    rest |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "tokenizer": tokenizer}
    if family == "blip":
        config = transformers.BlipConfig(
            text_config={**names, "num_hidden_layers": 1, "encoder_hidden_size": 768},
            vision_config={"image_size": 224, "patch_size": 16, "num_hidden_layers": 1},
            image_text_hidden_size=256,
        )
        model = transformers.BlipForImageTextRetrieval(config).eval()
        return BlipFeatures(Blip(model=model, kind="matching", **rest))
    if family == "clip":  # ViT-B/16
        text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        config = transformers.CLIPConfig(
            text_config={**text, "num_hidden_layers": 1},
            vision_config={"patch_size": 16, "num_hidden_layers": 1},
        )
        processor = transformers.CLIPImageProcessorPil()
        return Clip(transformers.CLIPModel(config).eval(), tokenizer, processor, folder, True)
    config = transformers.Blip2Config(
        vision_config={"image_size": 224, "patch_size": 14, "num_hidden_layers": 1},
        qformer_config={**names, "num_hidden_layers": 2, "use_qformer_text_input": True},
        num_query_tokens=32,
        image_text_hidden_size=256,
    )
    return Blip2(model=transformers.Blip2ForImageTextRetrieval(config).eval(), **rest)


# tokens of the picture and of the pair, the text's width, the common space's
SIZES = {"blip": (197, 12, 768, 256), "blip2": (32, 32, 768, 256), "clip": (197, 0, 512, 512)}


@pytest.mark.parametrize("family", FAMILIES)
def test_lavis_shapes_at_the_published_sizes(family: str, folders: dict[str, Path]) -> None:
    extractor = FeatureExtractor(of_base_sizes(family, folders[family]), "base", "0")
    text = "a red star and a blue square and a green" if family == "clip" else TWELVE_TOKENS
    got = extractor.extract(pictures(1), [text])
    tokens, fused, width, common = SIZES[family]
    assert got.image_embeds.shape == (1, tokens, 768)
    assert got.image_embeds_proj.shape == (1, tokens, common)
    assert got.text_embeds.shape == (1, 12, width)
    assert got.text_embeds_proj.shape == (1, 12, common)
    assert got.image_features.shape == got.text_features.shape == (1, common)
    if family == "clip":
        assert got.multimodal_embeds is got.multimodal_features is None
    else:
        assert got.multimodal_embeds.shape == (1, fused, 768)
        assert got.multimodal_features.shape == (1, 768)


@pytest.mark.parametrize("family", FAMILIES)
def test_projected_features_have_length_one_and_the_others_have_not(
    family: str, extractors: dict[str, FeatureExtractor]
) -> None:
    got = extractors[family].extract(pictures(3), TEXTS)
    for tensor in (got.image_embeds_proj, got.image_features, got.text_features):
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))
    real = got.text_embeds_proj[got.text_mask]
    torch.testing.assert_close(real.norm(dim=-1), torch.ones(len(real)))
    assert (got.image_embeds.norm(dim=-1) - 1).abs().max() > 0.1
    assert (got.text_embeds[got.text_mask].norm(dim=-1) - 1).abs().max() > 0.1
    assert not got.text_embeds[~got.text_mask].any()
    assert not got.text_embeds_proj[~got.text_mask].any()
    if family == "clip":
        assert got.multimodal_embeds is None
        assert got.multimodal_features is None
    else:
        assert (got.multimodal_embeds.norm(dim=-1) - 1).abs().max() > 0.1


def test_which_token_the_one_vector_is(extractors: dict[str, FeatureExtractor]) -> None:
    got = {family: e.extract(pictures(3), TEXTS) for family, e in extractors.items()}
    for family in ("blip", "clip"):
        torch.testing.assert_close(got[family].image_features, got[family].image_embeds_proj[:, 0])
    queries = got["blip2"].image_embeds_proj.mean(1)
    torch.testing.assert_close(
        got["blip2"].image_features, torch.nn.functional.normalize(queries, dim=-1)
    )
    for family in ("blip", "blip2"):
        torch.testing.assert_close(got[family].text_features, got[family].text_embeds_proj[:, 0])
    ends = got["clip"].text_mask.sum(1) - 1
    torch.testing.assert_close(
        got["clip"].text_features, got["clip"].text_embeds_proj[range(3), ends]
    )
    # what the ITM heads read
    torch.testing.assert_close(got["blip"].multimodal_features, got["blip"].multimodal_embeds[:, 0])
    torch.testing.assert_close(
        got["blip2"].multimodal_features, got["blip2"].multimodal_embeds.mean(1)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_one_type_whatever_is_asked(family: str, extractors: dict[str, FeatureExtractor]) -> None:
    extractor = extractors[family]
    both = extractor.extract(pictures(2), TEXTS[:2])
    only_images, only_texts = extractor.extract(pictures(2)), extractor.extract(texts=TEXTS[:2])
    assert (
        only_images.text_embeds is only_images.multimodal_embeds is only_texts.image_embeds is None
    )
    for name in vars(both):
        part = only_images if name.startswith("image") else only_texts
        if name.startswith(("image", "text")):
            assert getattr(part, name).dtype == getattr(both, name).dtype
            torch.testing.assert_close(getattr(part, name), getattr(both, name))
    one = extractor.extract(pictures(1)[0], TEXTS[0])  # not in lists
    torch.testing.assert_close(one.image_features, both.image_features[:1])


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_equal_one_by_one(family: str, extractors: dict[str, FeatureExtractor]) -> None:
    extractor, images = extractors[family], pictures(3)
    whole = extractor.extract(images, TEXTS)
    in_twos = extractor.extract(images, TEXTS, batch_size=2)
    for i in range(3):
        alone = extractor.extract(images[i : i + 1], TEXTS[i : i + 1])
        length = int(alone.text_mask.sum())
        assert whole.text_mask[i].sum() == length
        torch.testing.assert_close(alone.text_embeds[0], whole.text_embeds[i, :length])
        for name in ("image_embeds", "image_features", "text_features", "multimodal_features"):
            if getattr(whole, name) is not None:
                torch.testing.assert_close(getattr(alone, name)[0], getattr(whole, name)[i])
    if family != "clip":  # the texts of the second batch are shorter: padded to the first's
        torch.testing.assert_close(whole.multimodal_embeds, in_twos.multimodal_embeds)


# parity ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_clip_equals_transformers(folders: dict[str, Path]) -> None:
    import transformers

    clip = load_clip(folders["clip"])
    images, texts = pictures(3), ["a red star", "two blue squares", "a square"]
    model = transformers.CLIPModel.from_pretrained(folders["clip"], dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders["clip"])
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    theirs = model(**inputs)
    embedder = open_embedder(folders["clip"])
    ours = embedder.image_features(images) @ embedder.text_features(texts).T / embedder.temperature
    torch.testing.assert_close(ours, theirs.logits_per_image)
    torch.testing.assert_close(clip.read_texts(texts).vector, theirs.text_embeds)


@torch.no_grad()
def test_blip_equals_transformers(folders: dict[str, Path]) -> None:
    family = open_family(folders["blip"])
    embedder = open_embedder(folders["blip"])
    images = pictures(3)
    tokens = family.blip.tokens([family.process(text) for text in TEXTS])
    theirs = family.model(
        pixel_values=family.blip.pixel_values(images), use_itm_head=False, **tokens
    ).itm_score
    ours = embedder.image_features(images) @ embedder.text_features(TEXTS).T
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_blip2_equals_transformers(folders: dict[str, Path]) -> None:
    family = open_family(folders["blip2"])
    images, texts = pictures(3), ["a red star", "two squares", "x"]
    tokens, pixels = family.tokens(texts), family.pixel_values(images)
    read = family.read_images(images)
    theirs = family.model(pixel_values=pixels, **tokens, use_image_text_matching_head=False)
    torch.testing.assert_close(read.projected, theirs.image_embeds)
    text_features = family.read_texts(texts).vector
    torch.testing.assert_close(text_features, theirs.text_embeds)
    torch.testing.assert_close(family.cosines(read, text_features), theirs.logits_per_image)
    theirs = family.model(pixel_values=pixels, **tokens, use_image_text_matching_head=True)
    torch.testing.assert_close(family.match_logits(read.states, texts), theirs.logits_per_image)


@torch.no_grad()
def test_multimodal_text_begins_with_enc(extractors: dict[str, FeatureExtractor]) -> None:
    extractor = extractors["blip"]
    family = extractor.family
    read = family.read_images(pictures(1))
    got = extractor.extract(pictures(1), ["a star"]).multimodal_embeds
    for first, same in (("[ENC]", True), ("[CLS]", False)):
        tokens = family.blip.tokens(["a star"], first)
        states = family.blip.fused_states(read.states, tokens).last_hidden_state
        assert torch.allclose(got, states, atol=1e-5) == same


# embedder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_embedder(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    embedder = open_embedder(folders[family])
    images = pictures(3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    features = embedder.image_features(images)
    assert features.shape == (3, embedder.size)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embedder.image_features(paths), features)
    assert embedder.text_features("a star").shape == (1, embedder.size)
    assert embedder.image_features([]).shape == (0, embedder.size)
    assert embedder.fingerprint == family_fingerprint(folders[family])
    assert embedder.name in str(folders[family])


def test_blip_texts_go_through_blip_caption(folders: dict[str, Path]) -> None:
    embedder = open_embedder(folders["blip"])
    texts = ["A (red) STAR!", "a red star"]
    torch.testing.assert_close(*embedder.text_features(texts))


def test_temperature(folders: dict[str, Path], tmp_path: Path) -> None:
    assert open_family(folders["blip"]).temperature == 0.07
    assert open_family(folders["clip"]).temperature == pytest.approx(0.0258, abs=1e-3)
    learned = tiny_blip("matching", tmp_path / "learned")
    (learned / "manifest.json").write_text('{"temperature": 0.03}')
    assert open_family(learned).temperature == 0.03


def test_the_fingerprint_knows_weights_and_picture_processing(tmp_path: Path) -> None:
    first, second = (tiny_blip("matching", tmp_path / str(seed), seed) for seed in (0, 1))
    assert family_fingerprint(first) != family_fingerprint(second)
    before = family_fingerprint(first)
    path = first / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(settings))
    assert family_fingerprint(first) != before


def test_long_texts_are_cut_and_named(extractors: dict[str, FeatureExtractor]) -> None:
    long = "star " * 2000  # 10,000 characters
    middling = "a " * 40
    for family, extractor in extractors.items():
        got = extractor.extract(texts=["a star", long])
        assert got.cut_texts == (1,)
        assert torch.isfinite(got.text_features).all()
        cut = extractor.family.cut_texts(["a star", middling, long])
        assert cut == [False, True, True], family
    # 35 tokens are matching's limit; alone a text goes to the end of the positions
    assert extractors["blip"].extract(texts=[middling]).text_embeds.shape[1] == 42
    fused = {f: extractors[f].extract(pictures(1), [middling]) for f in ("blip", "blip2")}
    assert fused["blip"].multimodal_embeds.shape[1] == 42
    assert fused["blip2"].cut_texts == ()
    shorter = extractors["blip2"].extract(pictures(1), ["a " * 30])  # the limit of its matching
    assert (fused["blip2"].multimodal_features - shorter.multimodal_features).abs().max() > 1e-4
    assert extractors["clip"].extract(texts=[long]).text_embeds.shape[1] == 32
    # the end token is not what is cut
    clip: Clip = extractors["clip"].family
    assert clip.tokens([long])["input_ids"][0, -1] == clip.tokenizer.eos_token_id


def test_very_long_pictures_are_not_blown_up() -> None:
    assert middle(Image.new("RGB", (300, 50))).size == (300, 50)
    long = Image.new("RGB", (20_001, 10), "red")
    long.paste((0, 0, 255), (9_995, 0, 10_006, 10))
    cut = middle(long)
    assert cut.height == 10
    assert cut.width < 90
    assert cut.getpixel((cut.width // 2, 5)) == (0, 0, 255)
    assert middle(long.rotate(90, expand=True)).size == cut.size[::-1]
    clip = load_clip(TOY_MODELS["clip"])
    wide = long.crop((9_940, 0, 10_061, 10))  # 121 x 10, still longer than 8 sides
    theirs = clip.image_processor([wide], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip.pixel_values([wide]), theirs, atol=0.02, rtol=0)


@pytest.mark.parametrize("family", ["blip2", "clip"])
def test_padding_is_right_whatever_the_tokenizer_prefers(
    family: str, extractors: dict[str, FeatureExtractor]
) -> None:
    extractor = extractors[family]
    texts = ["a red star", "a"]
    before = extractor.extract(texts=texts)
    extractor.family.tokenizer.padding_side = "left"
    after = extractor.extract(texts=texts)
    extractor.family.tokenizer.padding_side = "right"
    torch.testing.assert_close(after.text_features, before.text_features)
    assert torch.equal(after.text_mask, before.text_mask)


# files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    for i, image in enumerate(pictures(5)):
        image.save(root / ("b" if i > 2 else "") / f"{i}.png")
    (root / "broken.jpg").write_text("no picture")
    return root


def paths_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.*") if p.is_file())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_as_npz_and_as_parquet(
    family: str, extractors: dict[str, FeatureExtractor], folder: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    extractor = extractors[family]
    options: dict[str, Any] = {"root": folder, "text": "a red star", "progress": False}
    for name in ("f.npz", "f.parquet"):
        done = write_features(
            extractor, paths_of(folder), tmp_path / name, batch_size=2, tokens=True, **options
        )
        assert done.count == 5
        assert list(done.unreadable) == ["broken.jpg"]
        assert "not a picture" in done.unreadable["broken.jpg"]
    expected: Features = extractor.extract(pictures(5), ["a red star"] * 5)
    arrays = np.load(tmp_path / "f.npz")  # nothing in it is pickled
    assert arrays["image"].tolist() == ["0.png", "1.png", "2.png", "b/3.png", "b/4.png"]
    assert str(arrays["fingerprint"]) == extractor.fingerprint
    assert json.loads(str(arrays["unreadable"])) == done.unreadable
    np.testing.assert_allclose(arrays["text_features"], expected.text_features[0], atol=1e-6)
    table = pq.read_table(tmp_path / "f.parquet")
    about = json.loads(pq.read_metadata(tmp_path / "f.parquet").metadata[b"vlm"])
    assert table["image"].to_pylist() == arrays["image"].tolist()
    assert about["unreadable"] == done.unreadable
    names = ["image_features", "image_embeds", "image_embeds_proj"]
    if family != "clip":
        names += ["multimodal_features", "multimodal_embeds"]
    for name in names:
        wanted = getattr(expected, name).numpy()
        np.testing.assert_allclose(arrays[name], wanted, atol=1e-5)
        rows = np.asarray(table[name].to_pylist(), np.float32)
        np.testing.assert_allclose(rows.reshape(5, *about["shapes"][name]), wanted, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npz", "f.parquet", "photos"]


def test_files_are_refused_in_time(
    extractors: dict[str, FeatureExtractor], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    extractor, paths = extractors["blip"], paths_of(folder)
    with pytest.raises(UserError, match=r"ends in \.npz or \.parquet"):
        write_features(extractor, paths, tmp_path / "f.csv")
    with pytest.raises(UserError, match=r"no picture could be read \(.*broken.jpg: not a picture"):
        write_features(extractor, [folder / "broken.jpg"], tmp_path / "f.npz", progress=False)
    with pytest.raises(UserError, match="is empty"):
        write_features(extractor, paths, tmp_path / "f.npz", text=" ", progress=False)
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(UserError, match=r"taken\.parquet: cannot be written"):
        write_features(extractor, paths, tmp_path / "taken.parquet", progress=False)
    monkeypatch.setattr("lavis_apps.feature_files.NPZ_BYTES", 1000)
    with pytest.raises(UserError, match=r"in memory; write to a name that ends in \.parquet"):
        write_features(extractor, paths, tmp_path / "f.npz", tokens=True, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "taken.parquet"]


# three lines, refusals ---------------------------------------------------------------------------


def test_three_lines(folders: dict[str, Path], folder: Path) -> None:
    extractor = FeatureExtractor.open(folders["blip"])
    features = extractor.extract([folder / "0.png"], ["a dog runs"])
    cosine = features.image_features @ features.text_features.T
    assert cosine.shape == (1, 1)
    assert -1 <= cosine.item() <= 1


def test_bad_input(extractors: dict[str, FeatureExtractor], folder: Path) -> None:
    extractor = extractors["blip"]
    for texts, message in (
        (["a star", ""], "text 2 of 2 is empty"),
        ("  ", "the text is empty"),
        (["!!!"], "the text has no word: '!!!'"),
        ([], "no text given"),
    ):
        with pytest.raises(UserError, match=message):
            extractor.extract(texts=texts)
    with pytest.raises(UserError, match="nothing to encode"):
        extractor.extract()
    with pytest.raises(UserError, match="no picture given"):
        extractor.extract([])
    with pytest.raises(UserError, match="2 pictures and 3 texts are no pairs"):
        extractor.extract(pictures(2), TEXTS)
    apart = extractor.extract(pictures(2), TEXTS, multimodal=False)
    assert (len(apart.image_features), len(apart.text_features)) == (2, 3)
    with pytest.raises(ImageError, match=r"broken\.jpg: not a picture"):
        extractor.extract([folder / "broken.jpg"])


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a BLIP for caption; this needs one for matching"):
        open_family(tiny_blip("caption", tmp_path / "caption"))
    with pytest.raises(UserError, match="BLIP-2's first stage, as in Salesforce/blip2-itm-vit-g"):
        open_family(Path("data/toy_models/blip2_opt").resolve())
    with pytest.raises(UserError, match="a model of type qwen2; features, matching"):
        open_family(Path("data/toy_models/qwen2").resolve())
