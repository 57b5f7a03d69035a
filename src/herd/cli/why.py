"""`herd why`: what a running router says of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote, urlsplit

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from herd.core.explain import Explanation
    from herd.gateway.openapi import RequestDetail

ROUTER: Final = "http://127.0.0.1:11435"
_TIMEOUT: Final = 10.0
#: Columns of text where the output is no terminal.
_WIDTH: Final = 140


def why(
    request: Annotated[
        str, typer.Argument(metavar="ID", help="As the answer's Herd-Request-Id header has it.")
    ],
    router: Annotated[str, typer.Option(help="URL of the router.")] = ROUTER,
    json: Annotated[bool, typer.Option("--json", help="What the router says, as it came.")] = False,
) -> None:
    """Say why a request went where it went: all candidates, seven signals each, and what came."""
    # What is imported here takes longer than showing the help.
    import msgspec  # noqa: PLC0415 - see above

    from herd.cli.output import console, fail  # noqa: PLC0415 - see above
    from herd.gateway.openapi import RequestDetail  # noqa: PLC0415 - see above

    body = _ask(router, request)
    if json:
        typer.echo(body.decode())
        return
    try:
        detail = msgspec.json.decode(body, type=RequestDetail)
    except msgspec.DecodeError as error:
        fail(f"{router} does not answer as a router of this version does: {error}")
    show(console(_WIDTH), request, detail)


def _ask(router: str, request: str) -> bytes:
    import asyncio  # noqa: PLC0415 - see `why`

    import aiohttp  # noqa: PLC0415 - see `why`

    from herd.cli.output import fail  # noqa: PLC0415 - see `why`

    if urlsplit(router).scheme not in {"http", "https"}:
        fail(f"{router!r} is no URL of a router, such as {ROUTER}")
    url = f"{router.rstrip('/')}/herd/v1/requests/{quote(request, safe='')}"

    async def get() -> tuple[int, bytes]:
        limit = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with aiohttp.ClientSession(timeout=limit) as http, http.get(url) as answer:
            return answer.status, await answer.read()

    try:
        status, body = asyncio.run(get())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        fail(f"no router answers at {router}: {str(error) or 'it takes too long'}", code=1)
    if status == 404:  # noqa: PLR2004 - not found, in HTTP
        fail(f"the router at {router} knows no request {request!r}", code=1)
    if status != 200:  # noqa: PLR2004 - OK, in HTTP
        fail(f"{router} answered with status {status}", code=1)
    return body


def show(console: Console, request: str, detail: RequestDetail) -> None:
    """Print a request's explanation: the summary, a table in seconds, the sentences."""
    told = detail.explanation
    console.print(f"[bold]{request}[/bold]", highlight=False)
    if detail.open is not None:
        state = detail.open
        console.print(f"{state.model}: {state.state} for {state.age:.1f} s", highlight=False)
    if told is None:
        console.print("It waits; nothing has been decided yet.")
        return
    for line in told.summary:
        console.print(line, highlight=False, markup=False)
    if told.candidates:
        console.print(_table(told))
        _sentences(console, told)
    for line in told.came:
        console.print(line, highlight=False, markup=False)


def _table(told: Explanation) -> Table:
    from rich.table import Table  # noqa: PLC0415 - see `why`

    from herd.core.decision import Signals  # noqa: PLC0415 - see `why`

    shown = Table(title="predicted seconds", title_justify="left")
    shown.add_column("candidate")
    names = Signals.__struct_fields__
    for name in (*names, "total"):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in told.candidates:
        where = f"{each.node} / {each.replica.engine}"
        if each.total is None:
            shown.add_row(where, *[""] * len(names), "-")
            continue
        parts = [f"{getattr(each.signals, name):.2f}" for name in names]
        style = "bold" if each.chosen else None
        mark = "> " if each.chosen else ""
        shown.add_row(f"{mark}{where}", *parts, f"{each.total:.2f}", style=style)
    return shown


def _sentences(console: Console, told: Explanation) -> None:
    for each in told.candidates:
        total = f", {each.total:.2f} s" if each.total is not None else ""
        chosen = " (chosen)" if each.chosen else ""
        console.print(
            f"{each.node} / {each.replica.engine}{total}{chosen}",
            highlight=False,
            markup=False,
            style="bold" if each.chosen else None,
        )
        for sentence in each.sentences:
            console.print(f"  {sentence}", highlight=False, markup=False)
    if told.more:
        console.print(f"and {told.more} more candidates", highlight=False)
