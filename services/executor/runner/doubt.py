"""Effects in doubt: which failures leave one, what a person is asked, and what an answer says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, ValidationError

from services.executor.store.interrupts import Answered
from services.executor.store.invocations import Known
from services.runtime.jsonvalues import Json


@dataclass(frozen=True)
class Verdict:
    """What a person says about an invocation in doubt."""

    happened: bool
    output: Any = None


def leaves_doubt(tool: BaseTool, failure: BaseException) -> bool:
    """Whether the tool may have done it although it raised.

    A ToolException is what the tool itself says of its failure, so it knows; anything else may
    have come after the request had left. An exception that knows better says so by `maybe_done`.
    """
    if _refuses_arguments(tool, failure):
        return False
    return bool(getattr(failure, "maybe_done", not isinstance(failure, ToolException)))


def verdict_of(answer: Any) -> Verdict:
    """Read the answer to a question of OUTCOME_UNKNOWN.

    {"outcome": "happened", "output": …} or {"outcome": "did_not_happen"}. Anything else counts
    as "happened": repeating an effect by mistake is the worse error.
    """
    if isinstance(answer, dict) and answer.get("outcome") == "did_not_happen":
        return Verdict(happened=False)
    output = answer.get("output") if isinstance(answer, dict) else None
    return Verdict(happened=True, output="done" if output is None else output)


def verdict_on(known: Known, answers: Sequence[Answered]) -> Verdict | None:
    """Return what a person said about what the invocation did last; None when nobody has yet.

    An answer settles one execution: one that was asked for before the last was sent does not
    speak of it, and would let it be repeated blindly.
    """
    for each in reversed(answers):
        asked_since = known.sent_time is None or each.ask_time > known.sent_time
        if each.invocation_id == known.invocation_id and asked_since:
            return verdict_of(each.answer)
    return None


def question(known: Known, asked_by: str) -> dict[str, Json]:
    """Ask what became of the invocation; `asked_by` is the one that cannot go on without."""
    if known.error_type:
        what = f"{known.tool!r} failed with {known.error_type}"
    elif known.state == "FINISHED":
        what = f"{known.tool!r} came to its end, what it returned could not be kept"
    else:
        what = f"{known.tool!r} was cut off while it was at work"
    return {
        "reason": "OUTCOME_UNKNOWN",
        "invocation_id": known.invocation_id,
        "tool": known.tool,
        "asked_by": asked_by,
        "question": (
            f"{what}, and nobody knows whether it happened. Look, and answer "
            '{"outcome": "happened", "output": …} or {"outcome": "did_not_happen"}.'
        ),
    }


def _refuses_arguments(tool: BaseTool, failure: BaseException) -> bool:
    """Whether LangChain refused the arguments, before any code of the tool ran."""
    schema = tool.args_schema
    if not isinstance(failure, ValidationError) or not isinstance(schema, type):
        return False
    if not issubclass(schema, BaseModel):
        return False
    # pydantic names the model that refused: what a tool itself reads has other models.
    return failure.title == (schema.model_config.get("title") or schema.__name__)
