"""What a picture's content credentials say, and whether they hold: read by c2pa, where the extra is installed.

That a signature holds says that the file is as its signer left it. Who that is, is a name that anybody can write,
unless the certificate leads to an authority that the reader trusts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_CREDENTIALS_BYTES, MAX_SIGNED_BYTES
from tintype.errors import InstallError, RequestError, printable
from tintype.files import open_plain, read_plain
from tintype.trust.certificates import INSTALL, MOST_PEM_BYTES, is_installed
from tintype.trust.credentials import SETTINGS, WATERMARK_ALGORITHM, library
from tintype.trust.manifests import Container, scan

VALID, UNTRUSTED, INVALID, NONE, UNREAD = "valid", "untrusted", "invalid", "none", "unread"
MOST_LISTED = 32  # actions, ingredients and problems of a picture, each
MOST_TEXT_CHARS = 200
_UNTRUSTED = "signingCredential.untrusted"
_DEAR = (VALID, NONE, UNTRUSTED, INVALID)  # the better before the worse


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """A picture that another one was made from, as that one's signer met it."""

    title: str
    relationship: str
    state: str  # of its credentials and of those that it was itself made from: the worst; none: it had none
    problems: tuple[str, ...] = ()  # what did not hold, in C2PA's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """state: valid (signed by somebody that the reader trusts), untrusted (the file is as its signer left it, whoever
    that is), invalid (it isn't, or it can't be told), none, or unread (there are some, and they can't be read here)."""

    state: str
    signer: str | None = None  # as the certificate has it
    made_with: str | None = None
    actions: tuple[str, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    watermark_bound: bool | None = None  # whether the pixels carry the mark that was signed; None: can't be said
    problems: tuple[str, ...] = ()  # what does not hold, in C2PA's words, or why nothing was read
    fix: str | None = None  # of what is unread


NO_CREDENTIALS = Credentials(state=NONE)


def read_anchors(path: str | os.PathLike[str]) -> str:
    """The certificates of authorities that a reader trusts, in PEM. Raises RequestError."""
    fix = "give a file of certificates in PEM, of the authorities that you trust"
    try:
        text = read_plain(path, MOST_PEM_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read: {error}", fix=fix) from None
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise RequestError(f"{path} holds no certificate in PEM", fix=fix)
    return text


def read_credentials(path: str | os.PathLike[str], payload: str | None, *, anchors: str | None = None) -> Credentials:
    """Of a picture's file. payload: of the watermark in its pixels: hexadecimal digits, empty where there is no mark,
    None where there is one that can't be read. anchors: see `read_anchors`."""
    try:
        container = scan(path)
    except (OSError, ValueError) as error:
        return Credentials(state=UNREAD, problems=(printable(str(error), MOST_TEXT_CHARS),), fix="copy the file again")
    if container.manifest_bytes == 0 and container.is_whole:
        return NO_CREDENTIALS
    if container.excess is not None:
        return Credentials(state=UNREAD, problems=(container.excess,), fix="ask a tool of C2PA's makers")
    if not is_installed():
        return Credentials(state=UNREAD, problems=("the extra c2pa isn't installed",), fix=INSTALL)
    try:
        return _read(path, container, payload, anchors)
    except InstallError as error:
        return Credentials(state=UNREAD, problems=(error.message,), fix=error.fix)


def _read(path: str | os.PathLike[str], container: Container, payload: str | None, anchors: str | None) -> Credentials:
    c2pa = library()
    settings = {**SETTINGS, **({} if anchors is None else {"trust": {"user_anchors": anchors}})}
    try:
        with (
            open_plain(path, MAX_SIGNED_BYTES) as file,
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(container.kind, file, context=context) as reader,
        ):
            text = reader.json()
        if len(text) > 4 * MAX_CREDENTIALS_BYTES:
            raise ValueError("they say too much")
        return _credentials(_table(strict_json.parse(text)), payload)
    except (c2pa.C2paError, OSError, ValueError) as error:
        return Credentials(state=INVALID, problems=(_short(str(error) or type(error).__name__),))


def _credentials(store: dict[str, Any], payload: str | None) -> Credentials:
    manifests = _table(store.get("manifests"))
    active = _table(manifests.get(str(store.get("active_manifest"))))
    failures = _failures(_table(store.get("validation_results")))
    said = {"Trusted": VALID, "Valid": UNTRUSTED}.get(str(store.get("validation_state")), INVALID)
    wrong = [code for code in failures if code != _UNTRUSTED]
    state = INVALID if wrong else said
    return Credentials(
        state=state,
        signer=_signer(_table(active.get("signature_info"))),
        made_with=_made_with(active),
        actions=tuple(_actions(active)),
        ingredients=tuple(_ingredients(active, manifests)),
        watermark_bound=None if state == INVALID else _is_bound(active, payload),
        problems=tuple(map(_short, wrong[:MOST_LISTED])),
    )


def _signer(info: dict[str, Any]) -> str | None:
    name, issuer = (_text(info.get(key)) for key in ("common_name", "issuer"))
    return f"{name} ({issuer})" if name and issuer and name != issuer else name or issuer


def _made_with(manifest: dict[str, Any]) -> str | None:
    for each in _list(manifest.get("claim_generator_info")):
        name, version = (_text(_table(each).get(key)) for key in ("name", "version"))
        if name:
            return f"{name} {version}" if version else name
    return _text(manifest.get("claim_generator"))


def _actions(manifest: dict[str, Any]) -> Iterator[str]:
    """Each with what kind of source it makes of the picture: c2pa.created (trainedAlgorithmicMedia)."""
    found = (
        _table(each) for assertion in _assertions(manifest, "c2pa.actions") for each in _list(assertion.get("actions"))
    )
    for each in list(found)[:MOST_LISTED]:
        kind = _text(each.get("digitalSourceType"))
        yield (_text(each.get("action")) or "") + ("" if kind is None else f" ({kind.rpartition('/')[2]})")


def _ingredients(manifest: dict[str, Any], manifests: dict[str, Any]) -> Iterator[Ingredient]:
    for each in map(_table, _list(manifest.get("ingredients"))[:MOST_LISTED]):
        states, problems = zip(*_lineage(each, manifests), strict=True)
        yield Ingredient(
            title=_text(each.get("title")) or "",
            relationship=_text(each.get("relationship")) or "",
            state=max(states, key=_DEAR.index) if states[0] != NONE else NONE,
            problems=tuple(dict.fromkeys(code for codes in problems for code in codes))[:MOST_LISTED],
        )


def _lineage(ingredient: dict[str, Any], manifests: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """State and problems of an ingredient, and of all that it was made from, as each signer met them."""
    waiting, seen = [ingredient], set[str]()
    while waiting:
        each = waiting.pop()
        label = each.get("active_manifest")
        failures = [*_failures(_table(each.get("validation_results"))), *_old_failures(each)]
        wrong = [_short(code) for code in failures if code != _UNTRUSTED]
        good = UNTRUSTED if _UNTRUSTED in failures else VALID
        yield (INVALID if wrong else NONE if label is None else good), wrong
        if isinstance(label, str) and label not in seen:
            seen.add(label)
            waiting += map(_table, _list(_table(manifests.get(label)).get("ingredients")))


def _failures(results: dict[str, Any]) -> list[str]:
    """C2PA's codes of what does not hold, of a picture and of what it was made from as it was validated now."""
    deltas = (_table(_table(each).get("validationDeltas")) for each in _list(results.get("ingredientDeltas")))
    return [
        code
        for checked in (_table(results.get("activeManifest")), *deltas)
        for each in _list(checked.get("failure"))
        if (code := _text(_table(each).get("code")))
    ]


def _old_failures(ingredient: dict[str, Any]) -> list[str]:
    """The same of an ingredient of C2PA's first version."""
    statuses = map(_table, _list(ingredient.get("validation_status")))
    return [code for each in statuses if each.get("success") is not True and (code := _text(each.get("code")))]


def _is_bound(manifest: dict[str, Any], payload: str | None) -> bool | None:
    """Whether the pixels carry the mark that was signed."""
    signed = {
        block.get("value")
        for assertion in _assertions(manifest, "c2pa.soft-binding")
        if assertion.get("alg") == WATERMARK_ALGORITHM
        for block in map(_table, _list(assertion.get("blocks")))
        if isinstance(block.get("value"), str)
    }
    return None if payload is None or not signed else payload in signed


def _assertions(manifest: dict[str, Any], label: str) -> Iterator[dict[str, Any]]:
    """What is asserted under a label, of any version and number."""
    for each in map(_table, _list(manifest.get("assertions"))):
        name = each.get("label")
        if isinstance(name, str) and (name == label or name.startswith((f"{label}.", f"{label}__"))):
            yield _table(each.get("data"))


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return _short(value) if isinstance(value, str) and value else None


def _short(text: str) -> str:
    return printable(text, MOST_TEXT_CHARS)
