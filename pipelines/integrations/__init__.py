"""Adapters for LangChain, LlamaIndex, Haystack, DSPy, MTEB and LanceDB: a module each, with an extra of its name.

    from pipelines.integrations.langchain import TridexVectorStore     # pip install 'tridex[langchain]'

All of them are thin: the documents are in an ordinary index, which the command line, HTTP and plain LanceDB open, too.
"""
