"""Serves the search page: one HTML file under a content security policy that allows nothing else to run or load."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)


@router.get("/", response_class=HTMLResponse)
async def page() -> Response:
    """Return the search page."""
    html, policy = read_page()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "X-Frame-Options": "DENY"}
    return HTMLResponse(html, headers=headers)


@lru_cache(maxsize=1)
def read_page() -> tuple[str, str]:
    """Reads the page and builds the policy that allows its script and style by their hashes."""
    html = files("pipelines.serving").joinpath("page/index.html").read_text(encoding="utf-8")
    script, style = (_hash(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(html: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert found is not None, f"the page has one <{tag}>"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
