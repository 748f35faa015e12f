"""Descriptions by prompt templates: what is asked, what is done with what comes back.

The server is a local one that fails, stalls and says what is no JSON, or the toy model itself.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from qwen_clip_llava_lora import describe_images, describe_settings
from qwen_clip_llava_lora.data_formats import open_data
from qwen_clip_llava_lora.describe_settings import DescribeOptions, toy_defaults
from qwen_clip_llava_lora.describing import Picture, find_pictures
from qwen_clip_llava_lora.description_data import validation_pictures
from qwen_clip_llava_lora.prompt_templates import (
    FOLDER,
    Malformed,
    make_template,
    read_templates,
    template_names,
)
from shared.conversation_files import row_images
from shared.options import DATA_ROOT, UserError, read_json

TOY_MODEL = DATA_ROOT / "toy_models" / "llava"
PLAIN = {
    "language": "en",
    "steps": [{"name": "description", "prompt": ["Describe it.", "What is it?"]}],
    "instructions": ["Say what you see."],
    "max_new_tokens": 20,
}
CHAIN = {
    "language": "en",
    "steps": [
        {"name": "thing", "prompt": "What is there?"},
        {"name": "description", "prompt": "There is {thing}. Describe it."},
    ],
    "instructions": ["Describe."],
    "description": "{thing}: {description}",
}
STRUCTURED = {
    "language": "en",
    "steps": [{"name": "answer", "prompt": 'Reply with {"caption": "...", "objects": []}'}],
    "instructions": ["Describe."],
    "parse": "json",
    "fields": {"caption": "text", "objects": "list"},
    "description": "{caption}",
    "correction": "It was bad: {problem}.",
}


class FakeServer:
    """`behave(text, attempt)` gives the answer's text, an HTTP status, or "stall"."""

    def __init__(self) -> None:
        self.behave: Callable[[str, int], str | int] = lambda text, attempt: f"re: {text}"
        self.finish_reason = "stop"
        self.bodies: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"][-1]["text"]
                with fake.lock:
                    fake.bodies.append(body)
                    fake.attempts[text] += 1
                    attempt = fake.attempts[text]
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                answer = fake.behave(text, attempt)
                if answer == "stall":
                    time.sleep(1.0)
                time.sleep(0.01)
                with fake.lock:
                    fake.at_once -= 1
                completion = {
                    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                    "choices": [{"index": 0, "finish_reason": fake.finish_reason,
                                 "message": {"role": "assistant", "content": answer}}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }  # fmt: skip
                content = json.dumps(completion).encode()
                self.send_response(answer if isinstance(answer, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def texts(self) -> list[str]:
        return [body["messages"][-1]["content"][-1]["text"] for body in self.bodies]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    fake = FakeServer()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six small pictures, two of them in a folder below and two with the same content."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for i in range(6):
        place = folder / "below" if i > 3 else folder
        shade = 40 * min(i, 4)
        Image.new("RGB", (20, 16), (shade, 90, 200 - shade)).save(place / f"p{i}.png")
    return folder


@pytest.fixture
def template_file(tmp_path: Path) -> Callable[..., str]:
    def write(content: dict[str, Any], name: str = "own") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return str(path)

    return write


def options_for(server: Any, images: Path, prompts: list[str], folder: Path, **flags: Any) -> Any:
    flags = {"retries": 1, "timeout": 5.0, "concurrency": 3} | flags
    return DescribeOptions(
        images=str(images), prompts=prompts, endpoint=server.url, endpoint_model="m",
        output_dir=str(folder), **flags,
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Templates


def test_the_templates_of_the_folder_can_be_read_and_come_in_pairs():
    templates = read_templates(template_names())
    kinds = {"plain", "multi_aspect", "structured_json", "question_chain", "few_shot"}
    kinds |= {"toy_plain", "toy_chain"}
    assert {t.name for t in templates} == {f"{k}_{lang}" for k in kinds for lang in ("en", "zh")}
    for template in templates:
        assert template.name.endswith(template.language)
        assert template.aspects
        values = {step.name: "ANSWER" for step in template.steps}
        for i in range(len(template.steps)):
            assert "{" not in template.prompt(i, 0, values).replace('{"caption"', "")
        twin = template.name.replace("_en", "_zh")
        assert set(template.aspects) == set(read_templates([twin])[0].aspects)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"language": "de"}, "language"),
        ({"stepz": []}, "unknown key 'stepz'"),
        ({"steps": []}, "steps"),
        ({"steps": [{"name": "a b", "prompt": "x"}]}, r"steps\[0\].name"),
        ({"steps": [{"name": "a", "prompt": "see {b}"}]}, r"\{b\} is not known"),
        ({"steps": [{"name": "a", "prompt": ""}]}, r"steps\[0\].prompt"),
        ({"instructions": []}, "instructions"),
        ({"aspects": {"x": [False]}}, "aspects.x.*quotes"),
        ({"parse": "json"}, "fields"),
        ({"fields": {"a": "text"}}, "fields"),
        ({"parse": "json", "fields": {"a": "int"}}, "fields"),
        ({"parse": "xml"}, "parse"),
        ({"description": "{caption}"}, r"description: \{caption\}"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"examples": [{"answer": "A dog."}]}, r"no prompt has \{examples\}"),
        ({"examples": [{"answer": "A dog.", "picture": "nowhere.jpg"}]}, "no such file"),
    ],
)
def test_a_wrong_template_is_told_with_its_key(template_file, change, said):
    with pytest.raises(UserError, match=rf"own\.yaml: .*{said}"):
        read_templates([template_file(PLAIN | change)])


