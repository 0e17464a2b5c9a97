"""To end a call of the guest server is to end all that it started, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rath.testing.pace import within
from tests.backend.guest.client import HEADER, SOURCE, Guest, GuestDied, own_namespace, pack
from tests.backend.guest.conftest import DOCKER, UID
from tests.backend.guest.test_server_commands import wait_for

pytestmark = pytest.mark.slow

# Each says so in a file if it has survived the call.
TREES = {
    "child": "(sleep .8; touch survivor) & wait",
    "deaf": "trap '' TERM INT HUP; sleep .8; touch survivor; sleep 30",
    "setsid": "setsid sh -c 'sleep .8; touch survivor'",
}
# Each leaves a sleeper that left the session and its parent, and has an empty environment.
HIDDEN = {
    "leader there": "(setsid env -i /bin/sleep 98765 &); sleep 30",
    "leader replaced": "(setsid env -i /bin/sleep 98765 &); exec sleep 30",
    "twice": "(setsid env -i /bin/sh -c '/bin/sleep 98765 & /bin/sleep 98765 & exit' &); sleep 30",
    "stopped": "(setsid env -i /bin/sh -c 'kill -STOP $$; exec /bin/sleep 98765' 98765 &); sleep 30",
}


def survivor(guest: Guest) -> bool:
    time.sleep(0.8)
    guest.sh("true")
    return guest.call("exists", "survivor").done == [b"1"]


@pytest.mark.parametrize("tree", TREES)
def test_a_timeout_ends_the_tree(guest: Guest, tree: str) -> None:
    start = time.monotonic()
    reply = guest.sh(f"echo so far; {TREES[tree]}", timeout_ms=300)
    assert time.monotonic() - start < within(1.5)
    assert (reply.flags, reply.exit, reply.out) == ("t", "-9", b"so far\n")
    assert int(reply.fields()[1]) >= 300_000
    assert not survivor(guest)


@pytest.mark.parametrize("tree", HIDDEN)
def test_a_timeout_ends_what_hides(guest: Guest, tree: str) -> None:
    call = guest.spawn("sh", "-c", HIDDEN[tree], timeout_ms=500)
    time.sleep(0.2)
    assert sleepers(guest)
    reply = guest.wait(call, 2)
    assert (reply.flags, reply.exit) == ("t", "-9")
    assert not sleepers(guest)


COMET = "perl -e 'setpgrp; while (1) { exit if fork }'"
"""Always about to be another process, so a look at all processes hardly ever finds it."""
HEADLESS = """
import ctypes, os, threading, time
def rest():
    while True:
        time.sleep(.05)
        open("alive", "a").write("x")
threading.Thread(target=rest).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.slow
def test_a_timeout_ends_what_is_always_another_process(guest: Guest) -> None:
    guest.sh("for i in $(seq 100); do sleep 60 & done")  # a look takes longer, the more there are
    for _ in range(3):
        assert guest.sh(f"{COMET} & sleep 30", timeout_ms=200).flags == "t"
        newest = "cut -d ' ' -f 5 /proc/loadavg"
        first, second = map(int, guest.sh(f"{newest}; sleep .1; {newest}").out.split())
        assert 0 < second - first < 5, "something goes on forking"


def test_a_timeout_ends_what_runs_on_without_its_first_thread(outside_docker: Guest) -> None:
    outside_docker.put("headless.py", HEADLESS.encode())
    call = outside_docker.spawn("sh", "-c", "setsid /usr/bin/python3 headless.py & sleep 30")
    wait_for(outside_docker, "alive")
    outside_docker.send(5, call)
    assert outside_docker.wait(call, 3).flags == "k"
    size = outside_docker.get("alive").data
    time.sleep(0.3)
    assert outside_docker.get("alive").data == size


def sleepers(guest: Guest) -> list[bytes]:
    """The processes that a command left, as the sandbox's other commands see them."""
    return guest.sh("grep -la '9876[5]' /proc/[0-9]*/cmdline 2>/dev/null").out.split()


