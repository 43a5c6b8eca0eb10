"""The one form of a measurement: who takes turns, by what schedule, who is to be near to whom, ratios and bars.

    part = Comparison(
        contestants={"ours": ..., "theirs": ...},
        near={"ours": "theirs"},
        ratios=(("seconds", "theirs"),),
        bars=(Bar("ours", over="theirs", at_most=0.7), Bar(figure="psnr_db", at_least=70.0)),
    ).run(Schedule(rounds=3), scratch)

The part is {"peers": figures by contestant, "bars": verdicts}, and has "rates" where shares of them are asked for. What
makes contestants is a function of its own, so that tests see them without measuring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tintype.bench.figures import Table, Verdict, figure_value, file_psnr_db, summary, verdict
from tintype.bench.rates import RATES, Stage, add_shares, rates_peer
from tintype.bench.runner import Contestant, Schedule, measure

OUTSIDE_SHARE = 0.03  # of a denoising loop, spent outside the graphs


@dataclass(frozen=True, slots=True)
class Bar:
    """What a contestant's figure must reach, or its ratio to another's; of `None` the worst of all that have it.

    less: is taken off before a ratio. It is judged as far as those it names were measured.
    """

    who: str | None = None
    figure: str = "seconds"
    over: str | None = field(default=None, kw_only=True)
    less: float = field(default=0.0, kw_only=True)
    statistic: str = field(default="median", kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)
    at_least: float | None = field(default=None, kw_only=True)
    what: str | None = field(default=None, kw_only=True)  # in place of the names

    def judge(self, table: Table) -> list[Verdict]:
        if any(name is not None and name not in table for name in (self.who, self.over)):
            return []
        what = self.what or f"{self.who or 'the worst'}{f' over {self.over}' if self.over else ''}, {self.figure}"
        return [verdict(what, self._value(table), at_most=self.at_most, at_least=self.at_least)]

    def _value(self, table: Table) -> float | None:
        names = table if self.who is None else (self.who,)
        values = [figure_value(table[name].get(self.figure), self.statistic) for name in names]
        known = [value for value in values if value is not None]
        worst = (min if self.at_most is None else max)(known, default=None)
        if self.over is None or worst is None:
            return worst
        theirs = figure_value(table[self.over].get(self.figure), self.statistic)
        return (worst - self.less) / theirs if theirs else None


def outside_bars(*names: str) -> list[Bar]:
    """What of a denoising loop is spent outside the graphs."""
    what = "{}, share of the loop outside the graph"
    return [Bar(name, "outside_share", at_most=OUTSIDE_SHARE, what=what.format(name)) for name in names]


def judge(bars: Iterable[Bar], table: Table) -> list[Verdict]:
    return [each for bar in bars for each in bar.judge(table)]


def add_ratios(table: Mapping[str, dict[str, Any]], ratios: Iterable[tuple[str, str]]) -> None:
    """Give each contestant its figure over a reference's, where both have it; their medians."""
    for figure, reference in ratios:
        whole = figure_value(table.get(reference, {}).get(figure))
        for figures in table.values() if whole else ():
            value = figure_value(figures.get(figure))
            if value is not None and whole:
                figures.setdefault("ratios", {})[f"{figure} over {reference}"] = round(value / whole, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """near: by contestant, whose answers its own are compared with, in dB. ratios: figures and references. stages: what
    is told of the machine's rates, which are measured by so many `threads`; int8: see `shares.add_shares`."""

    contestants: Mapping[str, Contestant]
    near: Mapping[str, str] = field(default_factory=dict)
    ratios: Sequence[tuple[str, str]] = ()
    bars: Sequence[Bar] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)
    threads: int | None = None
    int8: Collection[str] = ()
    resident: bool = False  # all stay open from the first round to the last
    least_rounds: int = 1

    def run(self, schedule: Schedule, scratch: Path) -> dict[str, Any]:
        """Measure; scratch: a folder for answers that are compared."""
        rounds = max(schedule.rounds, self.least_rounds)
        schedule = dataclasses.replace(schedule, rounds=rounds, resident=self.resident)
        contestants, files = dict(self.contestants), {}
        for number, name in enumerate(sorted({*self.near, *self.near.values()})):
            contestants[name], files[name] = contestants[name].saving(scratch / f"{number}")
        if self.stages:
            contestants = {RATES: rates_peer(self.threads), **contestants}
        table = {name: made.figures() for name, made in measure(contestants, schedule).items()}
        part: dict[str, Any] = {}
        if self.stages:
            part["rates"] = {name: each for name, each in table.pop(RATES).items() if name.endswith("/s")}
            add_shares(table, self.stages, part["rates"], self.int8)
        for name, reference in self.near.items():
            each_db = [file_psnr_db(*pair) for pair in zip(files[reference], files[name], strict=True)]
            table[name]["psnr_db"] = {**summary(each_db), "each": each_db}
        add_ratios(table, self.ratios)
        return {"peers": table, "bars": judge(self.bars, table), **part}