def test_an_unknown_template_is_told_with_those_there():
    with pytest.raises(UserError, match=r"plain_fr: no such template.*plain_en"):
        read_templates(["plain_fr"])


JSON_ANSWERS = [
    ('{"caption": "A dog.", "objects": ["dog"]}', "A dog."),
    ('```json\n{"caption": "A dog.", "objects": []}\n```', "A dog."),
    ('Here it is:\n```\n{"caption": "A dog.", "objects": []}\n```\nEnjoy', "A dog."),
    ('<think>{"caption": 1}</think>{"caption": " A dog. ", "objects": [], "more": 1}', "A dog."),
    ('Sure! {"caption": "一只狗", "objects": ["狗"]} Anything else?', "一只狗"),
    ("A dog.", "no JSON object"),
    ('{"caption": "A dog."', "not valid JSON"),
    ("{'caption': 'A dog.', 'objects': []}", "not valid JSON"),
    ('{"caption": "A dog."}', "'objects' is missing"),
    ('{"caption": "", "objects": []}', "'caption' is not a text"),
    ('{"caption": ["A dog."], "objects": []}', "'caption' is not a text"),
    ('{"caption": "A dog.", "objects": "dog"}', "'objects' is not a list"),
    ('{"caption": "A dog.", "objects": [{"name": "dog"}]}', "'objects' is not a list"),
    ("<think>a dog", "no end"),
    ('a dog</think>\n{"caption": "A dog.", "objects": []}', "A dog."),
    (r'{"caption": "\ud83d", "objects": []}', "'caption' is not a text"),
    ("  ", "empty"),
]


@pytest.mark.parametrize(("answer", "expected"), JSON_ANSWERS)
def test_json_answers_are_checked_field_by_field(answer, expected):
    template = make_template("t", STRUCTURED, Path())
    if expected in ("A dog.", "一只狗"):
        assert template.describe(template.read(0, answer)) == expected
    else:
        with pytest.raises(Malformed, match=expected):
            template.read(0, answer)


def test_braces_in_an_answer_stay_as_they_are():
    template = make_template("t", CHAIN, Path())
    values = template.read(0, "a {description} of {thing}")
    assert template.prompt(1, 0, values) == "There is a {description} of {thing}. Describe it."


# Runs against a server


