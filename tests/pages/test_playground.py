"""The page's route, headers and policy, and a browser's way to it. The page itself: test_browser."""

import pickle
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import modelserve.pages
from modelserve import Limits, ModelServer
from modelserve.command.flags import configure, parse
from modelserve.pages.playground import policy_of
from modelserve.testing import Response, exchange, request

pytestmark = pytest.mark.anyio

PAGE = (Path(modelserve.pages.__file__).parent / "playground.html").read_bytes()
ALIVE = {"status": "alive"}
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,"
    "*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def echo(payload: Any) -> Any:
    return payload


def serve(playground: bool | None = True, **options: Any) -> ModelServer:
    app = ModelServer(playground=playground, **options)
    app.add_model(echo, "m")
    return app


async def get(app: Any, path: str, accept: str | None = None, **headers: str) -> Response:
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    return await request(app, "GET", path, headers=given | ({"accept": accept} if accept else {}))


def policy(response: Response) -> dict[str, list[str]]:
    text = response.headers["content-security-policy"]
    parts = [part.split() for part in text.split(";")]
    return {name: values for name, *values in parts}


# --- the page ------------------------------------------------------------------------------------


async def test_the_page_is_the_packages_file() -> None:
    response = await get(serve(), "/playground")
    assert response.status == 200
    assert response.body == PAGE
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


async def test_head_has_the_headers_alone() -> None:
    response = await request(serve(), "HEAD", "/playground")
    assert response.status == 200
    assert response.body == b""
    assert response.headers["content-length"] == str(len(PAGE))


async def test_other_methods_are_refused() -> None:
    response = await request(serve(), "POST", "/playground", body=b"{}")
    assert response.status == 405
    assert response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("given", ["{}", "W/{}", '"other", {}', "*"])
async def test_who_has_the_page_is_told_so(given: str) -> None:
    etag = (await get(serve(), "/playground")).headers["etag"]
    response = await get(serve(), "/playground", if_none_match=given.format(etag))
    assert response.status == 304
    assert response.body == b""
    assert response.headers["etag"] == etag
    assert "content-security-policy" in response.headers


async def test_who_has_another_page_is_sent_this_one() -> None:
    assert (await get(serve(), "/playground", if_none_match='"other"')).status == 200


async def test_the_policy_allows_the_pages_own_script_and_style_alone() -> None:
    rules = policy(await get(serve(), "/playground"))
    parts = Parts()
    parts.feed(PAGE.decode())
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == [hashed(text) for text in parts.texts["script"]]
    assert rules["style-src"] == [hashed(text) for text in parts.texts["style"]]
    assert rules["connect-src"] == ["'self'"]
    assert rules["img-src"] == ["data:", "blob:"]
    assert rules["media-src"] == ["blob:"]
    assert rules["frame-ancestors"] == ["'none'"]
    assert len(parts.texts["script"]) == len(parts.texts["style"]) == 1


def test_the_page_needs_nothing_from_elsewhere() -> None:
    parts = Parts()
    parts.feed(PAGE.decode())
    assert [url for url in parts.urls if not url.startswith(("data:", "#"))] == ["openapi.json"]
    assert parts.handlers == []
    assert not re.search(rb"@import|\burl\(", PAGE)


@pytest.mark.parametrize(
    ("html", "scripts"),
    [
        ("<p>", "'none'"),
        ("<script>a</script>", "{a}"),
        ('<script type="module">a</script>', "{a}"),
        ("<script\n  defer>a</script><scripts>c</scripts><script>b</script>", "{a} {b}"),
    ],
)
def test_a_policy_has_the_hash_of_each_script(html: str, scripts: str) -> None:
    expected = scripts.format(a=hashed("a"), b=hashed("b"))
    assert f"; script-src {expected}; " in policy_of(html)


