"""The demo's AT Protocol server, spoken to by the AT Protocol's own Python client."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from atproto import Client
    from atproto_client.exceptions import UnauthorizedError

from services.standalone.pds import Repository, content_id, serve

HANDLE, PASSWORD, DID = "demo.test", "abcd-efgh", "did:web:demo.test"
COLLECTION = "app.bsky.feed.post"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    server = serve(0, tmp_path / "pds.json", HANDLE, PASSWORD)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    client = Client(server)
    client.login(HANDLE, PASSWORD, fetch_bsky_profile=False)
    yield client
    client.request.close()


def post(text: str) -> dict[str, str]:
    return {"$type": COLLECTION, "text": text, "createdAt": "2026-11-22T08:00:00.000Z"}


def put(client: Client, text: str):
    data = {"repo": DID, "collection": COLLECTION, "rkey": "3k2", "record": post(text)}
    return client.com.atproto.repo.put_record(data=data)


def test_a_post_is_found_again_by_its_key_and_in_the_list(client: Client) -> None:
    made = client.com.atproto.repo.create_record(
        data={"repo": DID, "collection": COLLECTION, "record": post("hello")}
    )

    key = made.uri.rsplit("/", 1)[1]
    found = client.com.atproto.repo.get_record({"repo": DID, "collection": COLLECTION, "rkey": key})
    listed = client.com.atproto.repo.list_records({"repo": DID, "collection": COLLECTION})
    assert found.value.text == "hello"
    assert found.cid == made.cid == content_id(post("hello"))
    assert [record.uri for record in listed.records] == [made.uri]


def test_a_content_id_is_what_the_reference_implementation_computes() -> None:
    # From the AT Protocol's interoperability tests, data-model-fixtures.json.
    record = {
        "string": "abc",
        "unicode": "a~öñ©⽘☎𓋓😀👨‍👩‍👧‍👧",
        "integer": 123,
        "bool": True,
        "null": None,
        "array": ["abc", "def", "ghi"],
        "object": {"string": "abc", "number": 123, "bool": True, "arr": ["abc", "def", "ghi"]},
    }
    assert content_id(record) == "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq"


def test_a_second_put_under_a_null_swap_is_refused_and_changes_nothing(server: str) -> None:
    session = httpx.post(
        f"{server}/xrpc/com.atproto.server.createSession",
        json={"identifier": HANDLE, "password": PASSWORD},
    ).json()

    def put_new(text: str) -> httpx.Response:
        # The Python client leaves nulls out, so this one is sent by hand.
        return httpx.post(
            f"{server}/xrpc/com.atproto.repo.putRecord",
            headers={"authorization": f"Bearer {session['accessJwt']}"},
            json={"repo": DID, "collection": COLLECTION, "rkey": "3k2", "record": post(text)}
            | {"swapRecord": None},
        )

    first, second = put_new("first"), put_new("second")

    found = httpx.get(
        f"{server}/xrpc/com.atproto.repo.getRecord",
        params={"repo": DID, "collection": COLLECTION, "rkey": "3k2"},
    )
    assert first.status_code == 200
    assert (second.status_code, second.json()["error"]) == (400, "InvalidSwap")
    assert found.json()["value"]["text"] == "first"


def test_a_wrong_password_is_refused(server: str) -> None:
    client = Client(server)

    with pytest.raises(UnauthorizedError):
        client.login(HANDLE, "wrong", fetch_bsky_profile=False)

    client.request.close()


def test_writing_without_a_session_is_refused(server: str) -> None:
    answer = httpx.post(f"{server}/xrpc/com.atproto.repo.createRecord", json={})

    assert answer.status_code == 401
    assert answer.json()["error"] == "AuthMissing"


def test_a_refresh_token_renews_once_and_is_no_access_token(server: str) -> None:
    session = httpx.post(
        f"{server}/xrpc/com.atproto.server.createSession",
        json={"identifier": HANDLE, "password": PASSWORD},
    ).json()
    refresh = {"authorization": f"Bearer {session['refreshJwt']}"}

    first = httpx.post(f"{server}/xrpc/com.atproto.server.refreshSession", headers=refresh)
    second = httpx.post(f"{server}/xrpc/com.atproto.server.refreshSession", headers=refresh)
    misused = httpx.get(f"{server}/xrpc/com.atproto.server.getSession", headers=refresh)

    assert first.status_code == 200
    assert second.json()["error"] == "ExpiredToken"
    assert misused.json()["error"] == "InvalidToken"


def test_records_survive_a_restart(tmp_path: Path, client: Client) -> None:
    made = put(client, "kept")

    again = Repository.open(tmp_path / "pds.json")

    assert again.get(COLLECTION, "3k2") == {"cid": made.cid, "value": post("kept")}
