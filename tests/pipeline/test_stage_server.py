"""Stages that are forked from a process that has done their imports."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mmaudio.pipeline import stage_server
from mmaudio.pipeline.stage_server import ForkedProcess, StageServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux alone")

REPORT = """
import atexit, json, os, signal, sys
atexit.register(lambda: open(sys.argv[1] + ".ended", "w").close())
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
facts = {
    "name": __name__, "file": __file__, "argv": sys.argv, "path": sys.path[0], "parent": os.getppid(),
    "imported": "colorsys" in sys.modules, "threads": len(os.listdir("/proc/self/task")),
    "held": [number.name for number in mask & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}],
    "open": [os.readlink(f"/proc/self/fd/{number}") for number in map(int, os.listdir("/proc/self/fd")) if number > 2
             and os.path.exists(f"/proc/self/fd/{number}")],
}
with open(sys.argv[1], "w") as file:
    json.dump(facts, file)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def server(monkeypatch):
    """A server that has done its imports."""
    monkeypatch.setattr(stage_server, "GPU_DEVICES", ())
    with StageServer(["colorsys"]) as server:
        wait_until_ready(server)
        yield server


def wait_until_ready(server):
    """Wait for the imports of a server."""
    while not server._can_fork():
        assert server._process is not None and server._process.poll() is None
        time.sleep(0.01)


def wait_for(process):
    """The status of a process, once it has ended."""
    while process.poll() is None:
        time.sleep(0.01)
    return process.returncode


def test_a_forked_script_runs_as_one_that_python_was_started_with(server, tmp_path):
    import json

    script, out = tmp_path / "a script.py", tmp_path / "facts.json"
    script.write_text(REPORT)
    facts = {}
    for kind in ("forked", "program"):
        command = [sys.executable, str(script), str(out), "3"]
        process = server.start(command) if kind == "forked" else subprocess.Popen(command)
        assert wait_for(process) == 3
        facts[kind] = json.loads(out.read_text())
        (tmp_path / "facts.json.ended").unlink()  # functions of atexit have run
    assert facts["forked"]["parent"] == server._process.pid and facts["program"]["parent"] == os.getpid()
    assert facts["forked"]["imported"] and not facts["program"]["imported"]
    for name in ("name", "file", "argv", "path", "threads", "held", "open"):
        assert facts["forked"][name] == facts["program"][name], name


@pytest.mark.parametrize(
    ("statement", "status"), [("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_the_status_is_that_of_a_program(server, tmp_path, statement, status):
    (tmp_path / "stage.py").write_text(statement)
    for _ in range(2):
        process = server.start([sys.executable, str(tmp_path / "stage.py")])
        assert isinstance(process, ForkedProcess) and wait_for(process) == status


def test_the_memory_of_a_forked_stage_counts_once_the_server_has_ended(tmp_path):
    """`ru_maxrss` of the processes that have ended is what the pipeline prints as the largest."""
    (tmp_path / "stage.py").write_text("b'x' * 300_000_000\n")
    code = f"""
import resource, sys, time
from mmaudio.pipeline import stage_server
stage_server.GPU_DEVICES = ()
with stage_server.StageServer(["colorsys"]) as server:
    while not server._can_fork():
        time.sleep(0.01)
    process = server.start([sys.executable, {str(tmp_path / "stage.py")!r}])
    while process.poll() is None:
        time.sleep(0.01)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    kilobytes = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert 280_000 < kilobytes < 900_000


def test_what_is_no_script_of_this_interpreter_is_a_program(server):
    for command in ([sys.executable, "-c", "pass"], [sys.executable, "-m", "this"], ["true", "x.py"]):
        process = server.start(command)
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0, command


def test_a_stage_is_a_program_before_the_imports_are_done_and_after_one_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", ())
    (tmp_path / "stage.py").write_text("")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    (tmp_path / "broken.py").write_text("raise SystemExit(1)\n")
    command = [sys.executable, str(tmp_path / "stage.py")]
    with StageServer([str(tmp_path / "slow.py")]) as server:
        process = server.start(command)
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0
        imports = psutil.Process(server._process.pid)
        assert imports.is_running()
    assert not imports.is_running()
    with StageServer([str(tmp_path / "broken.py")]) as server:
        server._process.wait()
        process = server.start(command)
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0


@pytest.mark.parametrize(("devices", "imports"), [((os.devnull,), ["colorsys"]), ((), [])])
def test_there_is_no_server_where_a_gpu_may_be_or_nothing_is_to_be_imported(monkeypatch, devices, imports):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", devices)
    with StageServer(imports) as server:
        assert server._process is None
        process = server.start([sys.executable, "-c", "pass"])
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0


def test_a_stage_whose_server_was_killed_is_killed(server, tmp_path):
    (tmp_path / "stage.py").write_text("import time\ntime.sleep(600)\n")
    process = server.start([sys.executable, str(tmp_path / "stage.py")])
    stage = psutil.Process(process.pid)
    server._process.kill()
    assert wait_for(process) == -signal.SIGKILL
    stage.wait()


def test_the_server_ends_with_its_parent(tmp_path):
    code = """
import os, signal, time
from mmaudio.pipeline import stage_server
stage_server.GPU_DEVICES = ()
server = stage_server.StageServer(["colorsys"])
while not server._can_fork():
    time.sleep(0.01)
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    pid = int(printed.stdout)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not printed.stderr
