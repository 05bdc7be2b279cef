"""The ports that HTTP is served on."""

import socket
from contextlib import closing

import pytest

from vitascope_common.errors import ConfigurationError
from vitascope_common.serving import listen


def test_no_answer_waits_for_an_acknowledgement() -> None:
    listener = listen("127.0.0.1", 0, 20)
    client = socket.create_connection(listener.getsockname())
    with closing(listener), closing(client), closing(listener.accept()[0]) as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_named() -> None:
    with closing(listen("127.0.0.1", 0, 20)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port, 20)
