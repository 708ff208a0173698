"""One word for one thing, the field's: none of the words that only this program once used is a name in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import attachfs

PACKAGE = Path(attachfs.__file__).parent
# What stands in their place: report or return, serve, receive, pause, discard, fetch, stats, timeout, ...
PRIVATE = {
    "abandoned",
    "aside",
    "ask",
    "asked",
    "asks",
    "came",
    "come",
    "comes",
    "dismiss",
    "dismissed",
    "figures",
    "granted",
    "handed",
    "holder",
    "intake",
    "jump",
    "knows",
    "landed",
    "obtain",
    "patience",
    "resting",
    "retime",
    "settle",
    "settled",
    "shelf",
    "shelves",
    "squeeze",
    "teller",
    "tell",
    "told",
    "tours",
    "trouble",
    "troubles",
}
# A name on which others rely, or which is the field's own word there.
ALLOWED = {
    ("cache/disk_cache.py", "troubles"),  # a key of `status --json`
    ("cache/lock_file.py", "LockHolder"),
    ("cache/lock_file.py", "lock_holder"),
}


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+", name)}


def test_no_private_word_is_a_name() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in {path.stem, *names(ast.parse(path.read_text(encoding="utf-8")))}
        if words(name) & PRIVATE or re.match("_*known_", name)
    }
    assert found == ALLOWED
