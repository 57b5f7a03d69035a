"""Ways in which an emulated engine can fail, switched at run time."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

#: How a stream breaks: the connection is cut; the engine tells of its model's death as it does in
#: that dialect; or the stream ends cleanly, without its terminator.
Break = Literal["cut", "error", "silent"]


class Faults(Struct, kw_only=True):
    """What goes wrong with requests that begin from now on. As made, nothing does."""

    #: Answer with this status before any work; 0 for none.
    status: int = 0
    #: Break streams after so many tokens; None for never.
    break_after: int | None = None
    how: Break = "cut"
    #: Send no more after so many tokens, and keep the connection; None for never.
    stall_after: int | None = None
    #: Take requests for work and never answer them.
    mute: bool = False
    #: Never answer anything, not even questions about the engine.
    frozen: bool = False
