"""The page in a real browser: `pytest -m browser`, with Debian's chromium and playwright.

What is on the page is found by its accessible name, as a screen reader finds it.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import CHROMIUM, FLAGS, Server, body, choose, figure, items, response, send, sent

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# A browser's own words for an answer that is an error, and for how a page without a second script
# hears a microphone.
USUAL = ("Failed to load resource", "The ScriptProcessorNode is deprecated")
WAIT = 20_000  # ms; of what takes no time but on a busy machine


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        started.append(Server(tmp_path, *arguments))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server(tmp_path_factory.mktemp("server"), "modelserve", "shown.py")
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end, see that nothing was wrong on it, the policy included."""
    problems: list[str] = []
    contexts: list[Any] = []

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and not any(each in message.text for each in USUAL):
            problems.append(message.text)

    def open_page(address: str | None = None, **options: Any) -> Any:
        options = {"viewport": {"width": 1360, "height": 900}} | options
        context = chromium.new_context(**options)
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(address or url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


# --- models --------------------------------------------------------------------------------------


def test_a_browser_is_sent_to_the_page_and_finds_what_it_is_told_of(visit: Any, url: str) -> None:
    page = visit(url)
    assert page.url == f"{url}/playground"
    names = page.get_by_role("list", name="Models", exact=True).get_by_role("listitem")
    names.filter(has_text="writer").wait_for()
    assert names.filter(has_text="writer").inner_text().split() == ["writer", "ready"]
    assert names.filter(has_text="broken").inner_text().split() == ["broken", "failed"]
    for role, name in (
        ("textbox", "Request body"),
        ("button", "Send"),
        ("button", "Stop"),
        ("region", "Response"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    assert page.get_by_label("Time to first item", exact=True).count() == 1


def test_the_models_are_shown_as_they_are_now(visit: Any, url: str) -> None:
    page = visit()
    item = page.get_by_role("list", name="Models").get_by_role("listitem").filter(has_text="size")
    item.get_by_text("ready").wait_for()
    page.request.post(f"{url}/v2/repository/models/size/unload")
    item.get_by_text("unloaded").wait_for()
    page.request.post(f"{url}/v2/repository/models/size/load")
    item.get_by_text("ready").wait_for()


def test_a_model_that_is_not_ready_says_so(visit: Any) -> None:
    page = visit()
    choose(page, "broken")
    page.get_by_text("This model failed to load").wait_for()
    send(page, "Failed")
    response(page).get_by_text("It failed to load.").wait_for()


# --- sending -------------------------------------------------------------------------------------


def test_a_body_is_sent_as_it_is_written(visit: Any) -> None:
    page = visit()
    choose(page, "echo")
    body(page).fill('{"instances": [1.50, "ü"]}')
    send(page)
    assert json.loads(page.get_by_role("group", name="Text of the response").inner_text()) == {
        "instances": [1.5, "ü"]
    }
    assert """--data-binary '{"instances": [1.50, "ü"]}'""" in sent(page)


def test_a_model_has_its_example_as_the_first_body(visit: Any) -> None:
    page = visit()
    choose(page, "double")
    assert json.loads(body(page).input_value()) == {"instances": [1, 2]}
    send(page)
    assert "2,\n    4" in response(page).inner_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"instances": [1, 2}', "Line 1, column 20: Expected , or ], found }"),
        ('{\n  "a": 1,\n}', "Line 3, column 1: Expected a key, found }"),
        ("{'a': 1}", "Line 1, column 2: Text stands between double quotes; expected key or }"),
        ("[1, 2", "Line 1, column 6: It ends too early: expected , or ]"),
        ('{"a": tru}', "Line 1, column 7: tru is no JSON; expected value"),
    ],
)
def test_json_that_is_none_is_not_sent_and_its_place_is_told(
    visit: Any, text: str, problem: str
) -> None:
    page = visit()
    choose(page, "echo")
    body(page).fill(text)
    page.get_by_role("button", name="Send").click()
    page.get_by_text(problem).first.wait_for()
    assert body(page).get_attribute("aria-invalid") == "true"
    assert body(page).evaluate("box => box === document.activeElement")
    assert "Nothing has been sent yet." in response(page).inner_text()
    body(page).fill("{}")
    send(page)


def test_a_prompt_and_the_body_are_one(visit: Any) -> None:
    page = visit()
    choose(page, "writer")
    page.get_by_role("textbox", name="Prompt").fill("A lamp")
    assert json.loads(body(page).input_value())["instances"] == [
        {"prompt": "A lamp", "max_tokens": 12}
    ]
    body(page).fill('{"instances": [{"prompt": "Two lamps", "max_tokens": 3}]}')
    page.wait_for_function("() => document.getElementById('prompt').value === 'Two lamps'")
    send(page)
    assert "A server that" in response(page).inner_text()
    assert figure(page, "Items") == "3"


def test_tensors_begin_as_they_are_declared(visit: Any) -> None:
    page = visit()
    choose(page, "sums")
    page.wait_for_function("() => document.getElementById('body').value.includes('rows')")
    (tensor,) = json.loads(body(page).input_value())["inputs"]
    assert tensor == {"name": "rows", "shape": [1, 2], "datatype": "INT32", "data": [0, 0]}
    body(page).fill(json.dumps({"inputs": [tensor | {"data": [20, 22]}]}))
    send(page)
    assert "42" in response(page).inner_text()
    assert "/v2/models/sums/infer'" in sent(page)


def test_a_form_is_made_of_the_declared_input(visit: Any) -> None:
    page = visit()
    choose(page, "prices")
    page.get_by_role("radiogroup", name="Input").get_by_text("Form").click()
    form = page.get_by_role("group", name="Form")
    form.get_by_role("spinbutton", name="rooms").fill("7")
    form.get_by_role("checkbox", name="garden").check()
    form.get_by_role("combobox", name="kind").select_option("house")
    form.get_by_role("button", name="Add").click()
    instances = json.loads(body(page).input_value())["instances"]
    assert [each["rooms"] for each in instances] == [7, 3]
    assert (instances[0]["garden"], instances[0]["kind"]) == (True, "house")
    send(page)
    assert re.search(r"145,\s+60", response(page).inner_text())


def test_what_the_form_allows_and_the_model_does_not_is_an_error(visit: Any) -> None:
    page = visit()
    choose(page, "prices")
    body(page).fill('{"instances": [{"rooms": 0}]}')
    send(page, "Failed")
    alert = page.get_by_role("alert").filter(has_text="The server answered 400")
    assert "rooms" in alert.inner_text()


# --- what comes ----------------------------------------------------------------------------------


def test_text_flows_together(visit: Any) -> None:
    page = visit()
    choose(page, "writer")
    send(page)
    text = page.get_by_role("group", name="Text of the response").inner_text()
    assert text.strip() == "A server that streams sends each item as soon as it is"
    assert re.fullmatch(r"[\d.]+ m?s", figure(page, "Time to first item"))
    assert figure(page, "Items") == "12"
    assert float(figure(page, "Items/s").replace(",", "")) > 1
    gaps = page.get_by_role("img", name=re.compile("Gaps between items: median"))
    assert gaps.count() == 1
    page.get_by_role("radiogroup", name="View").get_by_text("Items").click()
    assert items(page).count() == 12


@pytest.mark.parametrize("form", ["NDJSON", "Events (SSE)", "As it is"])
def test_text_is_text_in_each_form(visit: Any, form: str) -> None:
    page = visit()
    choose(page, "years")
    page.get_by_role("combobox", name="Answer as").select_option(label=form)
    send(page)
    text = page.get_by_role("group", name="Text of the response").inner_text()
    assert text == "2024 was before 2025"


def test_no_text_is_read_as_markup(visit: Any) -> None:
    page = visit()
    choose(page, "markup")
    send(page)
    text = page.get_by_role("group", name="Text of the response")
    assert text.inner_text() == "<img src=x onerror=alert(1)><script>alert(2)</script>"
    assert text.locator("img, script").count() == 0


def test_ten_thousand_items_are_few_rows(visit: Any) -> None:
    page = visit()
    choose(page, "count")
    page.evaluate(
        "most = 0; new MutationObserver(() => {"
        "most = Math.max(most, document.querySelectorAll('[role=option]').length)"
        "}).observe(document.getElementById('list'), {subtree: true, childList: true})"
    )
    send(page)
    assert figure(page, "Items") == "10,000"
    box = page.get_by_role("listbox", name="Items")
    box.get_by_text('{"number":9999,').wait_for()
    box.focus()
    page.keyboard.press("Home")
    box.get_by_text('{"number":0,').wait_for()
    page.keyboard.press("PageDown")
    page.keyboard.press("End")
    chosen = box.get_by_role("option", selected=True)
    assert '{"number":9999,' in chosen.inner_text()
    assert chosen.get_attribute("aria-posinset") == chosen.get_attribute("aria-setsize") == "10000"
    assert '"square": 99980001' in page.get_by_role("group", name="The chosen item").inner_text()
    assert 0 < page.evaluate("most") <= 200


def test_stop_ends_the_work(visit: Any, url: str) -> None:
    page = visit()
    choose(page, "endless")
    stop = page.get_by_role("button", name="Stop", exact=True)
    assert stop.is_disabled()
    body(page).fill('{"instances": ["by the page"]}')
    page.get_by_role("button", name="Send", exact=True).click()
    items(page).nth(3).wait_for()
    stop.click()
    response(page).get_by_text("Stopped").wait_for()
    assert stop.is_disabled()
    assert page.get_by_role("button", name="Send").evaluate("it => it === document.activeElement")
    ends = time.monotonic() + 20
    while "by the page" not in (
        found := page.request.post(f"{url}/v1/models/stopped:predict", data="{}").text()
    ):
        assert time.monotonic() < ends, found


def test_an_error_before_the_first_item_is_one(visit: Any) -> None:
    page = visit()
    choose(page, "refuses")
    send(page, "Failed")
    alert = page.get_by_role("alert").filter(has_text="The server answered 400")
    assert "The model does not like this input." in alert.inner_text()


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("NDJSON", "The index is gone."),
        ("Events (SSE)", "The index is gone."),
        ("As it is", "The response ended before it was complete."),
    ],
)
def test_a_stream_that_breaks_does_not_look_complete(visit: Any, form: str, problem: str) -> None:
    page = visit()
    choose(page, "breaks")
    page.get_by_role("combobox", name="Answer as").select_option(label=form)
    send(page, "Failed")
    text = response(page).inner_text()
    assert problem in text
    assert "word0 word1" in text  # of a connection that is cut, the last may be lost


