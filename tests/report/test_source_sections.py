"""A valid report whose training or data have changed gets these sections anew, and nothing else."""

from dataclasses import replace

import numpy as np
import report_results

from mmaudio.data.clips import LeftOut
from mmaudio.evaluation.results import Results
from mmaudio.report.render import write_report
from mmaudio.report.source_sections import ReportSources, renew_sections


def sources_of(provenance):
    """The sources of its sections."""
    return ReportSources(provenance.history, provenance.step, provenance.clips, provenance.left_out)


def test_the_sections_are_those_of_a_new_report(tmp_path):
    rng = np.random.default_rng(0)
    results = Results([report_results.make_clip(n, f"{n}.mp4", rng, ("base", "adapted", "original")) for n in range(3)])
    old = report_results.make_provenance(results)
    new = replace(
        old,
        history=[*old.history, {"step": 120, "train/loss": 0.9, "validation/loss": 1.02}],
        clips=[*old.clips, replace(old.clips[0], id="another", video="another.mp4")],
        left_out=[LeftOut("silent.mp4", "the <!-- splits --> sound is silent")],
    )
    for name, provenance in (("old", old), ("new", new)):
        write_report(tmp_path / f"{name}.html", results, None, provenance)
    assert not renew_sections(tmp_path / "old.html", sources_of(old))
    assert renew_sections(tmp_path / "old.html", sources_of(new))
    assert (tmp_path / "old.html").read_text() == (tmp_path / "new.html").read_text()
    assert "another.mp4" in (tmp_path / "old.html").read_text()
