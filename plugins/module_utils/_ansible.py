# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between Ansible and the engine, the only engine file that imports Ansible (private to the collection).

Actions take from here the user's values , the objects of the engine and results; callbacks take what a run is to
show and how it ended. Everything of the engine that is not needed by every run is imported where it is used:
`up` on a running workspace has about a hundred milliseconds above an empty play (decision B1).
"""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import parse_kv, split_args
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from . import _ansible_guard, _settings
from ._errors import Cancelled, FlowError, InvalidInput, NotFound, redact
from ._progress import Progress

if TYPE_CHECKING:
    import threading

    from . import _coder_server, _docker_http
    from ._coder_admin import CoderAdmin
    from ._coder_http import CoderHttp
    from ._target import Target
    from ._workspace import Session, Workspace, WorkspaceSpec

RUNNER_CALLBACK = "awx_display"
OUTPUT_CALLBACK = "spt.flow.output"
EXAMPLE_UP = "Create one: ansible-playbook spt.flow.up -e repo=https://host/owner/name.git"
TEMPLATE_MARKS = ("{{", "{%", "{#")
INTERRUPTED = "What was begun stays as it is: the same command goes on with it."
ANSIBLE_KEYS = ("ansible_stats", "exception", "failed", "invocation", "warnings", "deprecations")
"""Keys of a task's result that are Ansible's own."""

display = Display()


# The user's values


def extra_values(loader: DataLoader | None = None) -> dict[str, Any]:
    """Extra variables as they were written, never templated (decision A5)."""
    return {str(name): _plain(value) for name, value in load_extra_vars(loader or DataLoader()).items()}


def _plain(value: Any) -> Any:
    """``value`` without Ansible's tags, so that nothing of the user's is trusted as a template later."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def refuse_templates(values: Mapping[str, Any]) -> None:
    """Refuse user values that Ansible would run as a template (decision A5)."""
    for name in _settings.OPTIONS:
        if has_template(values.get(name)):
            raise InvalidInput(
                f"The value of {name} contains {{{{, {{% or {{#, which Ansible would run as a template.",
                f"Pass it by environment, where it is taken literally: SPT_FLOW_{name.upper()}='…'.",
            )


def has_template(value: Any) -> bool:
    """Whether Ansible would run ``value``, or a text in it however deep, as a template."""
    if isinstance(value, str):
        return any(mark in value for mark in TEMPLATE_MARKS)
    if isinstance(value, Mapping):
        return any(map(has_template, (*value, *value.values())))
    return isinstance(value, (list, tuple)) and any(map(has_template, value))


def refuse_stray_words(texts: Iterable[Any]) -> None:
    """Refuse ``-e command=make test``, of which Ansible keeps ``make`` only (decision A6)."""
    for text in map(str, texts):
        if not text or text[0] in "@[{":
            continue
        words = [(word, *word.partition("=")[::2]) for word in split_args(text)]
        names = [name for word, name, _value in words if "=" in word and name in _settings.OPTIONS]
        stray = [word for word, _name, _value in words if "=" not in word]
        if "command" in names:
            position = [name for _word, name, _value in words].index("command")
            if words[position][2][:1] not in ("'", '"'):
                stray = words[position + 1 :] or stray
            elif parse_kv(text)["command"] not in text:
                raise InvalidInput(
                    "Ansible would change the backslashes in the command.",
                    "Pass it by environment, where it is taken literally: SPT_FLOW_COMMAND='…'.",
                )
        if names and stray:
            name = "command" if "command" in names else names[0]
            raise InvalidInput(
                f"Of -e {name}=… Ansible keeps the first word only and loses the rest.",
                f"Quote the value twice, -e \"{name}='…'\", or pass it by environment: SPT_FLOW_{name.upper()}='…'.",
            )