class Parts(HTMLParser):
    """What a page holds: the texts of its scripts and styles, what it refers to, handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.urls: list[str] = []
        self.handlers: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def hashed(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


# --- who is shown it -----------------------------------------------------------------------------


@pytest.mark.parametrize("playground", [None, False])
async def test_an_application_has_no_page_by_itself(playground: bool | None) -> None:
    app = serve(playground)
    assert (await get(app, "/playground")).status == 404
    response = await get(app, "/", CHROMIUM)
    assert (response.status, response.json()) == (200, ALIVE)


@pytest.mark.parametrize(
    ("words", "playground", "status"),
    [
        ("", None, 200),
        ("--host localhost", None, 200),
        ("--host 127.8.9.1", None, 200),
        ("--host ::1", None, 200),
        ("--host 0.0.0.0", None, 404),
        ("--host ::", None, 404),
        ("--host 192.168.1.7", None, 404),
        ("--host models.example", None, 404),
        ("--host localhost.example", None, 404),
        ("--uds /tmp/socket", None, 404),
        ("--fd 3", None, 404),
        ("--no-playground", None, 404),
        ("--host 0.0.0.0 --playground", None, 200),
        ("--uds /tmp/socket --playground", None, 200),
        ("", False, 404),
        ("--playground", False, 200),
        ("--host 0.0.0.0", True, 200),
        ("--no-playground", True, 404),
    ],
)
async def test_the_command_line_shows_the_page_on_loopback(
    words: str, playground: bool | None, status: int
) -> None:
    app = serve(playground)
    configure(app, parse(["app.py", *words.split()]))
    assert (await get(app, "/playground")).status == status


async def test_a_copy_shows_what_was_wanted() -> None:
    wanted, shown = serve(), serve(None)
    shown.show_playground(True)
    assert (await get(pickle.loads(pickle.dumps(wanted)), "/playground")).status == 200
    assert (await get(pickle.loads(pickle.dumps(shown)), "/playground")).status == 404


async def test_the_page_may_be_shown_and_taken_away() -> None:
    app = serve(False)
    app.playground = True
    assert (await get(app, "/playground")).status == 200
    app.playground = False
    assert (await get(app, "/playground")).status == 404
    assert (await get(app, "/", CHROMIUM)).status == 200


async def test_the_page_needs_no_token_but_what_it_asks_for_does() -> None:
    app = serve(token="secret")
    assert (await get(app, "/playground")).status == 200
    assert (await get(app, "/", CHROMIUM)).status == 302
    assert (await get(app, "/v1/models")).status == 401
    assert b"secret" not in PAGE


async def test_a_path_of_the_applications_own_comes_first() -> None:
    app = serve(aliases={"/playground": "/v2/health/live"})
    assert (await get(app, "/playground")).json() == {"live": True}


async def test_the_page_takes_no_other_path() -> None:
    app = serve()
    for path in ("/playground/", "/playground/x", "/v1/playground", "/playground.html"):
        assert (await get(app, path)).status == 404, path
    assert (await get(app, "/v1/models")).json() == {"models": ["m"]}


async def test_while_it_drains_the_server_is_alive_and_has_no_page() -> None:
    app = serve(limits=Limits(drain_timeout=0))
    await app.serving.drain()
    assert (await get(app, "/", "*/*")).json() == ALIVE
    assert (await get(app, "/playground")).status == 503


# --- a browser that opens `/` --------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept",
    [CHROMIUM, FIREFOX, "text/html", "application/xhtml+xml", "application/json;q=0.5, text/html"],
)
async def test_a_browser_is_sent_to_the_page(accept: str) -> None:
    response = await get(serve(), "/", accept)
    assert response.status == 302
    assert response.headers["location"] == "./playground"
    assert response.headers["vary"] == "Accept"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "text/*",
        "application/json",
        "text/html;q=0",
        "application/json, text/html;q=0.9",
        "text/html;q=0.4, */*",
        "text/plain",
        "nonsense",
    ],
)
async def test_anybody_else_reads_that_the_server_is_alive(accept: str | None) -> None:
    response = await get(serve(), "/", accept)
    assert (response.status, response.json()) == (200, ALIVE)


@pytest.mark.parametrize("path", ["/ml", "/ml/", "/deep/er/", "/a%20b%3F/"])
async def test_below_a_mount_the_way_is_below_it_too(path: str) -> None:
    routes = [Mount("/ml", serve()), Mount("/deep/er", serve()), Mount("/a b?", serve())]
    app = Starlette(routes=routes)
    response = await get(app, path, CHROMIUM)
    if response.status == 307:  # Starlette's own, to the path with a slash
        response = await get(app, path + "/", CHROMIUM)
    assert response.headers["location"] == "./playground"


@pytest.mark.parametrize(
    ("path", "root", "location"),
    [
        ("/proxied/", "/proxied", "./playground"),
        ("/proxied", "/proxied", "./proxied/playground"),
        ("", "/proxied", "./proxied/playground"),
        ("/a/b?", "/a/b?", "./b%3F/playground"),
        ("//evil.example/", "//evil.example", "./playground"),
        ("//evil.example", "//evil.example", "./evil.example/playground"),
    ],
)
async def test_a_root_path_without_a_slash_is_a_part_of_the_way(
    path: str, root: str, location: str
) -> None:
    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        raw_path = path.encode()
        await app({**scope, "path": path, "raw_path": raw_path, "root_path": root}, receive, send)

    app = serve()
    async with exchange(proxied, "GET", "/", headers={"accept": FIREFOX}) as client:
        response = await client.response()
    assert (response.status, response.headers["location"]) == (302, location)


async def test_a_prefix_is_before_the_page() -> None:
    app = serve(prefix="/ml")
    assert (await get(app, "/ml/playground")).status == 200
    assert (await get(app, "/ml/", CHROMIUM)).headers["location"] == "./playground"
    assert (await get(app, "/ml", CHROMIUM)).headers["location"] == "./ml/playground"
