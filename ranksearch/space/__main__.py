"""python -m ranksearch.space > search_spaces/schema.json"""

import json
import sys

from ranksearch.space.config import SpaceConfig

json.dump(SpaceConfig.model_json_schema(), sys.stdout, indent=2)
sys.stdout.write("\n")