def test_a_run_against_a_server(server, pictures, template_file, tmp_path):
    files = [template_file(PLAIN, "plain"), template_file(CHAIN, "chain")]
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (pictures / "cut.png").write_bytes((pictures / "p0.png").read_bytes()[:60])
    folder = tmp_path / "run"
    options = options_for(
        server, pictures, files, folder, n=2, temperature=0.5, price_in=2.0, price_out=10.0,
        validation_share=0.2,
    )  # fmt: skip
    describe_images.main(options)

    # two wordings in turn; the chain's answers go into its later prompts
    asked = Counter(server.texts())
    assert asked["Describe it."] == asked["What is it?"] == 6
    assert asked["There is re: What is there?. Describe it."] == 12
    assert sum(asked.values()) == 36
    assert 1 < server.most_at_once <= 3
    body = server.bodies[0]
    part, text = body["messages"][0]["content"]
    assert text["type"] == "text"
    sent = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert sent in [path.read_bytes() for path in pictures.rglob("*.png")]
    assert (body["temperature"], body["model"]) == (0.5, "m")
    assert {b["max_tokens"] for b in server.bodies} == {20, 256}
    assert {b["seed"] for b in server.bodies} == {0, 3}  # a sample's own, tries between

    # one record a description; broken pictures named, not asked
    records = {record["sample_id"]: record for record in lines(folder / "descriptions.jsonl")}
    assert len(records) == 8 * 2 * 2
    chained = records["below/p4.png|chain|1"]
    assert chained["status"] == "ok"
    assert chained["values"]["thing"] == "re: What is there?"
    assert chained["description"].startswith("re: What is there?: re: There is")
    assert records["broken.jpg|plain|0"]["status"] == "skipped"
    assert "broken.jpg" in records["broken.jpg|plain|0"]["error"]
    metrics = read_json(folder / "metrics.json")
    assert metrics["data_problems"]["count"] == 2
    assert all(
        any(name in problem for problem in metrics["data_problems"]["first"])
        for name in ("broken.jpg", "cut.png")
    )

    # the figures of a template
    figures = metrics["templates"]["chain"]
    assert (figures["descriptions"], figures["ok"], figures["skipped"]) == (16, 12, 4)
    assert (figures["requests"], figures["prompt_tokens"], figures["answer_tokens"]) == (
        24, 2400, 240,
    )  # fmt: skip
    assert figures["cost"] == pytest.approx((2400 * 2 + 240 * 10) / 1e6)
    assert figures["cost_per_1000_usable"] == pytest.approx(1000 * figures["cost"] / 12)
    assert figures["request_seconds"] > 0

    # training data that the readers read
    train, validation = open_data(folder), open_data(folder, name="validation")
    assert train.kind == validation.kind == "caption"
    rows = [*train.rows, *validation.rows]
    # the chain's two samples are the same text: one row
    assert len(rows) == metrics["rows"]["train"] + metrics["rows"]["validation"] == 6 * 3
    assert metrics["rows"]["duplicates"] == 6
    for row in rows:
        assert row["conversations"][0]["value"] in (
            "<image>\nSay what you see.", "<image>\nDescribe.",
        )  # fmt: skip
        assert row["source"]["model"] == "m"
        assert row_images(row, train.image_root)[0].is_file()
    parts = [{row["image"] for row in part.rows} for part in (train, validation)]
    assert not parts[0] & parts[1]
    assert len(parts[1]) in (1, 2)  # p4 and p5 are one picture twice


def test_a_rerun_asks_only_what_is_missing(server, pictures, template_file, tmp_path):
    files, folder = [template_file(PLAIN), template_file(CHAIN, "chain")], tmp_path / "run"
    (pictures / "below" / "p5.png").unlink()  # p4's twin would be answered from p4's record
    server.behave = lambda text, attempt: 400 if text == "Describe it." and attempt == 2 else "a b"
    describe_images.main(options_for(server, pictures, files, folder))
    first = read_json(folder / "metrics.json")["templates"]["own"]
    assert (first["ok"], first["error"]) == (4, 1)
    assert "BadRequestError" in first["errors"][0]
    n_asked = len(server.bodies)
    # a kill that cut the last line
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    describe_images.main(options_for(server, pictures, files, folder, concurrency=1, price_in=1.0))
    assert len(server.bodies) == n_asked + 2
    figures = read_json(folder / "metrics.json")["templates"]
    assert [figures[name]["ok"] for name in ("own", "chain")] == [5, 5]
    # other templates are another run
    with pytest.raises(UserError, match=r"other options.*prompts"):
        describe_images.main(options_for(server, pictures, files[:1], folder))


