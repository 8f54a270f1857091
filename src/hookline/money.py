"""Money: prices as integers and what a usage costs.

Lives here: `Usage`, `Price`, `to_nanousd`, `format_usd`. Elsewhere: where prices come from (prices.py), who may spend (builtins/budget).
Idea: prices are pico-dollars per token, costs are nano-dollars, both integers; a cost is rounded up once, at the end, so that the ledger is
never below the bill and sums are exact in any order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import NamedTuple

PICO_PER_NANO = 1_000
NANO_PER_USD = 1_000_000_000


class Usage(NamedTuple):
    """Tokens of one attempt. `input_tokens` contains `cached_tokens` and `cache_write_tokens`; `output_tokens` contains `reasoning_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    is_estimated: bool = False
    audio_input_tokens: int = 0
    """Of `input_tokens`; priced apart."""
    audio_output_tokens: int = 0
    """Of `output_tokens`; priced apart."""
    tool_calls: tuple[tuple[str, int], ...] = ()
    """(hosted tool, how often the provider ran it): they may cost money of their own."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Price:
    """What a deployment charges, in pico-dollars (1e-12 USD) per token; `call_nanousd` is a flat price per call.

    1 USD per million tokens = 1_000_000 pico-dollars per token, so every published price is an exact integer."""

    input_picousd: int = 0
    output_picousd: int = 0
    cached_picousd: int | None = None
    cache_write_picousd: int | None = None
    call_nanousd: int = 0
    tiers: tuple[tuple[int, Price], ...] = ()
    """(above this many input tokens, the price that then holds for every token), ascending."""
    audio_input_picousd: int | None = None
    audio_output_picousd: int | None = None
    """What audio tokens cost; None: not known, which is not the same as the price of text."""
    tools: tuple[tuple[str, int], ...] = ()
    """(hosted tool, nano-dollars per call of it)."""
    source: str = field(default="", compare=False)
    """Who says so: "proxy.toml", or the built-in table and its day."""
    version: str = field(default="", init=False, compare=False)
    """A short hash of numbers and source, kept with every ledger row."""
    _dearest_input_picousd: int = field(default=0, init=False, compare=False)
    """An input token at most: plain, from the provider's cache, or written to it."""

    def __post_init__(self) -> None:
        numbers = (*(getattr(self, name) for name in _NUMBERS), self.source)
        version = hashlib.blake2b(repr(numbers).encode(), digest_size=6).hexdigest()
        object.__setattr__(self, "version", version)
        dearest = max(self.input_picousd, self.cached_picousd or 0, self.cache_write_picousd or 0)
        object.__setattr__(self, "_dearest_input_picousd", dearest)

    def cost_nanousd(self, usage: Usage) -> int:
        """Nano-dollars for `usage`, rounded up. Cached and cache-write tokens cost as input where no own price is known, audio as text."""
        inputs, outputs, cached, written, _, _, *apart = (
            usage  # an attribute of a tuple is looked up for ten times as long
        )
        for above_tokens, price in reversed(self.tiers):
            if inputs > above_tokens:
                return price.cost_nanousd(usage)
        of_input = self.input_picousd
        pico = outputs * self.output_picousd
        if not cached and not written:
            pico += inputs * of_input
        else:
            plain_tokens = inputs - cached - written
            pico += (inputs if plain_tokens < 0 else plain_tokens) * of_input  # below 0: said by who counts them apart
            pico += cached * (of_input if self.cached_picousd is None else self.cached_picousd)
            pico += written * (of_input if self.cache_write_picousd is None else self.cache_write_picousd)
        if apart != _NOTHING_APART:
            return self._with_what_is_apart(usage, pico)
        return -(-pico // PICO_PER_NANO) + self.call_nanousd

    def _with_what_is_apart(self, usage: Usage, pico: int) -> int:
        """The same with audio, whose tokens were counted as text, and with hosted tools."""
        if self.audio_input_picousd is not None:
            pico += usage.audio_input_tokens * (self.audio_input_picousd - self.input_picousd)
        if self.audio_output_picousd is not None:
            pico += usage.audio_output_tokens * (self.audio_output_picousd - self.output_picousd)
        of_tools = sum(times * (self.tool_nanousd(tool) or 0) for tool, times in usage.tool_calls)
        return max(-(-pico // PICO_PER_NANO), 0) + self.call_nanousd + of_tools

    def bound_nanousd(self, input_tokens: int, output_tokens: int, *, has_audio: bool = False) -> int:
        """The most that at most this many tokens can cost, whichever of them are cached, written to a cache or audio, and whichever tier they reach."""
        dearest_input, dearest_output, call_nanousd = (
            self._dearest_input_picousd,
            self.output_picousd,
            self.call_nanousd,
        )
        for above_tokens, price in self.tiers:
            if input_tokens > above_tokens:
                dearest_input = max(dearest_input, price._dearest_input_picousd)
                dearest_output = max(dearest_output, price.output_picousd)
                call_nanousd = max(call_nanousd, price.call_nanousd)
        if has_audio:
            prices = (self, *(price for _, price in self.tiers))
            dearest_input = max(dearest_input, *(price.audio_input_picousd or 0 for price in prices))
            dearest_output = max(dearest_output, *(price.audio_output_picousd or 0 for price in prices))
        pico = input_tokens * dearest_input + output_tokens * dearest_output
        return -(-pico // PICO_PER_NANO) + call_nanousd

    def tool_nanousd(self, tool: str) -> int | None:
        """What one call of a hosted tool costs; None if nobody said. "web_search" is the price of "web_search_preview" too, and the other way round."""
        found = [nano for name, nano in self.tools if tool.startswith(name) or name.startswith(tool)]
        return max(found, default=None)

    def with_tools(self, tools: tuple[tuple[str, int], ...]) -> Price:
        """This price, knowing what hosted tools cost."""
        if not tools:
            return self
        tiers = tuple((above, replace(price, tools=tools)) for above, price in self.tiers)
        return replace(self, tools=tools, tiers=tiers)

    @property
    def has_token_price(self) -> bool:
        return bool(self.input_picousd or self.output_picousd)


_NOTHING_APART = [*Usage()[Usage._fields.index("audio_input_tokens") :]]
_NUMBERS = (
    "input_picousd", "output_picousd", "cached_picousd", "cache_write_picousd", "call_nanousd", "tiers",
    "audio_input_picousd", "audio_output_picousd", "tools",
)  # fmt: skip


def to_nanousd(usd: float | str | Decimal) -> int:
    """USD as written by a person (0.02, "5.00") to nano-dollars, exactly: a float is read as its shortest decimal form."""
    return int(Decimal(str(usd)) * NANO_PER_USD)


def format_usd(nanousd: int) -> str:
    """Nano-dollars as USD for people: at least two decimals, no trailing zeros beyond them (`12.00`, `0.0000002`)."""
    if nanousd < 0:
        return "-" + format_usd(-nanousd)
    whole, rest = divmod(nanousd, NANO_PER_USD)
    cents, finer = divmod(rest, NANO_PER_USD // 100)
    return f"{whole}.{rest:09d}".rstrip("0") if finer else f"{whole}.{cents:02d}"
