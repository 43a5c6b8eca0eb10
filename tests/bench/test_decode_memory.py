"""A decode in strips beside the whole: less in no picture, and what each takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tintype.bench.decode_memory import main


@pytest.mark.bench
@pytest.mark.parametrize(("role", "name"), [("vae_decoder", "decode-memory"), ("vae_encoder", "encode-memory")])
def test_strips_are_as_near_to_the_whole_as_can_be(tiny_bundle: Path, tmp_path: Path, role: str, name: str) -> None:
    arguments = [str(tiny_bundle), "--role", role, "--sizes", "128x192", "--strip-mib", "0.25", "--threads", "1"]
    done = CliRunner().invoke(main, [*arguments, "--results", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(f"-{name}.json")
    table = json.loads(path.read_text())["parts"]["128x192"]["peers"]
    assert list(table) == ["whole", "0.25MiB"]
    assert (table["whole"]["stages"], table["whole"]["ratios"]["seconds over whole"]) == (0, 1.0)
    strips = table["0.25MiB"]
    assert strips["stages"] > 0
    assert strips["strips"] > strips["stages"]
    assert strips["psnr_db"]["smallest"] > 80
    assert strips["seconds"]["runs"] == 2
    assert min(strips["seconds"]["smallest"], strips["processor_seconds"]["smallest"]) > 0
    assert strips["peak_rss_bytes"] > strips["bare_bytes"] > 0
