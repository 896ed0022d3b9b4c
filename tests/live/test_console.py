"""The console in a browser before the running server: from the first visit to a steered answer, and the main
path of each page."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.embedded import NAME
from tests.console.browsing import chromium, faults, picture, sign_in, tab, visit
from tests.deploy.tools import TOOLS
from tests.live.conftest import BEHAVIOUR

pytestmark = pytest.mark.engine

TOKENS = "16"
QUESTION = "Tell me about your weekend."
NODE = ("openai@6.48.0", "typescript@5.9.3", "@types/node@20")  # for the programs in TypeScript


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


@pytest.fixture
async def page(browser, server) -> AsyncIterator[Any]:
    async with tab(browser, server.url) as opened:
        await sign_in(opened, server.key)
        yield opened
    # The server's own log has neither the key, beyond the line that shows it once, nor what was asked.
    log = server.log.read_text()
    assert log.count(server.key) <= 3
    assert QUESTION not in log


@pytest.fixture(scope="module")
def node() -> Path:
    """A folder with OpenAI's own client for Node and a compiler, kept beside the other tools."""
    folder = TOOLS.parent / "node"
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("apt-get install -y nodejs npm")
    if not all((folder / "node_modules" / name.rpartition("@")[0]).exists() for name in NODE):
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, *NODE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install {' '.join(NODE)}: {done.stderr[-200:]}")
    return folder


async def steer(page, vector: str, strength: str = "0.5") -> None:
    await page.get_by_label("Longest answer").fill(TOKENS)
    await page.get_by_label("Add", exact=True).select_option(f"vector:{vector}")
    slider = page.locator(".steer input[type=range]")
    await slider.fill(strength)


async def answer(page, question: str = QUESTION) -> str:
    """The last answer's text, once it is complete."""
    turns = await page.locator(".turn").count()
    await page.get_by_label("Your message").fill(question)
    await page.get_by_role("button", name="Send").click()
    turn = page.locator(".turn").nth(turns)
    await turn.get_by_text("tokens in").first.wait_for()
    return await turn.locator(".said").first.inner_text()


async def programs(page, *clients: str) -> dict[str, str]:
    if not await page.locator(".program").evaluate("each => each.open"):
        await page.get_by_text("This configuration as a program").click()
    found = {}
    for client in clients:
        await page.locator(".snippets .tab", has_text=client).click()
        code = page.locator(".snippets code")
        found[client] = await code.inner_text()
    return found


def run(client: str, program: str, server, folder) -> str:
    """What the program prints, or for curl what its answer says."""
    if client == "openai (TypeScript)":
        program = compiled(program, folder)
        command = ["node", "--input-type=module", "--eval", program]
    elif client == "curl":
        command = ["bash", "-c", program]
    else:
        command = [sys.executable, "-c", program]
    environ = os.environ | {"STEERSMAN_KEY": server.key}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    if client != "curl":
        return done.stdout.removesuffix("\n")
    told = json.loads(done.stdout)
    return told["choices"][0]["message"]["content"] if "choices" in told else told["text"]


def compiled(program: str, node: Path) -> str:
    """As JavaScript, once its types were checked."""
    (node / "program.mts").write_text(program)
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    compiler = node / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        ["node", compiler, *options, "program.mts"], cwd=node, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return (node / "program.mjs").read_text()


async def test_from_the_first_visit_to_a_steered_answer(page, trained, ask):
    """A key, a vector, a question: the answer comes steered, with its dose, and is the one that the same
    request gets over the API."""
    await steer(page, trained)
    said = await answer(page)
    await page.get_by_text("steered, dose").wait_for()
    await picture(page, "playground")
    steering = [{"vector_id": trained, "strength": 0.5}]
    same = {"max_tokens": int(TOKENS), "seed": 7, "temperature": 0.7}
    assert said == ask.chat(QUESTION, steering=steering, **same)["choices"][0]["message"]["content"]
    assert said != ask.chat(QUESTION, **same)["choices"][0]["message"]["content"]
    assert await faults(page) == []


async def test_a_dose_is_shown_before_it_breaks_the_model(page, trained, ask):
    """The meter is green, then amber, then red as the strength grows, and says where the server refuses. It
    is the dose that an answer has."""
    await steer(page, trained, "0.05")
    slider, meter = page.locator(".steer input[type=range]"), page.locator(".dose")
    for strength, level in (("0.05", "good"), ("0.25", "warn"), ("1", "bad"), ("3", "bad")):
        await slider.fill(strength)
        await page.locator(f".dose.{level} b").wait_for()
        if strength == "1":
            shown = await meter.locator("b").inner_text()
    await meter.get_by_text("refused: ").wait_for()
    steering = [{"vector_id": trained, "strength": 1}]
    told = ask.ok("/steering/dose", steering=steering)
    assert told == {"dose": ask.chat(steering=steering)["steersman"]["steering"]["dose"], "warning": None}
    assert f"{told['dose']:.2f}" == shown
    refused = ask.post("/steering/dose", steering=[{"vector_id": trained, "strength": 9}])
    assert refused.status_code == 422
    assert ask.post("/steering/dose").status_code == 422


