"""Commands of the guest server: what they get, what they answer, and that none holds up another."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from rath.testing.pace import within
from tests.backend.guest.client import Guest
from tests.backend.guest.conftest import opened

pytestmark = pytest.mark.slow


def test_a_command_answers_with_exit_code_and_both_outputs(guest: Guest) -> None:
    reply = guest.sh("echo out; echo err >&2; exit 7")
    assert (reply.exit, reply.out, reply.err, reply.flags) == ("7", b"out\n", b"err\n", "")
    assert (reply.out_total, reply.out_head) == (4, 4)
    assert guest.sh("kill -9 $$").exit == "-9"


def test_environment_is_what_was_given_and_nothing_else(guest: Guest) -> None:
    reply = guest.run("env", env=("A=1", "B=x=y"))
    assert {line.split(b"=")[0] for line in reply.out.splitlines()} == {b"PATH", b"A", b"B"}
    assert b"B=x=y" in reply.out.splitlines()


def test_a_program_is_found_by_the_path_it_gets(guest: Guest) -> None:
    assert guest.put("bin/own", b"#!/bin/sh\necho found\n", "755").done
    reply = guest.sh("pwd")
    here = reply.out.decode().strip()
    assert guest.run("own", env=(f"PATH={here}/bin",)).out == b"found\n"
    assert guest.run("./bin/own").out == b"found\n"
    assert guest.run("./own", cwd="bin").out == b"found\n"


@pytest.mark.parametrize(
    ("argv", "kind", "says"),
    [
        (["/no/such/program"], "os_error", "'/no/such/program' cannot be started: No such file or directory"),
        (["nosuchprogram"], "os_error", "'nosuchprogram' cannot be started: No such file or directory"),
        ([""], "os_error", "cannot be started"),
        (["/"], "os_error", "'/' cannot be started: Permission denied"),
        ([], "invalid_tool_arguments", "name of a program"),
        (["echo", "a\0b"], "invalid_tool_arguments", "NUL"),
        (["echo", "x" * 140_000], "os_error", "too long"),
    ],
)
def test_what_cannot_be_started_is_a_failure(guest: Guest, argv: list[str], kind: str, says: str) -> None:
    reply = guest.run(*argv)
    assert reply.failure is not None
    assert reply.failure[0] == kind
    assert says in reply.failure[1]


def test_cwd_is_a_directory_of_the_workspace(guest: Guest) -> None:
    guest.put("sub/deep/file", b"here")
    guest.sh("ln -s sub/deep link; ln -s / out")
    assert guest.run("cat", "file", cwd="sub/deep").out == b"here"
    assert guest.run("cat", "file", cwd="link").out == b"here"
    assert guest.run("pwd", cwd="missing").kind == "file_not_found"
    assert guest.run("pwd", cwd="sub/deep/file").kind == "not_a_directory"
    for path in ("..", "/etc", "sub/../..", "out/etc", "/proc/self/root"):
        assert guest.run("pwd", cwd=path).kind == "path_outside_workspace", path


def test_stdin_is_what_was_given_or_empty(guest: Guest) -> None:
    data = bytes(range(256)) * 4096
    assert guest.run("cat", stdin=data).out == data
    assert guest.run("cat").out == b""
    assert guest.run("wc", "-c", stdin=b"").out.strip() == b"0"


def test_input_that_a_program_does_not_read_is_bounded_and_no_hindrance(guest: Guest) -> None:
    call = guest.spawn("sleep", "30", flags="i")
    for _ in range(4):
        guest.send(3, call, bytes(65536))
    assert guest.run("cat", stdin=b"x").out == b"x"
    guest.pump(0.2)
    assert guest.reply(call).credit == 65536, "what the pipe holds, and no more"
    guest.send(5, call)
    assert guest.wait(call).flags == "k"
    assert guest.run("sh", "-c", "exec <&-; sleep 0.1; exit 3", stdin=b"x" * (1 << 20)).exit == "3"


def test_a_value_pipe_is_descriptor_three(guest: Guest) -> None:
    reply = guest.sh("echo value >&3; echo out", flags="v")
    assert (reply.value, reply.out, reply.fields()[6]) == (b"value\n", b"out\n", b"6")


def test_no_descriptor_of_the_server_reaches_a_command(guest: Guest) -> None:
    assert guest.sh("ls /proc/self/fd").out.split() == [b"0", b"1", b"2", b"3"]  # 3: ls's own


def test_a_command_can_open_its_outputs_by_name(guest: Guest) -> None:
    reply = guest.sh("echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin", stdin=b"in")
    assert (reply.out, reply.err, reply.exit) == (b"out\nin", b"err\n", "0")


def test_commands_leave_the_server_the_processor(guest: Guest) -> None:
    assert guest.sh("nice; (nice; nice) &\nwait").out == b"19\n" * 3


def test_a_time_limit_of_a_thousand_years_is_one(guest: Guest) -> None:
    assert guest.run("echo", "hi", timeout_ms=10**14).out == b"hi\n"
    assert guest.run("echo", "hi", timeout_ms=10**19).out == b"hi\n"


def test_ignored_signals_are_not_inherited(guest: Guest) -> None:
    reply = guest.sh("grep -E 'Sig(Ign|Blk)' /proc/self/status")
    blocked, ignored = (int(line.split()[1], 16) for line in reply.out.splitlines())
    # Signals 32 and 33 are the C library's own; its posix_spawn ignores them until a thread is started.
    assert (blocked, ignored & ~(0b11 << 31)) == (0, 0)
    assert guest.sh("yes | head -n 1").out == b"y\n"


@pytest.mark.parametrize("kind", ["same", "switch"])
def test_signals_that_the_server_was_started_with_ignored_are_not_inherited(kind: str, tmp_path: Path) -> None:
    # As a shell's `&` does (INT, QUIT), and nohup (HUP).
    numbers = [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1]
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        server = opened(kind, tmp_path)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    with server:
        ignored = int(server.sh("grep SigIgn /proc/self/status").out.split()[1], 16)
    assert ignored & ~(0b11 << 31) == 0


def test_a_flood_keeps_head_and_tail_and_is_counted_exactly(guest: Guest) -> None:
    reply = guest.sh("echo first; head -c 20000000 /dev/zero; echo last", keep=1001)
    assert reply.out_total == 20_000_011
    assert (len(reply.out), reply.out_head) == (1001, 500)
    assert reply.out.startswith(b"first\n")
    assert reply.out.endswith(b"\0last\n")


def test_output_up_to_the_cap_is_whole(guest: Guest) -> None:
    reply = guest.sh("seq 20000; seq 20000 >&2", keep=108_894)
    expected = b"".join(b"%d\n" % n for n in range(1, 20001))
    assert (reply.out, reply.err, reply.out_total) == (expected, expected, 108_894)
    assert guest.sh("printf abc", keep=0).fields()[2:4] == [b"3", b"0"]


def test_output_in_single_bytes_costs_no_memory(plain: Guest) -> None:
    before = peak(plain)
    reply = plain.run("dd", "if=/dev/zero", "bs=1", "count=300000")
    assert reply.out == bytes(300_000)
    assert peak(plain) - before < 6_000


def peak(guest: Guest) -> int:
    """The most memory that the server has had, in KiB."""
    status = Path(f"/proc/{guest.server_pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_memory_is_bounded_whatever_a_command_writes(plain: Guest) -> None:
    plain.sh("echo warm", keep=1 << 20)
    before = peak(plain)
    reply = plain.sh("head -c 200000000 /dev/zero", keep=1 << 20)
    assert reply.out_total == 200_000_000
    assert peak(plain) - before < 8_000


@pytest.mark.slow
def test_memory_is_bounded_however_many_commands_write(plain: Guest) -> None:
    before = peak(plain)
    flood = "head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait; sleep 1; echo end"
    calls = [plain.spawn("sh", "-c", flood, keep=1 << 20) for _ in range(60)]
    for reply in [plain.wait(call) for call in calls]:
        assert (reply.out_total, reply.out[-4:], len(reply.err) >= 8192) == (3_000_004, b"end\n", True)
    assert peak(plain) - before < 64_000


def test_a_background_process_that_holds_stdout_does_not_hold_the_call(guest: Guest) -> None:
    start = time.monotonic()
    assert guest.sh("sleep 20 & echo started").out == b"started\n"
    assert time.monotonic() - start < within(2)


def test_a_background_process_that_writes_lives_on(guest: Guest) -> None:
    line = "while [ ! -e stop ]; do head -c 100000 /dev/zero || exit; sleep .01; done; touch stopped"
    guest.sh(f"({line}) & sleep .05; echo started")
    time.sleep(0.2)
    guest.put("stop", b"")
    wait_for(guest, "stopped")


def test_a_background_flood_leaves_time_for_others(guest: Guest) -> None:
    assert guest.sh("yes & echo started").exit == "0"
    start = time.monotonic()
    for _ in range(20):
        assert guest.run("true").exit == "0"
    assert time.monotonic() - start < within(3)


def test_one_flood_costs_the_others_milliseconds(guest: Guest) -> None:
    flood = guest.spawn("sh", "-c", "exec head -c 3000000000 /dev/zero", timeout_ms=20_000)
    times = []
    while not guest.reply(flood).ended and len(times) < 40:
        start = time.monotonic()
        assert guest.run("echo", "hi").out == b"hi\n"
        times.append(time.monotonic() - start)
    assert len(times) == 40, "the flood was over before anything was measured"
    assert sorted(times)[20] < within(0.1)
    guest.send(5, flood)
    assert "k" in guest.wait(flood).flags


def test_commands_overlap(guest: Guest) -> None:
    start = time.monotonic()
    calls = [guest.spawn("sleep", "0.3") for _ in range(50)]
    assert [guest.wait(call).exit for call in calls] == ["0"] * 50
    assert time.monotonic() - start < within(3)  # one after the other: 15


def test_the_frames_of_calls_take_turns(guest: Guest) -> None:
    """A large answer does not hold up a small one that is ready after it."""
    for name in ("one", "two"):
        guest.put(name, bytes(3_000_000))
    one, two = guest.start("read", "one", 0, ""), guest.start("read", "two", 0, "")
    guest.wait(one)
    assert len(guest.reply(two).data) > 1_000_000
    guest.wait(two)


def test_a_call_that_is_not_known_is_a_failure(guest: Guest) -> None:
    assert guest.call("fly", "x").kind == "unsupported_tool"
    assert guest.call("ping").done == []


def wait_for(guest: Guest, path: str) -> None:
    for _ in range(500):
        if guest.call("exists", path).done == [b"1"]:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")
