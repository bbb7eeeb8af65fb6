r"""Writes what surrounds a text before it is tokenised: instruction templates, task instructions, in-context examples.

Templates have positional slots, FlagEmbedding's way: `"Instruct: {}\nQuery: {}"`. Braces inside a text are safe; braces
in a template are slots. A template without an instruction is not used at all, and the text stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.outputs import TokenBatch
from actors.text.tokenizer import TextTokenizer, checked_texts

PLAIN = "{}{}"
INSTRUCT = "Instruct: {}\nQuery: {}"
TAGGED = "<instruct>{}\n<query>{}"

LLM_EMBEDDER_TASKS: dict[str, tuple[str, str]] = {
    "qa": (
        "Represent this query for retrieving relevant documents: ",
        "Represent this document for retrieval: ",
    ),
    "icl": (
        "Convert this example into vector to look for useful examples: ",
        "Convert this example into vector for retrieval: ",
    ),
    "chat": (
        "Embed this dialogue to find useful historical dialogues: ",
        "Embed this historical dialogue for retrieval: ",
    ),
    "lrlm": (
        "Embed this text chunk for finding useful historical chunks: ",
        "Embed this historical text chunk for retrieval: ",
    ),
    "tool": (
        "Transform this user request for fetching helpful tool descriptions: ",
        "Transform this tool description for retrieval: ",
    ),
    "convsearch": (
        "Encode this query and context for searching relevant passages: ",
        "Encode this passage for retrieval: ",
    ),
}
"""BAAI/llm-embedder's instructions: task -> (for the query, for the key). Source: the model's published README."""


def fill(template: str, *parts: str | None) -> str:
    r"""Fills the slots of a template. The two characters `\n` in a template mean a line break, as upstream."""
    try:
        return template.replace("\\n", "\n").format(*parts)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"template {template!r} needs {len(parts)} positional slots {{}}: {error}") from error


def instruct(texts: Iterable[str], instruction: str | None, template: str) -> list[str]:
    """Applies an instruction to texts by the template; returns them unchanged without an instruction.

    >>> instruct(["who wrote it"], "Find the answer", "<instruct>{}\\n<query>{}")
    ['<instruct>Find the answer\\n<query>who wrote it']
    """
    items = checked_texts(texts)
    return items if instruction is None else [fill(template, instruction, text) for text in items]


def task_instructions(task: str) -> tuple[str, str]:
    """Returns LLM-Embedder's instructions for a query and for a key of this task."""
    if task not in LLM_EMBEDDER_TASKS:
        raise ValueError(f"unknown LLM-Embedder task {task!r}, expected one of {', '.join(LLM_EMBEDDER_TASKS)}")
    return LLM_EMBEDDER_TASKS[task]


@dataclass(frozen=True, slots=True)
class InContext:
    """Holds the prefix and suffix of a query of an in-context-learning embedder (bge-en-icl)."""

    prefix: str = ""
    suffix: str = "\n<response>"

    def tokenise(self, tokenizer: TextTokenizer, texts: Iterable[str], max_length: int) -> TokenBatch:
        """Tokenises prefix + query + suffix; `max_length` limits the query alone, the others are never cut.

        The query takes a round trip through ids and back to text, as upstream, since prefix, query and suffix are
        tokenised together. The final limit is upstream's: all three lengths, rounded up to the next 8, plus 8.
        """
        prefix, suffix, closing, opening = tokenizer.ids([self.prefix, self.suffix, self.suffix + "</s>", "<s>"])
        room = max_length - len(opening) - len(closing)
        if room < 1:
            raise ValueError(f"max_length must exceed {len(opening) + len(closing)}, got {max_length}")
        rows = tokenizer.ids(texts)
        cut = [tokenizer.decode(tokenizer.cut(row, room)) for row in rows]
        limit = (len(prefix) + len(suffix) + max_length + 8) // 8 * 8 + 8
        whole = tokenizer.tokenise([f"{self.prefix}{text}{self.suffix}" for text in cut], limit)
        dropped = np.fromiter((max(0, len(row) - room) for row in rows), np.int32, len(rows))
        return TokenBatch(whole.ids, whole.offsets, whole.n_truncated + dropped)


def examples_prefix(examples: Iterable[Mapping[str, Any]], template: str, instruction: str | None) -> str:
    """Joins the examples, each `{instruct, query, response}`, with a blank line after each; '' if there are none."""
    filled = [
        fill(template, example.get("instruct", instruction), example.get("query", ""), example.get("response", ""))
        for example in examples
    ]
    return "\n\n".join(filled) + "\n\n"