def test_a_kill_ends_the_tree_and_says_so(guest: Guest) -> None:
    call = guest.spawn("sh", "-c", "touch begun; (sleep .8; touch survivor) & wait")
    wait_for(guest, "begun")
    guest.send(5, call)
    reply = guest.wait(call, 2)
    assert (reply.flags, reply.exit) == ("k", "-9")
    guest.send(5, call)  # it has ended: nothing happens
    assert not survivor(guest)


@pytest.mark.slow
def test_one_of_two_calls_ends_and_the_other_does_not(switching: Guest) -> None:
    switching.sh("(setsid env -i /bin/sh -c 'while /bin/sleep .05; do echo >> background; done' &)")
    hidden = "(setsid env -i /bin/sh -c 'while /bin/sleep .05; do echo >> {0}; done' &); touch {0}.begun; sleep {1}; echo whole"
    one = switching.spawn("sh", "-c", hidden.format("one", 30))
    two = switching.spawn("sh", "-c", hidden.format("two", 1))
    wait_for(switching, "one.begun")
    wait_for(switching, "two.begun")
    switching.send(5, one)
    assert switching.wait(one, 2).flags == "k"
    assert (switching.reply(two).ended, switching.wait(two).out) == (False, b"whole\n")
    sizes = {}
    for name in ("one", "two", "background"):
        before = switching.sh(f"wc -c < {name} 2>/dev/null || echo 0").out
        time.sleep(0.25)
        sizes[name] = switching.sh(f"wc -c < {name} 2>/dev/null || echo 0").out != before
    assert sizes == {"one": False, "two": True, "background": True}


@pytest.mark.slow
def test_the_mark_cannot_be_put_off(switching: Guest) -> None:
    attempts = "unshare -Ur true; setpriv --clear-groups true; setpriv --groups 4 true; su -c true; "
    attempts += "python3 -c 'import os; os.setgroups([])'; exit 0"
    switching.sh(attempts)
    reply = switching.sh("(unshare -Ur sh -c 'sleep .8; touch survivor' || sh -c 'sleep .8; touch survivor'); sleep 30", timeout_ms=300)
    assert reply.flags == "t"
    assert not survivor(switching)


BOMB = "bomb() { bomb | bomb & }; bomb; sleep 30"
SETSID_BOMB = "cat > bomb.sh <<'E'\nsetsid sh bomb.sh & setsid sh bomb.sh & wait\nE\nsh bomb.sh; sleep 30"


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize("bomb", [BOMB, SETSID_BOMB], ids=["pipes", "setsid"])
def test_a_fork_bomb_ends_with_its_call(contained: Guest, bomb: str) -> None:
    other = contained.spawn("sleep", "4")
    start = time.monotonic()
    reply = contained.sh(bomb, timeout_ms=1000)
    assert time.monotonic() - start < within(3)
    assert reply.flags == "t"
    time.sleep(0.2)
    assert int(contained.sh("ls -d /proc/[0-9]* | wc -l").out) <= 5  # server, sleep, sh, ls, wc
    assert contained.wait(other).exit == "0"


@pytest.mark.docker
@pytest.mark.slow
def test_a_full_house_is_told_and_passes(contained: Guest) -> None:
    calls = [contained.spawn("sleep", "1") for _ in range(260)]
    replies = [contained.wait(call) for call in calls]
    failed = [reply.failure for reply in replies if reply.failure is not None]
    assert 1 <= len(failed) < 20
    assert all("as many as it may" in failure[1] for failure in failed)
    assert contained.sh("echo good").out == b"good\n"


@pytest.mark.docker
@pytest.mark.slow
def test_out_of_memory_kills_the_command_and_is_told(contained: Guest) -> None:
    hog = "python3 -c 'x = bytearray(900 << 20); x[::4096] = b\"1\" * len(x[::4096])'"
    reply = contained.sh(f"{hog}; exit $?")
    assert (reply.exit, reply.flags) == ("137", "o")
    assert contained.sh("kill -9 $$").flags == ""


