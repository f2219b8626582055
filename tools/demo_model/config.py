"""Dimensions of the demo model: the official architecture at 1/1000 of its size.

Heads are as wide as CUDA kernels exist for: 128 in transformer and text model, 80 in the vision tower, 128 in the middle of
the autoencoder, whose one head is as wide as its deepest level.
"""

DIT = {
    "in_channels": 64, "hidden": 256, "mlp": 384, "depth": 1, "depth_single": 6, "vec_in": 256, "context": 256,
    "connector_hidden": 128, "connector_mlp": 256, "connector_depth": 1,
}
VAE_CHANNELS, VAE_BLOCKS = [64, 64, 64, 128], 1
MAX_TEXT = 64  # rows that the connector takes: 2 before the picture, 25 of it, the rest for the prompt


def qwen(tokenizer) -> dict:
    """Qwen's config.json."""
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end")}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16",
        "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "tie_word_embeddings": False,
        "vocab_size": tokenizer.get_vocab_size(), "image_token_id": ids["image_pad"], "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"], "vision_end_token_id": ids["vision_end"],
        "vision_config": {
            "depth": 2, "hidden_size": 80, "num_heads": 1, "intermediate_size": 160, "hidden_act": "silu",
            "out_hidden_size": 256, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3,
            "window_size": 112, "fullatt_block_indexes": [1],
        },
    }
