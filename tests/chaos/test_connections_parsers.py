"""The parsers of Connections against a long search for bytes they fail on (LONG=1).

The same tests as in tests/connections/test_outside_bytes.py, which searches for seconds.
"""

from __future__ import annotations

from tests.connections.test_outside_bytes import (
    test_no_address_makes_the_callback_fail,
    test_no_answer_of_a_provider_is_misread,
    test_no_credential_makes_the_way_out_fail,
    test_no_document_of_the_operator_fails_otherwise_than_with_what_to_change,
    test_no_header_makes_the_wait_reader_fail_or_wait_backwards,
    test_no_list_of_installations_is_misread,
    test_no_page_token_or_cursor_fails_otherwise,
    test_no_url_leads_inside_or_makes_the_way_out_fail,
)

__all__ = [
    "test_no_address_makes_the_callback_fail",
    "test_no_answer_of_a_provider_is_misread",
    "test_no_credential_makes_the_way_out_fail",
    "test_no_document_of_the_operator_fails_otherwise_than_with_what_to_change",
    "test_no_header_makes_the_wait_reader_fail_or_wait_backwards",
    "test_no_list_of_installations_is_misread",
    "test_no_page_token_or_cursor_fails_otherwise",
    "test_no_url_leads_inside_or_makes_the_way_out_fail",
]
