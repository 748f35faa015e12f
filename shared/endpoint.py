"""Requests to any server that speaks the OpenAI chat protocol: vLLM, SGLang, lmdeploy, hosted.

A bounded number of requests is under way at once; a failed one (connection, timeout, 408, 409, 429,
5xx, a body that is no JSON) is tried again with growing pauses, by the `openai` package, which also
obeys Retry-After. Every request gets one record, appended and flushed as its answer comes; a rerun
sends only what has no `ok` record of the same request yet. When several in a row fail, the rest is
not tried: a server that is not there, or that goes away, is said at once. `image_part` puts a
picture into a message.

    ask(Endpoint("http://localhost:8000/v1", "qwen"), [Request("17", messages)], Path("out.jsonl"))

The key is read from OPENAI_API_KEY; local servers take any. Writes the JSON lines file it is given:
`sample_id, request_hash, model, base_url, text, finish_reason, usage, retries, seconds, status,
error` and the request's own details.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from shared.answering import RecordWriter, read_records, round_or_none
from shared.images import open_image
from shared.options import UserError

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png"}
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked.

    `timeout` is that of one try in seconds, `retries` the tries after the first. `parameters` go
    into every request (temperature, max_tokens, ...) and so belong to the cache's key.
    """

    base_url: str  # up to /v1
    model: str
    parameters: dict[str, Any] = field(
        default_factory=lambda: {"temperature": 0, "max_tokens": 512}
    )
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 4
    give_up_after: int = 8  # failures in a row: the server is not there


@dataclass(frozen=True)
class Request:
    """One chat request; `messages` as the protocol has them (pictures as data: addresses).

    `parameters` go over the endpoint's, and belong to the cache's key too; `details` stand in the
    record and are not sent.
    """

    sample_id: str
    messages: list[dict[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def image_part(path: Path | str, longest_side: int) -> dict[str, Any]:
    """A picture as a part of a message's content, inside the message as a data: address.

    JPEG and PNG files go as they are; one that is larger, turned by its EXIF or of another kind is
    decoded, brought to at most `longest_side` pixels and sent as JPEG. Raises ImageError for a
    broken file: it is decoded whole either way.
    """
    from PIL import Image

    picture = open_image(path)
    with Image.open(path) as file:
        kind = SENT_AS_THEY_ARE.get(file.format or "")
        turned = file.getexif().get(EXIF_ORIENTATION, 1) != 1
    if kind and not turned and max(picture.size) <= longest_side:
        content = Path(path).read_bytes()
    else:
        kind, stream = "image/jpeg", io.BytesIO()
        picture.thumbnail((longest_side, longest_side))
        picture.save(stream, format="JPEG", quality=95)
        content = stream.getvalue()
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def ask(
    endpoint: Endpoint,
    requests: Iterable[Request],
    path: Path,
    *,
    progress: bool = False,
    was_there: bool = False,
) -> dict[str, dict[str, Any]]:
    """Send what has no `ok` record in `path` yet; returns sample_id -> its record.

    `requests` may be a generator: no more than `concurrency` of them are held at a time. A request
    that fails for good gets a record with status `error` and its cause. Raises UserError when
    `give_up_after` requests in a row (or all, of fewer) fail, with the cause, and where `openai` or
    the file fails. With `was_there`, the server has answered before: as after its first answer, a
    few failures are records only, and so is any number of requests that it refuses as such (400).
    """
    from tqdm import tqdm

    client = _client(endpoint)
    answered: dict[str, dict[str, Any]] = {}
    failed = 0  # in a row
    succeeded = was_there
    with RecordWriter(path) as writer, ThreadPoolExecutor(endpoint.concurrency) as pool:
        cache = {
            record.get("request_hash"): record
            for record in read_records(path).values()
            if record.get("status") == "ok"
        }
        todo = _not_cached(endpoint, requests, cache, answered)
        under_way: set[Future[dict[str, Any]]] = set()
        with tqdm(desc=f"asking {endpoint.model}", disable=not progress or None) as bar:
            while True:
                for request in islice(todo, endpoint.concurrency - len(under_way)):
                    under_way.add(pool.submit(_send, client, endpoint, request))
                if not under_way:
                    break
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                records = [future.result() for future in done]
                writer.write(records)
                bar.update(len(records))
                for record in records:
                    answered[record["sample_id"]] = record
                    succeeded |= record["status"] == "ok"
                    there = succeeded and str(record["error"]).startswith("BadRequestError")
                    failed = 0 if there or record["status"] == "ok" else failed + 1
                    if failed >= endpoint.give_up_after:
                        for future in under_way:
                            future.cancel()
                        raise _not_there(endpoint, record, failed)
    if failed and not succeeded and failed == len(answered):
        raise _not_there(endpoint, record, failed)
    return answered


def _client(endpoint: Endpoint) -> Any:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise UserError("the package openai is not installed: pip install openai") from error
    return OpenAI(
        base_url=endpoint.base_url,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        timeout=endpoint.timeout,
        max_retries=endpoint.retries,
    )


def request_hash(endpoint: Endpoint, request: Request) -> str:
    """What decides the answer: model, parameters, messages; not the server's address."""
    content = [endpoint.model, {**endpoint.parameters, **request.parameters}, request.messages]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _not_cached(
    endpoint: Endpoint,
    requests: Iterable[Request],
    cache: dict[str, dict[str, Any]],
    answered: dict[str, dict[str, Any]],
) -> Iterator[Request]:
    """The requests to send; the others' records go to `answered`."""
    for request in requests:
        record = cache.get(request_hash(endpoint, request))
        if record is None:
            yield request
        else:
            answered[request.sample_id] = {**record, "sample_id": request.sample_id, "cached": True}


def _send(client: Any, endpoint: Endpoint, request: Request) -> dict[str, Any]:
    """One request with all its tries; never raises for what a server can do."""
    from openai import OpenAIError

    started = time.perf_counter()
    text = finish_reason = usage = retries = error = None
    try:
        response = client.chat.completions.with_raw_response.create(
            model=endpoint.model,
            messages=request.messages,
            **{**endpoint.parameters, **request.parameters},
        )
        retries = response.retries_taken
        completion = response.parse()
        text = completion.choices[0].message.content
        finish_reason = completion.choices[0].finish_reason
        usage = completion.usage.model_dump(exclude_none=True) if completion.usage else None
        if isinstance(text, str):  # half of an emoji, cut at the last token, could not be written
            text = text.encode("utf-8", "replace").decode()
        else:
            error = "the answer has no text"
    except (OpenAIError, ValueError, AttributeError, IndexError, TypeError) as problem:
        # ValueError and the last three: a body that is no JSON, or not a chat completion
        cause = f" ({problem.__cause__})" if problem.__cause__ else ""
        error = f"{type(problem).__name__}: {problem}{cause}"[:500]
    return {
        "sample_id": request.sample_id,
        "request_hash": request_hash(endpoint, request),
        "model": endpoint.model,
        "base_url": endpoint.base_url,
        "text": text,
        "finish_reason": finish_reason,
        "usage": usage,
        "retries": retries,
        "seconds": round_or_none(time.perf_counter() - started),
        "status": "error" if error else "ok",
        "error": error,
        **request.details,
    }


def _not_there(endpoint: Endpoint, record: dict[str, Any], failed: int) -> UserError:
    return UserError(
        f"{endpoint.base_url}: {failed} requests in a row all failed, the last with "
        f"{record['error']}. Is the server running, and does it serve {endpoint.model!r}? "
        f"(curl {endpoint.base_url.rstrip('/')}/models)"
    )
