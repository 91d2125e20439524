"""What the site's hooks make of a page."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "docs/site_hooks.py"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<code>lib/ovenet/app.py</code>", "<code>lib/<wbr>ovenet/<wbr>app.py</code>"),
        ("<code>TEST.SCORE</code> a/long/text", "<code>TEST.<wbr>SCORE</code> a/long/text"),
        ("<code>&lt;city&gt;/&lt;any&gt;</code>", "<code>&lt;city&gt;/&lt;any&gt;</code>"),
        ("<pre><code>lib/ovenet/app.py</code></pre>", "<pre><code>lib/ovenet/app.py</code></pre>"),
        ("<code>S_f</code> <code>1/2</code>", "<code>S_f</code> <code>1/2</code>"),
    ],
)
def test_code_breaks_after_slashes_and_not_in_blocks(hooks, html, expected):
    assert hooks.on_page_content(html, page=None, config=None, files=None) == expected
