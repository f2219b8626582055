//! The attention op by itself on a GPU, on inputs from files: what `attention.py` compares with PyTorch.
//!
//! `attention FOLDER HEADS KV_HEADS WIDTHxCALLS SEGMENT...`, where a segment is the row ranges of its queries and keys:
//! `0..640,1280..3328`, or `0..9:0..640,1280..3328` if they differ. FOLDER holds `q.bin`, `k.bin` and `v.bin` (bf16, rows of
//! all heads) and perhaps `bias.bin` (f32, of the first keys). Writes `y.bin` (bf16) and prints milliseconds a call: the median of
//! RUNS captured runs of CALLS calls each.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use step1x_edit::cli;
use step1x_edit::cuda::Device;
use step1x_edit::exec::{Cuda, Executor, Gpu, HostWeights};
use step1x_edit::graph::Graph;
use step1x_edit::ops::{Arch, Attention, HostValues, Segment, Values};
use step1x_edit::plan::{Itinerary, Plan, Precision, Target};
use step1x_edit::tensor::DType;

const RUNS: usize = 25;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [folder, heads, kv_heads, shape, segments @ ..] = &words[..] else {
        println!("attention: run by benches/attention.py");
        return Ok(());
    };
    let (width, calls) = shape.split_once('x').context("WIDTHxCALLS")?;
    let segments = segments.iter().map(|word| segment(word)).collect::<Result<Vec<_>>>()?;
    let op = Attention { heads: heads.parse()?, kv_heads: kv_heads.parse()?, causal: false, segments };
    let milliseconds = run(Path::new(folder), op, width.parse()?, calls.parse()?)?;
    println!("{milliseconds:.6}");
    Ok(())
}

fn segment(word: &str) -> Result<Segment> {
    let ranges = |word: &str| word.split(',').map(range).collect::<Result<Vec<_>>>();
    let (q, k) = word.split_once(':').unwrap_or((word, word));
    Ok(Segment { q: ranges(q)?, k: ranges(k)? })
}

fn range(word: &str) -> Result<Range<usize>> {
    let (start, end) = word.split_once("..").with_context(|| format!("{word} is no range"))?;
    Ok(start.parse()?..end.parse()?)
}

fn read(folder: &Path, name: &str) -> Result<Vec<f32>> {
    let bytes = std::fs::read(folder.join(name)).with_context(|| name.to_string())?;
    Ok(bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect())
}

fn run(folder: &Path, op: Attention, width: usize, calls: usize) -> Result<f64> {
    let (q_cols, k_cols) = (op.heads * width, op.kv_heads * width);
    let [q, k, v] = ["q.bin", "k.bin", "v.bin"].map(|name| read(folder, name));
    let (q, k, v) = (q?, k?, v?);
    let (queries, keys) = (q.len() / q_cols, k.len() / k_cols);
    ensure!(q.len() == queries * q_cols && k.len() == keys * k_cols && v.len() == k.len(), "rows of other widths");
    let bias: Option<Vec<f32>> = folder
        .join("bias.bin")
        .exists()
        .then(|| std::fs::read(folder.join("bias.bin")))
        .transpose()?
        .map(|bytes| bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect());

    // The values are the last columns of a wider buffer, as behind a fused projection.
    let mut graph = Graph::new();
    let (mut inputs, mut results) = (Vec::new(), Vec::new());
    let (body, ()) = graph.body("attention", |g| {
        let fused = g.input("fused", DType::BF16, [keys, 3 * k_cols]);
        let operands = [g.input("q", DType::BF16, [queries, q_cols]), g.input("k", DType::BF16, [keys, k_cols])];
        let gap = vec![f32::NAN; 2 * k_cols];
        let surrounded = v.chunks(k_cols).flat_map(|row| [&gap[..], row].concat()).collect();
        inputs.extend([(operands[0], q), (operands[1], k), (fused, surrounded)]);
        let mut operands = vec![operands[0], operands[1], g.cols(fused, 2 * k_cols..3 * k_cols)];
        if let Some(bias) = bias {
            let id = g.input("bias", DType::F32, [bias.len()]);
            inputs.push((id, bias));
            operands.push(id);
        }
        for call in 0..calls {
            let y = g.op(&format!("call {call}"), op.clone(), &operands);
            g.output(y);
            results.push(y);
        }
    });
    let device = Device::open(0)?;
    let itinerary = Itinerary::of_all(&graph).repeatable();
    let plan = Arc::new(Plan::new(graph, itinerary, Precision::Bf16, Target::Cuda(Arch(device.capability)))?);
    eprintln!("{}", plan.kernels[0]);
    let gpu = Gpu::open(&device, &cli::setup(), Arc::new(HostWeights::default()))?;
    let mut exec = Cuda::load(&gpu, plan.clone())?;
    inputs.iter().try_for_each(|(id, values)| exec.write(*id, Values::F32(values)))?;
    exec.begin(&plan.itinerary)?;
    let mut times = exec.time_runs(body, RUNS)?;
    times.sort_by(f32::total_cmp);
    let all = results.iter().map(|&y| exec.read(y)).collect::<Result<Vec<_>>>()?;
    let HostValues::F32(first) = &all[0] else { bail!("attention gives floats") };
    let bits = |buffer: &HostValues| match buffer {
        HostValues::F32(values) => values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
        _ => vec![],
    };
    ensure!(all.iter().all(|y| bits(y) == bits(&all[0])), "two calls gave different bits");
    std::fs::write(folder.join("y.bin"), first.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>())?;
    Ok(times[RUNS / 2] as f64 / calls as f64)
}
