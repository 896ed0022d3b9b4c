"""The console in a browser, before a server that says what it is told: no engine."""

import ast
import json

from tests.console.browsing import PAGES, faults, picture, sign_in, tab, visit
from tests.console.world import KEY

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "[a link](javascript:alert(1)) <a href=\"javascript:document.title='owned'\">x</a>",
    "</textarea></pre><svg onload=\"document.title='owned'\">",
    "${document.title='owned'} {{constructor.constructor('document.title=1')()}}",
)
CALL = {
    "id": "call-1",
    "created_at": "2026-03-01T12:00:00Z",
    "route": HOSTILE[0],
    "status": 200,
    "model": HOSTILE[1],
    "prompt_snippet": HOSTILE[0],
    "output_snippet": HOSTILE[2],
    "stream": True,
    "latency_ms": 12.5,
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "steering": None,
    "behaviors": [{"id": "b", "name": HOSTILE[3], "max_drift": 0.5, "threshold": 1, "drifted": False}],
    "error": HOSTILE[3],
}


async def say(page, text="Hello."):
    await page.get_by_label("Your message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def test_a_key_is_kept_for_the_tab_alone(browser, world):
    """A wrong key is told so; a right one lies in the tab's own storage, outlives a reload, and goes when one
    signs out."""
    async with tab(browser, world.url) as page:
        await page.get_by_label("API key").fill(f"ax_{'1' * 48}")
        await page.get_by_role("button", name="Enter").click()
        await page.get_by_role("alert").get_by_text("unknown or was revoked").wait_for()
        await sign_in(page, KEY)
        stored = await page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]")
        assert stored == [0, "", 1]
        await page.reload()
        await page.get_by_role("heading", name="Playground").wait_for()
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_label("API key").wait_for()
        assert await page.evaluate("sessionStorage.length") == 0


async def test_what_a_model_writes_is_text(browser, world):
    """Markup, scripts, links and templates in an answer and in what was recorded appear as they were written:
    no element is made of them, and nothing runs."""
    world.pieces = HOSTILE
    world.lists["observability/requests"] = {"requests": [CALL], "total": 1, "limit": 50, "offset": 0}
    world.lists["observability/requests/call-1"] = CALL
    async with tab(browser, world.url) as page:
        await sign_in(page, KEY)
        await say(page, HOSTILE[0])
        answer = page.locator(".answer .said")
        await page.get_by_text("tokens in").wait_for()
        assert await answer.inner_text() == "".join(HOSTILE)
        assert await page.locator(".turns").locator("img, script, svg, a").count() == 0
        await visit(page, "Activity")
        await page.locator("td button").click()
        await page.get_by_role("heading", name=HOSTILE[0]).wait_for()
        assert await page.locator("main").locator("img, script, svg").count() == 0
        assert await page.title() == "Activity · Steersman"


async def test_a_refusal_names_the_field_and_keeps_the_question(browser, world):
    """What a server refuses is shown in its words; a schema that is no JSON is told before anything is
    asked."""
    async with tab(browser, world.url) as page:
        await sign_in(page, KEY)
        await page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(
                status=400,
                body=json.dumps({"error": {"message": "is too long", "param": "messages.0"}}),
            ),
        )
        await say(page, "A question.")
        assert await page.get_by_role("alert").inner_text() == "messages.0: is too long"
        assert await page.get_by_label("Your message").input_value() == "A question."
        await page.get_by_text("Tools and policy").click()
        await page.get_by_label("Tools", exact=True).fill("[{")
        await page.get_by_text("Not JSON").wait_for()


async def test_a_server_that_goes_is_told_and_one_that_returns_is_used(browser, world):
    """While nothing answers, the page says so and asks again; then it goes on."""
    port = int(world.url.rsplit(":", 1)[1])
    async with tab(browser, world.url) as page:
        await sign_in(page, KEY)
        await world.stop()
        await say(page)
        await page.get_by_text("The server does not answer. What you see may be old").wait_for()
        assert await page.get_by_label("Your message").input_value() == "Hello."
        await picture(page, "server-gone")
        await world.start(port)
        await page.get_by_text("What you see may be old").wait_for(state="detached")
        await page.get_by_role("button", name="Send").click()
        await page.get_by_text("Hello, you.").wait_for()


