"""Hooks of MkDocs that give the site the repository's layout, so that a relative link works on the git host and here.

Pages are the Markdown files that PAGES names. A file that a page links to becomes part of the site: a text as a page
that shows it, anything else unchanged.
"""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link, Navigation
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

TOP = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "studies/README.md")
STATIC = ("docs/vendor/*", "docs/site.css", "docs/learn*.html")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".jsonl": "json"}
LEARN = "docs/learn.html"
_FENCE = re.compile(r"^ *(```+).*?^ *\1", re.MULTILINE | re.DOTALL)
_BETWEEN_HAN = re.compile("(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository, under their paths in it."""
    for file in [each for each in files if each.src_dir == config.docs_dir]:
        files.remove(file)
    found: set[Path] = set()
    waiting = [path for pattern in PAGES + STATIC for path in sorted(TOP.glob(pattern))]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        name = path.relative_to(TOP).as_posix()
        if path.suffix in LANGUAGES:
            text = f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n`````{LANGUAGES[path.suffix]}\n"
            files.append(File.generated(config, f"{name}.md", content=f"{text}{path.read_text()}\n`````\n"))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        if path.suffix == ".md":
            waiting += [(path.parent / link).resolve() for link in _LINK.findall(_FENCE.sub("", path.read_text()))]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to source files at the pages that show these."""
    folder = (TOP / page.file.src_uri).parent

    def point(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        shown = target.is_relative_to(TOP) and files.get_file_from_path(f"{target.relative_to(TOP).as_posix()}.md")
        return f"{match[1]}.md" if shown else match[1]

    return _LINK.sub(point, markdown)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Add the interactive page, which is not Markdown, after the page on optimizers."""
    file = files.get_file_from_path(LEARN)
    sections = [each for each in nav.items if each.title == "Explanation"]
    if file and sections:
        sections[0].children.insert(1, Link("Optimizers, hands on", file.url))
    return nav


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the language of a Chinese page, and load Mermaid where there is a diagram."""
    if page.file.src_uri.endswith(".zh.md"):
        output = output.replace('<html lang="en"', '<html lang="zh"', 1)
    if '<pre class="mermaid">' in output:
        script = get_relative_url("docs/vendor/mermaid.tiny.js", page.url)
        output = output.replace("</head>", f'<script src="{script}"></script></head>', 1)
    return output


def on_post_build(config: MkDocsConfig) -> None:
    """Separate Chinese characters in the search index, so that a search finds a word inside of a sentence."""
    path = Path(config.site_dir) / "search" / "search_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    for entry in index["docs"]:
        entry |= {key: _BETWEEN_HAN.sub("\u200b", entry[key]) for key in ("title", "text")}
    path.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
