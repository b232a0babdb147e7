"""Way 3b: an engine in another process, which speaks JSON lines and returns only the top k.

    vlm-ci run --target engine_over_pipe:factory          # clean
    vlm-ci run --target engine_over_pipe:broken_factory   # red: images are dropped when compiled

`engine_child.py` stands for your engine's server; it knows nothing of vlm_ci. What it compiles
cannot be refused from here, so that it has to count its compilations itself.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

import vlm_ci
from vlm_ci.families import encoding

CHILD = Path(__file__).with_name("engine_child.py")
PATCH, IMAGE_ID = 8, 120


class Target:
    """Sends prompts down the pipe; docs/own-model.md says what each member is for."""

    def __init__(self, *options):
        self.name = "engine-over-pipe"
        self.envelope = vlm_ci.Envelope(
            modalities=("text", "image"),
            tokens=(1, 12),
            max_tokens=64,
            image_side=(PATCH, 3 * PATCH),
            side_multiple=PATCH,
            padding=("left",),
            geometry=vlm_ci.Geometry(token_side=PATCH),
        )
        self.capabilities = vlm_ci.Capabilities(in_process=False, logits="top-k")
        self._options = options
        self._begin()

    def _begin(self):
        self._warmed = []  # what a child that takes the place of a dead one is warmed with
        self._counts = {"compiles": 0, "regions": 0}  # the last that were heard
        self._earlier = dict(self._counts)  # what dead children add to what the child says
        self._start()

    # -- the pipe ----------------------------------------------------------------------------

    def _start(self):
        self._child = subprocess.Popen(
            [sys.executable, str(CHILD), *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **question):
        """Send one line and read one. What goes wrong over there is raised here: a finding."""
        if self._child.poll() is not None:
            self._replace()
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine died with exit code {self._child.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the engine said: {answer['error']}")
        return answer

    def _replace(self):
        """Start a child as warm as the one that died; the counts go on from there."""
        self._start()
        for batch in self._warmed:
            self._serve(batch, compiled=True)
        fresh = self._ask(call="stats")
        self._earlier = {name: self._counts[name] - fresh[name] for name in fresh}

    def _serve(self, batch, *, compiled, sign=1):
        rows = encoding.start_rows(batch)
        prompts = []
        for row in rows:
            patches = []
            for item in row.items():
                if isinstance(item, vlm_ci.Text):
                    row.text(item.tokens, IMAGE_ID)  # ids below IMAGE_ID
                else:
                    tokens = self.envelope.geometry.visual_tokens(item)
                    row.placeholders(IMAGE_ID, tokens, encoding.IMAGE)
                    patches += (sign * row.pixels(tokens, 3 * PATCH**2)).tolist()
            prompts.append({"ids": row.ids, "patches": patches})
        answers = self._ask(call="run", compiled=compiled, prompts=prompts)["answers"]
        # One answer for each prompt, as long as the prompt; vlm_ci wants one tensor, padded.
        kinds = encoding.pack(rows, batch, pad_id=0).token_kinds
        k = len(answers[0]["ids"][0])
        ids = torch.zeros(*kinds.shape, k, dtype=torch.int64)
        values = torch.zeros(*kinds.shape, k)
        for index, answer in enumerate(answers):
            ids[index, -len(answer["ids"]) :] = torch.tensor(answer["ids"])
            values[index, -len(answer["ids"]) :] = torch.tensor(answer["log_probabilities"])
        return vlm_ci.Output(logits=values, token_ids=ids, token_kinds=kinds)

    # -- the protocol ------------------------------------------------------------------------

    def run_compiled(self, batch):
        return self._serve(batch, compiled=True)

    def run_eager(self, batch):
        return self._serve(batch, compiled=False)

    def run_perturbed(self, batch, modality):
        return self._serve(batch, compiled=False, sign=-1)  # every image negated

    def warm_up(self, batch):
        self._warmed.append(batch)
        self._serve(batch, compiled=True)

    def stats(self):
        if self._child.poll() is None:  # a dead child adds nothing to what it said last
            said = self._ask(call="stats")
            self._counts = {name: self._earlier[name] + said[name] for name in said}
        return vlm_ci.Stats(**self._counts)

    def reset(self):
        self.close()
        self._begin()

    def close(self):
        self._child.stdin.close()  # the child's loop ends where its input does
        self._child.wait(timeout=10)
        self._child.stdout.close()


def factory():
    return Target()


def broken_factory():
    return Target("--drop-images")
