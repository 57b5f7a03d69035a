"""Chips by the names that they report, with the figures that their makers specify.

Bandwidth is bytes/s of the memory that models live in; compute is dense multiply-adds in 16-bit
numbers with 32-bit sums, counted as two operations each, per second; memory is a card's own.

Sources. Apple: bandwidth by the technical specifications of the machines; compute is cores x 128
lanes x 2 x clock, the clock being 1.28, 1.40, 1.38 and 1.58 GHz for M1 to M4 (as measured by
others; Apple does not tell), and for M5 four times the M4's by Apple's statement on matrix
multiplication. A variant with fewer cores than the full one has the name of the full one, so its
compute is believed to be a little more than it is. NVIDIA: data sheets and architecture white
papers (Turing to Blackwell); of consumer cards the rate with 32-bit sums, half of what boxes say,
and never the rate with sparsity. AMD and Intel: data sheets.
"""

from __future__ import annotations

import re

from msgspec import Struct

_GB = 1_000_000_000
_GIB = 2**30


class Chip(Struct, frozen=True):
    """What a chip was made for."""

    name: str
    #: Bytes/s.
    bandwidth: float
    #: Operations/s.
    compute: float
    #: Bytes of its own; 0 where it shares the system's.
    memory: int = 0
    #: Apple's, which differ in what is reached of the figures.
    apple: bool = False


def _apple(name: str, bandwidth: float, cores: int, clock: float, faster: float = 1.0) -> Chip:
    compute = cores * 128 * 2 * clock * 1e9 * faster
    return Chip(f"apple {name}", bandwidth * _GB, compute, apple=True)


def _card(name: str, bandwidth: float, teraflops: float, gib: float) -> Chip:
    return Chip(name, bandwidth * _GB, teraflops * 1e12, int(gib * _GIB))


#: Name, GB/s, GPU cores, GHz.
_APPLE = (
    _apple("m1", 68.25, 8, 1.278),
    _apple("m1 pro", 200, 16, 1.296),
    _apple("m1 max", 400, 32, 1.296),
    _apple("m1 ultra", 800, 64, 1.296),
    _apple("m2", 100, 10, 1.398),
    _apple("m2 pro", 200, 19, 1.398),
    _apple("m2 max", 400, 38, 1.398),
    _apple("m2 ultra", 800, 76, 1.398),
    _apple("m3", 100, 10, 1.38),
    _apple("m3 pro", 150, 18, 1.38),
    _apple("m3 max", 400, 40, 1.38),
    _apple("m3 ultra", 819, 80, 1.38),
    _apple("m4", 120, 10, 1.578),
    _apple("m4 pro", 273, 20, 1.578),
    _apple("m4 max", 546, 40, 1.578),
    _apple("m5", 153.6, 10, 1.578, 4.0),
    _apple("m5 pro", 307, 20, 1.578, 4.0),
    _apple("m5 max", 614, 40, 1.578, 4.0),
)

