# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs on the target in memory: how each end is classified, what is deleted and what is refused."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import artifacts as ci_artifacts
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import job as ci_job
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import record as ci_record
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import request as ci_request
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import run as ci_run
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Lines, Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository, ci_name
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.names import NAME_LIMIT, validate_name
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import readiness
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import ExecResult
from ansible_collections.spt.flow.tests.unit.fake_target import FakeTarget, ready_lines, start_event, step_event

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class CiTarget(FakeTarget):
    """A target whose clone is at ``COMMIT``."""

    def exec(self, workspace: Workspace, argv: Any, *_more: Any, **_named: Any) -> ExecResult:
        self._note("exec")
        return ExecResult(0, f"{COMMIT}\n", "")


@pytest.fixture(autouse=True)
def _open_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle

    monkeypatch.setattr(lifecycle, "_default_probe", lambda spec: lambda repository, ref: Probe("open"))


def spec(settings: Settings | None = None) -> WorkspaceSpec:
    return WorkspaceSpec(
        "alice", settings or Settings(), repository=Repository.parse("https://git.example.com/o/r.git")
    )


def run(
    folder: Path,
    command: str = "true",
    target: FakeTarget | None = None,
    wrap: Callable[[str], list[str]] | None = None,
    settings: Settings | None = None,
    **job: Any,
) -> tuple[ci_run.Outcome, list[str], FakeTarget]:
    """Run a job whose workspace is a shell on this machine, in ``folder``/clone."""
    target = target or CiTarget()
    (folder / "clone").mkdir(exist_ok=True)
    shown: list[str] = []

    def enter(_workspace: Workspace, words: str) -> list[str]:
        return (wrap or (lambda text: ["sh", "-c", text]))(words.replace("/home/coder/r", str(folder / "clone")))

    lines = Lines(shown.append, batch=False)
    outcome = ci_run.run(
        target, spec(settings), ci_request.Job(command, folder=folder / "runs", **job), lines=lines, enter=enter
    )
    return outcome, [line for text in shown for line in text.split("\n")], target


def test_successful_run_passes(tmp_path: Path) -> None:
    outcome, shown, target = run(
        tmp_path,
        'echo "$SPT_FLOW_COMMIT $CI $TOKEN"; echo err >&2; mkdir out; echo x > out/a; cat',
        commit=COMMIT,
        env={"TOKEN": "s3cret"},
        artifacts=("out/*",),
    )
    assert (outcome.kind, outcome.reason, outcome.status, outcome.ran) == ("job", "passed", 0, True)
    assert shown == [f"{COMMIT} true ***", "err"]
    assert outcome.artifacts == ["artifacts/out/a"] and (Path(outcome.folder) / "artifacts/out/a").read_text() == "x\n"
    assert target.workspaces == {} and not outcome.left
    assert outcome.counts == {"job": 1, "environment": 0, "cancelled": 0}
    record = (Path(outcome.folder) / "run.json").read_text()
    assert "s3cret" not in record and json.loads(record)["settings_hash"] == Settings().hash()


@pytest.mark.parametrize("status", [1, 7, 124, 125, 255])
def test_exit_status_is_that_of_the_job(tmp_path: Path, status: int) -> None:
    outcome, _shown, target = run(tmp_path, f"exit {status}")
    assert (outcome.kind, outcome.status, outcome.ran) == ("job", status, True)
    assert target.workspaces == {}


def test_job_killed_by_a_signal_has_the_status_of_the_shell(tmp_path: Path) -> None:
    assert run(tmp_path, "sh -c 'kill -9 $$'")[0].status == 137


def test_leftover_processes_of_the_job_do_not_delay_the_run(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run(tmp_path, "sleep 60 & echo done")[0].status == 0
    assert time.monotonic() - begun < 20


def test_slowly_printed_output_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ci_job, "LINGER", 0.2)
    told: list[str] = []

    def slowly(text: str) -> None:
        time.sleep(0.05)
        told.extend(text.split("\n"))

    job = "for i in $(seq 60); do head -c 8000 /dev/zero | tr '\\0' x; echo; done; exit 3"
    argv = ["sh", "-c", ci_job.remote_command("/")]
    ended = ci_job.run(argv, ci_job.payload(job, {}), ci_job.Mask([]), slowly, lambda: False)
    assert ended.status == 3 and len(told) == 60


def test_output_after_the_job_does_not_delay_the_run() -> None:
    begun = time.monotonic()
    argv = ["sh", "-c", ci_job.remote_command("/")]
    job = ci_job.payload("timeout 60 yes & sleep 0.2", {})
    assert ci_job.run(argv, job, ci_job.Mask([]), lambda text: None, lambda: False).status == 0
    assert time.monotonic() - begun < 50


