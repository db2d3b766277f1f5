"""What may be tried: a YAML file and the model's layers → per layer an ordered list of options → a plan."""

from ranksearch.space.config import LayerRule, RankRule, SpaceConfig, load_space
from ranksearch.space.indices import SearchSpace
from ranksearch.space.options import layer_records

__all__ = ["LayerRule", "RankRule", "SearchSpace", "SpaceConfig", "layer_records", "load_space"]
