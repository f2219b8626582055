//! Times and starting noise against PyTorch's.

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use step1x_edit::ops::{H100_GRID_THREADS, philox_normal};
use step1x_edit::sampling::{schedule, torch_cpu_normal};

use crate::common::{golden_path, read};

fn json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[track_caller]
fn assert_same_bits(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: value {i} is {a:e}, not {b:e}");
    }
}

/// Counts values that differ in bf16, none by more than the device's fast sine explains.
#[derive(Default)]
struct Bf16Check {
    values: usize,
    off: usize,
}

impl Bf16Check {
    /// The fast sine's absolute error, 2^-21.4, times the largest radius, 6.7: units of bf16 for values next to zero.
    const SINE_ERROR: f32 = 2.4e-6;

    #[track_caller]
    fn add(&mut self, ours: f32, theirs: bf16, what: &str) {
        // Bits in the order of the values, so that neighbours differ by one.
        let order = |v: bf16| match v.to_bits() {
            bits if bits & 0x8000 != 0 => -i32::from(bits & 0x7FFF),
            bits => i32::from(bits),
        };
        let units = (order(bf16::from_f32(ours)) - order(theirs)).abs();
        let near = (ours - theirs.to_f32()).abs() <= Self::SINE_ERROR;
        assert!(units <= 1 || near, "{what}: {ours:e} is {units} units of bf16 off {theirs:e}");
        self.values += 1;
        self.off += usize::from(units > 0);
    }

    /// At most 0.1 %: only values next to a rounding boundary or to zero may move.
    #[track_caller]
    fn finish(self, what: &str) {
        let Bf16Check { values, off } = self;
        println!("{what}: {off} of {values} values differ in bf16");
        assert!(values > 0 && off * 1000 <= values, "{what}: {off} of {values} values differ in bf16");
    }
}

#[derive(Deserialize)]
struct Schedules {
    schedules: Vec<Schedule>,
}

#[derive(Deserialize)]
struct Schedule {
    steps: usize,
    image_seq_len: usize,
    timesteps: Vec<f32>,
}

#[test]
fn schedules() {
    let Schedules { schedules } = json("schedule.json");
    assert!(!schedules.is_empty());
    for Schedule { steps, image_seq_len, timesteps } in schedules {
        let what = format!("{steps} steps, {image_seq_len} tokens");
        assert_same_bits(&schedule(steps, image_seq_len), &timesteps, &what);
    }
}

#[test]
fn sampler_times() {
    let bytes = read("sampler.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let [_, _, height, width] = file.tensor("in.noise").unwrap().shape()[..] else { panic!("in.noise is not [1, 16, H, W]") };
    let tensors = file.tensors();
    let times: Vec<_> = tensors.iter().filter(|(name, _)| name.contains("timesteps")).collect();
    assert!(!times.is_empty());
    for (name, tensor) in times {
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        let theirs: Vec<f32> = tensor.data().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_same_bits(&schedule(theirs.len() - 1, height / 2 * width / 2), &theirs, name);
    }
}

#[derive(Deserialize)]
struct CpuDraws {
    cases: Vec<CpuDraw>,
}

#[derive(Deserialize)]
struct CpuDraw {
    seed: u64,
    shape: Vec<usize>,
    first: Vec<f32>,
    last: Vec<f32>,
}

#[test]
fn cpu_noise() {
    let CpuDraws { cases } = json("torch_randn_cpu.json");
    assert!(!cases.is_empty());
    for CpuDraw { seed, shape, first, last } in cases {
        let ours = torch_cpu_normal(seed, shape.iter().product());
        assert_same_bits(&ours[..first.len()], &first, &format!("seed {seed}, {shape:?}, first"));
        assert_same_bits(&ours[ours.len() - last.len()..], &last, &format!("seed {seed}, {shape:?}, last"));
    }
}

#[derive(Deserialize)]
struct CudaDraws {
    cases: Vec<CudaDraw>,
}

#[derive(Deserialize)]
struct CudaDraw {
    seed: u64,
    shape: Vec<usize>,
    multiprocessors: usize,
    threads_per_multiprocessor: usize,
    grid_threads: usize,
    index: Vec<usize>,
    value: Vec<f32>,
}

#[test]
fn cuda_noise() {
    let CudaDraws { cases } = json("torch_randn_cuda.json");
    let mut check = Bf16Check::default();
    for case in cases {
        let what = format!("seed {}, {:?}, {} multiprocessors", case.seed, case.shape, case.multiprocessors);
        let elements: usize = case.shape.iter().product();
        let largest = case.multiprocessors * case.threads_per_multiprocessor;
        assert_eq!(case.grid_threads, largest.min(elements.next_multiple_of(256)), "{what}");
        assert_eq!(case.index.len(), case.value.len(), "{what}");
        for (&element, &theirs) in case.index.iter().zip(&case.value) {
            let ours = philox_normal(case.seed, 0, elements, largest, element);
            assert!((ours - theirs).abs() <= 1e-5, "{what}: element {element} is {ours}, not {theirs}");
            check.add(ours, bf16::from_f32(theirs), &what);
        }
    }
    check.finish("described CUDA noise");
}

/// A draw and a schedule recorded from an official run on an H100.
#[test]
fn recorded_run() {
    const NAME: &str = "full_512.safetensors";
    if !golden_path(NAME).exists() {
        eprintln!("SKIPPED: recorded noise and times; {} is not there", golden_path(NAME).display());
        return;
    }
    let bytes = read(NAME);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().expect("the header has metadata");
    let seed: u64 = metadata["seed"].parse().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();

    let noise = file.tensor("noise").unwrap();
    assert_eq!(noise.dtype(), Dtype::BF16);
    let elements = noise.data().len() / 2;
    let mut check = Bf16Check::default();
    for (element, word) in noise.data().chunks_exact(2).enumerate() {
        let ours = philox_normal(seed, 0, elements, H100_GRID_THREADS, element);
        check.add(ours, bf16::from_le_bytes(word.try_into().unwrap()), &format!("element {element}"));
    }
    check.finish("recorded CUDA noise");

    let [_, _, height, width] = noise.shape()[..] else { panic!("noise is not [1, 16, H, W]") };
    let times = file.tensor("timesteps").unwrap();
    assert_eq!(times.dtype(), Dtype::F64);
    let theirs: Vec<f64> = times.data().chunks_exact(8).map(|word| f64::from_le_bytes(word.try_into().unwrap())).collect();
    let ours: Vec<f64> = schedule(theirs.len() - 1, height / 2 * width / 2).into_iter().map(f64::from).collect();
    assert_eq!(ours, theirs);
}

/// Whole draws, as PyTorch 2.11 made them on x86-64 (its AVX2 and AVX-512 builds agree): SHA-256 of the little-endian bytes.
#[test]
fn whole_cpu_draws() {
    use sha2::{Digest, Sha256};
    for (seed, n, expected) in [
        (42, 16 * 78 * 52, "51565347e79d4750bea7e04e178b4b20ccec305d4aa1cd67a71ef8f4f79107b6"),
        (7, 16 * 104 * 70, "6852202a83b386c3da28193b1416aafb6de5b722005e6c2bbe3443a3abc2aae0"),
        ((1 << 33) + 5, 16 * 9 * 11, "a2b8d6b47829b8cebb875348920151986b07f608a55a5a19700618719d097d5f"),
    ] {
        let bytes: Vec<u8> = torch_cpu_normal(seed, n).iter().flat_map(|v| v.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, expected, "seed {seed}, {n} values");
    }
}