def test_full_disk_of_the_runner_is_an_environment_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, *more: Any, **named: Any) -> Any:
        return opened(Path("/dev/full") if path.name == "job.log" else path, *more, **named)

    monkeypatch.setattr(Path, "open", full)
    outcome, _shown, target = run(tmp_path, "seq 100")
    assert (outcome.kind, outcome.status, outcome.ran) == ("environment", ci_run.NOT_RUN, False)
    assert "No space left on device" in outcome.msg and "SPT_FLOW_ARTIFACTS_DIR" in outcome.hint
    assert target.workspaces == {} and not outcome.left


def test_lost_connection_is_an_environment_failure(tmp_path: Path) -> None:
    outcome, _shown, target = run(tmp_path, wrap=lambda _text: ["sh", "-c", "echo 'ssh: no route' >&2; exit 255"])
    assert (outcome.kind, outcome.status, outcome.ran) == ("environment", ci_run.NOT_RUN, False)
    assert "no route" in outcome.msg and target.workspaces == {}


def test_ttl_ends_a_job(tmp_path: Path) -> None:
    outcome, _shown, target = run(tmp_path, "sleep 60", ttl=2)
    assert (outcome.kind, outcome.reason, outcome.status) == ("job", "ttl", ci_run.OUT_OF_TIME)
    assert target.workspaces == {} and outcome.seconds < 15


FAULTS = [
    (errors.Unhealthy("engine"), "environment"),
    (errors.DeadlineExceeded("late"), "environment"),
    (errors.FlowError("no"), "environment"),
    (OSError(28, "No space left on device"), "environment"),
    (RuntimeError("bug"), "environment"),
    (errors.NotFound("image"), "job"),
    (errors.AuthError("token"), "job"),
    (errors.InvalidInput("value"), "job"),
]


@pytest.mark.parametrize("verb", ["create", "start", "exec", "find"])
@pytest.mark.parametrize(("fault", "kind"), FAULTS)
def test_failure_before_the_job_is_classified_and_leaves_nothing(
    tmp_path: Path, verb: str, fault: Exception, kind: str
) -> None:
    target = CiTarget()
    times = iter(range(100))

    def fail() -> None:
        if verb != "find" or next(times) == 0:
            raise fault

    target.before[verb] = fail
    outcome, _shown, _target = run(tmp_path, target=target)
    if isinstance(fault, errors.NotFound) and verb in ("create", "start"):
        kind = outcome.kind  # `ensure` retries these; either class is correct
    assert (outcome.kind, outcome.status, outcome.ran) == (kind, ci_run.NOT_RUN, False)
    assert target.workspaces == {} and outcome.msg and not outcome.left


@pytest.mark.parametrize(
    ("state", "detail", "kind"),
    [
        ("needs-auth", "", "job"),
        ("failed", "o/r has no branch, tag or commit 'x'.", "job"),
        ("failed", "The server of o/r cannot be reached from the workspace", "environment"),
    ],
)
def test_failed_clone_is_classified(tmp_path: Path, state: str, detail: str, kind: str) -> None:
    def script(_workspace: Any, boot: str) -> list[str]:
        return [start_event(boot), step_event("clone", state, 1.0, 2.0, detail)]

    outcome, _shown, target = run(tmp_path, target=CiTarget(script))
    assert outcome.kind == kind and outcome.status == ci_run.NOT_RUN and target.workspaces == {}


def test_clone_without_credentials_suggests_the_checkout_of_the_pipeline(tmp_path: Path) -> None:
    target = CiTarget(lambda _workspace, boot: [start_event(boot), step_event("clone", "needs-auth", 1.0, 2.0, "")])
    assert "SPT_FLOW_REPO=$PWD" in run(tmp_path, target=target)[0].hint


def test_other_commit_than_requested_never_runs(tmp_path: Path) -> None:
    outcome, shown, target = run(tmp_path, "echo ran", commit="f" * 40)
    assert outcome.kind == "environment" and shown == [] and COMMIT in outcome.msg and target.workspaces == {}


@pytest.mark.parametrize(("state", "waits"), [("running", True), ("ok", False), ("failed", False), ("skipped", False)])
def test_run_waits_for_docker_inside(state: str, waits: bool) -> None:
    watch = readiness.Watch(Progress(), ci=True, docker=True)
    lines = [line for line in ready_lines("b") if '"docker"' not in line]
    for line in [*lines, step_event("docker", state, 1.1)]:
        assert not watch.complete
        watch.feed(line)
    assert watch.complete is not waits


def test_run_does_not_wait_for_docker_inside_where_the_log_ends_before(tmp_path: Path) -> None:
    target = CiTarget(lambda _workspace, boot: [line for line in ready_lines(boot) if '"docker"' not in line])
    target.log_ends_with_workspace = False
    assert run(tmp_path, target=target)[0].status == 0


