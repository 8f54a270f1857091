"""Check the Markdown files: every relative link leads to a file that is there, every anchor to a heading.

Lives here: links. Elsewhere: whether what the pages say is true (tests/docs runs their code blocks and compares the generated reference).
Idea: a link that leads nowhere is found before a reader finds it. Links to other sites are not followed: checks must not need the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
ANCHOR_TAG = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")


def main() -> int:
    """Print every broken link; the exit status is 1 if there is one."""
    pages = [ROOT / name for name in tracked_pages()]
    problems = [problem for page in pages for problem in problems_of(page)]
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages, {len(problems)} broken links")
    return 1 if problems else 0


def tracked_pages() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


def problems_of(page: Path) -> list[str]:
    text = INLINE_CODE.sub("", CODE.sub("", page.read_text()))
    problems = []
    for target in LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        where = page.relative_to(ROOT)
        if not linked.exists():
            problems.append(f"{where}: {target}: there is no {path}")
        elif anchor and linked.suffix == ".md" and anchor not in anchors_of(linked):
            problems.append(f"{where}: {target}: no heading makes #{anchor}")
    return problems


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings, and those written by hand."""
    text = page.read_text()
    anchors, seen = set(ANCHOR_TAG.findall(text)), dict[str, int]()
    for heading in HEADING.findall(CODE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


if __name__ == "__main__":
    sys.exit(main())
