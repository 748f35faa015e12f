"""The client for OpenAI-compatible servers, against a local server that misbehaves."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.endpoint import Endpoint, Request, ask, image_part
from shared.images import ImageError
from shared.options import UserError


class FakeServer:
    """Answers /v1/chat/completions; `behave(text, attempt)` says how to each try of a question."""

    def __init__(self) -> None:
        self.behave: Callable[[str, int], str] = lambda text, attempt: "ok"
        self.attempts: dict[str, int] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                with fake.lock:
                    fake.bodies.append(body)
                    fake.keys.append(self.headers.get("Authorization"))
                    attempt = fake.attempts[text] = fake.attempts.get(text, 0) + 1
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    self.reply(fake.behave(text, attempt), text)
                finally:
                    with fake.lock:
                        fake.at_once -= 1

            def reply(self, how: str, text: str) -> None:
                if how == "slow":
                    time.sleep(1.0)
                if how == "pause":
                    time.sleep(0.05)
                completion = {
                    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                    "choices": [{"index": 0, "finish_reason": "stop",
                                 "message": {"role": "assistant", "content": f"re: {text}"}}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
                }  # fmt: skip
                if how == "no choices":
                    completion["choices"] = []
                if how == "half":
                    completion["choices"][0]["message"]["content"] = "a dog \ud83d"
                if how == "no text":
                    completion["choices"][0]["message"]["content"] = None
                content = json.dumps(completion).encode()
                if how == "no json":
                    content = b"<html>busy</html>"
                status = int(how) if how.isdigit() else 200
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if status == 429:
                    self.send_header("Retry-After", "0.01")
                self.end_headers()
                if how == "broken off":
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                with contextlib.suppress(BrokenPipeError):  # a client that has given up waiting
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # the pauses between tries are the library's, half a second and more
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    fake = FakeServer()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def requests(n: int) -> list[Request]:
    return [Request(f"q{i}", [{"role": "user", "content": f"question {i}"}]) for i in range(n)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_request_gets_its_answer_and_one_record(server, tmp_path):
    path = tmp_path / "cache.jsonl"
    endpoint = Endpoint(server.url, "m", {"temperature": 0, "max_tokens": 7})
    found = ask(endpoint, requests(20), path)
    assert {key: record["text"] for key, record in found.items()} == {
        f"q{i}": f"re: question {i}" for i in range(20)
    }
    assert sorted(line["sample_id"] for line in lines(path)) == sorted(found)
    record = found["q3"]
    assert record["usage"]["completion_tokens"] == 2
    assert (record["status"], record["finish_reason"], record["retries"]) == ("ok", "stop", 0)
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7)


def test_no_more_requests_are_under_way_than_allowed(server, tmp_path):
    """And no more are taken from the generator: they may hold pictures."""
    server.behave = lambda text, attempt: "pause"
    taken = 0
    ahead = []

    def stream() -> Iterator[Request]:
        nonlocal taken
        for request in requests(20):
            taken += 1
            ahead.append(taken - len(lines(tmp_path / "c.jsonl")))
            yield request

    ask(Endpoint(server.url, "m", concurrency=3), stream(), tmp_path / "c.jsonl")
    assert server.most_at_once == 3
    assert max(ahead) <= 4  # three under way and the one just taken


@pytest.mark.parametrize("how", ["429", "500", "503", "408", "broken off", "slow"])
def test_a_passing_failure_is_tried_again(server, tmp_path, how):
    server.behave = lambda text, attempt: how if attempt <= 2 else "ok"
    endpoint = Endpoint(server.url, "m", timeout=0.3, retries=3)
    found = ask(endpoint, requests(2), tmp_path / "c.jsonl")
    assert [found[f"q{i}"]["text"] for i in range(2)] == ["re: question 0", "re: question 1"]
    assert all(record["retries"] == 2 for record in found.values())
    assert server.attempts == {"question 0": 3, "question 1": 3}


@pytest.mark.parametrize(
    ("how", "tries", "said"),
    [
        ("500", 2, "InternalServerError"),
        ("429", 2, "RateLimitError"),
        ("broken off", 2, "APIConnectionError"),
        ("slow", 2, "APITimeoutError"),
        ("400", 1, "BadRequestError"),  # the same again would be refused again
        ("no choices", 1, "IndexError"),
        ("no text", 1, "no text"),
    ],
)
def test_a_lasting_failure_is_a_record_and_the_rest_goes_on(server, tmp_path, how, tries, said):
    server.behave = lambda text, attempt: how if text == "question 1" else "ok"
    endpoint = Endpoint(server.url, "m", timeout=0.3, retries=1, concurrency=2)
    found = ask(endpoint, requests(4), tmp_path / "c.jsonl")
    assert [found[f"q{i}"]["status"] for i in range(4)] == ["ok", "error", "ok", "ok"]
    assert said in found["q1"]["error"]
    assert server.attempts["question 1"] == tries
    assert len(lines(tmp_path / "c.jsonl")) == 4


def test_a_body_that_is_no_json_is_an_error(server, tmp_path):
    server.behave = lambda text, attempt: "no json" if text == "question 1" else "ok"
    endpoint = Endpoint(server.url, "m", retries=1)
    found = ask(endpoint, requests(2), tmp_path / "c.jsonl")
    assert (found["q0"]["status"], found["q1"]["status"]) == ("ok", "error")
    assert found["q1"]["error"]


def test_a_rerun_sends_only_what_has_no_answer(server, tmp_path):
    path = tmp_path / "c.jsonl"
    endpoint = Endpoint(server.url, "m", retries=0)
    server.behave = lambda text, attempt: "500" if text == "question 1" else "ok"
    ask(endpoint, requests(3), path)
    server.behave = lambda text, attempt: "ok"
    sent = len(server.bodies)
    found = ask(endpoint, requests(4), path)
    again = [body["messages"][-1]["content"] for body in server.bodies[sent:]]
    assert sorted(again) == ["question 1", "question 3"]  # at once: in either order
    assert [bool(found[f"q{i}"].get("cached")) for i in range(4)] == [True, False, True, False]
    assert all(record["status"] == "ok" for record in found.values())
    # another model or other parameters are other requests
    ask(Endpoint(server.url, "n", retries=0), requests(1), path)
    ask(Endpoint(server.url, "m", {"temperature": 1}, retries=0), requests(1), path)
    assert len(server.bodies) == sent + 4
    # the same request under another name is answered from the file
    found = ask(endpoint, [Request("other", requests(4)[3].messages)], path)
    assert (found["other"]["sample_id"], found["other"]["text"]) == ("other", "re: question 3")
    assert len(server.bodies) == sent + 4


def test_a_crash_cut_the_last_record(server, tmp_path):
    path = tmp_path / "c.jsonl"
    endpoint = Endpoint(server.url, "m")
    ask(endpoint, requests(2), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(ask(endpoint, requests(2), path)) == 2
    assert len(server.bodies) == 3
    assert len(lines(path)) == 2


def test_a_server_that_is_not_there_is_said_at_once(server, tmp_path):
    server.behave = lambda text, attempt: "401"
    endpoint = Endpoint(server.url, "m", concurrency=2, give_up_after=4)
    with pytest.raises(UserError, match=r"(?s)all failed.*AuthenticationError.*/v1/models"):
        ask(endpoint, requests(500), tmp_path / "c.jsonl")
    assert len(server.bodies) < 10
    nobody = Endpoint("http://127.0.0.1:9/v1", "m", retries=0)
    with pytest.raises(UserError, match="Is the server running"):
        ask(nobody, requests(2), tmp_path / "d.jsonl")


def test_a_few_failures_of_a_server_known_to_be_there_are_records(server, tmp_path):
    server.behave = lambda text, attempt: "400"
    found = ask(Endpoint(server.url, "m"), requests(20), tmp_path / "c.jsonl", was_there=True)
    assert [record["status"] for record in found.values()] == ["error"] * 20
    server.behave = lambda text, attempt: "500"
    endpoint = Endpoint(server.url, "m", retries=0)
    found = ask(endpoint, requests(3), tmp_path / "d.jsonl", was_there=True)
    assert [record["status"] for record in found.values()] == ["error"] * 3


def test_a_server_that_goes_away_is_not_asked_for_all_the_rest(server, tmp_path):
    server.behave = lambda text, attempt: "ok" if int(text.split()[1]) < 20 else "500"
    endpoint = Endpoint(server.url, "m", retries=0, concurrency=2, give_up_after=4)
    with pytest.raises(UserError, match="4 requests in a row all failed"):
        ask(endpoint, requests(500), tmp_path / "c.jsonl")
    assert len(server.bodies) < 30


def test_half_a_character_in_an_answer_is_written(server, tmp_path):
    server.behave = lambda text, attempt: "half"
    found = ask(Endpoint(server.url, "m"), requests(1), tmp_path / "c.jsonl")
    assert (found["q0"]["text"], found["q0"]["status"]) == ("a dog ?", "ok")
    assert lines(tmp_path / "c.jsonl")[0]["text"] == "a dog ?"


def test_a_request_has_parameters_and_details_of_its_own(server, tmp_path):
    path = tmp_path / "c.jsonl"
    endpoint = Endpoint(server.url, "m", {"temperature": 0, "max_tokens": 7})
    (plain,) = requests(1)
    own = Request("q9", plain.messages, {"max_tokens": 9, "seed": 1}, {"template": "t"})
    found = ask(endpoint, [plain, own], path)
    assert {body["max_tokens"]: body.get("seed") for body in server.bodies} == {7: None, 9: 1}
    assert found["q9"]["template"] == "t"
    assert "template" not in str(server.bodies)
    # details don't make another request, parameters do
    ask(endpoint, [Request("q9", plain.messages, {"max_tokens": 9, "seed": 1})], path)
    assert len(server.bodies) == 2
    ask(endpoint, [Request("q9", plain.messages, {"max_tokens": 9, "seed": 2})], path)
    assert len(server.bodies) == 3


def test_pictures_go_inside_the_message(tmp_path):
    """As they are where they can, else brought to size, upright, as JPEG."""
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "small.png")
    Image.new("RGB", (400, 100), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "other.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 30), "red").save(tmp_path / "turned.jpg", exif=exif)
    expected = {"small.png": ("png", (40, 30)), "wide.png": ("jpeg", (200, 50)),
                "other.bmp": ("jpeg", (40, 30)), "turned.jpg": ("jpeg", (30, 40))}  # fmt: skip
    for name, (kind, size) in expected.items():
        part = image_part(tmp_path / name, 200)
        assert part["type"] == "image_url"
        head, _, content = part["image_url"]["url"].partition(",")
        assert head == f"data:image/{kind};base64"
        decoded = base64.b64decode(content)
        assert (decoded == (tmp_path / name).read_bytes()) == (name == "small.png")
        with Image.open(io.BytesIO(decoded)) as picture:
            assert picture.size == size
    (tmp_path / "cut.png").write_bytes((tmp_path / "small.png").read_bytes()[:60])
    with pytest.raises(ImageError, match=r"cut\.png: broken picture"):
        image_part(tmp_path / "cut.png", 200)


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    ask(Endpoint(server.url, "m"), requests(1), tmp_path / "c.jsonl")
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in (tmp_path / "c.jsonl").read_text()


def test_nothing_to_ask_asks_nothing(server, tmp_path):
    assert ask(Endpoint(server.url, "m"), [], tmp_path / "c.jsonl") == {}
    assert server.bodies == []
