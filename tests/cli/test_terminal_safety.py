"""Nothing that a stranger's file says steers the terminal, begins a line of its own or fills the screen."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tintype
from tintype.bounds import MAX_LINE_CHARS, MAX_MESSAGE_CHARS
from tintype.cli import say
from tintype.cli.failure import report
from tintype.errors import BundleError, RecordError, TintypeError, printable

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"  # OSC 52: what the person pastes next
HOSTILE = f"x{CLIPBOARD}\x9b2J\nerror: all is well\r\u202e\u2028\x7f\ud800"
SHOWN = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]*")


def assert_harmless(text: str, lines: int) -> None:
    assert SHOWN.fullmatch(text), text
    assert len(text.splitlines()) == lines
    assert len(text) <= lines * (MAX_LINE_CHARS + 20)
    assert not any(line.startswith("error: all is well") for line in text.splitlines())


@pytest.mark.parametrize("text", [HOSTILE, HOSTILE * 10**6, "\x1b" * 10**6, "\U000e0041" * 3000])
def test_a_text_is_one_bounded_line_of_what_can_be_seen(text: str) -> None:
    shown = printable(text)
    assert_harmless(shown, 1)
    assert len(shown) <= MAX_MESSAGE_CHARS
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text", ["a red house", "雪 👍 été", "👩\u200d🎨", "C:\\pictures\\x.png", "", "x" * MAX_MESSAGE_CHARS]
)
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_the_end_of_a_long_text_is_kept() -> None:
    assert printable("begin" + "x" * 10**6 + "end").endswith("end")


@pytest.mark.parametrize("kind", [TintypeError, BundleError, RecordError])
def test_an_error_is_harmless_wherever_it_is_shown(kind: type[TintypeError]) -> None:
    error = kind(f"there is no {HOSTILE}", fix=f"choose {HOSTILE * 1000}")
    for said in (error, error.with_fix(HOSTILE)):
        assert_harmless(str(said), 2)
        assert_harmless(said.message, 1)
        assert_harmless(said.fix, 1)
        assert_harmless(str(said.args[0]), 1)


@pytest.mark.parametrize(
    "error", [BundleError(HOSTILE, fix=HOSTILE), ValueError(HOSTILE), OSError(2, HOSTILE, HOSTILE)]
)
def test_what_the_command_says_of_an_error_is_harmless(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    error.add_note(f"written: {HOSTILE}")
    report(error, as_json=True)
    said = capsys.readouterr()
    assert_harmless(said.err, 3)
    assert said.out.isascii()
    assert_harmless(said.out, 1)
    assert json.loads(said.out)["error"]["notes"] == [f"written: {HOSTILE}"]


def test_a_traceback_that_was_asked_for_is_harmless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINTYPE_DEBUG", "1")
    report(ValueError(CLIPBOARD))
    assert SHOWN.fullmatch(capsys.readouterr().err)


@pytest.fixture
def hostile_bundle(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Postcard, its manifest changed."""

    def change(how: Callable[[dict[str, Any]], Any]) -> Path:
        source = Path(str(tintype.open_bundle("postcard").folder))
        folder = Path(shutil.copytree(source, tmp_path / "bundle", dirs_exist_ok=True))
        value = json.loads((folder / "tintype.json").read_text())
        how(value)
        value.pop("digest", None)
        (folder / "tintype.json").write_text(json.dumps(value))
        return folder

    return change


@pytest.mark.parametrize(
    "how",
    [
        lambda value: value["source"].update(location=HOSTILE),
        lambda value: value["source"].update(location=HOSTILE * 10**5),
        lambda value: value["parity"][0].update(reference=HOSTILE),
        lambda value: value["parity"][0].update(graph=HOSTILE * 10**5),
        lambda value: value.update(parity=value["parity"][:1] * 20_000),
        lambda value: value["default_request"].update(sampler=HOSTILE),
        lambda value: value["graphs"].update({HOSTILE: value["graphs"]["denoiser"]}),
        lambda value: value["graphs"].update({str(n): value["graphs"]["vae_decoder"] for n in range(2000)}),
        lambda value: value["graphs"]["denoiser"]["full"].update(precision=HOSTILE),
        lambda value: value.update(name=HOSTILE),
        lambda value: value.update(family=HOSTILE * 10**5),
        lambda value: value.update(scheduler=HOSTILE),
        lambda value: value.update({HOSTILE: {HOSTILE: HOSTILE}}),
    ],
)
def test_what_info_shows_of_a_bundle_is_harmless(how: Callable[[dict[str, Any]], Any], hostile_bundle, command) -> None:
    folder = hostile_bundle(how)
    outcome = command("info", folder)
    assert_harmless(outcome.stdout, len(outcome.stdout.splitlines()))
    assert_harmless(outcome.stderr, 0 if outcome.code == 0 else 2)
    assert len(outcome.stdout.splitlines()) < 400
    outcome = command("info", folder, "--json")
    assert outcome.stdout.isascii()
    assert_harmless(re.sub('"[^"]*"', "", outcome.stdout), 1)


def test_a_plan_and_the_names_of_builds_are_harmless(command, no_builds: Path, hostile_bundle) -> None:
    from tintype.engine.build.cache import write_facts
    from tintype.engine.build.facts import BuildIdentity

    folder = no_builds / "builds" / "0123456789abcdef01234567"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"x")
    facts = dict.fromkeys(("bundle", "name", "role", "variant", "target", "ort", "cpu", "lowering", "shape"), HOSTILE)
    write_facts(folder, BuildIdentity(**facts), {})
    outcome = command("cache")
    assert outcome.code == 0
    assert_harmless(outcome.stdout, 2)


def test_progress_shows_a_line_and_no_markup() -> None:
    from tintype.cli.progress import MAX_PROGRESS_CHARS, _line

    assert_harmless(_line(HOSTILE * 100), 1)
    assert len(_line(HOSTILE * 100)) <= MAX_PROGRESS_CHARS


def test_nothing_of_the_command_prints_past_say() -> None:
    """`print` and `click.echo` stand in say.py alone; show.py writes pictures, progress.py draws bars of rich."""
    cli = Path(say.__file__).parent
    sources = [*cli.glob("*.py"), cli.parents[1] / "export/command.py"]
    if not sources[-1].is_file():
        sources[-1] = Path(str(tintype.__file__)).parent / "export/command.py"
    callers = set()
    for source in filter(Path.is_file, sources):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "click.echo",
                "click.secho",
                "click.echo_via_pager",
                "sys.stdout.write",
                "sys.stderr.write",
                "traceback.print_exception",
                "traceback.print_exc",
            ):
                callers.add(source.name)
    assert callers == {"say.py"}