def test_a_server_that_is_gone_is_told(visit: Any, serve: Callable[..., Server]) -> None:
    server = serve("modelserve", "shown.py")
    page = visit(server.url)
    choose(page, "endless")
    page.get_by_role("button", name="Send").click()
    items(page).nth(3).wait_for()
    server.stop()
    response(page).get_by_text("The response is incomplete, after").wait_for()
    send(page, "Failed")
    response(page).get_by_text("The server cannot be reached").wait_for()
    page.get_by_role("list", name="Models").get_by_text("unknown").first.wait_for()


def test_numbers_pictures_and_sounds_are_shown_as_such(visit: Any) -> None:
    page = visit()
    choose(page, "sensor")
    send(page)
    page.get_by_role("img", name=re.compile("^Values: 200, from -")).wait_for()
    choose(page, "picture")
    send(page)
    picture = response(page).get_by_role("img", name=re.compile("^Response, image.png"))
    assert picture.evaluate("it => [it.naturalWidth, it.naturalHeight]") == [64, 64]
    choose(page, "pictures")
    send(page)
    page.get_by_role("listbox", name="Items").focus()
    page.keyboard.press("ArrowDown")
    item = response(page).get_by_role("img", name=re.compile("^Item 1, image.png"))
    assert item.evaluate("it => it.naturalWidth") == 48
    assert '"step": 0' in page.get_by_role("group", name="The chosen item").inner_text()
    choose(page, "voice")
    send(page)
    sound = response(page).get_by_label("Response").locator("xpath=self::audio")
    page.wait_for_function("() => document.querySelector('audio').duration === 1")
    assert sound.count() == 1


