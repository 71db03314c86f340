"""The node report behind `deepmnn info`."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from deepmnn.errors import ConfigError
from deepmnn.measure.nodes import node_report, nodes_saved
from tiny_models import CONFIGS


def test_node_report_counts_every_level():
    config = {"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"][0]}
    levels = node_report(config)
    assert [level.level for level in levels] == [0, 1, 2, 3]
    for level in levels:
        assert sum(level.by_op.values()) == level.nodes
        assert 0 < level.planned_nbytes < level.activation_nbytes
    for before, after in pairwise(levels):
        assert after.nodes < before.nodes
        assert after.planned_nbytes <= before.planned_nbytes
    assert levels[0].by_op["expert_linear"] == 3
    assert levels[3].by_op["mla_attention"] == 2
    assert nodes_saved(levels) == 1 - levels[3].nodes / levels[0].nodes


def test_node_report_refuses_a_bad_config():
    with pytest.raises(ConfigError):
        node_report({"model_type": "gpt5"})


ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([\w.-]+) \|((?: \d+ \|){4})((?: \d+\.\d \|){4})$", re.M)


@pytest.mark.slow  # DeepSeek-V3's graphs take ten seconds
def test_the_figures_of_the_documentation_are_these():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = ROW.findall(page.split("## What graph optimisation brings")[1].split("\n## ")[0])
    assert len(rows) == 4
    for name, nodes, sizes in rows:
        published = ROOT / "tests" / "models" / "published" / f"{name}.json"
        fields = json.loads(published.read_text())
        levels = node_report(fields.get("config", fields))
        assert [int(n) for n in re.findall(r"\d+", nodes)] == [level.nodes for level in levels]
        planned = [f"{level.planned_nbytes / 1e6:.1f}" for level in levels]
        assert re.findall(r"[\d.]+", sizes) == planned
    readme = (ROOT / "README.md").read_text()
    assert "from 2765 to 728 nodes" in readme
    assert ("DeepSeek-V3", "2765", "728") in [(r[0], *re.findall(r"\d+", r[1])[::3]) for r in rows]
