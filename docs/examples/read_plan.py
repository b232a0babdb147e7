"""Read a warm-up plan in an engine that does not have vlm_ci: print what to run, in order."""

import json
import sys


def batches(path):
    """Yield the batches of a plan file in the order in which they are to be run."""
    with open(path) as file:
        yield from json.load(file)["batches"]


def words(item):
    """Say what one item of a request is: sizes are in tokens, pixels and frames."""
    if item["kind"] == "text":
        return f"{item['tokens']} tokens of text"
    size = f"{item['height']} x {item['width']} pixels"
    if item["kind"] == "image":
        return f"image of {size}"
    return f"video of {item['frames']} frames of {size}"


for number, batch in enumerate(batches(sys.argv[1]), start=1):
    for row, request in enumerate(batch["requests"], start=1):
        text = ", ".join(words(item) for item in request["items"])
        sys.stdout.write(f"batch {number}, row {row}: {text}\n")
