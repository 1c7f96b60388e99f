"""`--notify`: a webhook or a command is told of the result, and nothing that goes wrong with that costs anything."""

import http.server
import json
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from test_compare import record_run

from fnostab.cli import main
from fnostab.config import ConfigError
from fnostab.workflows import notify
from fnostab.workflows.notify import Notice, Notifier

_NOTICE = Notice("verdict", "converged", "s", "abc", {"best_val_loss": float("inf"), "why": "it's; $(touch injected)"})


@contextmanager
def _server(status=200, *, drips=False):
    """A webhook on this machine; gives its address, and the bodies of what it got."""
    got, over, others = [], threading.Event(), set(threading.enumerate())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))))
            if drips:  # a server that is alive, and never done
                while not over.wait(0.05):
                    self.wfile.write(b"H")
                return
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", got
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        for thread in set(threading.enumerate()) - others:  # those that still wait for an answer, and their sockets
            thread.join(5)


def _send(target, notice=_NOTICE):
    """What is said when `notice` is sent to `target`."""
    said = []
    Notifier(target).send(notice, said.append)
    return said


def test_a_webhook_gets_strict_json():
    with _server() as (url, got):
        assert _send(url) == []
    ((kind, body),) = got
    assert kind == "application/json"
    assert json.loads(body) == {
        **{"event": "verdict", "label": "converged", "study": "s", "run_id": "abc"},
        **{"best_val_loss": None, "why": "it's; $(touch injected)"},
    }


def test_a_command_gets_the_same_on_stdin_and_the_verdict_in_its_environment_and_no_shell_sees_it(tmp_path):
    script = tmp_path / "a script.py"
    script.write_text(
        "import json, os, sys\n"
        "named = {key: value for key, value in os.environ.items() if key.startswith('FNOSTAB_')}\n"
        "json.dump([sys.argv[1:], json.load(sys.stdin), named], open(sys.argv[1], 'w'))\n"
    )
    out = tmp_path / "out.json"
    assert _send(f"{sys.executable} '{script}' {out} ';' '$(touch injected)'") == []
    arguments, told, named = json.loads(out.read_text())
    assert arguments == [str(out), ";", "$(touch injected)"]
    assert told == json.loads(_NOTICE.to_json())
    assert named.items() >= {"FNOSTAB_VERDICT": "converged", "FNOSTAB_STUDY": "s", "FNOSTAB_RUN_ID": "abc"}.items()
    assert not (tmp_path / "injected").exists()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("sh -c 'echo no room >&2; exit 3'", "by sh: it ended with 3: no room"),
        ("sh -c 'cat; sleep 60 & sleep 60'", "by sh: it had not ended after 1 s"),
    ],
)
def test_a_command_that_fails_or_hangs_is_one_line(command, line, monkeypatch):
    monkeypatch.setattr(notify, "TIMEOUT_S", 1.0)
    started = time.monotonic()
    assert _send(command) == [f"warning: nobody was notified {line}"]
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_a_webhook_that_hangs_is_one_line_without_its_address(kind, monkeypatch):
    monkeypatch.setattr(notify, "TIMEOUT_S", 1.0)
    started = time.monotonic()
    if kind == "dripping":
        with _server(drips=True) as (url, _):
            (line,) = _send(url)
    else:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            (line,) = _send(f"http://127.0.0.1:{silent.getsockname()[1]}/token")
    assert line == "warning: nobody was notified by http://127.0.0.1: no answer within 1 s" or "timed out" in line
    assert "token" not in line
    assert time.monotonic() - started < 10


def test_a_webhook_that_refuses_or_is_not_there_is_one_line():
    with _server(500) as (url, _):
        assert _send(url) == ["warning: nobody was notified by http://127.0.0.1: it answered 500"]
    (line,) = _send(url)
    assert "Connection refused" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("ftp://a.example/x", "must be a command, or a URL of http or https with a host"),
        ("file:///etc/passwd", "must be a command, or a URL of http or https with a host"),
        ("http://", "must be a command, or a URL of http or https with a host"),
        ("http://a.example:port/", "must be a command, or a URL of http or https with a host"),
        ("http://a.example/ x", "must be a command, or a URL of http or https with a host"),
        ("echo 'a", "must be a command whose quotes are closed"),
        ("no-such-program --now", "must be a command that can be run"),
        ("  ", "must be a command that can be run"),
    ],
)
def test_what_is_neither_is_refused_before_anything_is_done(target, rule):
    with pytest.raises(ConfigError, match=rule):
        Notifier(target)


def test_a_comparison_tells_its_decision_and_a_failure_to_tell_costs_nothing(fresh_store, capsys):
    for seed in (1, 2):
        for arm in ("control", "agc"):
            record_run("told", arm, seed)
    with _server() as (url, got):
        assert main(["compare", "--study", "told", "--notify", url]) == 0
    told = json.loads(got[0][1])
    assert told["event"] == "decision"
    assert told["label"] == told["decision"] == "undecided"
    assert [row["arm"] for row in told["ranking"]] == ["agc", "control"]
    assert told["report"] == "told_report.html"
    capsys.readouterr()
    assert main(["compare", "--study", "told", "--notify", "sh -c 'exit 1'"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fnostab: warning")]
    assert line == "fnostab: warning: nobody was notified by sh: it ended with 1"


@pytest.mark.parametrize("command", ["train", "study", "compare"])
def test_bad_targets_are_refused_with_exit_code_2_and_nothing_is_written(command, fresh_store, capsys):
    words = [] if command == "compare" else ["--preset", "smoke"]
    assert main([command, *words, "--notify", "gopher://a.example"]) == 2
    assert "`notify` (=gopher://a.example) must be" in capsys.readouterr().err
    assert os.listdir(fresh_store) == []
