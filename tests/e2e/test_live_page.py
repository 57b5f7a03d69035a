"""The live page in a real browser."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Final, Literal

import pytest
from playwright.async_api import Browser, Error, expect

from devtools.testbed import CHAT, MB, Testbed
from herd.sim.spec import ModelSpec
from tests.e2e.watched import Watched
from tests.gateway.bodies import body

pytestmark = pytest.mark.browser

SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
#: Names that would do harm if they were taken for HTML. They set a mark that can be looked for.
SCRIPT = "<script>window.harmed=1</script>"
IMAGE = "<img src=x onerror=window.harmed=1>"


async def harm(watched: Watched) -> list[object]:
    """Marks and elements that text must not have made."""
    found: list[object] = await watched.page.evaluate(
        "[window.harmed, ...document.querySelectorAll('table :is(script, img, a, iframe)')]"
        ".filter(Boolean)"
    )
    return found


async def test_nodes_and_requests_appear_while_one_looks(bed: Testbed, watched: Watched) -> None:
    page = watched.page
    await expect(page.locator("#state")).to_have_text("0 nodes, 0 running, 0 waiting, 0 ended")
    await expect(page.locator("#no-nodes")).to_be_visible()
    await expect(page.locator("#fleet")).to_be_hidden()
    engine = await bed.add("box", decode_rate=5.0)
    rows = page.locator("#fleet tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("box")
    await expect(page.locator("#fleet")).to_contain_text(CHAT)
    await expect(page.locator("#no-nodes")).to_be_hidden()

    asked = asyncio.create_task(bed.ask("/api/chat", body("/api/chat")))
    await expect(page.locator("#state")).to_contain_text("1 running")
    answer = await asked
    row = page.locator("#answered tbody tr")
    await expect(row).to_have_count(1)
    for text in (CHAT, "/api/chat", "completed", "box", answer.headers["Herd-Request-Id"]):
        await expect(row).to_contain_text(text)
    await expect(page.locator("#state")).to_have_text("1 node, 0 running, 0 waiting, 1 ended")
    assert engine.server.served == 1


async def test_what_others_choose_is_shown_as_text(bed: Testbed, watched: Watched) -> None:
    model = ModelSpec(name=f"{IMAGE}:1b".lower(), weight_bytes=MB)
    await bed.add(SCRIPT, dialect="openai", models=(model,))
    await bed.ask("/api/chat", body("/api/chat", model=f"{SCRIPT}{IMAGE}"))
    page = watched.page
    await expect(page.locator("#fleet tbody td").first).to_have_text(SCRIPT)
    await expect(page.locator("#fleet")).to_contain_text(IMAGE)
    await expect(page.locator("#answered .why")).to_have_text(f"model '{SCRIPT}{IMAGE}' not found")
    assert await harm(watched) == []


async def test_an_engines_error_is_shown_as_text(bed: Testbed, watched: Watched) -> None:
    engine = await bed.add(IMAGE)
    engine.server.faults.status = 500
    await bed.ask("/v1/chat/completions", body("/v1/chat/completions"))
    page = watched.page
    await expect(page.locator("#answered")).to_contain_text("the engine answered 500")
    await engine.tap.stop()
    await expect(page.locator("#fleet .why")).to_contain_text("down: ", timeout=10_000)
    await expect(page.locator("#fleet .title")).to_have_text(IMAGE)
    assert await harm(watched) == []


async def test_nothing_inline_runs(bed: Testbed, browser: Browser) -> None:
    context = await browser.new_context()
    watched = await Watched.open(context, bed)
    with pytest.raises(Error, match="Content Security Policy"):
        await watched.page.add_script_tag(content="window.harmed = 1")
    await watched.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.harmed=1>')"
    )
    with pytest.raises(Error):
        await watched.page.evaluate("fetch('http://127.0.0.2:9/')")
    assert await watched.page.evaluate("window.harmed") is None
    await context.close()


async def test_a_router_that_stops_is_told_and_its_return_noticed(
    tmp_path: Path, browser: Browser
) -> None:
    context = await browser.new_context()
    async with Testbed(tmp_path / "first") as bed:
        watched = await Watched.open(context, bed)
        state = watched.page.locator("#state")
        await expect(state).to_contain_text("0 nodes")
        port = bed.router.port
    await expect(state).to_have_text("the router does not answer; trying again")
    async with Testbed(tmp_path / "second", port=port) as bed:
        await bed.add("box")
        await expect(state).to_contain_text("1 node", timeout=10_000)
    await context.close()


async def test_all_of_it_can_be_read(bed: Testbed, browser: Browser, tmp_path: Path) -> None:
    """Nothing is cut off or has to be scrolled sideways, and text stands out from its ground."""
    gone = await bed.add("node-with-a-name-of-some-length", facts="&memory=64GB")
    await bed.add("gpu", dialect="openai")
    for path in ("/api/chat", "/v1/messages", "/v1/chat/completions"):
        await bed.ask(path, body(path))
    await bed.ask("/api/chat", body("/api/chat", model="some/" + "very-long-name" * 6))
    await gone.tap.stop()
    for scheme, width in itertools.product(SCHEMES, (390, 1400)):
        context = await browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        watched = await Watched.open(context, bed)
        page = watched.page
        await expect(page.locator("#fleet .why")).to_contain_text("down: ", timeout=10_000)
        await expect(page.locator("#answered tbody tr")).to_have_count(4)
        await page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        assert await page.evaluate(TOO_WIDE) == [], (scheme, width)
        assert await page.evaluate(FAINT) == [], (scheme, width)
        await context.close()
        assert watched.wrong == []


TOO_WIDE = """
Array.from(document.querySelectorAll("html, body, section, td, th, p"))
  .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
  .map((e) => `${e.tagName} ${e.textContent.slice(0, 40)}: ${e.scrollWidth} > ${e.clientWidth}`)
"""

#: Text of less than 4.5 to 1, the contrast that WCAG 2 asks for (1.4.3).
FAINT = """
(() => {
  const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = channels(color).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (color) => {
    const [dark, bright] = [light(color), ground].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  return Array.from(document.querySelectorAll("h1, h2, p, td, th"))
    .filter((e) => e.textContent && e.offsetParent)
    .map((e) => [e.textContent.slice(0, 40), contrast(getComputedStyle(e).color)])
    .filter(([, found]) => found < 4.5);
})()
"""
