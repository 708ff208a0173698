"""Every promise in attachfs(7) is quoted, word by word, by a test that proves it; and nothing else is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man" / "attachfs.7"
QUOTE = re.compile(r'^[ \t]*Promise (\d+): "([^"]+)"', re.MULTILINE)


def folded(text: str) -> str:
    return " ".join(text.split())


def promises(page: str) -> list[tuple[int, str]]:
    """Return the numbered sentences of the section PROMISES.

    Raises:
        ValueError: one of them is not plain text.
    """
    section = page.partition("\n.Sh PROMISES\n")[2].partition("\n.Sh ")[0]
    found = []
    for item in re.split(r"^\.It ", section, flags=re.MULTILINE)[1:]:
        number, _, text = item.partition(".\n")
        sentence = re.split(r"^\.El$", text, flags=re.MULTILINE)[0]
        if not number.isdigit() or re.search(r'^[.\']|\\|"', sentence, re.MULTILINE):
            raise ValueError(f"promise {number} is not a number and plain text")
        found.append((int(number), folded(sentence)))
    return found


def quotes(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield the test, number and sentence of each promise quoted in a test's docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for number, sentence in QUOTE.findall(ast.get_docstring(node) or ""):
                yield node.name, int(number), folded(sentence)


PROMISES = promises(PAGE.read_text())
QUOTED = [quote for path in sorted(ROOT.glob("tests/**/test_*.py")) for quote in quotes(path.read_text())]


def test_promises_are_numbered_from_one_without_gaps_and_are_sentences() -> None:
    assert [number for number, _ in PROMISES] == list(range(1, len(PROMISES) + 1))
    assert len(PROMISES) > 20
    for _, sentence in PROMISES:
        assert re.fullmatch(r"[A-Z][^.]*(?:\.[^ ][^.]*)*\.", sentence), sentence


@pytest.mark.parametrize(("number", "sentence"), PROMISES, ids=[f"{number}" for number, _ in PROMISES])
def test_each_promise_has_a_test_that_quotes_it(number: int, sentence: str) -> None:
    assert [test for test, n, quoted in QUOTED if (n, quoted) == (number, sentence)]


@pytest.mark.parametrize(
    ("test", "number", "sentence"), QUOTED, ids=[f"{test}, {number}" for test, number, _ in QUOTED]
)
def test_no_test_quotes_what_is_not_promised(test: str, number: int, sentence: str) -> None:
    assert sentence == dict(PROMISES).get(number), test


def test_what_would_not_be_noticed_is_refused() -> None:
    page = "\n.Sh PROMISES\n.Bl\n.It 1.\nFirst\nsentence.\n.It 2.\nSecond.\n.El\n.Sh CAVEATS\n.It 3.\nNo.\n"
    assert promises(page) == [(1, "First sentence."), (2, "Second.")]
    with pytest.raises(ValueError, match="promise 1"):
        promises(page.replace("sentence.", ".Em sentence ."))
    source = 'def {}():\n    """x.\n\n    Promise 2: "Sec\n    ond."\n    """\n'
    source = source.format("test_one") + source.format("other")
    assert list(quotes(source)) == [("test_one", 2, "Sec ond.")]
