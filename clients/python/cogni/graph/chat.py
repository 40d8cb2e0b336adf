"""The chat model of graph authors: any provider through LiteLLM, every call metered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from cogni.graph import portal, wire
from cogni.graph.calls import DRAIN_SECONDS, ProviderCall
from cogni.graph.guarding import refuse_outside_run
from cogni.graph.metering import UnmeteredCallError, current_meter

#: What a mocked model answers: fixed text, or a function of the conversation that
#: returns text or a message with tool calls.
MockResponse = str | Callable[[Sequence[BaseMessage]], str | AIMessage]

#: A provider that is silent for longer is given up; LiteLLM's own default is 6000 s.
TIMEOUT_SECONDS = 600.0


class ChatModel(BaseChatModel):
    """A LangChain chat model over LiteLLM whose every provider call is metered by its run.

    Outside a run it works unmetered. It never retries: use `with_retry()`, where
    each try is a call of its own on the bill.
    """

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict, repr=False)
    mock_response: Any = Field(default=None, repr=False)
    drain_seconds: float = DRAIN_SECONDS

    @property
    def _llm_type(self) -> str:
        return "cogni"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # LangChain hands these to tracers: `arguments` may hold a provider's key.
        return {"model": self.model}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_model_type="chat", ls_model_name=self.model)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model. `tool_choice` is a mode, "any", True, or a tool's name."""
        offered = [convert_to_openai_tool(each) for each in tools]
        if tool_choice is not None:
            kwargs["tool_choice"] = _tool_choice(tool_choice)
        return self.bind(tools=offered, **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        response = await self._call(self._request(messages, stop, kwargs)).response()
        return ChatResult(generations=[wire.to_generation(response)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        if "mock_tool_calls" in request:
            # LiteLLM's mocked stream drops tool calls, its mocked whole response keeps them.
            whole = wire.to_generation(await self._call(request).response())
            yield wire.message_to_chunk(whole.message)  # type: ignore[arg-type]  # An AIMessage.
            return
        call = self._call({**request, "stream": True, "stream_options": {"include_usage": True}})
        parts = call.chunks()
        try:
            async for part in parts:
                if (chunk := wire.to_chunk(part)) is None:
                    continue
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            # Python closes an abandoned generator late; the pump must know at once.
            await parts.aclose()  # type: ignore[attr-defined]

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return portal.call(self._agenerate(messages, stop, None, **kwargs), _loop())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = self._astream(messages, stop, None, **kwargs)
        for chunk in portal.iterate(chunks, _loop()):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _call(self, request: Mapping[str, Any]) -> ProviderCall:
        meter = current_meter()
        if meter is None:
            refuse_outside_run(
                UnmeteredCallError("a model call was made outside any run; nothing was sent")
            )
        return ProviderCall(request, meter, self.drain_seconds)

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        request = {
            "timeout": TIMEOUT_SECONDS,
            **self.arguments,
            **{
                name: value
                for name, value in kwargs.items()
                if name != "ls_structured_output_format"
            },
            "model": self.model,
            "messages": wire.to_request_messages(messages),
        }
        if stop:
            request["stop"] = stop
        return {**request, **_mock(self.mock_response, messages)}


def chat_model(
    model: str, *, mock_response: MockResponse | None = None, **arguments: Any
) -> ChatModel:
    """A chat model by its LiteLLM name, for example "anthropic/claude-sonnet-4-5".

    `arguments` go to LiteLLM with every call (temperature, max_tokens, api_base, ...).
    With `mock_response` nothing is sent and no key is needed. LiteLLM is imported
    at the first call, not here.
    """
    drain_seconds = arguments.pop("drain_seconds", DRAIN_SECONDS)
    return ChatModel(
        model=model,
        arguments=arguments,
        mock_response=mock_response,
        drain_seconds=drain_seconds,
    )


def _loop() -> Any:
    meter = current_meter()
    return meter.loop if meter else None


def _tool_choice(choice: str | bool | dict[str, Any]) -> Any:
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": choice}}
    return "none" if choice is False else choice


def _mock(mock: MockResponse | None, messages: Sequence[BaseMessage]) -> dict[str, Any]:
    answer = mock(messages) if callable(mock) else mock
    if answer is None:
        return {}
    if isinstance(answer, str):
        return {"mock_response": answer}
    said = wire.to_request_messages([answer])[0]
    mocked: dict[str, Any] = {"mock_response": said.get("content") or ""}
    if said.get("tool_calls"):
        mocked["mock_tool_calls"] = said["tool_calls"]
    return mocked
