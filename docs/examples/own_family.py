"""Way 2: a transformers model that vlm_ci does not know, here InternVL.

    vlm-ci run --target own_family:MODEL --recipe decoder-layers

A family says everything that differs between architectures: how many positions an image takes,
which traffic is allowed, how a batch becomes tensors, and where the parts of the module are.
Before the model is built vlm_ci tries `encode` on small batches and compares it with `geometry`.
"""

import torch

import vlm_ci
from vlm_ci.families import encoding


class InternVL:
    """The family of ``InternVLForConditionalGeneration``: one size of images, no video."""

    name = "internvl"
    model_type = "internvl"  # as in config.json

    def geometry(self, config):
        """Say how many positions an image takes; here that depends on no size."""
        vision = config["vision_config"]
        side = vision["image_size"][0] // vision["patch_size"][0]
        tokens = int(side * config["downsample_ratio"]) ** 2
        return vlm_ci.Geometry(token_side=None, tokens_per_image=tokens)

    def envelope(self, config):
        """Say which traffic is sent where the user names no other envelope. Keep it small."""
        side = config["vision_config"]["image_size"][0]
        return vlm_ci.Envelope(
            modalities=("text", "image"),
            image_side=(side, side),
            side_multiple=side,
            geometry=self.geometry(config),
        )

    def encode(self, config, batch, *, device, dtype):
        """Turn a batch into the keyword arguments of the model's forward.

        A row draws the ids and pixels of each item from a stream that its seed begins, so that the
        same item always has the same values, and it notes what stands at each position.
        """
        image_id = config["image_token_id"]
        side = config["vision_config"]["image_size"][0]
        tokens = self.geometry(config).tokens_per_image
        images = []
        rows = encoding.start_rows(batch)
        for row in rows:
            for item in row.items():
                if isinstance(item, vlm_ci.Text):
                    row.text(item.tokens, image_id)  # ids from 1 to image_id - 1
                else:
                    row.placeholders(image_id, tokens, encoding.IMAGE)
                    images.append(row.pixels(3, side, side))
        packed = encoding.pack(rows, batch, pad_id=0)  # pads on the side that the batch names
        inputs = {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask}
        if images:
            inputs["pixel_values"] = torch.stack(images).to(dtype)
        return vlm_ci.Encoded(
            inputs={name: value.to(device) for name, value in inputs.items()},
            token_kinds=packed.token_kinds,
            # The canary negates this input and expects other logits.
            pixel_inputs={"image": "pixel_values"} if images else {},
        )

    def parts(self, model):
        """Name what recipes compile."""
        inner = model.model
        return vlm_ci.Parts(
            whole=model,
            language_model=inner.language_model,
            decoder_layers=tuple(inner.language_model.layers),
            vision_blocks=tuple(inner.vision_tower.encoder.layer),
        )


# A tiny configuration gets random weights: nothing is downloaded. `initializer_range` is wider than
# a trained model needs, because with 0.02 an image would hardly move the logits of random weights.
# For real weights write `checkpoint="a folder or a hub id"` in place of `config`.
MODEL = vlm_ci.Model(
    name="internvl-tiny",
    family=InternVL(),
    config={
        "model_type": "internvl",
        "image_token_id": 500,
        "downsample_ratio": 0.5,
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "pad_token_id": 0,
            "initializer_range": 0.15,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": [16, 16],
            "patch_size": [4, 4],
            "initializer_range": 0.15,
        },
    },
)
