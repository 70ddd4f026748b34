"""Stages that are forked from a process that has done their imports."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mmaudio.pipeline import stage_server
from mmaudio.pipeline.job import script_path
from mmaudio.pipeline.stage_server import ForkedProcess, StageServer
from mmaudio.utils.checkout import SCRIPTS

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


def wait_until(condition):
    """Wait for what is certain to come, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_ready(server):
    """Wait for the imports of a server."""
    wait_until(server._can_fork)


def wait_for(process):
    """The status of a process, once it has ended."""
    wait_until(lambda: process.poll() is not None)
    return process.returncode


def run_python(code, **options):
    """Run code in a process of its own; the result with what it printed."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def is_gone(process):
    """Whether a process has ended, waited for or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


SERVER = """
import os, resource, signal, sys, time
from mmaudio.pipeline import stage_server
stage_server.GPU_DEVICES = ()
def wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""


def test_a_forked_script_runs_as_one_that_python_was_started_with(server, tmp_path):
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
    code = (
        SERVER
        + f"""
with stage_server.StageServer(["colorsys"]) as server:
    wait(server._can_fork)
    process = server.start([sys.executable, {str(tmp_path / "stage.py")!r}])
    wait(lambda: process.poll() is not None)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    )
    assert 280_000 < int(run_python(code).stdout) < 900_000


def test_what_is_no_script_of_this_interpreter_is_a_program(server):
    for command in ([sys.executable, "-c", "pass"], [sys.executable, "-m", "this"], ["true", "x.py"]):
        process = server.start(command)
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0, command


def test_a_stage_is_a_program_before_the_imports_are_done(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", ())
    (tmp_path / "stage.py").write_text("")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    with StageServer([str(tmp_path / "slow.py")]) as server:
        process = server.start([sys.executable, str(tmp_path / "stage.py")])
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0
        imports = psutil.Process(server._process.pid)
        assert imports.is_running()
    assert is_gone(imports)


@pytest.mark.parametrize("statement", ["raise SystemExit(1)", "import no_such_module", "print('once')"])
def test_an_import_that_fails_or_prints_is_left_to_the_stages(tmp_path, statement):
    (tmp_path / "imports.py").write_text(statement)
    (tmp_path / "stage.py").write_text("print('stage')\n")
    code = (
        SERVER
        + f"""
with stage_server.StageServer([{str(tmp_path / "imports.py")!r}]) as server:
    wait(server._can_fork)
    for _ in range(2):
        process = server.start([sys.executable, {str(tmp_path / "stage.py")!r}])
        assert isinstance(process, stage_server.ForkedProcess)
        wait(lambda: process.poll() is not None)
"""
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = run_python(code, env=environment)
    assert (result.stdout, result.stderr) == ("once\n" * ("once" in statement) + "stage\nstage\n", "")


def test_a_stage_is_a_program_once_the_server_was_killed(server, tmp_path):
    (tmp_path / "stage.py").write_text("raise SystemExit(5)")
    server._process.kill()
    server._process.wait()
    for _ in range(2):
        process = server.start([sys.executable, str(tmp_path / "stage.py")])
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 5


def test_the_server_takes_no_modules_of_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", ())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    (tmp_path / "mmaudio").mkdir()
    (tmp_path / "mmaudio" / "__init__.py").write_text("raise SystemExit(1)")
    with StageServer(["colorsys"]) as server:
        wait_until_ready(server)
    assert not (tmp_path / "imported").exists()


def test_stages_draw_other_random_numbers_and_count_their_silence_from_their_start(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", ())
    (tmp_path / "stage.py").write_text("""
import sys
import numpy as np
from mmaudio.utils.heartbeat import Heartbeat
with open(sys.argv[1], "a") as file:
    print(np.random.random(), Heartbeat.last_line, file=file)
""")
    with StageServer(["numpy"]) as server:
        wait_until_ready(server)
        start = time.monotonic()
        for _ in range(2):
            assert wait_for(server.start([sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "out")])) == 0
    (first, line_time), (second, _) = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    assert first != second and float(line_time) > start


@pytest.mark.slow
def test_the_imports_of_the_stages_start_no_thread_and_unblock_no_signal(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", ())
    script, out = tmp_path / "a script.py", tmp_path / "facts.json"
    script.write_text(REPORT)
    with StageServer([*map(script_path, SCRIPTS.values()), *stage_server.LATE_IMPORTS, "colorsys"]) as server:
        wait_until_ready(server)
        assert wait_for(server.start([sys.executable, str(script), str(out), "0"])) == 0
        assert len(psutil.Process(server._process.pid).threads()) == 1
    facts = json.loads(out.read_text())
    assert (facts["threads"], facts["held"], facts["open"]) == (1, [], []) and facts["imported"]


@pytest.mark.parametrize(("devices", "imports"), [((os.devnull,), ["colorsys"]), ((), [])])
def test_there_is_no_server_where_a_gpu_may_be_or_nothing_is_to_be_imported(monkeypatch, devices, imports):
    monkeypatch.setattr(stage_server, "GPU_DEVICES", devices)
    with StageServer(imports) as server:
        assert server._process is None
        process = server.start([sys.executable, "-c", "pass"])
        assert isinstance(process, subprocess.Popen) and wait_for(process) == 0


def test_a_stage_whose_server_was_killed_is_asked_to_save(server, tmp_path):
    (tmp_path / "stage.py").write_text("import time\ntime.sleep(600)\n")
    process = server.start([sys.executable, str(tmp_path / "stage.py")])
    stage = psutil.Process(process.pid)
    server._process.kill()
    assert wait_for(process) == -signal.SIGKILL
    wait_until(lambda: is_gone(stage))


def test_the_server_ends_with_its_parent(tmp_path):
    code = (
        SERVER
        + f"""
server = stage_server.StageServer(["colorsys"]).__enter__()
wait(server._can_fork)
with open({str(tmp_path / "pid")!r}, "w") as file:
    print(server._process.pid, file=file, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    with (tmp_path / "output").open("w") as output:
        subprocess.run([sys.executable, "-c", code], stdout=output, stderr=output, check=False)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert not (tmp_path / "output").read_text()
