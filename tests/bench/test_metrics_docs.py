"""docs/metrics.md: every metric has an entry, and every snippet prints what it says."""

import doctest
import re
from pathlib import Path

from gatelab.bench import metrics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_snippets_print_what_they_say():
    assert doctest.testfile(str(DOCS), module_relative=False, encoding="utf-8").failed == 0


def test_every_function_has_an_entry():
    headings = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^### .*$", DOCS.read_text("utf-8"), re.MULTILINE))))
    assert headings == {name for name in metrics.__all__ if name.islower()}