def test_run_does_not_wait_for_the_ide(tmp_path: Path) -> None:
    target = CiTarget(lambda _workspace, boot: [line for line in ready_lines(boot) if '"ide"' not in line])
    assert run(tmp_path, target=target)[0].status == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["create", "job"])
def test_signal_cancels_the_run(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    target = CiTarget()
    if moment == "create":
        target.before["create"] = lambda: os.kill(os.getpid(), number)
    else:
        threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    before = signal.getsignal(number)
    outcome, _shown, _target = run(tmp_path, "sleep 30", target=target)
    assert (outcome.kind, outcome.status) == ("cancelled", 128 + number)
    assert target.workspaces == {} and signal.getsignal(number) is before


def test_undeletable_workspace_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ci_run, "DESTROY", 0.5)
    target = CiTarget()

    def fail() -> None:
        raise errors.Unhealthy("engine gone")

    target.before["delete"] = fail
    outcome, _shown, _target = run(tmp_path, "exit 3", target=target)
    assert outcome.status == 3 and outcome.left == outcome.workspace
    assert any("engine gone" in note for note in outcome.notes)


# Values


@pytest.mark.parametrize("text", ["/etc/*", "../x", "a/../../b", "~/x", "-x"])
def test_artifact_globs_stay_below_the_clone(text: str) -> None:
    with pytest.raises(errors.InvalidInput):
        ci_request.globs(text, "artifacts")


@pytest.mark.parametrize("commit", ["main", "0123abc", COMMIT.upper(), COMMIT + "0", "$(id)"])
def test_commit_must_be_complete(commit: str) -> None:
    with pytest.raises(errors.InvalidInput):
        ci_request.check_commit(commit)


def test_environment_takes_names_and_a_file_that_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.touch(0o600)
    path.write_text("# ours\nB=2=3\n\nC=\n")
    found, notes = ci_request.environment("A,\nMISSING", str(path), {"A": "1", "X": "9"})
    assert found == {"A": "1", "B": "2=3", "C": ""} and "MISSING" in notes[0] and not path.exists()


