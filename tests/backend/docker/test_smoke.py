"""One sandbox of an engine, from its opening to its end: what the default run sees of Docker."""

from __future__ import annotations

import pytest

from rath import Session, run_session_loop
from rath.backend import BackendSandboxSpec
from rath.backend.docker.engine import DockerEngine
from rath.testing import ScriptedClient
from tests.backend.docker.conftest import BASE

pytestmark = [pytest.mark.docker, pytest.mark.smoke]


def test_an_agent_works_in_a_container_and_a_branch_has_files_of_its_own(docker_engine: DockerEngine) -> None:
    script = [
        {"tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": "id -u; echo made > file"}}]},
        {"tool_calls": [{"name": "read_workspace_file", "arguments": {"path": "file"}}]},
        "done",
    ]
    provider = ScriptedClient(script, by_turn=True).as_provider()
    agent = Session.from_agent_prompt("x")
    with Session.from_user_message("go").to("docker", spec=BackendSandboxSpec(image=BASE)) as start:
        out = run_session_loop(start, agent, agent_provider=provider)
        rows = [row.text or "" for row in out.chunk_table]
        assert '"stdout":"0\\n"' not in rows[2]
        assert "made" in rows[4]
        branch = out.fork(sandbox="copy")
        again = run_session_loop(branch, agent, agent_provider=provider)
        assert again.workspace_diff().added == ("file",)
        for one in (again, branch, out):
            one.close_sandbox()
