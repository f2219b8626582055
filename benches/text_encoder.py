"""The official text encoder's modules run again: how far their bf16 embeddings move with the attention kernel, on one GPU.

    python benches/text_encoder.py MODEL GOLDEN NAME OUT

Needs PyTorch and transformers. MODEL is a model folder with the weights that GOLDEN/NAME.safetensors was recorded with. For
each kernel: relative L2 of the embeddings to float32 arithmetic and to the recorded ones, and files OUT/NAME_KERNEL*.safetensors,
the recorded edit with these embeddings instead. `step1x-edit verify --golden OUT --name NAME_KERNEL` then gives in its row
"image, recorded embeddings" how far the picture moves.
"""

import shutil
import sys
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen2_5_VLForConditionalGeneration

warnings.filterwarnings("ignore")
CUT = 217
# Each with transformers' name of the implementation and the backends that PyTorch may choose from.
ALL = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
KERNELS = {
    "default": ("sdpa", ALL),
    "flash": ("sdpa", [SDPBackend.FLASH_ATTENTION]),
    "cudnn": ("sdpa", [SDPBackend.CUDNN_ATTENTION]),
    "math": ("sdpa", [SDPBackend.MATH]),
    "eager": ("eager", ALL),
}


def embeddings(model, inputs):
    found = {}
    for branch in ("cond", "uncond"):
        ids = inputs[f"{branch}.input_ids"].long().cuda()[None]
        states = model(
            input_ids=ids,
            attention_mask=(ids > 0).long(),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=inputs["pixel_values"].cuda().bfloat16(),
            image_grid_thw=inputs["grid"].long().cuda(),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[-1]
        found[f"{branch}.llm_embedding"] = states[0, CUT:].contiguous().cpu()
    return found


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@torch.no_grad()
def main():
    model, golden, name, out = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    inputs, official, truth = (load_file(golden / f"{name}{suffix}.safetensors") for suffix in ("_inputs", "", "_truth"))
    metadata = safe_open(golden / f"{name}.safetensors", "pt").metadata()
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model / "Qwen2.5-VL-7B-Instruct", dtype=torch.bfloat16, attn_implementation="sdpa", device_map="cuda"
    ).eval()
    out.mkdir(exist_ok=True)
    print(f"{'attention kernel':<18}{'branch':<8}{'to float32':>12}{'to recorded':>13}")
    for kernel, (implementation, backends) in KERNELS.items():
        encoder.set_attn_implementation(implementation)
        with sdpa_kernel(backends):
            found = embeddings(encoder, inputs)
        for key, rows in found.items():
            print(f"{kernel:<18}{key.split('.')[0]:<8}{distance(rows, truth[key]):>12.3e}{distance(rows, official[key]):>13.3e}")
        for suffix in ("_inputs", "_truth"):
            shutil.copy(golden / f"{name}{suffix}.safetensors", out / f"{name}_{kernel}{suffix}.safetensors")
        save_file(official | found, out / f"{name}_{kernel}.safetensors", metadata)


main()