async def test_no_page_has_a_serious_fault(browser, world):
    """axe-core finds none, the sign-in included, in light and dark."""
    async with tab(browser, world.url, bypass_csp=True) as page:
        await page.get_by_label("API key").wait_for()
        found = {"Sign-in": await faults(page)}
        await sign_in(page, KEY)
        for name in PAGES:
            await visit(page, name)
            found[name] = await faults(page)
        await visit(page, "Playground")
        for summary in await page.locator("summary").all():
            if await summary.evaluate("each => !each.parentElement.open"):
                await summary.click()
        await page.get_by_label("Format", exact=True).select_option("classification")
        await say(page)
        await page.get_by_text("tokens in").wait_for()
        found["An answer"] = await faults(page)
        assert {name: each for name, each in found.items() if each} == {}


async def test_a_question_is_asked_by_keyboard(browser, world):
    """From the address bar to an answer with keys alone; what has the focus is outlined."""
    async with tab(browser, world.url) as page:
        await page.get_by_label("API key").wait_for()
        await page.keyboard.insert_text(KEY)  # the field has the focus
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Playground").wait_for()
        for _ in range(60):
            await page.keyboard.press("Tab")
            focused = await page.evaluate("document.activeElement.id || document.activeElement.innerText")
            if focused == "question":
                break
        else:
            raise AssertionError("the question cannot be reached")
        await page.keyboard.insert_text("Hello.")
        await page.keyboard.press("Enter")
        await page.get_by_text("Hello, you.").wait_for()
        await page.keyboard.press("Shift+Tab")
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


async def test_a_narrow_screen_scrolls_down_and_not_sideways(browser, world):
    """Every page fits 360 points, and its navigation can be reached."""
    async with tab(browser, world.url, viewport={"width": 360, "height": 740}) as page:
        await sign_in(page, KEY)
        for name in PAGES:
            await visit(page, name)
            beyond = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert beyond <= 0, name
            await picture(page, f"narrow-{name.split()[0].lower()}")


async def test_limits_are_shown_and_set_where_the_server_has_some(browser, world):
    """Keys without them have no columns; with them, empty stands for the default and 0 for none."""
    key = {"id": "k", "masked": "ax_12345678…", "name": "laptop", "role": "member", "last_used": None}
    world.lists["auth/api-keys"] = [key]
    async with tab(browser, world.url) as page:
        await sign_in(page, KEY)
        await visit(page, "Keys and usage")
        await page.get_by_text("laptop").wait_for()
        assert await page.get_by_text("Requests/min").count() == 0
        limits = {"requests_per_minute": 5, "tokens_per_minute": None, "concurrent_requests": 0}
        world.lists["auth/api-keys"] = [key | limits]
        await visit(page, "Activity")
        await visit(page, "Keys and usage")
        row = page.locator("tbody tr")
        await row.get_by_text("laptop").wait_for()
        assert await row.locator(".number").all_inner_texts() == ["5", "default", "none"]
        await page.get_by_role("button", name="Limits of laptop").click()
        form = page.get_by_role("form", name="Limits of laptop")
        await form.get_by_label("Requests/min").fill("7")
        async with page.expect_request("**/auth/api-keys/k") as sent:
            await form.get_by_role("button", name="Set the limits").click()
        request = await sent.value
        assert (request.method, request.post_data_json) == ("PATCH", limits | {"requests_per_minute": 7})


