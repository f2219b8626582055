"""Writes the files beside it with the package gguf of llama.cpp: blocks with the values they stand for, and a small model's header."""

import json
import struct

import numpy as np
from gguf import GGMLQuantizationType as Kind, GGUFWriter, quants

KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Where the halves lie in a block that scale it.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

draw = np.random.default_rng(1)
tensors = {}
for kind in KINDS:
    elements, size = quants.GGML_QUANT_SIZES[Kind[kind]]
    blocks = draw.integers(0, 256, (1024 // elements, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = draw.normal(0, 0.01, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    blocks[0, :] = 255  # all bits but those of the halves
    for at in HALVES[kind]:
        blocks[0, at : at + 2] = np.array([-0.125], np.float16).view(np.uint8)
    tensors[f"{kind}.blocks"] = blocks.reshape(-1)
    tensors[f"{kind}.values"] = quants.dequantize(blocks, Kind[kind]).astype(np.float32).reshape(-1)

header, data = {}, b""
for name, values in tensors.items():
    kind = "U8" if values.dtype == np.uint8 else "F32"
    header[name] = {"dtype": kind, "shape": [len(values)], "data_offsets": [len(data), len(data) + values.nbytes]}
    data += values.tobytes()
text = json.dumps(header).encode()
open("blocks.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + data)

writer = GGUFWriter("small.gguf", "qwen2vl")
writer.add_name("small")
writer.add_block_count(2)
writer.add_rope_freq_base(1e6)
writer.add_rope_dimension_sections([16, 24, 24, 0])
writer.add_token_list(["a", "b", "<|image_pad|>"])
writer.add_token_types([1, 1, 3])
writer.add_bool("tokenizer.ggml.add_bos_token", False)
writer.add_tensor("token_embd.weight", quants.quantize(draw.normal(0, 1, (3, 64)).astype(np.float32), Kind.Q8_0), raw_dtype=Kind.Q8_0)
writer.add_tensor("output_norm.weight", np.arange(5, dtype=np.float32))
writer.add_tensor("blk.0.attn_q.weight", draw.normal(0, 1, (2, 3)).astype(np.float16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
