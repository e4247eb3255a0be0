"""Who may talk to the server, checked on every route that the application has."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from moonlet.serve.security import Access
from moonlet.serve.static import PageFile, page_files
from tests.serve.conftest import Make, in_process

KEY = "a-key-of-some-length"
PAGE = (PageFile("/", b"<!doctype html>", "text/html; charset=utf-8", '"1"'),)
BODY = {"prompt": "x", "max_tokens": 1}


def run(app: FastAPI, ask: Any, **settings: Any) -> Any:
    async def main() -> Any:
        async with in_process(app, **settings) as client:
            return await ask(client)

    return asyncio.run(main())


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every path of an application with every method it has, whatever they are for."""
    return [
        (method, route.path.replace("{model}", "tiny"))  # type: ignore[attr-defined]
        for route in app.routes
        for method in sorted(route.methods or ())  # type: ignore[attr-defined]
    ]


def test_every_route_but_health_needs_the_key(served: Make) -> None:
    app = create_app([served()], access=Access(KEY), page=PAGE)
    found = routes(app)
    assert {"/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/tiny"} <= {path for _, path in found}

    async def ask(client: httpx.AsyncClient) -> None:
        for method, path in [*found, ("GET", "/nothing"), ("DELETE", "/v1/models"), ("OPTIONS", "/v1/completions")]:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Bearer {KEY}x"},
                {"Authorization": f"Bearer {KEY[:-1]}"},
                {"Authorization": KEY},
                {"Authorization": "Basic !!!"},
                {"X-Api-Key": KEY},
            ):
                answer = await client.request(method, path, headers=headers, json=BODY)
                if path == "/health":
                    assert answer.status_code in (200, 405)
                else:
                    assert answer.status_code == 401, (method, path)
                    assert "WWW-Authenticate" in answer.headers
            basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
            for value in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
                answer = await client.request(method, path, headers={"Authorization": value}, json=BODY)
                assert answer.status_code != 401, (method, path)

    run(app, ask)


def test_the_key_is_in_no_log_and_no_answer(served: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    access = Access(KEY)
    app = create_app([served()], access=access, page=())

    async def ask(client: httpx.AsyncClient) -> list[str]:
        right, wrong = {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {KEY}-wrong"}
        answers = [await client.post("/v1/completions", headers=h, json=BODY) for h in (right, wrong)]
        answers.append(await client.post("/v1/completions", headers=right, content=b"{"))
        answers.append(await client.get("/metrics", headers=right))
        return [answer.text + str(answer.headers) for answer in answers]

    texts = run(app, ask)
    assert KEY not in caplog.text + "".join(texts) + repr(access) + repr(app.state.service)


@pytest.mark.parametrize("key", ["", "short", "has a space in it", "héhéhéhéhé", "line\nbreak\nline"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="the API key must have at least 8") as caught:
        Access(key)
    assert not key or key not in str(caught.value)


def status(app: FastAPI, headers: dict[str, str], method: str = "GET", path: str = "/v1/models") -> int:
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, headers=headers)

    code: int = run(app, ask).status_code
    return code


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "[::1]:8000", "192.168.0.7", "my.box:80"]
)
def test_a_host_that_is_this_server_is_answered(served: Make, host: str) -> None:
    app = create_app([served()], access=Access(hosts=frozenset({"my.box"})), page=())
    assert status(app, {"Host": host}) == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "other.box", "[::1"])
