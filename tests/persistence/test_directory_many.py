"""Ten thousand logs that have their first rows in each other: what looking at them costs."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from rath.session.persistence.format import SEAL_LENGTH, seal
from rath.testing.pace import within
from tests.persistence.shared import chain, log_at
from tests.persistence.test_directory_needs import run_python

LOOK = """
import resource, time
from datetime import timedelta
from rath.session.persistence import list_persisted_sessions, open_dir, sessions_dir
from rath.session.persistence.needs import read_needs
from rath.session.persistence.prune import prunable

def rss_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def took_s(what, times=2):
    best = float("inf")
    for _ in range(times):  # this process's own time: the files are in memory, and machines have other things to do
        begun = time.process_time()
        made = what()
        best = min(best, time.process_time() - begun)
    return best, made

before = rss_mb()
listing, entries = took_s(lambda: open_dir().read())
assert len(entries) == 10_000 and sum(1 for entry in entries if entry.shared_rows) == 8_000
old_listing, metas = took_s(list_persisted_sessions)
assert len(metas) == 10_000
referrers, needs = took_s(lambda: read_needs(sessions_dir()))
assert len(needs.parents) == 8_000
planning, found = took_s(lambda: prunable(older_than=timedelta(days=1)), 1)
assert len(found.gone) == 10_000
grown = rss_mb() - before
print(listing, old_listing, referrers, planning, grown)
"""


def many(ids: list[UUID], copies: int) -> None:
    """Copies of these logs under other ids. Their headers are whole; what stands between a log's ends is not looked at."""
    epoch = b"00112233445566ff"
    logs = [(session_id, *log_at(session_id).read_bytes().partition(b"\n")) for session_id in ids]
    for copy in range(copies):
        others = {str(old): str(UUID(int=old.int ^ (copy + 1))) for old in ids}
        for session_id, header, _, rest in logs:
            body = header[:-SEAL_LENGTH]
            for old, new in others.items():
                body = body.replace(old.encode(), new.encode())
            log_at(others[str(session_id)]).write_bytes(seal(body, epoch)[0] + rest)


@pytest.mark.slow
def test_ten_thousand_logs_are_listed_and_their_needs_found_within_a_second_and_50_mb(home: Path) -> None:
    many(chain(5, days=2), 1_999)
    listing, old_listing, referrers, planning, grown_mb = map(float, run_python(LOOK, home=home).split())
    assert listing < within(1)
    assert old_listing < within(1)
    assert referrers < within(1)
    assert planning < within(3)
    assert grown_mb < 50
