"""The model that writes: the one whose key is in the environment, or a mock that says so."""

import os
from collections.abc import Mapping, Sequence

from langchain_core.messages import BaseMessage

from cogni.graph import ChatModel, chat_model

#: Which model is used for which key, in this order. DIGEST_MODEL overrules.
MODELS = {
    "ANTHROPIC_API_KEY": "anthropic/claude-haiku-4-5",
    "OPENAI_API_KEY": "openai/gpt-5-mini",
    "GEMINI_API_KEY": "gemini/gemini-2.5-flash",
    "MISTRAL_API_KEY": "mistral/mistral-small-latest",
    "GROQ_API_KEY": "groq/openai/gpt-oss-20b",
    "OPENROUTER_API_KEY": "openrouter/openai/gpt-5-mini",
}

#: What the mock is billed as, so that the statement has prices on it.
MOCKED_MODEL = "openai/gpt-5-mini"

POST_LENGTH_MAX = 300

#: Bounds what one call can cost; models that reason spend tokens before they write.
OUTPUT_TOKENS_MAX = 2000


def model_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """The model to call, or None when there is no key for any."""
    if chosen := environ.get("DIGEST_MODEL"):
        return chosen
    return next((model for key, model in MODELS.items() if environ.get(key)), None)


def writer() -> ChatModel:
    """A real model when there is a key, otherwise LiteLLM's mock response."""
    name = model_name()
    if name is None:
        return chat_model(MOCKED_MODEL, mock_response=mocked_digest, max_tokens=OUTPUT_TOKENS_MAX)
    return chat_model(name, max_tokens=OUTPUT_TOKENS_MAX)


def mocked_digest(messages: Sequence[BaseMessage]) -> str:
    """What the mock answers: the given titles, shortened to fit a post."""
    listed = str(messages[-1].content).splitlines()
    titles = [line.removeprefix("- ") for line in listed if line.startswith("- ")]
    text = f"What changed ({len(titles)}): " + "; ".join(titles)
    return text if len(text) <= POST_LENGTH_MAX else text[: POST_LENGTH_MAX - 1] + "…"