@pytest.mark.docker
@pytest.mark.slow
def test_the_server_cannot_be_reached_from_inside(contained: Guest) -> None:
    forged = HEADER.pack(0, 1, 23).hex()
    attempts = [
        f"python3 -c 'import os; os.write(os.open(\"/proc/1/fd/1\", os.O_WRONLY), bytes.fromhex(\"{forged}\"))'",
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "ls /proc/1/fd/",
        "echo 1000 > /proc/1/oom_score_adj",
        "ls /proc/1/cwd/",
        "su root -c true",
    ]
    for line in attempts:
        assert contained.sh(f"{line} </dev/null").exit != "0", line
    for name in ("KILL", "STOP", "TERM", "INT", "HUP", "SEGV", "USR1", "CHLD"):
        contained.sh(f"kill -{name} 1; kill -{name} 1; sleep .01; kill -{name} 1")
        assert contained.call("ping").done == [], name
    facts = contained.sh("grep -E '^(Cap...|NoNewPrivs|Uid)' /proc/self/status").out.decode().split("\n")
    assert [line.split(":")[1].strip() for line in facts if line.startswith(("CapInh", "CapPrm", "CapEff", "CapAmb"))] == ["0" * 16] * 4
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in facts
    assert contained.call("ping").done == []


ATTACK = """
import os
while True:
    for number in (9, 19, 10, 17):
        try: os.kill(1, number)
        except OSError: pass
    for path in ("fd/0", "fd/1", "mem", "environ", "oom_score_adj"):
        for flags in (os.O_RDONLY, os.O_WRONLY):
            try: os.open("/proc/1/" + path, flags); open("escaped", "a").write(path)
            except OSError: pass
"""


@pytest.mark.docker
@pytest.mark.slow
def test_attacks_during_a_thousand_starts_do_no_harm(contained: Guest) -> None:
    """While a command is being started, the server has the commands' user id."""
    attacker = contained.spawn("python3", "-c", ATTACK)
    for _ in range(1000):
        assert contained.run("true").exit == "0"
    contained.send(5, attacker)
    assert contained.wait(attacker).flags == "k"
    # What is for everybody to read is no escape.
    assert not contained.get("escaped").data.replace(b"oom_score_adj", b"")


@pytest.mark.parametrize("how", ["close", "kill -9"])
def test_the_end_of_the_owner_is_the_end_of_everything(switching: Guest, how: str) -> None:
    if switching.command == DOCKER:
        identity = ["docker", "ps", "-q", "--filter", "label=rath-test-guest"]
        switching.sh("(setsid env -i /bin/sleep 9876 &)")
        before = subprocess.run(identity, capture_output=True, check=True).stdout
        switching.hang_up() if how == "close" else switching.process.kill()
        switching.process.wait(10)
        for _ in range(100):
            if subprocess.run(identity, capture_output=True, check=True).stdout != before:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the container is still there")
        return
    switching.sh("(setsid env -i /bin/sleep 9876 &)")
    inside = children(switching.server_pid)
    assert [alive(pid) for pid in inside] == [True]
    if how == "close":
        switching.hang_up()
        assert switching.process.wait(5) == 0
    else:
        os.kill(switching.server_pid, signal.SIGKILL)
        switching.process.wait(5)
    assert not any(alive(pid) for pid in inside)


