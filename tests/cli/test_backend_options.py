"""The options of served models."""

from typing import Any

import pytest

from ts2_lightning.cli.backend_options import add_endpoint_options, make_endpoint
from ts2_lightning.cli.terminal import OptionParser
from ts2_lightning.generation.backends.endpoint import Address
from ts2_lightning.generation.backends.json_client import ClientSettings
from ts2_lightning.types import UserError


def options(*argv: str) -> Any:
    parser = OptionParser("ask", "")
    add_endpoint_options(parser)
    return parser.parse_args(argv)


def test_they_reach_the_client() -> None:
    argv = ("--api_key_env=", "--concurrency=3", "--timeout=5", "--leave_out=seed, logprobs", "--key_over_http")
    made = make_endpoint(Address("http://node17:8000/v1", "m"), options(*argv))
    expected = ClientSettings(timeout=5.0, concurrency=3, api_key_env="", key_over_http=True)
    assert made.client.settings == expected
    assert make_endpoint(Address("https://h/v1", "m"), options()).client.settings == ClientSettings()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--timeout=0", "endpoint: timeout must be a finite number above 0, got 0.0"),
        ("--concurrency=0", "endpoint: concurrency must be a whole number of at least 1, got 0"),
        ("--leave_out=top_p", "endpoint: leave_out must be of seed, logprobs, got 'top_p'"),
    ],
)
def test_what_cannot_be(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_endpoint(Address("http://localhost/v1", "m"), options(argument))


def test_a_key_that_would_travel_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with pytest.raises(
        UserError, match=r"the key in MY_KEY would travel unencrypted; .*--key_over_http if the network"
    ):
        make_endpoint(Address("http://node17:8000/v1", "m"), options("--api_key_env=MY_KEY"))
