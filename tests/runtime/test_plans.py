"""Plans of a pipeline that runs for months: as many as it uses, for what is free now, with every call counted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tintype
import tintype.memory.budget
from tintype.cli.plan import plan as plan_command
from tintype.engine import cache_entries
from tintype.errors import MemoryBudgetError
from tintype.graphs.measured import PLANS_KEPT, Planner
from tintype.memory.mode import MIB
from tintype.request import Request, resolve
from tintype.stages.denoise import Denoiser

SHAPE = {"width": 64, "height": 64, "exactness": "exact"}
PROMPT = "a house"


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Says how much memory the system has free."""

    def set_free(mib: int) -> None:
        monkeypatch.setattr(tintype.memory.budget, "free_bytes", lambda: mib * MIB)

    return set_free


@pytest.fixture
def plans_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The budget of each plan that is made, in bytes; by what is known of the graphs, without building."""
    made, plan = [], Planner.plan

    def counting(self, work, memory, *, build=True):
        found = plan(self, work, memory, build=False)
        made.append(found.budget_bytes)
        return found

    monkeypatch.setattr(Planner, "plan", counting)
    return made


def resolved(pipeline, **fields):
    return resolve(Request(prompt=PROMPT, **{**SHAPE, **fields}), pipeline.bundle.manifest)


def test_auto_is_read_again_for_each_request(tiny_bundle: Path, free, plans_made) -> None:
    free(3000)
    with tintype.load(tiny_bundle, provider="cpu", memory="auto", threads=1) as pipeline:
        request = resolved(pipeline)
        first = pipeline.planned(request)
        assert first is not None
        free(2900)
        again = pipeline.planned(dataclasses.replace(request, seed=5, prompt="a tent"))
        assert again is not None
        assert len(plans_made) == 1
        assert again.execution == first.execution
        assert again.budget_bytes < first.budget_bytes  # the record tells what was free then
        free(3000 * 2)
        assert pipeline.planned(request).budget_bytes > first.budget_bytes
        assert len(plans_made) == 2
        free(1)
        with pytest.raises(MemoryBudgetError) as caught:
            pipeline.planned(request)
        assert caught.value.least_bytes is not None
        free(6000)
        assert pipeline.planned(request).execution == first.execution
        assert len(plans_made) == 2


def test_a_budget_in_bytes_has_one_plan_for_one_kind_of_request(tiny_bundle: Path, plans_made) -> None:
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        request = resolved(pipeline)
        for seed in range(5):
            pipeline.planned(dataclasses.replace(request, seed=seed, prompt=f"house {seed}"))
        assert plans_made == [2**31]


def test_plans_that_are_kept_are_bounded(tiny_bundle: Path, plans_made) -> None:
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        for number in range(PLANS_KEPT + 10):
            pipeline.planned(resolved(pipeline, num_inference_steps=2 + number))
        assert len(plans_made) == PLANS_KEPT + 10
        pipeline.planned(resolved(pipeline, num_inference_steps=2 + PLANS_KEPT + 9))  # the last one is there
        assert len(plans_made) == PLANS_KEPT + 10
        pipeline.planned(resolved(pipeline, num_inference_steps=2))  # the first one is not
        assert len(plans_made) == PLANS_KEPT + 11


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        *itertools.product(["euler", "heun", "pndm", "dpmpp_sde", "dpm2_a"], [1, 3]),
        *[("restart", 21), ("seeds_3", 3), ("sa_solver_pece", 3)],
    ],
)
def test_a_plan_counts_the_denoisers_calls_as_they_are_made(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, steps: int
) -> None:
    calls, call = 0, Denoiser.__call__

    def counting(self, latents, sigma, timestep):
        nonlocal calls
        calls += 1
        return call(self, latents, sigma, timestep)

    monkeypatch.setattr(Denoiser, "__call__", counting)
    asked = {**SHAPE, "num_inference_steps": steps, "sampler": sampler, "count": 2, "seed": 1}
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        plan = pipeline.plan(PROMPT, build=False, **asked)
        pipeline.generate(PROMPT, **asked)
    assert {stage.role: stage.calls for stage in plan.stages}["denoiser"] == calls


def test_a_plan_explains_its_kernels_and_builds_nothing_and_needs_no_onnx(tiny_bundle: Path, no_builds) -> None:
    asked = [str(tiny_bundle), "--size", "64x64", "--provider", "cpu", "--threads", "1", "--explain"]
    code = "import sys; from tintype.cli.plan import plan; plan(sys.argv[1:], standalone_mode=False); "
    code += "print({'onnx', 'onnx_ir'} & set(sys.modules))"
    before = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=True).stdout
    assert before.count("not built yet, planned as packed; the first picture builds it, its kernels chosen") == 3
    assert before.endswith("set()\n")
    assert not cache_entries()
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        pipeline.generate(PROMPT, width=64, height=64, num_inference_steps=1)
    told = json.loads(CliRunner().invoke(plan_command, [*asked, "--json"]).stdout)["explained"]
    assert set(told) == {"text_encoder", "denoiser", "vae_decoder"}
    assert {kernels["by"] for kernels in told.values()} == {"priors"}
    assert told["denoiser"]["priors"]["processor"]
    layers = [row for kernels in told.values() for row in kernels["layers"]]
    assert any(row["layer"].startswith("Conv") and row["chosen"] in row["ways"] for row in layers)
    assert told["denoiser"]["always"]["attention"] > 0
    assert told["denoiser"]["others"]["Concat"] > 0
    lines = CliRunner().invoke(plan_command, asked).stdout
    assert "in times of the layer as it is" in lines
    assert "the only kernel, put in wherever it matches: attention" in lines


def test_the_command_plans_for_the_parts_of_a_prompt() -> None:
    asked = ["postcard", "--provider", "cpu", "--no-build", "--json", "--prompt", "a boat AND [a house|a tent]:0.5"]
    done = CliRunner().invoke(plan_command, asked)
    assert done.exit_code == 0, done.output
    stages = {stage["role"]: stage for stage in json.loads(done.stdout)["plan"]["stages"]}
    assert stages["denoiser"]["branches"] == 3
    assert stages["text_encoder"]["calls"] == 4
    refused = CliRunner().invoke(plan_command, ["postcard", "--encode", "--prompt", "a boat"])
    assert isinstance(refused.exception, SystemExit)
    assert "leave out --prompt" in refused.output
