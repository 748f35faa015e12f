"""The toy LLaVA as an OpenAI-compatible server: real answers, on this machine alone.

Serves /v1/models and /v1/chat/completions (pictures as data: addresses, greedy answers) by
`load_vision_language`, one request at a time. For tests, and to try --endpoint by hand:

    python tests/qwen_clip_llava_lora/toy_endpoint.py --port 8000
    python qwen_clip_llava_lora/describe_images.py --toy --endpoint http://127.0.0.1:8000/v1 \
        --endpoint_model toy --output_dir outputs/qwen_clip_llava_lora/describe_toy_endpoint

Reads a model folder; writes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shared.conversation_files import ROLES
from shared.inline_pictures import InlinePicture
from shared.options import DATA_ROOT, UserError

TOY_MODEL = DATA_ROOT / "toy_models" / "llava"
NAME = "toy"
BAD_REQUEST = (KeyError, TypeError, ValueError, OSError, UserError)


class ToyEndpoint:
    """A server at `url` until `close`; `n_answered` counts its answers."""

    def __init__(self, model: Path | str = TOY_MODEL, port: int = 0) -> None:
        from shared.vision_language import load_vision_language

        self.model = load_vision_language(str(model), device="cpu")
        self.lock = threading.Lock()
        self.n_answered = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                models = {"object": "list", "data": [{"id": NAME, "object": "model"}]}
                self.reply(200 if known else 404, models if known else error("no such page"))

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path != "/v1/chat/completions":
                    self.reply(404, error("no such page"))
                    return
                try:
                    self.reply(200, endpoint.complete(json.loads(content)))
                except BAD_REQUEST as problem:
                    self.reply(400, error(f"{type(problem).__name__}: {problem}"))

            def reply(self, status: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def start(self) -> ToyEndpoint:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """A chat completion. Raises one of `BAD_REQUEST`."""
        pictures, turns = read_messages(request["messages"])
        with self.lock:
            from shared.vision_language import Turns

            several = len(turns) > 1
            # a picture of a single question stands in front; tags in its text stay text
            self.model.tags_are_meant = several
            prompt = Turns(turns) if several else turns[0][1].removeprefix("<image>\n")
            self.model.max_new_tokens = int(request.get("max_tokens", 64))
            problem = self.model.prompt_problem(prompt)
            if problem:
                raise ValueError(problem)
            features = self.model.encode_images([pictures] if pictures else [])
            (answer,) = self.model.answer(features, [0 if pictures else None], [prompt])
            self.n_answered += 1
        # without the chat template's own tokens
        n_prompt = len(self.model.tokenizer(str(prompt))["input_ids"])
        n_prompt += len(pictures) * self.model.family.n_image_tokens
        return {
            "id": f"toy-{self.n_answered}",
            "object": "chat.completion",
            "created": 0,
            "model": request.get("model", NAME),
            "choices": [{"index": 0, "finish_reason": answer.finish_reason,
                         "message": {"role": "assistant", "content": answer.answer}}],
            "usage": {"prompt_tokens": n_prompt, "completion_tokens": answer.n_tokens,
                      "total_tokens": n_prompt + answer.n_tokens},
        }  # fmt: skip


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def read_messages(messages: list[dict[str, Any]]) -> tuple[list[Any], list[tuple[str, str]]]:
    """The pictures of a chat in their order, and its turns with a tag for each."""
    from shared.images import open_image

    pictures, turns = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [part["text"] for part in parts if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        pictures += [open_image(io.BytesIO(InlinePicture(url).read())) for url in urls]
        turns.append((ROLES[message["role"]], "<image>\n" * len(urls) + "\n".join(texts)))
    return pictures, turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default=str(TOY_MODEL), help="folder in the Hub layout")
    options = parser.parse_args()
    endpoint = ToyEndpoint(options.model, options.port)
    print(f"{endpoint.url} serves {options.model} as {NAME!r}; Ctrl+C ends it", flush=True)
    try:
        endpoint.server.serve_forever()
    except KeyboardInterrupt:
        endpoint.server.server_close()


if __name__ == "__main__":
    main()