async def test_two_configurations_answer_side_by_side(page, trained):
    """Both answer one prompt; tokens that the other has not are marked, and each has its probabilities."""
    await steer(page, trained, "1")
    await page.get_by_role("button", name="Side by side").click()
    await answer(page)
    await page.locator(".answer .evidence").nth(1).wait_for()
    assert await page.locator(".token.differs").count() > 2
    await page.locator(".token").nth(3).hover()
    await page.get_by_text("log-probability").wait_for()
    await page.mouse.move(0, 0)
    await page.locator(".tokens").nth(1).focus()
    await page.keyboard.press("ArrowRight")
    await page.get_by_text("log-probability").wait_for()
    await picture(page, "side-by-side")
    assert await faults(page) == []


async def test_every_program_gives_the_same_answer(page, trained, server, tmp_path):
    """What the page shows for each client runs as it is, and answers as the page was answered: drawn under
    the seed, and greedily for the client that has none."""
    await steer(page, trained)
    await page.get_by_label("Method", exact=True).select_option("top-p")
    said = await answer(page)
    drawn = await programs(page, "curl", "openai (Python)", "mechanex")
    assert server.key not in "".join(drawn.values())
    assert "mechanex sends no seed" in drawn.pop("mechanex")
    runs = [asyncio.to_thread(run, client, each, server, tmp_path) for client, each in drawn.items()]
    assert await asyncio.gather(*runs) == [said] * len(drawn)
    await page.get_by_role("button", name="New conversation").click()
    await page.get_by_label("Method", exact=True).select_option("greedy")
    said = await answer(page)
    [greedy] = (await programs(page, "mechanex")).values()
    assert run("mechanex", greedy, server, tmp_path) == said


async def test_the_typescript_program_compiles_and_gives_the_same_answer(page, trained, server, node):
    """By OpenAI's own client and the strict compiler."""
    await steer(page, trained)
    said = await answer(page)
    [program] = (await programs(page, "openai (TypeScript)")).values()
    assert server.key not in program
    assert await asyncio.to_thread(run, "openai (TypeScript)", program, server, node) == said


async def test_a_format_is_held_to_and_a_bad_one_refused_with_the_reason(page, ask, server, tmp_path):
    """A preset's schema shapes the answer and its program's; what does not compile is told as it is typed, in
    the compiler's words."""
    await page.get_by_text("Response format").click()
    await page.get_by_label("Format", exact=True).select_option("classification")
    await page.get_by_text("Compiles.").wait_for()
    said = await answer(page, "I love this film. Which label fits?")
    assert set(json.loads(said)) == {"label", "confident"}
    python = (await programs(page, "openai (Python)"))["openai (Python)"]
    assert run("python", python, server, tmp_path) == said
    bad = {"type": "object", "properties": {"a": {"type": "strin"}}}
    await page.get_by_label("JSON schema").fill(json.dumps(bad))
    reason = ask.post("/constraints/check", json_schema=bad).json()["detail"][0]["msg"]
    await page.get_by_text(reason).wait_for()


async def test_a_vector_is_made_measured_copied_and_deleted(page, client, tmp_path):
    """From pairs to a dose-response on those kept out of it; its file is saved and read again, and it goes
    when asked to."""
    await visit(page, "Vectors")
    await page.get_by_role("button", name="New vector").click()
    await page.get_by_role("button", name="Use an example").click()
    await page.get_by_label("Name", exact=True).first.fill("from the console")
    await page.get_by_label("Layer", exact=True).fill("16")
    await page.get_by_role("button", name="Make the vector").click()
    await page.get_by_role("button", name="Measure on 3 held-out pairs").click()
    await page.get_by_text("nats of cost, strength").wait_for()
    await page.get_by_label("Dose and response.").wait_for()
    await picture(page, "vectors")
    assert await faults(page) == []
    async with page.expect_download() as saved:
        await page.get_by_role("button", name="safetensors").click()
    assert (await saved.value).suggested_filename == "from the console.safetensors"
    await (await saved.value).save_as(tmp_path / "a copy.safetensors")
    await page.locator("input[type=file][accept*=gguf]").set_input_files(tmp_path / "a copy.safetensors")
    for name in ("a copy", "from the console"):
        await page.get_by_role("button", name=name, exact=True).first.click()
        await page.get_by_role("heading", name=name, exact=True).wait_for()
        await page.get_by_role("button", name="Delete").click()
        await page.get_by_role("button", name=name, exact=True).wait_for(state="detached")
    names = {each["name"] for each in client.get("/steering/vectors").json()}
    assert not names & {"a copy", "from the console"}


