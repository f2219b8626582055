"""The attention op against float64 and PyTorch's kernels, on one GPU, in one run.

    cargo bench --no-run            # prints the path of the `attention` binary
    python benches/attention.py PATH_OF_BINARY [OTHER_BINARY ...]

Needs PyTorch. Other binaries, with other kernels, are timed beside the first; so is FlashAttention-3 if FA3_LIBRARY names a
`_vllm_fa3_C.abi3.so` built for this PyTorch (a vLLM wheel holds one). First the accuracy table: relative L2 to softmax in float64 of ours and of cuDNN's on the same inputs (keys that
stand for n equal ones are repeated n times for cuDNN); then TFLOP/s, the kernels taking turns and the median of their turns.
Ends with exit code 1 if ours is farther off than 1.1 times cuDNN's anywhere or below 0.95 of its speed.
"""

import math
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

warnings.filterwarnings("ignore")
WIDTH = 128
TURNS = 3


def rows(ranges):
    return torch.cat([torch.arange(first, end) for first, end in ranges]).cuda()


def packed(*branches):
    """Rows of text, then of pictures, of each branch: [text 0 | text 1 | picture 0 | picture 1]."""
    starts, segments = 0, [[] for _ in branches]
    for part in range(2):
        for branch, lengths in enumerate(branches):
            if lengths[part]:
                segments[branch].append((starts, starts + lengths[part]))
            starts += lengths[part]
    return starts, segments


