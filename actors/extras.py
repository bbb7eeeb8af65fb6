"""Names the optional extra that installs a missing package, in one message for commands, readers and adapters.

A command checks before it starts any work (`require_extra`): `find_spec` looks for a package without importing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "submit": ("aiohttp",),
    "distributed": ("lance_ray",),
    "vision": ("PIL",),
    "documents": ("markitdown",),
    "avro": ("fastavro",),
    "serve": ("fastapi", "uvicorn", "mcp", "prometheus_client"),
    "serve-ray": ("grpc", "fastapi", "uvicorn", "mcp", "prometheus_client"),
    "langchain": ("langchain_core",),
    "llamaindex": ("llama_index",),
    "haystack": ("haystack",),
    "dspy": ("dspy",),
    "mteb": ("mteb",),
}
"""Extra of pyproject.toml -> modules that it installs; grpc is `ray[serve]`'s."""
DISTRIBUTIONS = {
    "PIL": "Pillow",
    "grpc": "grpcio",
    "lance_ray": "lance-ray",
    "prometheus_client": "prometheus-client",
    "langchain_core": "langchain-core",
    "llama_index": "llama-index-core",
    "haystack": "haystack-ai",
}
"""Names of packages whose modules are called otherwise."""


class MissingExtraError(ImportError):
    """Reports packages that are not installed; the message names the extra. The command line exits with 2."""


def find_missing(extra: str) -> list[str]:
    """Returns the packages of an extra that are not installed."""
    return [DISTRIBUTIONS.get(module, module) for module in EXTRAS[extra] if find_spec(module) is None]


def describe_missing(extra: str, purpose: str) -> str | None:
    """Describes what is missing for a purpose ("serving") and how to install it; None if nothing is."""
    missing = find_missing(extra)
    return f"{purpose} needs {', '.join(missing)}: pip install 'tridex[{extra}]'" if missing else None


def require_extra(extra: str, purpose: str) -> None:
    """Raises MissingExtraError if a package of the extra is not installed."""
    message = describe_missing(extra, purpose)
    if message is not None:
        raise MissingExtraError(message)