def test_an_unusable_answer_is_asked_again_with_what_was_wrong(
    server, pictures, template_file, tmp_path
):
    good = '{"caption": "A dog.", "objects": ["dog"]}'

    def behave(text: str, attempt: int) -> str:
        if "It was bad" not in text:
            return good if attempt <= 3 else '```json\n{"caption": "A'
        return good if "not valid JSON" in text and attempt == 1 else '{"caption": "A cat."}'

    server.behave = behave
    folder = tmp_path / "run"
    options = options_for(
        server, pictures, [template_file(STRUCTURED)], folder, concurrency=1, malformed_retries=2
    )
    describe_images.main(options)
    again = [text for text in server.texts() if "It was bad" in text]
    assert "not valid JSON" in again[0]
    assert "'objects' is missing" in again[-1]
    figures = read_json(folder / "metrics.json")["templates"]["own"]
    # six pictures: three good at once; of the other three one at the second try, two never
    assert (figures["ok"], figures["malformed"]) == (4, 2)
    assert figures["requests"] == 6 + 3 + 2
    assert figures["unusable_answers"]["count"] == 3 + 2 + 2
    assert figures["prompt_tokens"] == 1100  # paid for, used or not
    records = lines(folder / "descriptions.jsonl")
    assert [r["description"] for r in records if r["status"] == "malformed"] == [None, None]
    rows = [*open_data(folder).rows, *open_data(folder, name="validation").rows]
    assert [row["conversations"][1]["value"] for row in rows] == ["A dog."] * 4
    # a rerun replays what is there and asks nothing
    n_asked = len(server.bodies)
    describe_images.main(options)
    assert len(server.bodies) == n_asked
    assert read_json(folder / "metrics.json")["templates"]["own"] == figures


def test_the_same_correction_is_really_sent_again(server, pictures, template_file, tmp_path):
    server.behave = lambda text, attempt: "no JSON"
    options = options_for(server, pictures, [template_file(STRUCTURED)], tmp_path / "run", limit=1)
    with pytest.raises(UserError, match="no description could be used"):
        describe_images.main(options)
    assert [body.get("seed") for body in server.bodies] == [None, 1, 2]
    figures = read_json(tmp_path / "run" / "metrics.json")["templates"]["own"]
    assert (figures["requests"], figures["unusable_answers"]["count"]) == (3, 3)


def test_a_cut_answer_is_not_used(server, pictures, template_file, tmp_path):
    server.finish_reason = "length"
    options = options_for(
        server, pictures, [template_file(PLAIN)], tmp_path / "run", malformed_retries=0
    )
    with pytest.raises(UserError, match="no description could be used"):
        describe_images.main(options)
    figures = read_json(tmp_path / "run" / "metrics.json")["templates"]["own"]
    assert (figures["ok"], figures["malformed"], figures["unusable_answers"]["cut"]) == (0, 6, 6)
    assert read_json(tmp_path / "run" / "train.json") == []


def test_a_server_that_stalls_and_fails_now_and_then(server, pictures, template_file, tmp_path):
    def behave(text: str, attempt: int) -> str | int:
        return {1: 503, 2: "stall", 5: 429}.get(attempt, "a dog")

    server.behave = behave
    options = options_for(
        server, pictures, [template_file(PLAIN)], tmp_path / "run", timeout=0.4, retries=3
    )
    describe_images.main(options)
    figures = read_json(tmp_path / "run" / "metrics.json")["templates"]["own"]
    assert (figures["ok"], figures["error"]) == (6, 0)
    assert figures["connection_retries"] == 3


def test_a_few_lasting_failures_in_a_later_round_end_no_run(
    server, pictures, template_file, tmp_path
):
    """All requests of a small later round fail: the server was there before."""
    server.behave = lambda text, attempt: 500 if text.startswith("There is") else "a dog"
    files = [template_file(PLAIN), template_file(CHAIN, "chain")]
    describe_images.main(options_for(server, pictures, files, tmp_path / "run", retries=0))
    figures = read_json(tmp_path / "run" / "metrics.json")["templates"]
    assert (figures["own"]["ok"], figures["chain"]["error"]) == (6, 6)


def test_a_server_that_goes_away_leaves_what_is_there(server, pictures, template_file, tmp_path):
    folder, plain = tmp_path / "run", template_file(PLAIN)
    describe_images.main(options_for(server, pictures, [plain], folder))
    for i in range(20):  # pictures added later
        Image.new("RGB", (20, 16), (i, i, i)).save(pictures / f"late_{i:02d}.png")
    server.behave = lambda text, attempt: 500
    with pytest.raises(UserError, match=r"(?s)all failed.*the same command goes on"):
        describe_images.main(options_for(server, pictures, [plain], folder, retries=0))
    assert len(server.bodies) < 6 + 20
    metrics = read_json(folder / "metrics.json")
    assert metrics["complete"] is False
    assert metrics["templates"]["own"]["ok"] == 6
    assert metrics["templates"]["own"]["missing"] >= 20 - 12
    assert len(read_json(folder / "train.json")) >= 4


