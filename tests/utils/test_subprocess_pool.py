"""Several worker processes: every call has its own result or its own error, and nothing is left of any of them."""

from __future__ import annotations

import psutil
import pytest
from failing_worker import fail

from mmaudio.utils.subprocess_pool import SubprocessPool


@pytest.mark.slow
def test_calls_that_hang_or_crash_cost_only_themselves():
    calls = [(("a",), 600.0), (("hang",), 0.3), (("b",), 600.0), (("crash",), 600.0), (("c",), 600.0), (("d",), 600.0)]
    with SubprocessPool(fail, 2) as pool:
        results = dict(pool.run(calls))
    reasons = {number: str(results.pop(number)) for number in (1, 3)}
    assert results == {0: "A", 2: "B", 4: "C", 5: "D"}
    assert "not finished after 0.3 s" in reasons[1] and "crashed the decoder (SIGSEGV)" in reasons[3]


@pytest.mark.slow
def test_a_call_that_hangs_does_not_hold_up_the_others_and_ends_with_the_pool():
    with SubprocessPool(fail, 2) as pool:
        results = pool.run([(("hang",), 1e5), (("a",), 600.0), (("b",), 600.0)])
        assert [next(results), next(results)] == [(1, "A"), (2, "B")]
        workers = [worker.pid for worker in pool._workers if worker.pid is not None]
        assert len(workers) == 2
        with pytest.raises(KeyboardInterrupt), pool:
            raise KeyboardInterrupt
        assert not [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).is_running()]


def test_no_calls_start_no_process():
    with SubprocessPool(fail, 4) as pool:
        assert list(pool.run([])) == []
        assert not [worker for worker in pool._workers if worker.pid is not None]
