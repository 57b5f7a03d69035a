"""A page under watch."""

from __future__ import annotations

from playwright.async_api import BrowserContext, Page

from devtools.testbed import Testbed


class Watched:
    """A page, and everything that it did that it should not do."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.wrong: list[str] = []
        self._origin = origin
        page.on("console", lambda line: self._heard(line.type, line.text))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self._asked(request.url))

    @classmethod
    async def open(cls, context: BrowserContext, bed: Testbed) -> Watched:
        watched = cls(await context.new_page(), bed.url)
        await watched.page.goto(f"{bed.url}/dashboard/")
        return watched

    def _heard(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.wrong.append(f"{kind}: {text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self._origin}/", "data:,")):
            self.wrong.append(f"request: {url}")
