"""Templates, in-context examples, task instructions."""

from __future__ import annotations

import pytest
from checkpoints import sentencepiece_bpe_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from actors.text.prompts import (
    INSTRUCT,
    LLM_EMBEDDER_TASKS,
    InContext,
    examples_prefix,
    fill,
    instruct,
    task_instructions,
)
from actors.text.tokenizer import TextTokenizer, read_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("mistral")
    sentencepiece_bpe_tokenizer(folder, "LlamaTokenizerFast", "left", spaces=True)
    return read_tokenizer(folder)


@given(st.text(), st.text())
def test_braces_in_texts_are_safe(instruction: str, text: str) -> None:
    assert fill(INSTRUCT, instruction, text) == f"Instruct: {instruction}\nQuery: {text}"


def test_a_written_backslash_n_is_a_line_break_in_templates_only() -> None:
    assert fill("<instruct>{}\\n<query>{}", "a\\n", "b") == "<instruct>a\\n\n<query>b"


def test_without_an_instruction_the_template_is_not_used() -> None:
    assert instruct(["a", "b"], None, "Q: {}{}") == ["a", "b"]
    assert instruct(["a"], "", "Q: {}{}") == ["Q: a"]


def test_examples() -> None:
    template = "<instruct>{}\n<query>{}\n<response>{}"
    examples = [{"instruct": "own", "query": "q", "response": "r"}, {"query": "{q}"}]
    prefix = examples_prefix(examples, template, "shared")
    assert prefix == "<instruct>own\n<query>q\n<response>r\n\n<instruct>shared\n<query>{q}\n<response>\n\n"


def test_the_query_is_cut_and_neither_examples_nor_suffix_are(tokenizer: TextTokenizer) -> None:
    in_context = InContext(prefix="the panda " * 40, suffix="\n<response>")
    suffix = tokenizer.ids([in_context.suffix])[0]
    batch = in_context.tokenise(tokenizer, ["river " * 200, "bear"], 40)
    for i in range(2):
        ids = batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist()
        assert tokenizer.decode(ids[1:-1]).startswith(in_context.prefix)
        assert ids[-len(suffix) :] == [*suffix[1:], tokenizer.suffix[0]]
    assert batch.n_truncated[0] > 100
    assert batch.n_truncated[1] == 0


def test_in_context_length_must_leave_room_for_the_query(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="max_length must exceed"):
        InContext().tokenise(tokenizer, ["bear"], 5)


def test_llm_embedder_has_six_tasks_with_two_instructions_each() -> None:
    assert set(LLM_EMBEDDER_TASKS) == {"qa", "icl", "chat", "lrlm", "tool", "convsearch"}
    assert task_instructions("qa") == (
        "Represent this query for retrieving relevant documents: ",
        "Represent this document for retrieval: ",
    )
    assert len({text for pair in LLM_EMBEDDER_TASKS.values() for text in pair}) == 12
    with pytest.raises(ValueError, match="unknown LLM-Embedder task 'search', expected one of qa, icl"):
        task_instructions("search")
