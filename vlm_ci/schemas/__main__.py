"""``python -m vlm_ci.schemas`` writes the schemas anew."""

from vlm_ci import schemas

schemas.write()
