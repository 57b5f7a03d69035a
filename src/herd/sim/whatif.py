"""What one more device would change: the same requests with it and without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from herd.sim.compare import Cell, Setting
from herd.sim.results import Interval, Metrics, bootstrap, bootstrap_ratio

_FIGURES: dict[str, Callable[[Metrics], float | None]] = {
    "mean": lambda run: run.mean,
    "p95": lambda run: run.p95,
    "first p50": lambda run: run.first_p50,
    "first p95": lambda run: run.first_p95,
}


class Change(Struct, frozen=True, kw_only=True):
    """One figure of one policy, in seconds, without and with the devices added."""

    setting: Setting
    policy: str
    figure: str
    before: Interval
    after: Interval
    #: With over without, seed by seed: below 1 is sooner.
    ratio: Interval


def without(setting: Setting) -> Setting:
    """Return the same experiment without the devices that are added."""
    return structs.replace(setting, add=())


def changes(before: Sequence[Cell], after: Sequence[Cell]) -> list[Change]:
    """Compare the cells of two settings that differ in what was added."""
    found = []
    for new in after:
        (old,) = (cell for cell in before if cell.policy == new.policy)
        for figure, take in _FIGURES.items():
            pairs = [
                (was, is_)
                for was, is_ in zip(map(take, old.runs), map(take, new.runs), strict=True)
                if was is not None and is_ is not None
            ]
            if pairs:
                found.append(
                    Change(
                        setting=new.setting,
                        policy=new.policy,
                        figure=figure,
                        before=bootstrap([was for was, _ in pairs]),
                        after=bootstrap([is_ for _, is_ in pairs]),
                        ratio=bootstrap_ratio([i for _, i in pairs], [w for w, _ in pairs]),
                    )
                )
    return found


def sentence(change: Change) -> str:
    """Say what becomes of a figure, in words."""
    added = " and ".join(change.setting.add)
    ratio = change.ratio
    if ratio.low <= 1.0 <= ratio.high:
        effect = "makes no difference that these seeds could show"
    else:
        word = "less" if ratio.mean < 1.0 else "more"
        shares = sorted(abs(1.0 - each) for each in (ratio.low, ratio.high))
        effect = f"is {abs(1.0 - ratio.mean):.0%} {word} ({shares[0]:.0%} to {shares[1]:.0%})"
    return (
        f"With {added}, the {_NAMES[change.figure]} under {change.policy} {effect}: "
        f"{change.before.mean:.2f} s before, {change.after.mean:.2f} s after."
    )


_NAMES = {
    "mean": "mean time to completion",
    "p95": "time in which 95 % are done",
    "first p50": "median time to the first token",
    "first p95": "time in which 95 % have their first token",
}