def test_no_server_at_all(pictures, template_file, tmp_path):
    class Nobody:
        url = "http://127.0.0.1:9/v1"

    options = options_for(Nobody, pictures, [template_file(PLAIN)], tmp_path / "run", retries=0)
    with pytest.raises(UserError, match="Is the server running"):
        describe_images.main(options)


def test_examples_with_pictures_are_earlier_turns(server, pictures, template_file, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    content = PLAIN | {"examples": [{"answer": "All red.", "picture": "red.png"}]}
    options = options_for(server, pictures, [template_file(content)], tmp_path / "run", limit=2)
    describe_images.main(options)
    user, assistant, last = server.bodies[0]["messages"]
    red = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    assert user["content"][0]["image_url"]["url"].endswith(red)
    assert user["content"][1]["text"] == last["content"][1]["text"] == "Describe it."
    assert assistant == {"role": "assistant", "content": "All red."}
    assert not last["content"][0]["image_url"]["url"].endswith(red)


def test_a_large_or_turned_picture_is_sent_smaller_and_upright(server, template_file, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    Image.new("RGB", (400, 100), "blue").save(folder / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (60, 30), "green").save(folder / "turned.jpg", exif=exif)
    options = options_for(
        server, folder, [template_file(PLAIN)], tmp_path / "run", image_side=200, concurrency=1
    )
    describe_images.main(options)
    sizes = []
    for body in server.bodies:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/jpeg;base64,")
        path = tmp_path / "sent.jpg"
        path.write_bytes(base64.b64decode(url.partition(",")[2]))
        with Image.open(path) as sent:
            sizes.append(sent.size)
    assert sizes == [(30, 60), (200, 50)]


# Options, pictures, split


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"images": None}, "--images"),
        ({"model": None}, "--model"),
        ({"endpoint": "http://x/v1"}, "give both"),
        ({"endpoint_model": "m"}, "give both"),
        ({"n": 0}, "--n 0"),
        ({"validation_share": 1.0}, "--validation_share"),
        ({"timeout": 0.0}, "--timeout"),
    ],
)
def test_options_that_cannot_be(flags, said):
    with pytest.raises(UserError, match=said):
        DescribeOptions(**({"images": "x", "model": "m"} | flags))


