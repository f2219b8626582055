//! Starting noise as `torch.randn` draws it on a CUDA device: seed [2] i32 (low and high word), y [n, 64] packed latents, from
//! [16, H, W] flat order.
//!
//! Philox4x32-10 with the seed as key. Element e belongs to thread e mod P and is its (e div P)-th normal; each draw
//! gives four normals by Box–Muller, sine first. P, the launch grid's threads, depends on the device: the default is
//! that of an H100 (132 multiprocessors of 2048 threads), whose pictures the published examples show. Values are
//! rounded to bf16, the type that the official code draws in.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, dense, portable, round, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Threads of the largest grid that PyTorch launches on an H100, H200 or H800.
pub const H100_GRID_THREADS: usize = 132 * 2048;
const BLOCK: usize = 256;

/// A draw of starting noise.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// The generator's offset before the draw, in units of four words: 0 after seeding.
    pub offset: u64,
    /// Threads of the device's largest grid.
    pub grid_threads: usize,
    /// Latent height and width; both even.
    pub size: (usize, usize),
}

impl Noise {
    /// A seed as the op takes it.
    pub fn words(seed: u64) -> [i32; 2] {
        [seed as i32, (seed >> 32) as i32]
    }

    /// The generator's offset after a draw of `elements` values from `offset`.
    pub fn next_offset(offset: u64, elements: usize, grid_threads: usize) -> u64 {
        offset + elements.div_ceil(4 * launched(elements, grid_threads)) as u64
    }
}

/// Threads that draw `elements` values: whole blocks, no more than the largest grid.
fn launched(elements: usize, grid_threads: usize) -> usize {
    BLOCK * elements.div_ceil(BLOCK).min(grid_threads / BLOCK)
}

/// Which element of latents [16, height, width] is value `at` of the packed tokens [height/2 · width/2, 64], whose
/// channel is c·4 + row·2 + col.
pub fn drawn_at(at: usize, (height, width): (usize, usize)) -> usize {
    let (token, channel) = (at / 64, at % 64);
    let (row, col) = (token / (width / 2) * 2 + channel / 2 % 2, token % (width / 2) * 2 + channel % 2);
    (channel / 4 * height + row) * width + col
}

/// Normal number `element` of a draw of `elements` values, before rounding.
pub fn normal(seed: u64, offset: u64, elements: usize, grid_threads: usize, element: usize) -> f32 {
    let threads = launched(elements, grid_threads);
    let (thread, count) = ((element % threads) as u64, element / threads);
    let draw = offset + (count / 4) as u64;
    let counter = [draw as u32, (draw >> 32) as u32, thread as u32, (thread >> 32) as u32];
    let words = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let pair = if count % 4 < 2 { [words[0], words[1]] } else { [words[2], words[3]] };
    box_muller(pair)[count % 2]
}

/// Ten rounds of Philox4x32.
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = 0xD251_1F53_u64 * c[0] as u64;
        let p1 = 0xCD9E_8D57_u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Two normals from two words, in f32 with fused multiply-adds as the device does it.
fn box_muller([x, y]: [u32; 2]) -> [f32; 2] {
    const STEP: f32 = 1.0 / 4_294_967_296.0;
    const ANGLE_STEP: f32 = STEP * 6.283_185_5;
    let u = (x as f32).mul_add(STEP, STEP / 2.0);
    let v = (y as f32).mul_add(ANGLE_STEP, ANGLE_STEP / 2.0);
    let radius = (-2.0 * u.ln()).sqrt();
    [radius * v.sin(), radius * v.cos()]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    y: u64,
    seed: u64,
    offset: u64,
    values: u32,
    threads: u32,
    height: u32,
    width: u32,
}
const _: () = assert!(size_of::<Params>() == 40);

impl Op for Noise {
    fn kind(&self) -> &'static str {
        "noise"
    }

    fn attributes(&self) -> String {
        format!("offset {} grid {}", self.offset, self.grid_threads)
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (h, w) = self.size;
        ensure!(inputs[0] == Spec::new(DType::I32, [2]), "the seed is {}; it must be two words of 32 bits", inputs[0]);
        ensure!(h.is_multiple_of(2) && w.is_multiple_of(2), "the latents are {h}x{w}; both sides must be even");
        Ok(vec![Spec::new(DType::F32, [h / 2 * w / 2, 64])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(100 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, _: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        dense(outputs)?;
        typed(&outputs[0], DType::F32)?;
        Ok(Kernel::new("noise", []))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (h, w) = self.size;
        let [low, high] = inputs[0].i32() else { unreachable!("two words") };
        let seed = u64::from(*high as u32) << 32 | u64::from(*low as u32);
        outputs[0].f32().par_iter_mut().enumerate().for_each(|(at, y)| {
            *y = round(DType::BF16, normal(seed, self.offset, 16 * h * w, self.grid_threads, drawn_at(at, self.size)));
        });
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let (height, width) = self.size;
        let values = 16 * height * width;
        let params = Params {
            y: args.outputs[0].address,
            seed: args.inputs[0].address,
            offset: self.offset,
            values: values as u32,
            threads: launched(values, self.grid_threads) as u32,
            height: height as u32,
            width: width as u32,
        };
        vec![Launch::kernel("noise", blocks(values), super::BLOCK, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    // One draw a thread, and several (a small grid).
    let reason = "the device's fast sine and logarithm move one value in a few thousand by one unit of bf16";
    [(H100_GRID_THREADS, (78, 52)), (1024, (16, 16))]
        .into_iter()
        .map(|(grid_threads, size)| Case {
            index_bound: 1 << 31,
            bound: 1e-7,
            reason,
            ..Case::new(Noise { offset: 0, grid_threads, size }, vec![Spec::new(DType::I32, [2])], DType::F32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Values;

    #[test]
    fn philox_vector() {
        // Published known answer: counter 0, key 0.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn the_seed_arrives_whole() {
        let op = Noise { offset: 0, grid_threads: 1024, size: (2, 4) };
        for seed in [42, 0xFFFF_FFFF, 0x8000_0001_8000_0002, u64::MAX] {
            let (words, spec) = (Noise::words(seed), Spec::new(DType::I32, [2]));
            let mut outputs: Vec<_> = op.infer(std::slice::from_ref(&spec)).unwrap().into_iter().map(Output::zeros).collect();
            op.reference(&[Operand { spec, values: Values::I32(&words) }], &mut outputs);
            let expected = |at| round(DType::BF16, normal(seed, 0, 128, 1024, drawn_at(at, (2, 4))));
            assert!(outputs[0].f32().iter().enumerate().all(|(at, y)| *y == expected(at)), "seed {seed:#x}");
        }
    }

    #[test]
    fn offset_advances_by_draws() {
        assert_eq!(Noise::next_offset(0, 65_536, H100_GRID_THREADS), 1);
        assert_eq!(Noise::next_offset(5, 16 * 1024, 1024), 5 + 4);
    }
}