async def test_a_policy_is_written_run_and_searched(page):
    """Form and JSON stay in step, a run shows its candidates with their verdicts, a search its trials."""
    await visit(page, "Policies")
    await page.get_by_label("Forbidden terms").fill("banana, apple")
    await page.get_by_label("Best of").fill("2")
    policy = json.loads(await page.get_by_label("JSON", exact=True).input_value())
    assert policy["constraints"] == {"forbidden_terms": ["banana", "apple"]}
    policy["optimization"]["retry_on_failure"] = 0
    await page.get_by_label("JSON", exact=True).fill(json.dumps(policy, indent=2))
    assert await page.get_by_label("Retries").input_value() == "0"
    await page.get_by_label("Longest answer").fill("12")
    await page.get_by_role("button", name="Run", exact=True).last.click()
    await page.get_by_role("heading", name="Round 1").wait_for()
    assert await page.locator(".trace li").count() == 2
    await page.get_by_text("chosen").wait_for()
    await picture(page, "policies")
    assert await faults(page) == []
    await page.get_by_role("button", name="Compare", exact=True).first.click()
    others = page.get_by_role("group", name="Beside the policy at hand")
    await others.get_by_role("checkbox", checked=True).uncheck()
    await others.get_by_label("preset: Diverse chat").check()
    await page.get_by_role("button", name="Compare", exact=True).last.click()
    await page.get_by_role("heading", name="preset: Diverse chat").wait_for()
    assert await page.locator(".trace li").count() == 2 + 3  # of both policies
    await page.get_by_role("button", name="Evaluate", exact=True).click()
    await page.get_by_label("Prompts").fill("Name a river.")
    await page.get_by_role("button", name="Evaluate on 1").click()
    await page.get_by_text("accepted of 1").wait_for()
    await page.get_by_role("button", name="Autotune", exact=True).click()
    await page.get_by_label("Prompts").fill("Name a river.")
    await page.get_by_label("Values to try").fill('{"sampling.temperature": [0.2, 0.9]}')
    await page.get_by_role("button", name="Search", exact=True).click()
    await page.get_by_text("best", exact=True).wait_for()
    await page.get_by_label("Scores of 2 trials").wait_for()
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.get_by_role("button", name="Save a new version").click()
    await page.get_by_text("Versions").locator("..").get_by_role("button", name="2", exact=True).wait_for()
    await page.get_by_role("button", name="Delete").click()
    await page.get_by_role("button", name="Save", exact=True).wait_for()


async def test_a_behaviour_is_seen_in_each_token(page, behaviour, server, tmp_path):
    """Its calibration is drawn, watching for it colours the answer, which the programs get too, and what
    drifted is counted."""
    await visit(page, "Behaviours")
    await page.get_by_role("button", name=BEHAVIOUR).click()
    await page.get_by_label("ROC curve.").wait_for()
    assert await faults(page) == []
    await page.get_by_role("button", name="Watch for it").click()
    await page.get_by_label("Longest answer").fill(TOKENS)
    said = await answer(page)
    await page.get_by_text(f"{BEHAVIOUR}: ").wait_for()
    assert await page.locator("[class*=drift-]").count() >= int(TOKENS) - 2
    await page.locator("[class*=drift-]").nth(2).hover()
    await page.get_by_text(f"of {behaviour['threshold']:.2f}").wait_for()
    await picture(page, "drift")
    for client, program in (await programs(page, "curl", "openai (Python)")).items():
        assert await asyncio.to_thread(run, client, program, server, tmp_path) == said
    await page.wait_for_timeout(1500)  # what was observed is written once a second
    await visit(page, "Behaviours")
    await page.get_by_role("button", name=BEHAVIOUR).click()
    await page.get_by_text("drifted, the furthest to").wait_for()
    await picture(page, "behaviours", whole=True)


async def test_drift_is_shown_beside_steering(page, behaviour, trained):
    """Where the answer's stream has no scores, its tokens are coloured once it is complete."""
    await visit(page, "Behaviours")
    await page.get_by_role("button", name=BEHAVIOUR).click()
    await page.get_by_role("button", name="Watch for it").click()
    await steer(page, trained)
    await answer(page)
    await page.get_by_text("steered, dose").wait_for()
    assert await page.locator("[class*=drift-]").count() >= int(TOKENS) - 2


