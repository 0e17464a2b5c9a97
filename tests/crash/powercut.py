"""Power cuts, in a mount namespace of their own: ``unshare --mount python -m tests.crash.powercut LEVEL CUTS DIRECTORY SEED``.

A small ext4 on a loop device. A child writes logs on three threads and says through a pipe what was acknowledged; at a
random moment the file system is shut down without writing its journal out, which is what a power cut leaves; it is
unmounted, mounted again, and what is there is compared with what was promised until then. The last line of the output is
a summary.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rath.errors import PersistenceError
from rath.session import Session
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence import load_session
from rath.session.persistence.runlog import open_run_log
from rath.testing.pace import within

SHUTDOWN = 0x8004587D
WITHOUT_JOURNAL = struct.pack("I", 2)
SAID = struct.Struct("<IIBd")
WRITERS = 3


@dataclass
class Said:
    """What a log's writer has said: rows that it began, rows acknowledged as this level means it, closed."""

    begun: int = 0
    safe: int = 0
    closed: bool = False


def text(log: int, row: int) -> str:
    return f"log {log} row {row} " + "x" * (row * 37 % 900)


def say(pipe: int, log: int, rows: int, kind: int) -> None:
    os.write(pipe, SAID.pack(log, rows, kind, time.monotonic()))


def write_logs(directory: Path, level: Any, writer: int, pipe: int) -> None:
    """Logs of one row to forty, one after the other, until the disk is gone. Some begin in a log of level ``process``."""
    rng = random.Random()
    for number in range(writer, 1_000_000, WRITERS):
        shared = rng.choice((0, 3))
        seed = ChunkTable(tuple(user_text_chunk(text(number, row)) for row in range(shared)))
        if shared:
            parent = Session.from_user_message("go")
            other = open_run_log(parent, path=directory / f"{parent.id}.jsonl", durability="process", seed=seed)
            other.close(usage=None, lineage_extras=(), outcome={"status": "completed"}, table=seed)
        say(pipe, number, shared, 0)
        log = open_run_log(Session.from_user_message("go"), path=directory / f"{number}.jsonl", durability=level, seed=seed)
        rows = shared + rng.choice((1, 2, 5, 40))
        for row in range(shared, rows):
            say(pipe, number, row + 1, 0)
            log.append_row(row, user_text_chunk(text(number, row)))
            if level == "record":
                say(pipe, number, row + 1, 1)
            elif row % 3 == 2:
                log.sync()
                if level == "turn":
                    say(pipe, number, row + 1, 1)
        log.close(usage=None, lineage_extras=(), outcome={"status": "completed"})
        say(pipe, number, rows, 2)


def child(directory: Path, level: str, pipe: int) -> None:
    """All writers; ends when each has met the end of the disk."""

    def write(writer: int) -> None:
        try:
            write_logs(directory, level, writer, pipe)
        except PersistenceError:
            return

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def heard(pipe: int, level: str, cut_at: float) -> dict[int, Said]:
    """What the child said until the cut, and what it has begun.

    After a power cut nobody says anything. Here the child goes on, and a sync that the shutdown has overtaken may return
    as if nothing had happened: the journal that it would wait for is gone.
    """
    data = b""
    while block := os.read(pipe, 1 << 16):
        data += block
    logs: dict[int, Said] = {}
    for number, rows, kind, at in SAID.iter_unpack(data):
        said = logs.setdefault(number, Said())
        if kind == 0:
            said.begun = rows
        elif at >= cut_at:
            continue
        elif kind == 1:
            said.safe = rows
        else:
            said.closed = True
            # `process` promises nothing about power cuts, not even of what is closed.
            said.safe = 0 if level == "process" else rows
    return logs


def cut(mount: Path, level: str, rng: random.Random) -> dict[int, Said]:
    """Let the child write, cut its power at a random moment, say what it had said."""
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, 1 << 20)  # F_SETPIPE_SZ: nobody reads before the end
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            child(mount / "logs", level, write)
        finally:
            os._exit(0)
    os.close(write)
    directory = os.open(mount, os.O_RDONLY)
    try:
        time.sleep(rng.uniform(0.002, within(0.06)))
        if rng.random() < 0.5:
            # The kernel writes out when it likes: let it have begun.
            ctypes.CDLL(None).syncfs(directory)
            time.sleep(rng.uniform(0, 0.01))
        cut_at = time.monotonic()
        fcntl.ioctl(directory, SHUTDOWN, WITHOUT_JOURNAL)
    finally:
        os.close(directory)
    logs = heard(read, level, cut_at)
    os.close(read)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return logs


def check(mount: Path, level: str, logs: dict[int, Said], seen: Counter[str]) -> list[str]:
    """What was promised and is not there, and what must not be there."""
    wrong = []
    for number, said in logs.items():
        path = mount / "logs" / f"{number}.jsonl"
        try:
            loaded = load_session("", path=path)
        except PersistenceError as error:
            empty = not path.exists() or path.stat().st_size == 0
            seen["absent" if not path.exists() else "empty" if empty else "headless"] += 1
            # At `process` the log that has its first rows may be lost and it not.
            damaged = "damaged" in str(error) and not (level == "process" and "prefix: " in str(error))
            seen["without the rows in another"] += "prefix: " in str(error)
            if said.safe or (said.closed and level != "process") or damaged:
                wrong.append(f"log {number} ({said}): {error}")
            continue
        rows = loaded.chunk_table.rows
        seen["with rows in another"] += loaded.header.prefix is not None
        seen[loaded.verdict] += 1
        seen["rows acknowledged"] += said.safe
        seen["rows lost that were not"] += said.begun - len(rows)
        if loaded.verdict not in ("open", "torn", "complete"):
            wrong.append(f"log {number} ({said}) is {loaded.verdict}")
        if len(rows) < said.safe or (said.closed and level != "process" and loaded.verdict != "complete"):
            wrong.append(f"log {number} ({said}) has {len(rows)} rows and is {loaded.verdict}")
        if loaded.verdict == "complete" and len(rows) != said.begun:
            wrong.append(f"log {number} ({said}) has {len(rows)} rows and calls itself complete")
        if [row.payload["content"] for row in rows] != [text(number, row) for row in range(len(rows))]:
            wrong.append(f"log {number} ({said}) has other rows than were written")
    return wrong


def main(level: str, cuts: int, directory: Path, seed: int) -> None:
    def run(*command: object) -> str:
        return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout.strip()

    rng = random.Random(seed)
    image, mount = directory / "disk.img", directory / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", image)
    device = run("losetup", "--find", "--show", image)
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    try:
        for number in range(cuts):
            run("mount", device, mount)
            try:
                logs = mount / "logs"
                logs.mkdir(exist_ok=True)
                for old in logs.iterdir():
                    old.unlink()
                ctypes.CDLL(None).syncfs(fd := os.open(mount, os.O_RDONLY))
                os.close(fd)
                said = cut(mount, level, rng)
            finally:
                run("umount", mount)
            run("mount", device, mount)
            try:
                wrong += [f"cut {number} (seed {seed}): {what}" for what in check(mount, level, said, seen)]
            finally:
                run("umount", mount)
    finally:
        run("losetup", "-d", device)
    print(json.dumps({"cuts": cuts, "seen": seen, "wrong": wrong[:20]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
