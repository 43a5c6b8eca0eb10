"""What words a picture may not be asked for with: an operator's file, which a request is held against before it runs.

A policy is a text in UTF-8. `#` begins a comment line; `policy NAME` and `negative yes` may stand first; rules follow:

    [violence] block
    gore
    severed head
    behead*
    /blood(y|ied) corpse\\w*/

`block` refuses the request, `warn` notes it in the records. Below it a line is a word, a phrase, a word's beginning
with `*`, or a pattern between slashes (`trust.patterns`). All are found as whole words, in the three readings of
`trust.fold`: through other cases, accents, scripts, digits for letters, marks within a word, spelled-out words and
letters that repeat. It is weak by nature: who paraphrases, misspells freely or asks in another language gets past it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tintype.bounds import MAX_POLICY_BYTES, MAX_POLICY_LINE_CHARS, MAX_POLICY_LINES, MAX_POLICY_PATTERNS
from tintype.errors import BlockedError, RequestError
from tintype.files import read_given
from tintype.record.record import PolicyFacts
from tintype.trust import fold
from tintype.trust.patterns import Pattern, PatternError
from tintype.trust.wordlist import Rule, WordList

STRICT = "strict"  # the policy that comes with the package
BLOCK, WARN = "block", "warn"

_RULE = re.compile(r"\[\s*(\w[\w .-]{0,59}?)\s*\]\s*(block|warn)")
_NAME = re.compile(r"policy\s+(\w[\w .-]{0,59})")


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, ready to be asked."""

    facts: PolicyFacts
    checks_negative: bool
    words: WordList
    patterns: Sequence[tuple[Rule, Pattern, Pattern]]  # as plain and as latin texts have it

    def rules_met(self, texts: Sequence[str]) -> list[Rule]:
        """Of texts without weights and brackets, each rule once: those that block first."""
        rules = dict.fromkeys(rule for text in dict.fromkeys(texts) for rule in self._in(text))
        return sorted(rules, key=lambda rule: rule.action != BLOCK)

    def demand(self, texts: Sequence[str], where: str) -> list[str]:
        """A sentence for each rule that warns. Raises BlockedError for one that blocks. where: the request's field."""
        sentences, who = list[str](), f"the policy {self.facts.name}"
        for rule in self.rules_met(texts):
            if rule.action == BLOCK:
                raise BlockedError(
                    f"the {where.replace('_', ' ')} is blocked by the rule {rule.name!r} of {who}",
                    fix="ask for something else; whoever runs this keeps the policy",
                    rule=rule.name,
                    where=where,
                )
            sentences.append(f"the {where.replace('_', ' ')} meets the rule {rule.name!r} of {who}")
        return sentences

    def _in(self, text: str) -> Iterator[Rule]:
        plain, latin = fold.readings(text)
        yield from self.words.rules_in(plain, latin)
        for rule, as_plain, as_latin in self.patterns:
            if as_plain.search(plain) or (latin != plain and as_latin.search(latin)):
                yield rule


def read_policy(name_or_file: str | os.PathLike[str]) -> Policy:
    """`strict`, or an operator's file. Raises RequestError, naming the line, for what is none."""
    if name_or_file == STRICT:
        return _strict()
    content = read_given(name_or_file, MAX_POLICY_BYTES, what="policy", fix=f"give a file, or {STRICT!r}")
    return parse_policy(content, Path(name_or_file).stem)


@cache
def _strict() -> Policy:
    import importlib.resources

    lists = importlib.resources.files("tintype.trust") / "lists"
    files = sorted((each for each in lists.iterdir() if each.name.endswith(".txt")), key=lambda each: each.name)
    return parse_policy(b"".join(each.read_bytes() for each in files), STRICT)


def parse_policy(content: bytes, name: str) -> Policy:
    """name: of one that says none. Raises RequestError."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise _error(name, 0, "it is no text in UTF-8") from None
    if len(lines) > MAX_POLICY_LINES:
        raise _error(name, 0, f"it has {len(lines):,} lines; {MAX_POLICY_LINES:,} are the most")
    words, patterns = WordList(), list[tuple[Rule, Pattern, Pattern]]()
    rule, checks_negative, file = None, False, name
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if len(line) > MAX_POLICY_LINE_CHARS:
            raise _error(file, number, f"it has {len(line):,} characters; {MAX_POLICY_LINE_CHARS:,} are the most")
        header, named = _RULE.fullmatch(line), _NAME.fullmatch(line)
        if line.startswith("["):
            if header is None:
                raise _error(file, number, "a rule begins with [name] block, or [name] warn")
            rule = Rule(header[1], header[2])
        elif rule is None:
            if named is None and line not in ("negative yes", "negative no"):
                raise _error(file, number, "before the first rule stand policy NAME and negative yes alone")
            name, checks_negative = (named[1], checks_negative) if named else (name, line.endswith("yes"))
        elif len(line) > 2 and line.startswith("/") and line.endswith("/"):
            if len(patterns) >= MAX_POLICY_PATTERNS:
                raise _error(file, number, f"it has more than {MAX_POLICY_PATTERNS} patterns")
            try:
                patterns.append((rule, Pattern(line[1:-1], fold.plain), Pattern(line[1:-1], fold.latin)))
            except PatternError as error:
                raise _error(file, number, str(error)) from None
        elif problem := words.add(line, rule):
            raise _error(file, number, problem)
    return Policy(PolicyFacts(name=name, sha256=digest), checks_negative, words, patterns)


def _error(name: str, line: int, problem: str) -> RequestError:
    where = f", line {line}" if line else ""
    return RequestError(f"the policy {name}{where}: {problem}", fix="mend it; runtime/POLICY.md has the form")
