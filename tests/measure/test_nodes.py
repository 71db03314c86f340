"""The node report behind `deepmnn info`."""

from itertools import pairwise

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
