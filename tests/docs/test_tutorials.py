"""The code of the tutorials, block after block in an empty folder, as a reader would run it."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(name):
    text = (DOCS / "tutorials" / f"{name}.md").read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2))) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize("name", ["calibrate", "compare", "serve", "sweep"])
def test_tutorial_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space, missing = {}, set()
    found = blocks(name)
    assert len(found) >= 3
    for need, code, line in found:
        if need is not None and importlib.util.find_spec(need) is None:
            missing.add(need)
            continue
        # as many blank lines before it as the page has, so that a traceback points at the page's line
        exec(compile("\n" * line + code, f"docs/tutorials/{name}.md", "exec"), space)
    if missing:
        pytest.skip(f"ran all blocks but those that need {', '.join(sorted(missing))}")


@pytest.mark.parametrize(
    "page", ["api.md", *(f"tutorials/{name}.md" for name in ("calibrate", "compare", "serve", "sweep"))]
)
def test_links_lead_somewhere(page):
    file = DOCS / page
    for target in LINK.findall(file.read_text()):
        assert (file.parent / target).exists(), target