def test_a_name_that_only_points_here_is_refused(served: Make, host: str) -> None:
    app = create_app([served()], access=Access(hosts=frozenset({"my.box"})), page=())
    assert status(app, {"Host": host}) == 403
    assert status(app, {"Host": host}, path="/health") == 403


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9"},
    {"Origin": "http://127.0.0.1.evil"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_are_refused(served: Make, headers: dict[str, str]) -> None:
    app = create_app([served()], page=())
    assert status(app, headers) == 403
    assert status(app, headers, "OPTIONS", "/v1/completions") == 403


def test_own_pages_and_links_are_answered(served: Make) -> None:
    app = create_app([served()], page=())
    own = {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert status(app, own) == 200
    assert status(app, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}) == 200


def test_an_allowed_origin_may_read_and_no_other(served: Make) -> None:
    site = "https://chat.example"
    app = create_app([served()], access=Access(KEY, origins=frozenset({site})), page=())

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.options("/v1/completions", headers={"Origin": site}),
            await client.get("/v1/models", headers={"Origin": site, "Authorization": f"Bearer {KEY}"}),
            await client.get("/v1/models", headers={"Origin": site}),
            await client.get("/health"),
        ]

    asked, read, locked, plain = run(app, ask)
    assert (asked.status_code, read.status_code, locked.status_code) == (204, 200, 401)
    assert read.headers["Access-Control-Allow-Origin"] == site
    assert "Access-Control-Allow-Origin" not in plain.headers
    with pytest.raises(ValueError, match="origin"):
        Access(origins=frozenset({"*"}))


def test_every_answer_forbids_framing_sniffing_and_scripts(served: Make) -> None:
    app = create_app([served()], page=PAGE)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get(path) for path in ("/health", "/", "/nothing", "/v1/models")]

    for answer in run(app, ask):
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_form_of_another_site_is_not_read(served: Make) -> None:
    app = create_app([served()], page=())

    async def ask(client: httpx.AsyncClient) -> Coroutine[Any, Any, Any] | httpx.Response:
        return await client.post("/v1/completions", content=b'{"prompt":"x"}', headers={"Content-Type": "text/plain"})

    assert run(app, ask).status_code == 415


def test_a_get_never_generates(served: Make) -> None:
    app = create_app([served()], page=PAGE)

    async def ask(client: httpx.AsyncClient) -> None:
        for method, path in routes(app):
            if method != "POST":
                await client.request(method, path, params={"prompt": "x", "q": "x"})

    run(app, ask)
    assert app.state.service.metrics.generated_tokens == 0


TRAVERSALS = [
    f"{start}{step * deep}{target}"
    for start in ("/", "/page/", "/v1/models/", "/static/")
    for step in ("../", "%2e%2e/", "..%2f", "%2e%2e%2f", "..\\", "....//", "..;/", "%252e%252e%252f", "%c0%ae%c0%ae/")
    for deep in (1, 8)
    for target in ("etc/passwd", "app.py", "secret.html%00.js")
]


def test_no_path_leaves_the_pages_folder(served: Make, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "secret.html").write_text("hidden words")
    (folder / "index.html").write_text("index")
    (folder / "deep" / "a.js").write_text("script")
    (folder / ".hidden.js").write_text("hidden words")
    (folder / "notes.py").write_text("hidden words")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    files = page_files(folder)
    assert [file.path for file in files] == ["/deep/a.js", "/"]
    app = create_app([served()], page=files)

    async def ask(client: httpx.AsyncClient) -> None:
        assert (await client.get("/deep/a.js")).text == "script"
        for path in TRAVERSALS:
            answer = await client.get(httpx.URL("http://127.0.0.1").copy_with(raw_path=path.encode()))
            assert answer.status_code in (400, 404), path
            assert "hidden words" not in answer.text
            assert "root:" not in answer.text

    assert len(TRAVERSALS) > 200
    run(app, ask)


def test_the_body_is_bounded_whether_or_not_it_says_its_size(served: Make) -> None:
    limits = Limits(body_bytes=200)
    app = create_app([served(limits=limits)], limits, page=())

    async def chunks(size: int) -> Any:
        start = b'{"prompt":"x","max_tokens":1,"user":"'
        yield start
        yield b"a" * (size - len(start) - 2)
        yield b'"}'

    async def ask(client: httpx.AsyncClient) -> list[int]:
        headers = {"Content-Type": "application/json"}
        whole = {size: b"".join([part async for part in chunks(size)]) for size in (200, 201)}
        return [
            (await client.post("/v1/completions", content=content, headers=headers)).status_code
            for content in (whole[200], chunks(200), whole[201], chunks(201))
        ]

    assert run(app, ask) == [200, 200, 413, 413]