def test_environment_refuses_values_and_readable_files(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        ci_request.environment("TOKEN=s3cret", "", {})
    assert "s3cret" not in str(caught.value)
    (tmp_path / "env").write_text("A=1")
    with pytest.raises(errors.InvalidInput, match="chmod"):
        ci_request.environment("", str(tmp_path / "env"), {})
    assert (tmp_path / "env").exists()


@pytest.mark.parametrize(
    "repo", ["https://h/o/r.git", f"https://h/o/{'x' * 90}", "https://h/o/a--b-", "https://h/o/x-old"]
)
def test_generated_names_are_valid(repo: str) -> None:
    names = {ci_name(Repository.parse(repo)) for _ in range(20)}
    assert len(names) == 20 and all(validate_name(name) and len(name) <= NAME_LIMIT for name in names)


# Files


def archive(path: Path, *members: tuple[str, dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, more in members:
            info = tarfile.TarInfo(name)
            data = more.pop("data", b"x")
            for key, value in more.items():
                setattr(info, key, value)
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("artifacts/../../x", {}),
        ("/etc/x", {}),
        ("x", {}),
        ("job.log", {}),
        ("run.json/x", {}),
        ("artifacts/a\nb", {}),
        ("artifacts/l", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
        ("artifacts/l", {"type": tarfile.LNKTYPE, "linkname": "artifacts/a"}),
        ("artifacts/d", {"type": tarfile.CHRTYPE}),
        ("artifacts/f", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_hostile_archive_is_refused(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = archive(tmp_path / "a.tar", ("artifacts/a", {}), (name, dict(more)))
    with pytest.raises(errors.FlowError):
        ci_artifacts.unpack(path, folder, ci_artifacts.Limit(60))
    assert [p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*") if p.name == "x"] == []


def test_duplicate_names_overwrite_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", ("artifacts/a", {"data": b"1"}), ("artifacts/a", {"data": b"2"}))
    with pytest.raises(FileExistsError):
        ci_artifacts.unpack(path, tmp_path, ci_artifacts.Limit(60))


def test_links_out_of_the_clone_are_not_followed(tmp_path: Path) -> None:
    command = "ln -s /etc etc; ln -s /etc/passwd p; ln -s . loop; mkdir d; echo 1 > d/x; ln -s d e"
    outcome, _shown, _target = run(tmp_path, command, artifacts=("*", "etc/passwd", "e/x"))
    assert outcome.artifacts == ["artifacts/d/x"]
    assert any("no regular files of the clone" in note for note in outcome.notes)


_CASES = "<testcase/><testcase><failure/></testcase><testcase><skipped/></testcase>"
REPORT = f'<testsuites><testsuite name="a">{_CASES}</testsuite></testsuites>'


def test_reports_are_counted(tmp_path: Path) -> None:
    outcome, _shown, _target = run(
        tmp_path, f"echo '{REPORT}' > a.xml; cp a.xml b.xml; echo no > c.xml; exit 1", junit=("*.xml",)
    )
    assert outcome.status == 1 and outcome.reports == {"tests": 6, "failures": 2, "errors": 0, "skipped": 2}
    assert any("c.xml" in note for note in outcome.notes)


def test_report_with_entities_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><testsuite>&a;</testsuite>')
    with pytest.raises(ValueError, match="document type"):
        ci_artifacts.junit(tmp_path / "x.xml", ci_artifacts.Limit(10))


# Output


def test_batches_are_limited_by_size_and_time() -> None:
    said: list[str] = []
    lines = Lines(said.append, batch=True, size=100, seconds=60)
    for _ in range(50):
        lines.add("x" * 9)
    lines.flush()
    assert len(said) == 5 and sum(text.count("x") for text in said) == 450
    lines = Lines(said.append, batch=True, size=100, seconds=0)
    lines.add("now")
    assert said[-1] == "now"


def test_masks_hide_every_line_of_a_value_except_short_ones() -> None:
    mask = ci_job.Mask(["alpha\nbeta1", "ab"])
    assert mask("alpha beta1 ab alphabeta1") == "*** *** ab ******"


def test_workspace_is_created_from_a_record(tmp_path: Path) -> None:
    settings = Settings(cpus=2.0, memory=1 << 30, kvm="disabled", clone_cache=True)
    outcome, _shown, _target = run(tmp_path, commit=COMMIT, settings=settings)
    record = ci_record.load(Path(outcome.folder))
    assert record == ci_record.load(Path(outcome.folder) / "run.json")
    values = ci_record.values(record)
    assert (values["ref"], values["cpus"], values["kvm"]) == (COMMIT, 2.0, "disabled")
    assert Settings.of(values).hash() == settings.hash() == record["settings_hash"]
    assert ci_record.drift(record, settings.hash(), record["image_hash"]) == ""
    note = ci_record.drift(record, Settings().hash(), "f" * 64)
    assert "settings" in note and len(note.splitlines()) == 1


@pytest.mark.parametrize(
    ("origin", "known"),
    [
        ("https://gitlab-ci-token:s3cret@git.example.com/o/r.git", "https://git.example.com/o/r.git"),
        ("git@git.example.com:o/r.git", "git@git.example.com:o/r.git"),
        ("/srv/mirror", ""),
        ("ext::sh -c id", ""),
        ("", ""),
    ],
)
def test_run_of_a_pipeline_checkout_is_reproduced_from_its_origin(tmp_path: Path, origin: str, known: str) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", str(checkout)], check=True)
    if origin:
        subprocess.run(["git", "-C", str(checkout), "config", "remote.origin.url", origin], check=True)
    record = {"commit": COMMIT, "settings": {}, **ci_record.source(Repository.parse(str(checkout)))}
    assert record["origin"] == known and "s3cret" not in json.dumps(record)
    assert ci_record.values(record)["repo"] == str(checkout)
    assert ci_record.values(record, "https://other.example.com/o/r")["repo"] == "https://other.example.com/o/r"
    elsewhere = {**record, "source": str(tmp_path / "gone")}
    for there, directories in ((record, False), (elsewhere, True)):
        if known:
            assert ci_record.values(there, directories=directories)["repo"] == known
        else:
            with pytest.raises(InvalidInput, match="does not exist here"):
                ci_record.values(there, directories=directories)


@pytest.mark.parametrize(
    "settings", [{"cpus": "many"}, {"memory": []}, {"docker": "unsafe"}, {"kvm": "x\x1b[2J"}, {"pids": 10**30}]
)
def test_record_with_unsafe_settings_is_not_trusted(settings: dict[str, Any]) -> None:
    """Another user may have written it."""
    record = {"source": "https://example.com/o/r", "commit": COMMIT, "settings": settings}
    with pytest.raises(InvalidInput) as caught:
        ci_record.values(record)
    assert str(caught.value).replace("\n", "").isprintable()


def test_user_may_trust_an_unsafe_record() -> None:
    record = {"source": "https://example.com/o/r", "commit": COMMIT, "settings": {"docker": "unsafe"}}
    assert ci_record.values(record, docker="unsafe")["docker"] == "unsafe"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source": 1}', "\x00"])
def test_invalid_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InvalidInput, match="not the record of a CI run"):
        ci_record.load(tmp_path)
    with pytest.raises(InvalidInput, match="cannot read"):
        ci_record.load(tmp_path / "none")
