"""The engine of engine_over_pipe.py: reads one JSON object a line, writes one a line.

    {"call": "run", "compiled": true, "prompts": [{"ids": […], "patches": [[…], …]}, …]}
    {"call": "stats"}

Its answers are the TOP_K most likely tokens of each position with their log-probabilities.
"""

import json
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention

PATCH, IMAGE_ID, VOCABULARY, WIDTH, TOP_K = 8, 120, 128, 32, 5


class Model(torch.nn.Module):
    """One layer of a decoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.vision = torch.nn.Linear(3 * PATCH**2, WIDTH)
        self.attend = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids, features):
        """Return logits [rows, length, vocabulary]; shorter rows are filled up on the right."""
        positions = torch.arange(ids.shape[1])[:, None] / 10
        hidden = self.embed(ids) + features + positions.sin()
        query, key, value = self.attend(hidden).chunk(3, dim=-1)
        return self.head(hidden + scaled_dot_product_attention(query, key, value, is_causal=True))


class Engine:
    """Runs prompts as one batch."""

    def __init__(self, drop_images):
        self.model = Model().eval()
        self.compiled = torch.compile(self.model, backend=self._backend, dynamic=True)
        self.drop_images = drop_images
        self.graphs = self.regions = 0

    def _backend(self, graph, inputs):
        """Count graphs and their executions; a real engine compiles `graph` here."""
        self.graphs += 1

        def region(*args):
            self.regions += 1
            return graph(*args)

        return region

    @torch.inference_mode()
    def run(self, prompts, compiled):
        length = max(len(prompt["ids"]) for prompt in prompts)
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        features = torch.zeros(len(prompts), length, WIDTH)
        for index, prompt in enumerate(prompts):
            ids[index, : len(prompt["ids"])] = torch.tensor(prompt["ids"])
            if prompt["patches"] and not (compiled and self.drop_images):  # the planted fault
                patches = torch.tensor(prompt["patches"])
                features[index, ids[index] == IMAGE_ID] = self.model.vision(patches)
        logits = (self.compiled if compiled else self.model)(ids, features)
        top = logits.log_softmax(dim=-1).topk(TOP_K, dim=-1)
        return [
            {"ids": tokens[:count].tolist(), "log_probabilities": values[:count].tolist()}
            for tokens, values, count in zip(
                top.indices, top.values, [len(prompt["ids"]) for prompt in prompts], strict=True
            )
        ]


def main():
    engine = Engine(drop_images="--drop-images" in sys.argv)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if question["call"] == "stats":
                answer = {"compiles": engine.graphs, "regions": engine.regions}
            else:
                answer = {"answers": engine.run(question["prompts"], question["compiled"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
