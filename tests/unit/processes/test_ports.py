"""A taken port is named, with who holds it and what to do."""

import os
import socket

import pytest

from bcami.config import default_definition
from bcami.errors import EnvironmentFault
from bcami.processes.ports import check_free, free_base_port, holder, is_free
from tests.ports import free_ports


def test_free_ports_are_free_and_in_a_row() -> None:
    base = free_base_port(9)
    check_free(default_definition(4).resolve(base), {"node1", "node2", "node3", "node4", "mdms"})


def test_a_taken_port_is_named_with_its_holder() -> None:
    base = free_ports(9)
    with socket.create_server(("127.0.0.1", base + 3)):
        assert not is_free("127.0.0.1", base + 3)
        assert str(os.getpid()) in holder(base + 3)
        network = default_definition(4).resolve(base)
        check_free(network, {"node1", "mdms"})
        with pytest.raises(EnvironmentFault) as caught:
            check_free(network, {"node2"})
    assert f"port {base + 3} on 127.0.0.1 is taken; node2 (http) needs it" in str(caught.value)
    assert "--base-port" in caught.value.do
    assert str(os.getpid()) in caught.value.likely


def test_an_address_of_another_machine_is_a_fault_and_not_a_taken_port() -> None:
    with pytest.raises(EnvironmentFault, match=r"nothing can listen on 192\.0\.2\.1"):
        is_free("192.0.2.1", 20_000)


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_ports()) == ""
