"""The runner's tools against a long search for answers they fail on (LONG=1).

The same tests as in tests/graph/test_tool_answers.py, which searches for seconds.
"""

from __future__ import annotations

from tests.graph.test_tool_answers import (
    test_a_comment_is_told_refused_or_in_doubt,
    test_a_post_is_told_refused_or_in_doubt,
    test_any_answer_is_one_of_http_request,
    test_no_answer_makes_a_tool_that_reads_fail,
)

__all__ = [
    "test_a_comment_is_told_refused_or_in_doubt",
    "test_a_post_is_told_refused_or_in_doubt",
    "test_any_answer_is_one_of_http_request",
    "test_no_answer_makes_a_tool_that_reads_fail",
]
