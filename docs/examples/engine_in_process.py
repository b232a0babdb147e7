"""Way 3a: an engine's model runner in this process, with its own batching and its own compile.

    vlm-ci run --target engine_in_process:factory          # clean
    vlm-ci run --target engine_in_process:broken_factory   # red: padding leaks into the answers

`Model` and `Engine` stand for yours, one graph for each bucket; `Target` is what you write.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

import vlm_ci
from vlm_ci.families import encoding

PATCH, IMAGE_ID, VOCABULARY, WIDTH = 8, 120, 128, 32  # one token for each 8 × 8 pixels
ROWS, LENGTHS = 4, (16, 32, 64)  # the buckets


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.vision = torch.nn.Linear(3 * PATCH**2, WIDTH)
        self.attend = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids, features, valid):
        """Return logits [rows, length, vocabulary]; `valid` is False at padding."""
        positions = valid.cumsum(dim=1)[..., None] / 10
        hidden = self.embed(ids) + features + positions.sin()
        mask = torch.ones(ids.shape[1], ids.shape[1]).bool().tril() & valid[:, None, :]
        query, key, value = self.attend(hidden).chunk(3, dim=-1)
        return self.head(hidden + scaled_dot_product_attention(query, key, value, attn_mask=mask))


class Engine:
    def __init__(self, marks_padding):
        self.model = Model().eval()
        self.compiled = torch.compile(self.model, backend=self._backend, dynamic=False)
        self.marks_padding = marks_padding
        self.graphs = self.regions = 0

    def _backend(self, graph, inputs):
        self.graphs += 1  # counts only; a real engine compiles `graph` here

        def region(*args):
            self.regions += 1
            return graph(*args)

        return region

    def forward(self, call, rows, patches, height, length):
        """Pad rows to height × length, on the left, and run them."""
        ids = torch.zeros(height, length, dtype=torch.long)
        features = torch.zeros(height, length, WIDTH)  # always passed: zeros without an image
        valid = torch.zeros(height, length, dtype=torch.bool)
        for index, (row, pixels) in enumerate(zip(rows, patches, strict=True)):
            ids[index, length - len(row.ids) :] = torch.tensor(row.ids)
            valid[index, length - len(row.ids) :] = True
            features[index, ids[index] == IMAGE_ID] = self.model.vision(pixels)
        if call is self.compiled and not self.marks_padding:
            valid[:] = True  # the planted fault: what fills the bucket counts as tokens
        return call(ids, features, valid)

    def step(self, rows, patches):
        longest = max(len(row.ids) for row in rows)
        length = next(bucket for bucket in LENGTHS if bucket >= longest)  # the scheduler
        return self.forward(self.compiled, rows, patches, ROWS, length)[: len(rows), -longest:]


class Target:
    """What vlm_ci asks of an engine; docs/own-model.md says what each member is for."""

    def __init__(self, marks_padding):
        self.name = "engine-in-process"
        self.engine = Engine(marks_padding)
        self.envelope = vlm_ci.Envelope(
            modalities=("text", "image"),
            tokens=(1, 12),
            max_tokens=LENGTHS[-1],
            image_side=(PATCH, 3 * PATCH),
            side_multiple=PATCH,
            buckets=LENGTHS,  # so that lengths at and beside each bucket are tried
            padding=("left",),
            geometry=vlm_ci.Geometry(token_side=PATCH),
        )
        self.capabilities = vlm_ci.Capabilities(in_process=True, logits="full")
        self.info = vlm_ci.TargetInfo(
            name=self.name, recipe="buckets", backend="own", device="cpu", dtype="float32"
        )

    def _read(self, batch):
        """Turn traffic into prompts; the same batch must always give the same values."""
        patches = []
        for row in (rows := encoding.start_rows(batch)):
            patches.append(torch.empty(0, 3 * PATCH**2))
            for item in row.items():
                if isinstance(item, vlm_ci.Text):
                    row.text(item.tokens, IMAGE_ID)  # ids below IMAGE_ID
                else:
                    tokens = self.envelope.geometry.visual_tokens(item)
                    row.placeholders(IMAGE_ID, tokens, encoding.IMAGE)
                    patches[-1] = torch.cat([patches[-1], row.pixels(tokens, 3 * PATCH**2)])
        return rows, patches, encoding.pack(rows, batch, pad_id=0).token_kinds

    @torch.inference_mode()
    def run_compiled(self, batch):
        rows, patches, kinds = self._read(batch)
        return vlm_ci.Output(logits=self.engine.step(rows, patches), token_kinds=kinds)

    @torch.inference_mode()
    def run_eager(self, batch, sign=1):
        """Each request alone, not padded, not compiled: the answers that have to come out."""
        rows, patches, kinds = self._read(batch)
        logits = torch.zeros(*kinds.shape, VOCABULARY)
        for index, row in enumerate(rows):
            alone = ([row], [sign * patches[index]], 1, len(row.ids))
            logits[index, -len(row.ids) :] = self.engine.forward(self.engine.model, *alone)[0]
        return vlm_ci.Output(logits=logits, token_kinds=kinds)

    def run_perturbed(self, batch, modality):
        return self.run_eager(batch, sign=-1)  # every image negated

    @torch.inference_mode()
    def warm_up(self, batch):
        if not self.engine.graphs:  # once, as the deployment does when it starts
            for length in LENGTHS:
                self.engine.forward(self.engine.compiled, [], [], ROWS, length)
        self.run_compiled(batch)

    def stats(self):
        return vlm_ci.Stats(compiles=self.engine.graphs, regions=self.engine.regions)

    def reset(self):
        torch.compiler.reset()
        self.engine.graphs = self.engine.regions = 0

    def close(self):
        torch.compiler.reset()
        self.engine = None


def factory():
    return Target(marks_padding=True)


def broken_factory():
    return Target(marks_padding=False)