def test_a_sample_that_would_be_the_same_again_is_refused(pictures, template_file, tmp_path):
    options = DescribeOptions(
        images=str(pictures), model=str(TOY_MODEL), prompts=[template_file(PLAIN)], n=3,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(UserError, match="--n 3: own has 2 wording"):
        describe_images.main(options)


def test_pictures_of_a_data_file(tmp_path, pictures):
    def row(**fields: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]
        return {"conversations": turns} | fields

    rows = [row(image="p0.png"), row(image="p0.png"), row(image="p1.png"), {"image": "p2.png"},
            row(image="../secret.png")]  # fmt: skip
    file = pictures / "rows.json"
    file.write_text(json.dumps(rows))
    found, root, problems, synthetic = find_pictures(file, 0, 0)
    assert [picture.name for picture in found] == ["p0.png", "p1.png"]
    assert root == pictures
    assert not synthetic
    assert ["row 3" in problems[0], "outside" in problems[1], len(problems)] == [True, True, 2]


def test_the_split_is_by_content_and_stays(pictures):
    found, *_ = find_pictures(pictures, 0, 0)
    for seed in range(12):
        held_out = validation_pictures(found, 0.2, seed)
        assert held_out == validation_pictures(list(reversed(found)), 0.2, seed)
        assert ("below/p4.png" in held_out) == ("below/p5.png" in held_out)
        assert len({name.replace("p5", "p4") for name in held_out}) == 1
    assert len({frozenset(validation_pictures(found, 0.2, seed)) for seed in range(12)}) > 1
    assert validation_pictures(found, 0.0, 0) == set()
    assert validation_pictures(found, 0.01, 0)  # one at least
    assert validation_pictures(found, 0.99, 0) < {picture.name for picture in found}  # never all
    assert validation_pictures([Picture("p0.png", pictures / "p0.png")], 0.9, 0) == set()


# The toy model, in process and as a server


@pytest.fixture(scope="module")
def toy_endpoint() -> Iterator[Any]:
    path = Path(__file__).with_name("toy_endpoint.py")
    spec = importlib.util.spec_from_file_location("toy_endpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    endpoint = module.ToyEndpoint().start()
    yield endpoint
    endpoint.close()


def toy_options(folder: Path, **flags: Any) -> DescribeOptions:
    return DescribeOptions(
        **(toy_defaults() | {"limit": 6, "output_dir": str(folder), "device": "cpu"} | flags)
    )


@pytest.mark.slow
def test_a_served_toy_says_what_the_local_one_does(toy_endpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = toy_endpoint.n_answered
    describe_settings.prepare_toy()
    describe_images.main(toy_options(tmp_path / "local"))
    assert "SYNTHETIC" in capsys.readouterr().out
    describe_images.main(
        toy_options(tmp_path / "served", endpoint=toy_endpoint.url, endpoint_model="toy")
    )
    assert toy_endpoint.n_answered - before == 6 * (1 + 1 + 3 + 3)
    said = [
        {r["sample_id"]: r["description"] for r in lines(tmp_path / name / "descriptions.jsonl")}
        for name in ("local", "served")
    ]
    assert said[0] == said[1]
    assert len(said[0]) == 6 * 4
    assert any("的" in text for text in said[0].values())
    for name in ("local", "served"):
        data = open_data(tmp_path / name)
        assert read_json(tmp_path / name / "dataset.json")["synthetic"] is True
        assert all(row_images(row, data.image_root)[0].is_file() for row in data.rows)
    local, served = (read_json(tmp_path / n / "metrics.json") for n in ("local", "served"))
    assert local["synthetic"] == {"data": True, "model": True}
    assert served["synthetic"] == {"data": True, "model": None}
    assert local["templates"]["toy_plain_en"]["cost_reason"].startswith("no price")
    tokens = [m["templates"]["toy_chain_en"]["answer_tokens"] for m in (local, served)]
    assert tokens[0] == tokens[1] > 0


@pytest.mark.slow
def test_examples_with_pictures_change_what_the_toy_says(toy_endpoint, tmp_path, monkeypatch):
    """Earlier turns with their pictures, in process and through the server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    describe_settings.prepare_toy()
    found, *_ = find_pictures(Path(toy_defaults()["images"]), 2, 1)
    shutil.copy(found[0].path, tmp_path / "example.jpg")
    content = yaml.safe_load((FOLDER / "toy_plain_en.yaml").read_text(encoding="utf-8"))
    content["examples"] = [{"answer": "a red star", "picture": "example.jpg"}]
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(content))
    prompts = ["toy_plain_en", str(tmp_path / "shown.yaml")]
    describe_images.main(toy_options(tmp_path / "local", prompts=prompts))
    served = {"endpoint": toy_endpoint.url, "endpoint_model": "toy"}
    describe_images.main(toy_options(tmp_path / "served", prompts=prompts, **served))
    local, remote = (lines(tmp_path / name / "descriptions.jsonl") for name in ("local", "served"))
    assert [r["description"] for r in local] == [r["description"] for r in remote]
    by_template = [
        [r["description"] for r in local if r["template"] == name]
        for name in ("toy_plain_en", "shown")
    ]
    assert len(by_template[1]) == 6
    assert by_template[0] != by_template[1]


def test_a_finished_local_run_loads_no_model(tmp_path, monkeypatch):
    describe_settings.prepare_toy()
    describe_images.main(toy_options(tmp_path / "run", limit=2))
    before = (tmp_path / "run" / "train.json").read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model is loaded for nothing")

    monkeypatch.setattr("shared.vision_language.load_vision_language", fail)
    describe_images.main(toy_options(tmp_path / "run", limit=2))
    assert (tmp_path / "run" / "train.json").read_bytes() == before


def test_the_plan_asks_nobody(tmp_path, capsys, pictures, template_file):
    (pictures / "broken.jpg").write_bytes(b"nothing")
    options = DescribeOptions(
        images=str(pictures), model="nowhere/nothing", prompts=[template_file(CHAIN)],
        output_dir=str(tmp_path / "run"), dry_run=True, n=1,
    )  # fmt: skip
    describe_images.main(options)
    said = capsys.readouterr().out
    assert "There is <thing>. Describe it." in said
    assert "broken.jpg" in said
    assert "7 pictures x 2 prompts = 14 requests to nowhere/nothing" in said
    assert not (tmp_path / "run").exists()