async def test_an_image_goes_with_the_question(browser, world, tmp_path):
    """Where the model sees, a chosen file is shown, and sent as a data URL."""
    dot = tmp_path / "dot.gif"
    dot.write_bytes(bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b"))
    async with tab(browser, world.url) as page:
        await sign_in(page, KEY)
        await page.locator("input[type=file]").set_input_files(dot)
        await page.get_by_alt_text("To be sent").wait_for()
        await say(page, "What is it?")
        await page.get_by_text("Hello, you.").wait_for()
    text, image = world.said[-1]["messages"][-1]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"].startswith("data:image/gif;base64,")


async def test_a_fast_stream_is_shown_as_it_comes(browser, world, record_property):
    """At 100 tokens a second all are shown, and before the end the first ones. The gaps between frames are a
    figure, told with the test, and bounded only so far as to tell a page that hangs."""
    world.pieces, world.pause = [f"word{index} " for index in range(200)], 0.01
    async with tab(browser, world.url) as page:
        await sign_in(page, KEY)
        await page.evaluate(
            """() => {
                window.gaps = [];
                let before = performance.now();
                const frame = (now) => {
                    gaps.push(now - before);
                    before = now;
                    requestAnimationFrame(frame);
                };
                requestAnimationFrame(frame);
            }"""
        )
        await say(page)
        await page.get_by_text("word20 ").wait_for()
        early = await page.locator(".answer .said").inner_text()
        await page.get_by_text("200 tokens in").wait_for()
        gaps = sorted(await page.evaluate("gaps"))
        shown = await page.locator(".answer .said").inner_text()
    figure = {"median": gaps[len(gaps) // 2], "p99": gaps[int(len(gaps) * 0.99)], "longest": gaps[-1]}
    record_property("frame_gaps_ms", figure)
    print("gaps between frames, ms:", {name: round(value, 1) for name, value in figure.items()})
    assert "word199" not in early
    assert shown.split() == [f"word{index}" for index in range(200)]
    assert figure["median"] < 100


CALCULATED = """async () => {
    const from = (name) => import(document.querySelector('script[src]').src.replace('app.mjs', name));
    const { difference } = await from('playground/difference.mjs');
    const { literal } = await from('playground/snippets.mjs');
    const { roc, area, binned } = await from('behaviours/calibration.mjs');
    const { readPairs } = await from('parts/pairs.mjs');
    const { withValue } = await from('policies/editor.mjs');
    const pairs = ['[{"prompt": "p", "positive_answer": "a", "negative_answer": "b"}]', 'p\\ta\\tb',
        '{"positive": "a", "negative": "b", "prompt": "p"}'].map((text) => readPairs(text)[0]);
    let wrong = '';
    try { readPairs('one\\ttwo'); } catch (error) { wrong = error.message; }
    return {
        difference: difference(['a', 'b', 'c'], ['a', 'x', 'c', 'd']).map((each) => [...each]),
        literal: literal({ a: [true, null, 1.5, "it's"], b: {} }),
        area: [area(roc([3, 4], [1, 2])), area(roc([1, 2], [1, 2]))],
        binned: binned([0, 0.5, 1, 9], 1, 2),
        pairs: pairs.map(({ prompt, positive, negative }) => prompt + positive + negative),
        wrong,
        policy: [withValue({ a: { b: 1 } }, 'a.b', undefined), withValue({}, 'a.b', [2])],
    };
}"""


async def test_what_the_page_works_out_is_right(browser, world):
    """Differences of tokens, Python's literals, the area under a ROC with its ties, bins, pairs in each of
    their forms, and parts of a policy."""
    async with tab(browser, world.url) as page:
        await page.get_by_label("API key").wait_for()
        found = await page.evaluate(CALCULATED)
    assert found["difference"] == [[1], [1, 3]]
    assert ast.literal_eval(found["literal"]) == {"a": [True, None, 1.5, "it's"], "b": {}}
    assert found["area"] == [1, 0.5]
    assert found["binned"] == [1, 3]
    assert found["pairs"] == ["pab"] * 3
    assert "Line 1 is neither" in found["wrong"]
    assert found["policy"] == [{}, {"a": {"b": [2]}}]


# Bytes over the wire, headers included, and when the first content was painted.
LOADED = """() => {
    const found = ['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind));
    const bytes = found.reduce((sum, each) => sum + each.transferSize, 0);
    return [found.length, bytes, performance.getEntriesByName('first-contentful-paint')[0].startTime];
}"""


async def test_the_first_load_is_small_and_quick(browser, world, record_property):
    """Less than 300 KB, the playground that is fetched meanwhile included; a second visit asks for the page
    alone. When it was painted is a figure, told with the test."""
    async with tab(browser, world.url) as page:
        await page.wait_for_load_state("networkidle")
        count, sent, painted = await page.evaluate(LOADED)
        await page.goto(f"{world.url}/console")
        await page.wait_for_load_state("networkidle")
        _, again, _ = await page.evaluate(LOADED)
    record_property("first_load", {"bytes": sent, "ms": painted})
    print(f"first load: {count} files, {sent} bytes, painted after {painted:.0f} ms; again {again} bytes")
    assert 10_000 < sent < 300_000
    assert again < 3000