def user_layers(
    args: Mapping[str, Any], task_vars: Mapping[str, Any], templar: Any, loader: Any
) -> dict[str, dict[str, Any]]:
    """Where values come from, strongest first, in the shape that ``_settings.resolve`` takes."""
    refuse_stray_words(context.CLIARGS.get("extra_vars") or ())
    extra = extra_values(loader)
    refuse_templates(extra)
    return {
        "the task": {name: _plain(value) for name, value in args.items() if value is not None},
        "extra variables": {name: value for name, value in extra.items() if name in _settings.OPTIONS},
        "the environment": _settings.from_environment(os.environ),
        "the settings file": _settings.load_user_settings(),
        "the inventory": {
            name: from_inventory(templar, task_vars[f"flow_{name}"])
            for name in _settings.OPTIONS
            if task_vars.get(f"flow_{name}") is not None
        },
    }


def from_inventory(templar: Any, value: Any) -> Any:
    """An inventory's ``value``, which is trusted to be a template."""
    return _plain(templar.template(value))


def screen() -> str:
    """What standard output is for: ``text``, ``json`` (one object) or ``raw`` (the bytes of a command).

    Callbacks need it before any action looks at the values, so a wrong value means ``text`` here and is refused there.
    """
    if C.DEFAULT_STDOUT_CALLBACK != OUTPUT_CALLBACK:
        return "text"
    try:
        layers = [extra_values(), _settings.from_environment(os.environ), _settings.load_user_settings()]
    except (AnsibleError, FlowError):
        return "text"
    first = {name: next((layer[name] for layer in layers if layer.get(name)), "") for name in ("output", "command")}
    if first["output"] == "json":
        return "json"
    return "raw" if first["command"] else "text"


# What callbacks read


def run_data(stats: Any) -> dict[str, Any] | None:
    """What the last action of a run left for its end: verb, result, block, connect, output."""
    data = stats.custom.get("_run", {}).get("spt_flow")
    return data if isinstance(data, dict) else None


def has_failed(stats: Any) -> bool:
    return any(stats.failures.values()) or any(stats.dark.values())


def failure(result: Mapping[str, Any]) -> dict[str, Any]:
    """A failed task's result as the JSON object shows it; what other modules report gets the general code 1."""
    error = result.get("error")
    if is_ours(result):
        return {name: value for name, value in result.items() if not name.startswith("_") and name not in ANSIBLE_KEYS}
    message = redact(str(result.get("msg") or error or "The task failed without a message."))
    return {"changed": bool(result.get("changed")), "msg": message, "error": FlowError(message).to_dict()}


