"""A real browser on the console: what every page of it must not do, and pictures of what it did."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

PICTURES = Path(__file__).parents[2] / "build" / "console"
INSTALL = "apt-get install -y chromium; pip install playwright axe-playwright-python"
PAGES = ("Playground", "Vectors", "Policies", "Behaviours", "Activity", "Keys and usage")


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """The system's browser, started once. Skips with the line that installs it."""
    playwright = pytest.importorskip("playwright.async_api", reason=INSTALL)
    pytest.importorskip("axe_playwright_python", reason=INSTALL)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip(INSTALL)
    async with playwright.async_playwright() as started:
        # CI runs as root, where chromium has no sandbox, and maybe in a container with little shared memory.
        args = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = await started.chromium.launch(executable_path=path, args=args)
        yield browser
        await browser.close()


@asynccontextmanager
async def tab(browser: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    """A page of its own session. Afterwards: nothing was refused by the content security policy, no error
    was left uncaught, nothing outside was asked for, and no address held a key."""
    options = {"viewport": {"width": 1280, "height": 860}, **options}
    context = await browser.new_context(**options)
    page = await context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: "Security Policy" in told.text and problems.append(told.text))
    page.on("dialog", lambda dialog: dialog.accept())
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(60_000)
    await page.goto(f"{url}/console")
    yield page
    assert not problems
    assert [each for each in asked if not each.startswith((url, "data:", "blob:"))] == []
    assert not any("ax_" in each for each in [*asked, page.url])
    await context.close()


async def sign_in(page: Any, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Enter").click()
    await page.get_by_role("heading", name="Playground").wait_for()


async def visit(page: Any, name: str) -> None:
    await page.get_by_role("link", name=name, exact=True).click()
    await page.get_by_role("heading", name=name, level=1).wait_for()


async def picture(page: Any, name: str, *, whole: bool = False) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)


async def faults(page: Any) -> list[str]:
    """What axe-core finds that is serious or worse, in light and dark, by rule and place."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    found = []
    for scheme in ("dark", "light"):
        await page.emulate_media(color_scheme=scheme)
        told = await page.evaluate("axe.run({resultTypes: ['violations']})")
        found += [
            f"{scheme}, {each['id']}: {node['target'][0]}"
            for each in told["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
    return found
