"""For the site: links to files outside docs/ become plain text, once it is seen that the files exist."""

import logging
import re
from pathlib import Path

LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")
ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, *, page, config, files) -> str:
    """Called by mkdocs for every page; a warning is an error under ``strict``."""

    def replace(match: re.Match) -> str:
        text, path, _ = match.groups()
        if not (ROOT / path).exists():
            logging.getLogger("mkdocs.hooks").warning("%s links to %s, which does not exist", page.file.src_path, path)
        return text

    return LINK.sub(replace, markdown)
