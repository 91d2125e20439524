"""For the site.

Links to files outside docs/ become plain text, once it is seen that the files exist. Code in sentences and tables may
break after slashes, commas and underscores, so that long paths fit a phone.
"""

import logging
import re
from pathlib import Path

LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")
BLOCK = re.compile(r"(<pre\b.*?</pre>)", re.DOTALL)
CODE = re.compile(r"(<code[^>]*>)([^<]*)(</code>)")
BREAK = re.compile(r"(&\w+;)|([/,|=_]+(?=\w{3})|\.(?=[A-Z]))")
ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, *, page, config, files) -> str:
    """Called by mkdocs for every page; a warning is an error under ``strict``."""

    def replace(match: re.Match) -> str:
        text, path, _ = match.groups()
        if not (ROOT / path).exists():
            logging.getLogger("mkdocs.hooks").warning("%s links to %s, which does not exist", page.file.src_path, path)
        return text

    return LINK.sub(replace, markdown)


def on_page_content(html: str, *, page, config, files) -> str:
    """Called by mkdocs for every page, rendered."""
    parts = BLOCK.split(html)
    parts[::2] = [CODE.sub(lambda code: code[1] + _breakable(code[2]) + code[3], part) for part in parts[::2]]
    return "".join(parts)


def _breakable(text: str) -> str:
    return BREAK.sub(lambda match: match[0] if match[1] else f"{match[0]}<wbr>", text)