# --- other input ---------------------------------------------------------------------------------


def test_a_conversation_remembers_what_was_said(visit: Any) -> None:
    page = visit()
    choose(page, "writer")
    page.get_by_role("radiogroup", name="Operation").get_by_text("Chat", exact=True).click()
    message = page.get_by_role("textbox", name="Message")
    talk = page.get_by_role("list", name="Conversation")
    message.fill("Good morning")
    message.press("Enter")
    talk.get_by_text("You said Good morning as message 1.").wait_for()
    response(page).get_by_text("Complete").wait_for()
    message.fill("Good night")
    send(page)
    talk.get_by_text("You said Good night as message 2.").wait_for()
    assert talk.get_by_role("listitem").count() == 4
    said = json.loads(sent(page).partition("--data-binary '")[2].removesuffix("'"))
    assert [each["role"] for each in said["messages"]] == ["user", "assistant", "user"]
    page.get_by_role("button", name="New conversation").click()
    assert talk.get_by_role("listitem").count() == 1


@pytest.mark.parametrize(
    "options", ['{"stream_options": {"include_usage": true}}', '{"stream": false}']
)
def test_a_conversation_may_have_options(visit: Any, options: str) -> None:
    page = visit()
    choose(page, "writer")
    page.get_by_role("radiogroup", name="Operation").get_by_text("Chat", exact=True).click()
    page.get_by_text("Instructions and options").click()
    page.get_by_role("textbox", name="Options, as JSON").fill("{")
    page.get_by_role("textbox", name="Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Column 2: It ends too early: expected a key or }").wait_for()
    page.get_by_role("textbox", name="Options, as JSON").fill(options)
    page.get_by_role("textbox", name="Message").fill("Hello")
    send(page)
    talk = page.get_by_role("list", name="Conversation")
    talk.get_by_text("You said Hello as message 1.").wait_for()
    assert talk.get_by_role("listitem").count() == 2
    assert "You said Hello" in response(page).inner_text()