def inputs(count, heads, kv_heads, kind):
    random = torch.Generator(device="cuda").manual_seed(1)
    q, k, v = (torch.randn(count, n * WIDTH, generator=random, device="cuda") for n in (heads, kv_heads, kv_heads))
    if kind == "peaked":
        q *= 8
    if kind == "outlier":
        v[count // 2] *= 1000
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


def by_head(x, index, repeat=1):
    return x[index].view(1, len(index), -1, WIDTH).transpose(1, 2).repeat_interleave(repeat, 1).contiguous()


def float64(q, k, v, segments, bias, heads):
    y = torch.empty(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for ranges in segments:
        index = rows(ranges)
        for head in heads:
            columns, key_columns = (slice(h * WIDTH, (h + 1) * WIDTH) for h in (head, head // group))
            scores = q[index, columns].double() @ k[index, key_columns].double().T / math.sqrt(WIDTH)
            if bias is not None:
                scores += bias[index].double()
            y[index.cpu(), columns] = (torch.softmax(scores, -1) @ v[index, key_columns].double()).cpu()
    return y


def cudnn(q, k, v, segments, bias):
    y = torch.empty_like(q)
    for ranges in segments:
        index = keys = rows(ranges)
        if bias is not None:
            keys = torch.repeat_interleave(index, bias[index].exp().round().long())
        repeat = q.shape[1] // k.shape[1]
        # cuDNN refuses a single row; FlashAttention stands in.
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION if len(keys) > 1 else SDPBackend.FLASH_ATTENTION):
            out = scaled_dot_product_attention(by_head(q, index), by_head(k, keys, repeat), by_head(v, keys, repeat))
        y[index] = out.transpose(1, 2).reshape(len(index), -1)
    return y


def ours(binary, folder, q, k, v, segments, bias, calls):
    """The output and milliseconds a call."""
    def write(name, x):
        x.contiguous().view(torch.uint8).cpu().numpy().tofile(folder / name)

    (folder / "bias.bin").unlink(missing_ok=True)
    for name, x in (("q", q), ("k", k), ("v", v)) + ((("bias", bias),) if bias is not None else ()):
        write(f"{name}.bin", x)
    return again(binary, folder, q, k, segments, calls)


def again(binary, folder, q, k, segments, calls):
    words = [",".join(f"{first}..{end}" for first, end in ranges) for ranges in segments]
    heads, kv_heads = q.shape[1] // WIDTH, k.shape[1] // WIDTH
    command = [binary, folder, str(heads), str(kv_heads), f"{WIDTH}x{calls}", *words]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    y = torch.frombuffer(bytearray((folder / "y.bin").read_bytes()), dtype=torch.bfloat16)
    return y.view(q.shape), float(out.stdout), out.stderr.strip()


def accuracy(binary, folder):
    good = True
    print(f"{'text+picture rows of the branches':<36}{'heads':>6} {'values':<9}{'bias':<6}{'ours':>10}{'cuDNN':>10}{'ratio':>7}")
    for lengths, heads, kv_heads, kind, biased in [
        (((0, 1),), 2, 2, "random", False),
        (((0, 127),), 2, 2, "random", False),
        (((0, 128),), 2, 2, "random", False),
        (((0, 129), (0, 1)), 2, 2, "peaked", False),
        (((0, 2688),), 24, 24, "random", False),
        (((640, 2048), (640, 2048)), 24, 24, "random", False),
        (((640, 2048), (640, 2048)), 4, 4, "peaked", False),
        (((640, 2048), (640, 2048)), 4, 4, "outlier", False),
        (((285, 2048), (13, 2048)), 24, 24, "random", True),
        (((285, 2049), (13, 1999)), 4, 2, "peaked", True),
        (((37, 1), (5, 130)), 3, 3, "random", True),
        (((640, 8192), (640, 8192)), 4, 4, "random", False),
        (((640, 8192), (640, 8192)), 4, 4, "peaked", False),
        (((285, 8192), (13, 8192)), 4, 4, "random", True),
    ]:
        count, segments = packed(*lengths)
        q, k, v = inputs(count, heads, kv_heads, kind)
        bias = None
        if biased:  # the last row of a text stands for 300, the one before for none
            bias = torch.zeros(count, device="cuda")
            for ranges in segments:
                bias[ranges[0][1] - 1], bias[ranges[0][1] - 2] = math.log(300), -math.inf
        some = range(heads) if count < 8000 else [0, heads - 1]
        columns = torch.cat([torch.arange(head * WIDTH, (head + 1) * WIDTH) for head in some])
        truth = float64(q, k, v, segments, bias, some)[:, columns]
        # As in the model, biases are of the rows of text; peaked values have them everywhere.
        texts = count if kind == "peaked" else sum(text for text, _ in lengths)
        y, _, kernel = ours(binary, folder, q, k, v, segments, bias[:texts] if biased else None, 2)
        other = cudnn(q, k, v, segments, bias).cpu()
        mine, theirs = (((x[:, columns].double() - truth).norm() / truth.norm()).item() for x in (y, other))
        good &= mine <= 1.1 * theirs
        name = "  ".join(f"{text}+{picture}" for text, picture in lengths)
        print(f"{name:<36}{heads:>6} {kind:<9}{'ln 300' if biased else '':<6}{mine:>10.2e}{theirs:>10.2e}{mine / theirs if theirs else 1:>7.2f}")
    print(f"kernel: {kernel}")
    return good


def timed(call, calls):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for turn in range(26):
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return sorted(times[1:])[12]


def flash_attention_3(q, k, v, starts):
    """Operands [rows of all sequences, heads, width], starts of the sequences; the arguments of the forward of vLLM's build."""
    longest = int(starts[1])
    return torch.ops._vllm_fa3_C.fwd(
        q, k, v, *[None] * 4, starts, starts, *[None] * 3, longest, longest, *[None] * 9, 1 / math.sqrt(WIDTH),
        False, -1, -1, 0.0, True, None, 1, None, 0, None, 1, 0, None,
    )[0]  # fmt: skip


def for_flash_attention_3(operands):
    """Operands [batch, heads, rows, width] as it takes them; it must give what cuDNN gives."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        other = scaled_dot_product_attention(*operands).transpose(1, 2).flatten(0, 1).float()
    batch, _, count, _ = operands[0].shape
    starts = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * count
    packed = [x.transpose(1, 2).flatten(0, 1).contiguous() for x in operands] + [starts]
    distance = (flash_attention_3(*packed).float() - other).norm() / other.norm()
    assert distance < 1e-2, f"FlashAttention-3 is {distance} from cuDNN"
    return packed


def speed(binaries, folder):
    good = True
    others = [Path(binary).name for binary in binaries[1:]]
    if library := os.environ.get("FA3_LIBRARY"):
        torch.ops.load_library(library)
    names = ["ours", "cuDNN", "FA2"] + ["FA3"] * bool(library) + others
    head = "".join(f"{name:>9.8}" for name in names)
    print(f"\nTFLOP/s, 24 heads, two branches\n{'rows of the branches':<28}{head}{'ours/cuDNN':>12}")
    for lengths in [
        ((640, 2048), (640, 2048)),
        ((640, 4608), (640, 4608)),
        ((640, 8192), (640, 8192)),
        ((285, 2048), (13, 2048)),
        ((285, 8192), (13, 8192)),
    ]:
        count, segments = packed(*lengths)
        q, k, v = inputs(count, 24, 24, "random")
        flops = sum(4 * sum(branch) ** 2 * 24 * WIDTH for branch in lengths)
        calls = 8 if count < 12000 else 4
        equal = lengths[0] == lengths[1]
        texts = sum(text for text, _ in lengths)
        bias = torch.zeros(texts, device="cuda")
        ours(binaries[0], folder, q, k, v, segments, None if equal else bias, calls)
        times = {name: [] for name in names}
        if equal:
            operands = [torch.cat([by_head(x, rows(ranges)) for ranges in segments]) for x in (q, k, v)]
            packed_operands = for_flash_attention_3(operands) if library else None
        for _ in range(TURNS):
            for name, binary in zip(["ours", *others], binaries):
                times[name].append(again(binary, folder, q, k, segments, calls)[1])
            for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FA2", SDPBackend.FLASH_ATTENTION)):
                if equal:
                    with sdpa_kernel(backend):
                        times[name].append(timed(lambda: scaled_dot_product_attention(*operands), calls))
            if equal and library:
                times["FA3"].append(timed(lambda: flash_attention_3(*packed_operands), calls))
        rate = {name: flops / sorted(ms)[TURNS // 2] / 1e9 if ms else math.nan for name, ms in times.items()}
        ratio = rate["ours"] / rate["cuDNN"]
        good &= not ratio < 0.95
        name = "  ".join(f"{text}+{picture}" for text, picture in lengths)
        print(f"{name:<28}{''.join(f'{r:>9.0f}' for r in rate.values())}{ratio:>12.3f}", flush=True)
    return good


def main():
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        binaries, folder = [str(Path(path).resolve()) for path in sys.argv[1:]], Path(folder)
        good = accuracy(binaries[0], folder)
        good &= speed(binaries, folder)
    sys.exit(not good)


main()