#: Name, GB/s, TFLOP/s, GiB.
_NVIDIA = (
    _card("gtx 1060", 192, 4.4, 6),
    _card("gtx 1070", 256, 6.5, 8),
    _card("gtx 1080", 320, 8.9, 8),
    _card("gtx 1080 ti", 484, 11.3, 11),
    _card("gtx 1660", 192, 10.0, 6),
    _card("rtx 2060", 336, 25.8, 6),
    _card("rtx 2070", 448, 29.9, 8),
    _card("rtx 2080", 448, 40.3, 8),
    _card("rtx 2080 ti", 616, 53.8, 11),
    _card("rtx 3050", 224, 18.2, 8),
    _card("rtx 3060", 360, 25.5, 12),
    _card("rtx 3060 ti", 448, 32.4, 8),
    _card("rtx 3070", 448, 40.6, 8),
    _card("rtx 3070 ti", 608, 43.5, 8),
    _card("rtx 3080", 760, 59.5, 10),
    _card("rtx 3080 ti", 912, 68.2, 12),
    _card("rtx 3090", 936, 71.0, 24),
    _card("rtx 3090 ti", 1008, 80.0, 24),
    _card("rtx 4060", 272, 30.2, 8),
    _card("rtx 4060 ti", 288, 44.1, 8),
    _card("rtx 4070", 504, 58.3, 12),
    _card("rtx 4070 super", 504, 70.9, 12),
    _card("rtx 4070 ti", 504, 80.2, 12),
    _card("rtx 4070 ti super", 672, 88.2, 16),
    _card("rtx 4080", 717, 97.5, 16),
    _card("rtx 4080 super", 736, 104.4, 16),
    _card("rtx 4090", 1008, 165.2, 24),
    _card("rtx 5060", 448, 38.4, 8),
    _card("rtx 5060 ti", 448, 47.4, 16),
    _card("rtx 5070", 672, 61.7, 12),
    _card("rtx 5070 ti", 896, 87.9, 16),
    _card("rtx 5080", 960, 112.6, 16),
    _card("rtx 5090", 1792, 209.5, 32),
    _card("rtx 3060 laptop", 336, 21.8, 6),
    _card("rtx 3070 laptop", 448, 31.8, 8),
    _card("rtx 3080 laptop", 448, 38.0, 8),
    _card("rtx 4060 laptop", 256, 23.2, 8),
    _card("rtx 4070 laptop", 256, 31.2, 8),
    _card("rtx 4080 laptop", 432, 49.4, 12),
    _card("rtx 4090 laptop", 576, 66.0, 16),
    _card("rtx 5080 laptop", 896, 46.0, 16),
    _card("rtx 5090 laptop", 896, 63.6, 24),
    _card("rtx a2000", 288, 32.0, 6),
    _card("rtx a4000", 448, 76.7, 16),
    _card("rtx a5000", 768, 111.1, 24),
    _card("rtx a6000", 768, 154.8, 48),
    _card("rtx 4000 ada", 360, 106.9, 20),
    _card("rtx 5000 ada", 576, 261.1, 32),
    _card("rtx 6000 ada", 960, 364.2, 48),
    _card("rtx pro 6000", 1792, 503.8, 96),
    _card("tesla p40", 346, 11.8, 24),
    _card("tesla t4", 320, 65.0, 16),
    _card("tesla v100", 900, 125.0, 16),
    _card("a10", 600, 125.0, 24),
    _card("a10g", 600, 70.0, 24),
    _card("a30", 933, 165.0, 24),
    _card("a40", 696, 149.7, 48),
    _card("a100", 1555, 312.0, 40),
    _card("a100 80gb", 2039, 312.0, 80),
    _card("l4", 300, 121.0, 24),
    _card("l40", 864, 181.0, 48),
    _card("l40s", 864, 362.0, 48),
    _card("h100", 3350, 989.0, 80),
    _card("h100 pcie", 2000, 756.0, 80),
    _card("h100 nvl", 3900, 835.0, 94),
    _card("h200", 4800, 989.0, 141),
    _card("b200", 8000, 2250.0, 180),
    _card("gb10", 273, 125.0, 0),
)
_OTHERS = (
    _card("radeon rx 6800", 512, 32.3, 16),
    _card("radeon rx 6800 xt", 512, 41.5, 16),
    _card("radeon rx 6900 xt", 512, 46.1, 16),
    _card("radeon rx 7800 xt", 624, 74.7, 16),
    _card("radeon rx 7900 xt", 800, 103.0, 20),
    _card("radeon rx 7900 xtx", 960, 122.8, 24),
    _card("radeon rx 9070", 640, 145.0, 16),
    _card("radeon rx 9070 xt", 640, 195.0, 16),
    _card("radeon pro w7900", 864, 122.6, 48),
    _card("instinct mi210", 1638, 181.0, 64),
    _card("instinct mi250x", 3277, 383.0, 128),
    _card("instinct mi300x", 5300, 1307.4, 192),
    # Radeon 8060S of the Ryzen AI Max+ 395: 256 bits of LPDDR5X-8000.
    _card("ryzen ai max+ 395", 256, 59.4, 0),
    _card("radeon 8060s", 256, 59.4, 0),
    _card("arc a750", 512, 114.5, 8),
    _card("arc a770", 560, 131.0, 16),
    _card("arc b570", 380, 101.5, 10),
    _card("arc b580", 456, 117.0, 12),
)

#: Words of a name that say nothing of which chip it is, and what separates words.
_NOISE = re.compile(r"\((?:r|tm|c)\)|®|™|nvidia|geforce|graphics|amd|intel|[,_/()-]")
_COUNT = re.compile(r"^\s*(\d+) x ")
_SERIES = {"tesla", "radeon", "instinct", "gpu"}
#: Letters and numbers that are written together or apart: `RTX4090`, `RX 7900XTX`, `3080Ti`.
_SPLITS = (
    (re.compile(r"\b(rtx|gtx|rx|arc)(?=\d|a\d|b\d)"), r"\1 "),
    (re.compile(r"(\d)(ti|super|xtx|xt)\b"), r"\1 \2"),
)


def _words(text: str) -> tuple[str, ...]:
    lowered = _NOISE.sub(" ", _COUNT.sub("", text.lower()))
    for pattern, replacement in _SPLITS:
        lowered = pattern.sub(replacement, lowered)
    return tuple(word for word in lowered.split() if word not in _SERIES)


#: By words, the longest first: `RTX 4070 Ti SUPER` is none of the shorter ones.
_BY_WORDS = sorted(
    ((_words(chip.name), chip) for chip in (*_APPLE, *_NVIDIA, *_OTHERS)),
    key=lambda row: -len(row[0]),
)


def find(text: str) -> Chip | None:
    """Return the chip that a name speaks of, however it is written; None for any other.

    Words that the table does not know are passed over: `NVIDIA A100-SXM4-40GB` is an A100. What
    sets chips of one number apart is not: a laptop's is never taken for the desktop's.
    """
    words = _words(text)
    for wanted, chip in _BY_WORDS:
        if ("laptop" in words) == ("laptop" in wanted) and _speaks_of(words, wanted):
            return chip
    return None


def count(text: str) -> int:
    """Return how many cards a name speaks of, as agents write it: `2 x NVIDIA A100`."""
    match = _COUNT.match(text)
    return max(1, int(match[1])) if match else 1


def _speaks_of(words: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    if wanted[-1].endswith("gb"):
        # A100-SXM4-80GB: a word may stand between.
        return set(wanted) <= set(words)
    size = len(wanted)
    return any(words[at : at + size] == wanted for at in range(len(words) - size + 1))