def test_a_file_is_sent_as_it_is(visit: Any) -> None:
    page = visit()
    choose(page, "size")
    page.get_by_label("Choose a file, or drop it here").set_input_files(
        {"name": "it's.bin", "mimeType": "image/png", "buffer": b"x" * 70_000}
    )
    send(page)
    assert '"bytes": 70000' in response(page).inner_text()
    code = sent(page)
    assert "-H 'Content-Type: image/png'" in code
    assert r"""--data-binary '@it'\''s.bin'""" in code


def test_rows_are_answered_one_by_one(visit: Any) -> None:
    page = visit()
    choose(page, "average")
    body(page).fill("1\n2\n\n6")
    send(page)
    assert figure(page, "Items") == "3"
    body(page).fill("1\n2\n]")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Line 3, column 1: Expected a value, found ]").first.wait_for()


@pytest.mark.parametrize(("source", "begins"), [("Microphone", "52494646"), ("Camera", "ffd8ff")])
def test_live_input_goes_over_a_websocket(visit: Any, source: str, begins: str) -> None:
    page = visit(permissions=["microphone", "camera"])
    choose(page, "loud")
    page.get_by_role("radiogroup", name="Input").get_by_text("Live").click()
    page.get_by_role("combobox", name="Source").select_option(label=source)
    page.get_by_role("button", name="Send").click()
    items(page).nth(2).wait_for()
    assert begins in items(page).first.inner_text()
    page.get_by_role("button", name="End the input").click()
    response(page).get_by_text("Complete").wait_for()


def send_in_pieces(page: Any, model: str, size: int, outcome: str = "Complete") -> None:
    choose(page, model)
    page.get_by_role("radiogroup", name="Input").get_by_text("Live").click()
    page.get_by_role("combobox", name="Source").select_option(label="A file, in pieces")
    page.get_by_label("File to send in pieces").set_input_files(
        {"name": "a.bin", "mimeType": "", "buffer": b"x" * size}
    )
    send(page, outcome)


def test_a_file_goes_over_a_websocket_in_pieces(visit: Any, tmp_path: Path) -> None:
    page = visit()
    send_in_pieces(page, "loud", 150_000)
    assert figure(page, "Items") == "3"
    assert "18928" in items(page).last.inner_text()
    (tmp_path / "a.bin").write_bytes(b"x" * 1000)
    assert '"bytes":1000' in run(sent(page, "Python"), "Python", tmp_path)


def test_an_error_over_a_websocket_is_one(visit: Any) -> None:
    page = visit()
    send_in_pieces(page, "picky", 150_000, "Failed")
    alert = page.get_by_role("alert").filter(has_text="It failed after 1 item")
    assert "One piece is enough." in alert.inner_text()


def test_without_permission_there_is_a_sentence(visit: Any) -> None:
    page = visit()
    choose(page, "loud")
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia ="
        " async () => { throw new DOMException('x', 'NotAllowedError'); }; }"
    )
    page.get_by_role("radiogroup", name="Input").get_by_text("Live").click()
    send(page, "Failed")
    response(page).get_by_text("The browser does not allow it.").wait_for()


