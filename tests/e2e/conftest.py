"""A real Chromium that may talk to nobody but the router."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from devtools.testbed import Testbed
from tests.e2e.watched import Watched

FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
]


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Testbed]:
    async with Testbed(tmp_path) as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium here")
    # Chromium refuses to run in its sandbox as root.
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=found, headless=True, args=[*FLAGS, *as_root]
        )
        try:
            yield browser
        finally:
            await browser.close()


@pytest.fixture
async def watched(bed: Testbed, browser: Browser) -> AsyncIterator[Watched]:
    """The live page, which must do nothing wrong in the whole test."""
    context = await browser.new_context()
    opened = await Watched.open(context, bed)
    yield opened
    await context.close()
    assert opened.wrong == []
