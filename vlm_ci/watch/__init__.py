"""Watching the compiler: recorded events, executed regions and the signatures of calls.

Nothing here judges; ``vlm_ci.checker`` does.
"""