def children(pid: int) -> list[int]:
    return [int(found) for found in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False).stdout.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "frames",
    [
        HEADER.pack(1 << 30, 1, 2),
        HEADER.pack(0, 1, 99),
        HEADER.pack(3, 1, 2) + b"\0\0\0",
        HEADER.pack(5, 1, 2) + b"\0\0\0\xffx",
        HEADER.pack(0, 0, 2),
        HEADER.pack(8, 1, 2) + pack("read"),
        HEADER.pack(13, 1, 2) + pack("cell", "x"),
    ],
    ids=["large", "kind", "short length", "short field", "call 0", "few fields", "number"],
)
def test_what_makes_no_sense_ends_the_sandbox(plain: Guest, frames: bytes) -> None:
    child = plain.spawn("sleep", "9877")
    plain.call("ping")
    inside = [plain.server_pid, *children(plain.server_pid)]
    assert len(inside) == 2
    plain.send_raw(frames)
    with pytest.raises(GuestDied):
        plain.wait(child, 5)
    assert plain.process.wait(5) == 3
    assert not any(alive(pid) for pid in inside)


def test_more_input_than_credit_ends_the_sandbox(plain: Guest) -> None:
    call = plain.spawn("sleep", "9", flags="i")
    for _ in range(2):
        plain.send(3, call, bytes(200_000))
    with pytest.raises(GuestDied):
        plain.wait(call, 5)
    assert plain.process.wait(5) == 3


def test_outside_of_a_namespace_of_its_own_the_server_does_not_begin() -> None:
    """What it signals could be anybody's."""
    command = [sys.executable, "-I", "-S", "-u", "-c", SOURCE]
    if os.geteuid() == 0:  # should it begin after all
        command = ["setpriv", "--reuid", "20003", "--regid", "20003", "--clear-groups", "/usr/bin/python3", *command[1:]]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"first process of a PID namespace" in done.stderr


@pytest.mark.skipif(own_namespace() is None, reason="needs PID namespaces")
def test_a_call_before_the_configuration_ends_the_sandbox() -> None:
    with Guest() as guest:
        call = guest.start("ping")
        with pytest.raises(GuestDied):
            guest.wait(call)
        assert guest.process.wait(5) == 3


def test_a_configuration_that_cannot_be_held_begins_nothing(workspace: Path) -> None:
    """Asked to switch users where it cannot, the server does not go on as one user."""
    namespace = own_namespace()
    if namespace is None:
        pytest.skip("needs PID namespaces")
    weak = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=0"]
    with Guest([*namespace, *weak, sys.executable, "-I", "-S", "-u", "-c", SOURCE]) as guest:
        with pytest.raises(GuestDied):
            guest.configure(workspace, mode="switch", uid=UID, gid=UID, mark="groups")
        assert guest.process.wait(5) == 1


def test_a_second_configuration_replaces_the_first(switching: Guest) -> None:
    place = switching.sh("pwd").out.decode().strip()
    switching.put("file", b"x")
    switching.sh("mkdir sub; chmod 777 sub")
    said = switching.configure(f"{place}/sub", mode="switch", uid=UID + 1, gid=UID + 2, mark="groups", env="B=2")
    assert said["workspace_ino"]
    assert switching.run("/usr/bin/id", "-u").out == b"%d\n" % (UID + 1)
    assert switching.run("/usr/bin/env").out == b"B=2\n"
    assert switching.put("mine", b"y").done == [b"1"]
    assert switching.call("stat", "mine").fields()[2:4] == [b"%d" % (UID + 1), b"%d" % (UID + 2)]
    assert switching.call("exists", "../file").kind == "path_outside_workspace"


def test_hold_stops_everything_and_release_lets_it_go_on(switching: Guest) -> None:
    switching.sh("(setsid sh -c 'while sleep .01; do echo >> ticks; done' &)")
    wait_for(switching, "ticks")
    assert switching.call("hold").done == []
    size = switching.call("stat", "ticks").fields()[1]
    time.sleep(0.2)
    assert switching.call("stat", "ticks").fields()[1] == size
    assert switching.call("export", ".", "").done is not None
    assert switching.call("release").done == []
    time.sleep(0.2)
    assert int(switching.call("stat", "ticks").fields()[1]) > int(size)


def test_the_server_ignores_polite_signals(plain: Guest) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        os.kill(plain.server_pid, number)
    assert plain.sh("echo here").out == b"here\n"
