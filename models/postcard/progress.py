"""A training run that can stop at any moment: its state is one file, replaced whole; its log, a JSON line a point."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tintype.files import write_whole


def warmup_then_cooldown(samples: int, total: int, *, warmup: int, cooldown: float) -> float:
    """The learning rate's factor: up over `warmup` samples, flat, down to zero over the last share `cooldown`."""
    rising = min(1.0, (samples + 1) / max(1, warmup))
    falling = min(1.0, (total - samples) / max(1.0, cooldown * total))
    return max(0.0, min(rising, falling))


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, factor: float) -> None:
    """Every group of the optimizer to peak * factor."""
    for group in optimizer.param_groups:
        group["lr"] = peak * factor


class Ema:
    """An exponential moving average of a module's parameters; the decay grows to its final value from 0.1."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        names, parameters = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_([self.shadow[name] for name in names], [p.detach() for p in parameters], 1.0 - decay)

    def copy_to(self, module: torch.nn.Module) -> None:
        module.load_state_dict(self.shadow, strict=False)


class Stage:
    """One stage's samples, state file and log under a folder. `parts` are what the state is made of."""

    def __init__(self, folder: Path, name: str, total: int, save_seconds: float = 120.0) -> None:
        self.name, self.total, self.save_seconds = name, total, save_seconds
        self.state_path = folder / f"{name}.pt"
        self.log_path = folder / f"{name}.jsonl"
        self.samples = 0
        self._saved_at = self._logged_at = time.monotonic()
        self._logged_samples = 0
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, parts: dict[str, Any]) -> None:
        """Load the state file, if there is one, into the parts; a state adopted from a checkpoint has weights alone."""
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        self.samples = self._logged_samples = state["samples"]
        for name, part in parts.items():
            if name not in state:
                continue
            if isinstance(part, Ema):
                part.shadow, part.steps = state[name]["shadow"], state[name]["steps"]
            else:
                part.load_state_dict(state[name])
        print(f"{self.name}: resumed at {self.samples:,} samples", file=sys.stderr, flush=True)

    def save(self, parts: dict[str, Any]) -> None:
        state: dict[str, Any] = {"samples": self.samples}
        for name, part in parts.items():
            state[name] = {"shadow": part.shadow, "steps": part.steps} if isinstance(part, Ema) else part.state_dict()
        write_whole(self.state_path, lambda file: torch.save(state, file))
        self._saved_at = time.monotonic()

    def save_if_due(self, parts: dict[str, Any]) -> None:
        if time.monotonic() - self._saved_at > self.save_seconds:
            self.save(parts)

    def log(self, **figures: float) -> None:
        """Append the figures, with samples and samples a second, to the log and print them."""
        now = time.monotonic()
        rate = (self.samples - self._logged_samples) / max(1e-9, now - self._logged_at)
        self._logged_at, self._logged_samples = now, self.samples
        line = {"stage": self.name, "samples": self.samples, "samples_per_second": round(rate, 2)}
        line |= {k: round(v, 5) for k, v in figures.items()}
        with self.log_path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        left = (self.total - self.samples) / max(rate, 1e-9)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
        print(f"{self.name} {self.samples:>9,}/{self.total:,}  {rate:6.1f}/s  {left / 60:6.1f} min left  {shown}",
              file=sys.stderr, flush=True)  # fmt: skip


def read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot(logs: Iterable[Path], out: Path) -> None:
    """Draw every figure of the logs against samples, one panel a figure (needs matplotlib)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, tuple[list[float], list[float]]] = {}
    for path in logs:
        for line in read_log(path):
            for key in line.keys() - {"stage", "samples"}:
                xs, ys = panels.setdefault(f"{line['stage']}: {key}", ([], []))
                xs.append(line["samples"])
                ys.append(line[key])
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 2.2 * len(panels)), squeeze=False)
    for axis, (title, (xs, ys)) in zip(axes[:, 0], sorted(panels.items()), strict=True):
        axis.plot(xs, ys, linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=80)
