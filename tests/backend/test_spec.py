"""Specs: what they may say, and that nobody ignores a field."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rath.backend import BackendSandboxSpec, get
from rath.backend.spec import host_workspace, parse_bytes, parse_endpoints, refuse_unsupported
from rath.errors import UsageTypeError, UsageValueError

ALL = frozenset(BackendSandboxSpec.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("512", 512), ("512b", 512), ("1k", 1024), ("512m", 512 << 20), ("2G", 2 << 30), ("1.5GiB", 3 << 29), (" 4 MB ", 4 << 20)],
)
def test_a_size_is_bytes_or_text_with_a_unit(text: int | str, size: int) -> None:
    assert parse_bytes(text, "memory") == size


@pytest.mark.parametrize("bad", ["9" * 400, "", "much", "-1", "1x", "0", 0, -5, "1 2"])
def test_what_is_no_size_is_refused_by_the_name_of_its_field(bad: int | str) -> None:
    with pytest.raises(UsageValueError, match="memory"):
        parse_bytes(bad, "memory")


@pytest.mark.parametrize("bad", [True, 1.5, None, b"1"])
def test_a_size_of_another_type_is_refused(bad: Any) -> None:
    with pytest.raises(UsageTypeError, match="memory"):
        parse_bytes(bad, "memory")


def test_an_allow_list_is_hosts_with_ports() -> None:
    assert parse_endpoints(["PyPI.org:443", "10.0.0.7:80"]) == (("pypi.org", 443), ("10.0.0.7", 80))


@pytest.mark.parametrize("bad", ["pypi.org", [], ["pypi.org"], ["pypi.org:"], [":443"], ["a:0"], ["a:99999"], ["a b:1"], ["a:١"], [7], ["-x:1"]])
def test_anything_else_is_no_allow_list(bad: Any) -> None:
    with pytest.raises(UsageValueError, match="network"):
        parse_endpoints(bad)


FIELDS: dict[str, Any] = {
    "image": "debian", "entrypoint": ["sh"], "env": {"A": "b"}, "timeout": timedelta(seconds=1), "working_dir": ".",
    "workspace": ".", "workspace_mode": "bind", "user": "1000", "network": "bridge", "memory": "1g", "cpus": 1.0, "pids": 9,
    "disk": "1g", "tmp": "1m", "idle_timeout": timedelta(0), "gpus": "all", "mounts": {"/data": "/srv"}, "pool": 1,
    "runtime": "runsc",
}  # fmt: skip


def test_every_field_is_tried_here() -> None:
    assert set(FIELDS) == ALL


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_field_that_a_backend_does_not_support_is_refused_by_name(field: str) -> None:
    spec = BackendSandboxSpec(**{field: FIELDS[field]})
    with pytest.raises(UsageValueError, match=rf"the paper backend cannot honour {field}="):
        refuse_unsupported(spec, "paper", ALL - {field})


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"env", "timeout", "working_dir", "workspace", "workspace_mode"}))
def test_local_refuses_what_only_a_container_can_do(field: str) -> None:
    with pytest.raises(UsageValueError, match=f"cannot honour {field}="):
        get("local").open(BackendSandboxSpec(**{field: FIELDS[field]}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": timedelta(0)}, {"idle_timeout": timedelta(seconds=-1)}, {"working_dir": " "}, {"workspace": ""}, {"workspace_mode": "bind"},
        {"workspace": "a", "working_dir": "b"}, {"workspace": "a", "workspace_mode": "move"}, {"memory": "lots"}, {"cpus": 0},
        {"pids": 0}, {"pool": -1}, {"network": "host"}, {"network": ["nowhere"]}, {"mounts": {"relative": "/srv"}},
        {"mounts": {"/a/../b": "/srv"}},
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageValueError):
        refuse_unsupported(BackendSandboxSpec(**wrong), "paper", ALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 30}, {"idle_timeout": 1800.0}, {"cpus": "2"}, {"cpus": True}, {"pids": "64"}, {"pids": 1.5}, {"pool": "2"},
        {"pool": True}, {"mounts": ["/data"]}, {"mounts": {Path("/data"): "/srv"}}, {"env": "A=b"}, {"network": 7},
        {"workspace": 3}, {"working_dir": b"x"}, {"memory": 1.5},
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageTypeError, match=next(iter(wrong))):
        refuse_unsupported(BackendSandboxSpec(**wrong), "paper", ALL)


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="memroy"):
        BackendSandboxSpec(memroy="1g")  # type: ignore[call-arg]


def test_the_workspace_is_an_absolute_path_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert host_workspace(BackendSandboxSpec()) is None
    assert host_workspace(BackendSandboxSpec(working_dir="here")) == str(tmp_path / "here")
    assert host_workspace(BackendSandboxSpec(workspace=tmp_path)) == str(tmp_path)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("image", 5), ("image", b"x"), ("runtime", 5), ("pool", None), ("mounts", {"/x": 5}), ("mounts", {"/x": b"/srv"}),
    ],
)  # fmt: skip
def test_a_value_of_a_type_that_only_some_backends_would_notice_is_refused(field: str, bad: Any) -> None:
    with pytest.raises(UsageTypeError, match=field):
        refuse_unsupported(BackendSandboxSpec(**{field: bad}), "any", ALL)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("image", ""), ("runtime", ""), ("mounts", {"/x": ""}), ("mounts", {"/x": "/a\0b"}), ("working_dir", "a\0b"),
        ("workspace", "a\0b"), ("cpus", float("inf")), ("cpus", float("nan")), ("cpus", 1e9), ("pids", 2**31), ("pids", 0),
        ("memory", 2**63), ("tmp", 2**70), ("disk", "999999999t"), ("env", {"": "x"}), ("env", {"A=B": "x"}),
        ("env", {"A": "x\0"}), ("env", {"A": 1}), ("env", {1: "x"}),
    ],
)  # fmt: skip
def test_what_no_machine_can_do_is_refused_by_the_name_of_its_field(field: str, bad: Any) -> None:
    with pytest.raises(UsageValueError, match=field):
        refuse_unsupported(BackendSandboxSpec(**{field: bad}), "any", ALL)