async def test_a_behaviour_is_made_and_deleted(page, autoencoder, client):
    """From pairs on the page to its calibration, which waits until the server has made it."""
    await visit(page, "Behaviours")
    await page.get_by_role("button", name="New behaviour").click()
    form = page.get_by_role("form", name="New behaviour")
    await form.get_by_label("Name", exact=True).fill("made on the page")
    await form.get_by_role("button", name="Use an example").click()
    await form.get_by_role("button", name="Make the behaviour").click()
    await page.get_by_role("heading", name="made on the page").wait_for()
    await page.get_by_label("ROC curve.").wait_for()
    vectors = [
        each for each in client.get("/behaviors").json() if each["behavior_name"] == "made on the page"
    ]
    await page.get_by_role("button", name="Delete").click()
    await page.get_by_role("button", name="made on the page").wait_for(state="detached")
    for each in vectors:
        client.delete(f"/steering/vectors/{each['steering_vector_id']}")
    assert len(vectors) == 1


async def test_a_policys_verdicts_are_found_later(page, ask):
    """Its candidates with their scores stand beside the call."""
    ask.ok("/policies/run", prompt="Which lighthouse is the oldest?", policy={}, max_new_tokens=4)
    await page.wait_for_timeout(1500)  # what was observed is written once a second
    await visit(page, "Activity")
    await page.get_by_label("Search").fill("lighthouse")
    row = page.locator("tbody tr").filter(has_text="Which lighthouse").first
    await row.get_by_role("button").click()
    await page.get_by_role("heading", name="Policy: accepted").wait_for()
    assert await page.locator(".trace li").filter(has_text="round 1, ").count() == 1


async def test_stored_answers_are_rated_and_tests_of_models_told(page, ask, client, server):
    """One click scores an answer; a running A/B test shows its variants."""
    told = ask.chat("Which bridge is the longest?", store=True)
    await visit(page, "Activity")
    await page.get_by_text("Stored answers and feedback").click()
    first = page.locator(".trace li").filter(has_text=told["choices"][0]["message"]["content"].strip()).first
    await first.get_by_role("button", name="Good").click()
    await first.get_by_text("rating: 1").wait_for()
    given = client.get(f"/v1/chat/completions/{told['id']}/feedback").json()["data"]
    assert [(each["metric"], each["value"]) for each in given] == [("rating", 1)]
    sdk = pytest.importorskip("adaptive_sdk").Adaptive(base_url=server.url, api_key=server.key)
    sdk.set_default_project("default")
    sdk.feedback.register_key("default", "console_liked", "bool")
    sdk.ab_tests.create("seen-in-the-console", "console_liked", [NAME])
    try:
        await page.get_by_text("A/B tests", exact=True).click()
        shown = page.locator(".trace li").filter(has_text="seen-in-the-console")
        await shown.get_by_text("No p-value yet").wait_for()
        assert await shown.get_by_text(f"{NAME}: ").count() == 1
    finally:
        sdk.ab_tests.cancel("seen-in-the-console")
        sdk.close()


async def test_a_call_is_found_and_asked_again(page, trained):
    """Search finds it, its evidence is shown, and the playground asks it under the same steering."""
    question = "Which harbour is the oldest?"
    await steer(page, trained)
    await answer(page, question)
    await page.wait_for_timeout(1500)  # what was observed is written once a second
    await visit(page, "Activity")
    await page.get_by_label("Search").fill("OLDEST")
    row = page.locator("tbody tr").filter(has_text=question).first
    await row.get_by_role("button").click()
    await page.get_by_role("heading", name="Steered, dose").wait_for()
    await picture(page, "activity")
    assert await faults(page) == []
    await page.get_by_role("button", name="Replay").click()
    assert await page.get_by_label("Your message").input_value() == question
    assert await page.locator(".steer output").inner_text() == "0.50"


async def test_a_key_is_made_limited_and_revoked(page, client):
    """It is shown once, works within its limits, and no more after it was revoked; usage is told by days."""
    await visit(page, "Keys and usage")
    await page.get_by_label("Name", exact=True).fill("of the console")
    await page.get_by_role("button", name="Make a key").click()
    made = await page.locator(".notice.good code").inner_text()
    headers = {"authorization": f"Bearer {made}"}
    assert client.get("/auth/verify-key", headers=headers).json()["name"] == "of the console"
    await page.get_by_role("button", name="Hide").click()
    await page.get_by_role("button", name="Limits of of the console").click()
    form = page.get_by_role("form", name="Limits of of the console")
    await form.get_by_label("Requests/min").fill("7")
    await form.get_by_role("button", name="Set the limits").click()
    await page.locator("tbody tr").filter(has_text="of the console").get_by_text("7", exact=True).wait_for()
    limits = {each["name"]: each["requests_per_minute"] for each in client.get("/auth/api-keys").json()}
    assert limits["of the console"] == 7
    await page.get_by_text("Tokens written").wait_for()
    await picture(page, "keys")
    assert await faults(page) == []
    await page.get_by_role("button", name="Revoke of the console").click()
    await page.get_by_role("button", name="Revoke of the console").wait_for(state="detached")
    assert client.get("/auth/verify-key", headers=headers).status_code == 401