# --- code and history ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("echo", '{"a": [true, null, 12345678901234567890, "it\'s \\u00fc \\n"]}', None),
        ("count", '{"instances": [3]}', ["0", "1", "4"]),
        ("writer", '{"instances": [{"prompt": "$HOME `x`", "max_tokens": 2}]}', ["A", "server"]),
        ("average", "1\n2", ["1.0", "1.5"]),
    ],
)
@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_does_what_was_sent(
    visit: Any, tmp_path: Path, language: str, model: str, text: str, expected: list[str] | None
) -> None:
    page = visit()
    choose(page, model)
    body(page).fill(text)
    send(page)
    printed = run(sent(page, language), language, tmp_path)
    if expected is None:
        assert "12345678901234567890" in printed
        assert "it's ü" in printed.replace("\\'", "'")
    else:
        found = [printed.find(each) for each in expected]
        assert -1 not in found
        assert found == sorted(found), printed


def run(code: str, language: str, folder: Path) -> str:
    """Run code as a user would; return what it prints."""
    name, command = {
        "curl": ("code.sh", ["sh"]),
        "Python": ("code.py", [sys.executable]),
        "JavaScript": ("code.mjs", ["node"]),
    }[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    (folder / name).write_text(code, encoding="utf-8")
    done = subprocess.run(
        [*command, name], check=False, cwd=folder, capture_output=True, timeout=60
    )
    assert done.returncode == 0, (code, done.stderr)
    return done.stdout.decode()


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_of_a_conversation_is_that_of_what_was_sent(
    visit: Any, tmp_path: Path, language: str
) -> None:
    page = visit()
    choose(page, "writer")
    page.get_by_role("radiogroup", name="Operation").get_by_text("Chat", exact=True).click()
    page.get_by_role("textbox", name="Message").fill('a "quoted"\nmessage')
    send(page)
    code = sent(page, language)
    assert "You said" not in code
    assert "message" in run(code, language, tmp_path)


def test_the_past_is_there_to_go_back_to(visit: Any) -> None:
    page = visit()
    choose(page, "echo")
    body(page).fill('{"first": 1}')
    send(page)
    choose(page, "writer")
    send(page)
    past = page.get_by_role("list", name="History").get_by_role("button")
    assert past.count() == 2
    past.filter(has_text="echo").click()
    page.get_by_role("heading", name="echo", exact=True).wait_for()
    assert body(page).input_value() == '{"first": 1}'
    assert '"first": 1' in response(page).inner_text()
    assert '{"first": 1}' in sent(page)


def test_the_code_is_copied(visit: Any) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    choose(page, "echo")
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == sent(page)


# --- a token, a mount, no document ---------------------------------------------------------------


def test_a_token_is_asked_for_and_kept_in_memory(
    visit: Any, serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("s3cret")
    server = serve("modelserve", "shown.py", "--token-file", str(tmp_path / "token"))
    page = visit(server.url)
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    dialog.wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for()
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_role("button", name="Use the token").click()
    dialog.get_by_text("The server does not take this token.").wait_for()
    dialog.get_by_label("Token").fill("s3cret")
    page.keyboard.press("Enter")
    choose(page, "writer")
    send(page)
    assert "s3cret" not in page.content() + page.url
    for language in ("curl", "Python", "JavaScript"):
        assert "s3cret" not in sent(page, language)
    kept = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
    assert page.evaluate(kept) == '[{},{},""]'
    send_in_pieces(page, "loud", 1)
    page.get_by_role("button", name="Forget the token").click()
    dialog.wait_for()


def test_the_page_works_below_a_mount(visit: Any, serve: Callable[..., Server]) -> None:
    server = serve("uvicorn", "mounted:app")
    page = visit(f"{server.url}/deep/er/")
    assert page.url == f"{server.url}/deep/er/playground"
    choose(page, "writer")
    send(page)
    assert f"'{server.url}/deep/er/v1/models/writer:predict'" in sent(page)
    page.get_by_role("radiogroup", name="Operation").get_by_text("Chat", exact=True).click()
    page.get_by_role("textbox", name="Message").fill("Hello")
    send(page)
    page.get_by_role("list", name="Conversation").get_by_text("You said Hello").wait_for()


def test_the_page_works_without_the_document(visit: Any, url: str) -> None:
    page = visit("about:blank")
    page.route("**/openapi.json", lambda route: route.fulfill(status=404, body="{}"))
    page.goto(f"{url}/playground")
    choose(page, "double")
    body(page).fill('{"instances": [21]}')
    send(page)
    assert "42" in response(page).inner_text()
    choose(page, "years")
    body(page).fill('{"instances": [21]}')
    send(page)
    assert "2024 was before 2025" in response(page).inner_text()
    assert page.get_by_role("link", name="OpenAPI").count() == 0


# --- for everybody -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_nothing_is_in_the_way_of_assistive_technology(
    visit: Any, scheme: str, options: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(color_scheme=scheme, bypass_csp=True, **options)

    def check(where: str) -> None:
        found = axe.run(page).response["violations"]
        named = [(each["id"], [n["html"] for n in each["nodes"]]) for each in found]
        assert named == [], where

    choose(page, "writer")
    send(page)
    check("a text")
    page.get_by_role("radiogroup", name="Operation").get_by_text("Chat", exact=True).click()
    page.get_by_role("textbox", name="Message").fill("Hello")
    send(page)
    check("a conversation")
    choose(page, "count")
    send(page)
    page.get_by_role("listbox", name="Items").focus()
    page.keyboard.press("ArrowUp")
    check("items")
    choose(page, "prices")
    page.get_by_role("radiogroup", name="Input").get_by_text("Form").click()
    check("a form")
    choose(page, "sensor")
    send(page)
    check("numbers")
    choose(page, "breaks")
    send(page, "Failed")
    check("an error")
    choose(page, "size")
    check("a file")
    choose(page, "echo")
    body(page).fill("{")
    page.get_by_role("button", name="Send").click()
    check("a mistake")
    choose(page, "voice")
    send(page)
    check("a sound")
    choose(page, "loud")
    page.get_by_role("radiogroup", name="Input").get_by_text("Live").click()
    check("live")


def test_the_keyboard_is_enough(visit: Any) -> None:
    page = visit()
    page.get_by_role("list", name="Models").get_by_role("button").first.wait_for()
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the request"
    while page.evaluate("document.activeElement.dataset.name") != "double":
        press("Tab")
    press("Enter")
    page.get_by_role("heading", name="double", exact=True).wait_for()
    while page.evaluate("document.activeElement.id") != "body":
        press("Tab")
    press("Control+a")
    page.keyboard.type('{"instances": [50]}')
    press("Control+Enter")
    response(page).get_by_text("Complete").wait_for()
    assert "100" in response(page).inner_text()
    for _ in range(60):
        assert page.evaluate("document.activeElement.matches(':focus-visible, body')")
        press("Tab")


@pytest.mark.parametrize("model", ["writer", "count", "prices", "pictures", "breaks", "loud"])
def test_a_phone_scrolls_down_alone(visit: Any, model: str) -> None:
    page = visit(**PHONE)
    choose(page, model)
    if model != "loud":  # it waits for a file
        send(page, "Failed" if model == "breaks" else "Complete")
    width, shown = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert width <= shown == 390


def test_a_screen_reader_is_told_how_it_went(visit: Any) -> None:
    page = visit()
    choose(page, "writer")
    send(page)
    status = page.get_by_role("status").filter(has_text="Complete: 12 items in")
    status.wait_for(state="attached")


def test_no_script_but_the_pages_own_runs(chromium: Any, url: str) -> None:
    page = chromium.new_page()
    page.goto(url)
    page.evaluate("ran = []")
    page.evaluate(
        """() => {
          const frame = document.createElement("iframe");
          const script = document.createElement("script");
          document.body.append(frame, script);
          for (const attempt of [
            () => { script.append("ran.push('script')"); },
            () => { document.body.setAttribute("onclick", "ran.push('handler')"); },
            () => { document.body.click(); },
            () => { document.body.innerHTML += "<img src=x onerror='ran.push(`image`)'>"; },
            () => { setTimeout(() => eval("ran.push('eval')")); },
            () => { frame.src = "javascript:parent.ran.push('frame')"; },
          ]) {
            try { attempt(); } catch { /* refused, as it should be */ }
          }
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("ran") == []
    page.close()
