"""Measures `step1x-edit batch` on a GPU: seconds an item beside the edit's own stages, memory, joules, equal bytes.

    step1x-edit synth --preset full -o MODEL
    python3 benches/batch.py --model MODEL --out OUT [--part NAME] [--binary target/release/step1x-edit]

Needs nothing but Python. Parts, each with a new output folder below OUT and its numbers in OUT/NAME.json:

    mixture1024   20 items of six proportions and as many prompts at 1024x1024, 28 steps
    mixture512    40 items of the same at 512x512, 28 steps
    memory        200 items at 512x512, 4 steps: memory of device and process after 50 and after all
    seeds         3 seeds of 2 items at 1024x1024, 8 steps: bytes and seconds, beside `edit` of the same
"""

import argparse
import json
import shutil
import statistics
import struct
import subprocess
import time
import zlib
from pathlib import Path

# Width and height with about the area of 1024x1024, as GEdit-Bench's pictures have them.
SIZES = [(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768)]
PROMPTS = [
    "make it snow",
    "change the sofa to a vintage leather couch",
    "remove the person on the left side of the picture, and keep all else as it is",
    "把背景换成海边的日落",
    "turn the picture into a pencil drawing",
    "replace the text 'TRAIN' with 'PLANE'",
]


def write_png(path, width, height, number):
    """A picture of smooth colours with some detail, another for each number."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            rows += bytes(((x * 255 // width + 37 * number) & 255, (y * 255 // height) & 255, (x * y // 97 + 11 * number) & 255))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 1)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def manifest(folder, count, name):
    """Items over all sizes and prompts, in an order that sorting must mend."""
    lines = []
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        picture = folder / f"{size[0]}x{size[1]}.png"
        if not picture.exists():
            write_png(picture, *size, number % len(SIZES))
        prompt = PROMPTS[(number * 5 + number // 6) % len(PROMPTS)]
        lines.append(json.dumps({"id": f"{number:04}", "image": picture.name, "prompt": prompt}))
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def device_bytes():
    """Memory in use of the first GPU; none where nvidia-smi is missing."""
    asked = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if shutil.which(asked[0]) is None:
        return None
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]) << 20


def resident_bytes(pid):
    """Memory of a process that no file backs."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def batch(options, path, out, flags, looks=()):
    """Runs a batch; gives its lines with the seconds at which they came, its summary, and memory after so many lines."""
    command = [options.binary, "batch", str(path), "-o", str(out), "-m", options.model, "--device", options.device, "--json", "-q", *flags]
    lines, memory, summary = [], {}, None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout:
            line = json.loads(text)
            if "id" in line:
                lines.append((time.monotonic(), line))
                if len(lines) in looks:
                    memory[len(lines)] = {"device": device_bytes(), "resident": resident_bytes(process.pid)}
            summary = line.get("summary", summary)
    assert process.returncode == 0 and summary["failed"] == 0, (process.returncode, summary)
    return lines, summary, memory


STAGES = ["vae_encode", "vision", "text", "conditioning", "step", "vae_decode"]


def report(lines, summary):
    """Seconds from one line to the next, beside the stages' own, the first two items left out: they load the model."""
    gaps = [after[0] - before[0] for before, after in zip(lines[1:], lines[2:])]
    stages = [sum(line["seconds"].get(stage, 0) for stage in STAGES) for _, line in lines[2:]]
    host = {name: [line["seconds"].get(name, 0) for _, line in lines[2:]] for name in ["read", "plan", "prepare", "save"]}
    made = {
        "items": len(lines),
        "working_sizes": sorted({"x".join(map(str, line["working_size"])) for _, line in lines}),
        "seconds_an_item": statistics.mean(gaps),
        "stages_an_item": statistics.mean(stages),
        "beyond_the_stages": statistics.mean(gaps) / statistics.mean(stages) - 1,
        **{f"{name}_an_item": statistics.mean(values) for name, values in host.items()},
        "largest_plan": max(host["plan"]),
        "largest_prepare": max(host["prepare"]),
        "joules_an_item": summary["joules"] and summary["joules"] / len(lines),
        "summary": summary,
    }
    return made


def mixture(options, level, count):
    folder = options.out / f"mixture{level}"
    folder.mkdir(parents=True)
    path = manifest(folder, count, "items.jsonl")
    flags = ["--size-level", str(level), "--steps", "28"]
    sorted_lines, summary, _ = batch(options, path, folder / "sorted", flags)
    return report(sorted_lines, summary)


def memory(options):
    folder = options.out / "memory"
    folder.mkdir(parents=True)
    path = manifest(folder, 200, "items.jsonl")
    lines, summary, looks = batch(options, path, folder / "out", ["--size-level", "512", "--steps", "4"], looks=(50, 100, 200))
    return {**report(lines, summary), "memory": looks}


def seeds(options):
    folder = options.out / "seeds"
    folder.mkdir(parents=True)
    path = manifest(folder, 2, "items.jsonl")
    flags = ["--size-level", "1024", "--steps", "8"]
    lines, summary, _ = batch(options, path, folder / "out", [*flags, "-n", "3", "-s", "5"])
    items = [json.loads(line) for line in path.read_text().splitlines()]
    for item in items:
        single = folder / f"{item['id']}_7.png"
        subprocess.run(
            [options.binary, "edit", "-m", options.model, "--device", options.device, "-q", "-i", str(folder / item["image"]),
             "-p", item["prompt"], "-s", "7", "-o", str(single), *flags],
            check=True,
        )
        same = single.read_bytes() == (folder / "out" / f"{item['id']}_7.png").read_bytes()
        assert same, f"{item['id']}: edit gives other bytes than batch"
    return {**report(lines, summary), "bytes_as_edit": True}


def main():
    parts = {
        "mixture1024": lambda options: mixture(options, 1024, 20),
        "mixture512": lambda options: mixture(options, 512, 40),
        "memory": memory,
        "seeds": seeds,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--binary", default="target/release/step1x-edit")
    parser.add_argument("--part", choices=sorted(parts), action="append")
    options = parser.parse_args()
    for name in options.part or parts:
        made = parts[name](options)
        (options.out / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
        print(name, json.dumps({key: value for key, value in made.items() if key != "summary"}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