def is_ours(result: Mapping[str, Any]) -> bool:
    """Whether a failed result is one of ``failed``'s."""
    error = result.get("error")
    return isinstance(error, Mapping) and {"code", "kind", "message", "hint"} <= set(error)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The lines that tell a person about a failed result of ours."""
    return [line for line in (result["error"]["message"], result["error"]["hint"]) if line]


# What actions are made of


class FlowAction(ActionBase):
    """An action of spt.flow: user values in, one engine call, what the engine raises turned into failed results.

    ``OWN`` is the argument spec of what only tasks set, ``VALUES`` the options that are user values as well.
    """

    OWN: dict[str, Any] = {}
    VALUES: tuple[str, ...] = ()
    DOING = "run the task"
    FAILED: dict[str, Any] = {}
    """What a failed result has beside the error."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        # The worker was forked from a process full of objects, which it would look through again and again.
        gc.freeze()
        super().run(tmp, task_vars)
        spec = {**self.OWN, **{name: {"type": "raw"} for name in self.VALUES}}
        _checked, args = self.validate_argument_spec(spec)
        self.own = {name: args.get(name) for name in self.OWN}
        self.task_vars = task_vars or {}
        self.screen = screen()
        self.progress = Progress(self.say)
        try:
            self.values = self._resolve()
            with interruptible():
                return self.act()
        except KeyboardInterrupt:
            return failed(Cancelled("The run was interrupted.", INTERRUPTED), **self.FAILED)
        except NotYet as early:
            return self.finish({"changed": True, "msg": early.message}, ["", early.message])
        except FlowError as error:
            return failed(error, **self.FAILED)
        except AnsibleError:
            raise
        except Exception as error:  # noqa: BLE001 - no traceback reaches users
            display.vvv(redact(traceback.format_exc()))
            return failed(unexpected(self.DOING, error), **self.FAILED)

    def act(self) -> dict[str, Any]:
        """The task's result; raises ``FlowError``."""
        raise NotImplementedError

    def _resolve(self) -> dict[str, Any]:
        self.layers = user_layers(self.given(), self.task_vars, self._templar, self._loader)
        values = _settings.resolve(self.layers)
        _ansible_guard.refuse_configuration_of_repository(values["repo"], C.CONFIG_FILE)
        self.complete(values)
        if values["output"] == "json" and self.screen != "json" and C.DEFAULT_STDOUT_CALLBACK != RUNNER_CALLBACK:
            raise InvalidInput(
                "Cannot print one JSON object: Ansible's standard output is not ours.",
                f"Set ANSIBLE_STDOUT_CALLBACK={OUTPUT_CALLBACK}, and give SPT_FLOW_OUTPUT=json or -e output=json.",
            )
        return values

    def given(self) -> dict[str, Any]:
        """The values that the task sets."""
        return {name: value for name, value in self._task.args.items() if name in self.VALUES}

    def complete(self, values: dict[str, Any]) -> None:
        """Add to resolved ``values`` what only the inventory knows: ``engine``, the address of the node's engine."""
        values["engine"] = engine_of(values["node"], self.task_vars)

    def say(self, line: str) -> None:
        """One line for people, at once; unless the mode is ``text`` standard output belongs to others (decision C3)."""
        display.display(redact(line), stderr=self.screen != "text")

    def finish(self, result: dict[str, Any], block: list[str], connect: dict[str, Any] | None = None) -> dict[str, Any]:
        """``result`` with what the callbacks need at the end of the run; without them the block is shown here."""
        if C.DEFAULT_STDOUT_CALLBACK != OUTPUT_CALLBACK:
            for line in block:
                self.say(line)
        run = {"result": dict(result), "block": block, "connect": connect, "output": self.values["output"]}
        return {**result, "ansible_stats": {"data": {"spt_flow": run}, "per_host": False, "aggregate": False}}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C, which the callback `connect` passes on, be a ``KeyboardInterrupt``; a second one ends the worker."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_signum: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def at_terminal() -> bool:
    """Whether whoever runs this can be asked. An action's own process has no terminal (decision C3), its parent may."""
    for descriptor in (0, 1):
        try:
            opened = os.open(f"/proc/{os.getppid()}/fd/{descriptor}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            if not os.isatty(opened):
                return False
        finally:
            os.close(opened)
    return True


def failed(error: FlowError, **more: Any) -> dict[str, Any]:
    """A failed task's result."""
    return {"failed": True, "changed": False, "msg": str(error), "error": error.to_dict(), **more}


def unexpected(doing: str, error: Exception) -> FlowError:
    """What nobody foresaw, as a sentence; the traceback is shown at -vvv only."""
    return FlowError(
        f"Cannot {doing}: {type(error).__name__}: {error}".rstrip(": ") + ".",
        "This is a fault of spt.flow. Run again with -vvv and report what it prints.",
    )


def stream(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Run ``argv`` without input, tell ``say`` each line as it comes; the exit status (128 + signal when killed)."""
    with subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    ) as child:
        for line in child.stdout or ():
            say(line.rstrip("\r\n"))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


# What actions ask the engine for


def make_spec(values: Mapping[str, Any]) -> WorkspaceSpec:
    """The workspace that ``values``, resolved ones, describe; its author is asked for when it is created."""
    from . import _image_identity
    from ._repository import Repository, parse_dotfiles
    from ._workspace import WorkspaceSpec

    image = _image_identity.current(values["profile"], values["image_release"])
    repo, dotfiles, host = values["repo"], values["dotfiles"], values["default_host"]
    _ansible_guard.refuse_configuration_of_repository(repo, C.CONFIG_FILE)
    return WorkspaceSpec(
        owner=owner_of(values),
        settings=_settings.Settings.of(values),
        name=values["workspace"],
        repository=Repository.parse(repo, host) if repo else None,
        ref=values["ref"],
        dotfiles=parse_dotfiles(dotfiles, host) if dotfiles else "",
        image=image.tag,
        image_hash=image.hash,
    )


def owner_of(values: Mapping[str, Any]) -> str:
    """Whose workspaces are meant: the value, else the login name (decision C7), on a Coder server whoever asks."""
    return str(values["owner"]) or ("me" if values["target"] == "coder" else _settings.default_owner())


def engine_of(node: str, task_vars: Mapping[str, Any]) -> str:
    """Address of the engine of an inventory's ``node``; empty for the one that is used without a node."""
    if not node:
        return ""
    from . import _inventory

    return _inventory.engine_of(node, task_vars.get("groups") or {}, task_vars.get("hostvars") or {})


def git_identity(values: Mapping[str, Any]) -> dict[str, str]:
    """``name`` and ``email`` for commits: the user's values, else what the caller's git says outside repositories."""
    wanted = {"name": str(values["git_name"]), "email": str(values["git_email"])}
    if all(wanted.values()):
        return wanted
    argv = ["git", "config", "--null", "--get-regexp", r"^user\.(name|email)$"]
    # Not in the current directory, whose repository may be somebody else's.
    environ = {name: text for name, text in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    place: dict[str, Any] = {"cwd": "/", "env": environ, "stdin": subprocess.DEVNULL}
    try:
        said = subprocess.run(argv, capture_output=True, timeout=10, check=False, **place).stdout
    except (OSError, subprocess.TimeoutExpired):
        return wanted
    for entry in said.decode(errors="replace").split("\0"):
        key, _newline, value = entry.partition("\n")
        part = key.removeprefix("user.")
        if part in wanted and not str(values[f"git_{part}"]):
            wanted[part] = value
    return wanted


def open_target(values: dict[str, Any]) -> Target:
    """The target that ``values`` name, which name it plainly from then on; nothing is asked yet."""
    values["target"] = target_name(values)
    if values["target"] == "coder":
        return _open_coder(values)
    from ._docker_target import DockerTarget

    return DockerTarget(values["engine"], values["node"] if values["engine"] else "")


def target_name(values: Mapping[str, Any]) -> str:
    """``auto`` means Coder where a server and a token are at hand, unless a node is named."""
    if values["target"] != "auto":
        return str(values["target"])
    from . import _coder_config

    return "coder" if not values["node"] and _coder_config.configured() else "docker"


def coder_http(url: str = "", token: str = "", anonymous: bool = False) -> CoderHttp:
    """The way to a Coder server: what is given, else what the environment and the CLI's configuration say.

    ``anonymous``: without a token, for what a server tells everybody and for signing in.
    """
    from . import _coder_config
    from ._coder_http import CoderHttp

    given = {"CODER_URL": url, "CODER_SESSION_TOKEN": token}
    config = _coder_config.load({**os.environ, **{name: value for name, value in given.items() if value}})
    if anonymous:
        return CoderHttp(replace(config, token="", source=""), say=display.warning)
    return CoderHttp(_coder_config.require_token(config), say=display.warning)


class NotYet(FlowError):
    """Check mode before a first run: what would be asked is not there."""


class CoderAction(FlowAction):
    """An action for a Coder server's operators: who asks is told by options, by a file of the task's host, or as for
    every verb. Secrets are nowhere but in memory, in headers, and on the standard input of one command."""

    SERVER: dict[str, Any] = {
        "url": {"type": "str", "default": ""},
        "token": {"type": "str", "default": "", "no_log": True},
        "login_email": {"type": "str", "default": ""},
        "login_password": {"type": "str", "default": "", "no_log": True},
        "wait": {"type": "int", "default": 60},
    }
    _requires_connection = True

    def anonymous(self) -> CoderAdmin:
        """A client without a token, of a server that answers: it is waited for as long as the task says."""
        from . import _coder_server
        from ._coder_admin import CoderAdmin

        client = CoderAdmin(coder_http(self.own["url"], anonymous=True))
        if self._task.check_mode and not client.healthy():
            raise NotYet(
                f"Check mode: the Coder server {client.http.config.url} does not answer;"
                f" a run would wait for it, and then {self.DOING}."
            )
        if self.own["wait"] > 0:
            _coder_server.wait_healthy(client, self.own["wait"], self.progress)
        return client

    def login(self) -> _coder_server.Login | None:
        from . import _coder_server

        if not (self.own["login_email"] or self.own["login_password"]):
            return None
        login = _coder_server.Login(
            self.own["login_email"],
            self.own["login_password"],
            self.own.get("first_username") or "",
            self.own.get("first_name") or "",
        )
        login.check()
        return login

    @contextlib.contextmanager
    def operator(self, client: CoderAdmin) -> Iterator[CoderAdmin]:
        """A client that may change things: signed in by password where that is given, else by token."""
        from . import _coder_server
        from ._coder_admin import CoderAdmin

        login = self.login()
        if login:
            with _coder_server.session(client, login) as signed:
                yield signed
        else:
            yield CoderAdmin(coder_http(self.own["url"], self.own["token"]))

    def read_secret(self, path: str) -> tuple[str, str]:
        """(content, mode in octal) of a file on the task's host; empty when there is none. Raises ``FlowError``."""
        quoted = shlex.quote(_absolute(path))
        command = f"if test -e {quoted}; then stat -c %a -- {quoted} && cat -- {quoted}; else exit 44; fi"
        done = self._quietly(command)
        if done["rc"] == 44:
            return "", ""
        if done["rc"] != 0:
            raise FlowError(f"{path} cannot be read on this host.", "Read it as its owner: become: true")
        mode, _newline, content = done["stdout"].partition("\n")
        return content.strip(), mode.strip()

    def write_secret(self, path: str, content: str) -> None:
        """Make a file that only its owner reads, in one step; the content goes by standard input."""
        quoted, folder = shlex.quote(_absolute(path)), shlex.quote(os.path.dirname(path))
        fresh = shlex.quote(f"{path}.new")
        command = (
            f"mkdir -p -- {folder} && umask 077 && rm -f -- {fresh} && cat > {fresh} && test -s {fresh} && "
            f"chmod 0600 -- {fresh} && mv -f -- {fresh} {quoted} || {{ rm -f -- {fresh}; exit 1; }}"
        )
        if self._quietly(command, content.encode() + b"\n")["rc"] != 0:
            raise FlowError(
                f"{path} cannot be written on this host.",
                "Its folder takes root: become: true. See that its disk has room.",
            )

    def _quietly(self, command: str, in_data: bytes | None = None) -> dict[str, Any]:
        """Run a command of which connections show neither input nor output, at no verbosity."""
        kept, self._play_context.no_log = self._play_context.no_log, True
        try:
            done: dict[str, Any] = self._low_level_execute_command(command, in_data=in_data)
        finally:
            self._play_context.no_log = kept
        return done


def _absolute(path: str) -> str:
    if not os.path.isabs(path) or "\0" in path:
        raise InvalidInput(f"{_settings.shown(path)!r} is no absolute path.")
    return path


def _open_coder(values: Mapping[str, Any]) -> Target:
    from ._coder_client import CoderClient
    from ._coder_target import CoderTarget

    if values["node"]:
        raise InvalidInput(
            "A node is of no use with target=coder: the server's template places workspaces.",
            "Leave node away, or use target=docker.",
        )
    return CoderTarget(CoderClient(coder_http()), values["template"], values["wait_timeout"])


class Furnished:
    """A target that sees to what only a created or restarted workspace needs: the image, and who writes its commits."""

    def __init__(self, target: Target, values: Mapping[str, Any]) -> None:
        self._target = target
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        return self._target.create(self._furnish(spec, progress), progress)

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        return self._target.restart(workspace, self._furnish(spec, progress), progress)

    def prepare(self, progress: Progress) -> None:
        """Have the image where that is our business: on Coder and on other machines it has been brought before."""
        from . import _image, _image_identity

        if self._target.name == "coder" or self._values.get("engine"):
            return
        image = _image_identity.current(self._values["profile"], self._values["image_release"])
        if self._values["image_release"]:
            from . import _image_release

            if _image_release.taken(image, progress):
                return
        _image.ensure(image, image_options(self._values), progress)

    def _furnish(self, spec: WorkspaceSpec, progress: Progress) -> WorkspaceSpec:
        if self._target.name == "coder":
            return spec  # the server knows who its user is
        self.prepare(progress)
        author = git_identity(self._values)
        return replace(spec, git_name=author["name"], git_email=author["email"])


class Ahead:
    """Reads how to enter a running workspace while the run is still being prepared, half of the time of `up` (B1).

    Only where the container's name can be told beforehand, on the engine of this machine.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._ran: _docker_http.Ran | None = None
        self._thread: threading.Thread | None = None
        name, repo = values["workspace"], values["repo"]
        if not values["engine"] and (name or repo) and target_name(values) == "docker":
            self._begin(values, name, repo)

    def session(self, workspace: Workspace) -> Session | None:
        """The session of ``workspace``; ``None`` when another or none was found, or reading failed."""
        from ._docker_session import to_session

        if self._thread:
            self._thread.join()
        if self._ran is None or self._ran.status or self._ran.container != workspace.id:
            return None
        return to_session(workspace.url, self._ran.stdout.decode(errors="replace"))

    def _begin(self, values: Mapping[str, Any], name: str, repo: str) -> None:
        import sys
        import threading

        # Imported before the thread starts: side by side with the other imports it would take twice as long.
        from . import _docker_http, _docker_session
        from ._repository import Repository

        def read() -> None:
            # Whoever asks in earnest gets the error.
            with contextlib.suppress(FlowError):
                self._ran = _docker_http.connect().run(container, _docker_session.READ, user=_docker_session.USER)

        name = name or Repository.parse(repo, values["default_host"]).slug
        container = _docker_session.container_name(owner_of(values), name)
        # The thread has little to do, but at once: with the usual 5 ms it waits behind imports for each answer.
        sys.setswitchinterval(0.0005)
        self._thread = threading.Thread(target=read, name="spt-flow-ahead", daemon=True)
        self._thread.start()


def image_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that say how an image is built."""
    return {o.name: values[o.name] for o in _settings.OPTIONS.values() if o.scope == "image"}


def read_workspaces(values: dict[str, Any]) -> list[Workspace]:
    """The workspace that ``values`` name, else all of the owner's, each with what is outdated about it."""
    target = open_target(values)
    spec = make_spec(values)
    found = target.list(spec.owner, details=True, sizes=values["size"])
    if spec.name or spec.repository:
        identity = spec.repository.identity if spec.repository else ""
        found = [w for w in found if (w.name == spec.name if spec.name else w.repo == identity)]
        if not found:
            raise NotFound(f"There is no workspace {spec.title}{spec.of_whom}.", EXAMPLE_UP)
    wanted = {"settings": spec.settings.hash(), "image": spec.image_hash}
    return [replace(w, outdated=differing(w, wanted)) for w in sorted(found, key=lambda w: w.name)]


def differing(workspace: Workspace, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """What is outdated: which of the hashes that a workspace was created with are not the ``wanted`` ones.

    On a Coder server it is the template that decides, not what this client would ask for.
    """
    if workspace.target == "coder":
        return workspace.outdated
    has = {"settings": workspace.settings_hash, "image": workspace.image_hash}
    return tuple(name for name, value in wanted.items() if value and has[name] and has[name] != value)


def find_one(target: Target, values: Mapping[str, Any]) -> Workspace:
    """The workspace that ``values`` name, or the owner's only one; raises ``NotFound`` or ``InvalidInput``."""
    spec = make_spec(values)
    if spec.name or spec.repository:
        found = target.find(spec)
        if found is None:
            raise NotFound(
                f"There is no workspace {spec.title}{spec.of_whom}.",
                "See what there is: ansible-playbook spt.flow.status",
            )
        return found
    mine = target.list(spec.owner)
    if not mine:
        raise NotFound(f"There is no workspace{spec.of_whom}.", EXAMPLE_UP)
    if len(mine) > 1:
        names = ", ".join(sorted(w.name for w in mine))
        raise InvalidInput(
            f"There are {len(mine)} workspaces{spec.of_whom}: {names}.", f"Say which: -e workspace={mine[0].name}"
        )
    return mine[0]
