"""Random trees of workspaces, forked, changed, merged and closed in any order: each is what a dict says it is."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from rath.backend.docker.layers import LayerStore
from rath.backend.docker.mounts import mounted_below

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount")]
NAMES = st.sampled_from(["a", "b", "c"])
PLACES = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
UID = 20_001


class Workspace:
    """A slot, and what ought to be in it: directories are dicts, files are strings."""

    def __init__(self, slot, model):
        self.slot = slot
        self.model = model

    def directory(self, place):
        at = self.model
        for name in place:
            at = at.get(name)
            if not isinstance(at, dict):
                return None
        return at

    def path(self, place):
        return Path(self.slot.path, *place)


def deep_copy(model):
    return {name: deep_copy(value) if isinstance(value, dict) else value for name, value in model.items()}


def on_disk(path):
    return {
        entry.name: on_disk(entry.path) if entry.is_dir(follow_symlinks=False) else Path(entry.path).read_text()
        for entry in os.scandir(path)
    }


class Workspaces(RuleBasedStateMachine):
    """Every rule does the same to a workspace and to its model."""

    new_calls: bool | None = None
    workspaces = Bundle("workspaces")
    snapshots = Bundle("snapshots")

    def __init__(self):
        super().__init__()
        self.store = LayerStore(f"prop-{os.getpid()}-{random.randrange(1 << 40):x}", new_calls=self.new_calls)
        self.open = []
        self.kept = []

    def show(self, frozen, model):
        slot = self.store.slot()
        self.store.mount(slot, frozen, UID, UID)
        workspace = Workspace(slot, model)
        self.open.append(workspace)
        return workspace

    @initialize(target=workspaces)
    def start(self):
        return self.show(None, {})

    @rule(workspace=workspaces, place=PLACES, text=st.text("xyz", max_size=3))
    def write(self, workspace, place, text):
        above = workspace.directory(place[:-1])
        if above is not None and not isinstance(above.get(place[-1]), dict):
            workspace.path(place).write_text(text)
            above[place[-1]] = text

    @rule(workspace=workspaces, place=PLACES)
    def make_directory(self, workspace, place):
        above = workspace.directory(place[:-1])
        if above is not None and place[-1] not in above:
            workspace.path(place).mkdir()
            above[place[-1]] = {}

    @rule(workspace=workspaces, place=PLACES)
    def remove(self, workspace, place):
        above = workspace.directory(place[:-1])
        if above is not None and place[-1] in above:
            path = workspace.path(place)
            if isinstance(above.pop(place[-1]), dict):
                shutil.rmtree(path)
            else:
                path.unlink()

    @rule(workspace=workspaces, place=PLACES, to=PLACES)
    def rename(self, workspace, place, to):
        above, below = workspace.directory(place[:-1]), workspace.directory(to[:-1])
        if above is None or below is None or place[-1] not in above or to[: len(place)] == place or to[-1] in below:
            return
        workspace.path(place).rename(workspace.path(to))
        below[to[-1]] = above.pop(place[-1])

    @rule(target=snapshots, workspace=workspaces)
    def freeze(self, workspace):
        frozen = self.store.freeze(workspace.slot)
        self.kept.append(frozen)
        return frozen, deep_copy(workspace.model)

    @rule(target=workspaces, snapshot=snapshots)
    def restore(self, snapshot):
        frozen, model = snapshot
        return self.show(frozen, deep_copy(model))

    @rule(target=workspaces, workspace=workspaces)
    def fork(self, workspace):
        frozen = self.store.freeze(workspace.slot)
        child = self.show(frozen, deep_copy(workspace.model))
        self.store.drop(frozen)
        return child

    @rule(target=workspaces, workspace=workspaces, count=st.integers(12, 20))
    def fork_again_and_again(self, workspace, count):
        for number in range(count):
            above = workspace.directory(())
            if not isinstance(above.get("c"), dict):
                workspace.path(("c",)).write_text(str(number))
                above["c"] = str(number)
            workspace = self.fork(workspace)
        return workspace

    @rule(target=snapshots, snapshot=snapshots)
    def share(self, snapshot):
        frozen = self.store.share(snapshot[0])
        self.kept.append(frozen)
        return frozen, deep_copy(snapshot[1])

    @rule()
    def merge_what_is_to_be_merged(self):
        self.store.settle()

    @rule(snapshot=consumes(snapshots))
    def drop(self, snapshot):
        self.kept.remove(snapshot[0])
        self.store.drop(snapshot[0])

    @rule(target=workspaces, workspace=consumes(workspaces))
    def close(self, workspace):
        if len(self.open) < 2:
            return workspace
        self.open.remove(workspace)
        self.store.release(workspace.slot)
        return multiple()

    @invariant()
    def every_workspace_is_what_it_ought_to_be(self):
        for workspace in self.open:
            assert on_disk(workspace.slot.path) == workspace.model

    def teardown(self):
        for workspace in self.open:
            self.store.release(workspace.slot)
        for frozen in self.kept:
            self.store.drop(frozen)
        self.store.settle()
        left = mounted_below(self.store.path)
        names = set()
        with contextlib.suppress(FileNotFoundError):
            names = set(os.listdir(self.store.path))
        self.store.close()
        assert left == []
        assert names <= {"e", "lock"}


class WithTheOldMountCall(Workspaces):
    new_calls = False


def usable() -> str:
    store = LayerStore(f"prop-{os.getpid()}-try")
    try:
        return store.obstacle()
    finally:
        store.close()


@pytest.mark.parametrize("machine", [Workspaces, WithTheOldMountCall])
def test_random_forks_are_isolated(machine):
    if usable():
        pytest.skip(usable())
    machine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
    machine.TestCase("runTest").runTest()
