"""What only moved is the same; a changed number is found where it is: in a sampler, or in a kernel and its builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from same import check_out, main

CASE = "exact-unguided-ancestral"


@pytest.mark.bench
def test_a_commit_is_the_same_as_itself_and_a_changed_number_is_found(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    check_out("HEAD", tree)

    def compared(file: str, was: str, now: str) -> tuple[int, list[str]]:
        source = (tree / file).read_text("utf-8")
        assert source.count(was) == 1
        (tree / file).write_text(source.replace(was, now), encoding="utf-8")
        done = CliRunner().invoke(main, ["HEAD", "--tree", str(tree), "--cases", CASE], catch_exceptions=False)
        (tree / file).write_text(source, encoding="utf-8")
        return done.exit_code, [line for line in done.output.splitlines() if line.startswith(("DIFFERS", "same"))]

    code, rows = compared("runtime/sampling/euler.py", "def ancestral_step(", "# Moved.\ndef ancestral_step(")
    assert code == 0
    assert all(row.startswith("same") for row in rows)
    assert rows[-1] == f"same    {CASE}"

    code, rows = compared("runtime/sampling/euler.py", "* up if up", "* 2 * up if up")
    assert code == 1
    assert [row for row in rows if row.startswith("DIFFERS")] == [f"DIFFERS {CASE}"]

    code, rows = compared("kernels/cpu/group_norm.py", '"epsilon": epsilon,', '"epsilon": epsilon * 2,')
    assert code == 1
    differing = [row for row in rows if row.startswith("DIFFERS")]
    assert differing.pop() == f"DIFFERS {CASE}"
    assert [row.split()[2] for row in differing] == ["denoiser,", "vae_decoder,"]


@pytest.mark.parametrize("arguments", [["no-such-commit"], ["HEAD", "--tree", "."], ["HEAD", "--cases", "none-such"]])
def test_what_cannot_be_compared_ends_with_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "Error: " in done.output
