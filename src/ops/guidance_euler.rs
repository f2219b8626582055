//! Guidance and one Euler step, in place: `x += Δt·v`, v from the velocities c and u of two branches, or c of one.
//!
//! velocity [2n, C] (branch c, then u) or [n, C] (c alone), latents x [n, C] f32, schedule [K, 3] f32 (Δt; 1 where the norm
//! rule holds, else 0; the scale g), counter [1] (number of the step; raised), fault [1] (0, or 1 + the first step after which x
//! is not finite).
//! - plain: v = u + g·(c − u), each operation and the product with Δt rounded to the velocities' type;
//! - norm-limited: v = u + g·(c − u)/p, p = N^0.4 if N > 1, else 1, with N the norm of the token's c − u; c − u and
//!   g·(c − u) rounded, the rest in f32 (the norm makes it f32 in the official code);
//! - [`Rounding::EachOperation`]: in every step each operation, the norm, its power and the new x among them, is rounded to the
//!   velocities' type;
//! - one branch: v = c at every step, and the product with Δt rounded to its type. That is guidance of scale 1 but for what
//!   the two rules make of it with two branches: u + 1·(c − u) is rounded twice, and a norm-limited step takes
//!   u + (c − u)/p, which lies nearer to u.

use anyhow::{Result, ensure};

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, code, portable, round, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// One sampler update.
#[derive(Clone, Copy, Debug)]
pub struct GuidanceEuler(pub Rounding);

/// Where an update rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// As autocast does: latents and what the norm touches are f32.
    Autocast,
    /// As a run in one type does: every operation's result, latents too, has the velocities' type.
    EachOperation,
}

/// Tokens of a block, one a warp; as in the kernel.
const WARPS: usize = 8;
/// Channels that a warp holds in registers.
const MOST_CHANNELS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    velocity: u64,
    x: u64,
    new_x: u64,
    schedule: u64,
    counter: u64,
    new_counter: u64,
    fault: u64,
    new_fault: u64,
    broken: u64,
    tokens: u32,
    velocity_stride: u32,
    x_stride: u32,
    new_x_stride: u32,
    schedule_stride: u32,
    branches: u32,
}
const _: () = assert!(size_of::<Params>() == 96);

impl Op for GuidanceEuler {
    fn kind(&self) -> &'static str {
        "guidance_euler"
    }

    fn attributes(&self) -> String {
        match self.0 {
            Rounding::Autocast => String::new(),
            Rounding::EachOperation => "each operation rounded".to_string(),
        }
    }

    /// Inputs: velocity, latents, schedule, counter, fault. Outputs: latents, counter, fault.
    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (v, x) = (&inputs[0].shape, &inputs[1].shape);
        let branches = [x.rows(), 2 * x.rows()];
        ensure!(
            v.cols() == x.cols() && branches.contains(&v.rows()),
            "velocities {v} are not one or two branches of latents {x}"
        );
        ensure!(
            inputs[2].shape.cols() == 3 && inputs[3..].iter().all(|s| s.dtype == DType::I32),
            "the schedule is {}; it must have three columns, and the counters must be i32",
            inputs[2]
        );
        Ok(vec![inputs[1].clone(), inputs[3].clone(), inputs[4].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(10 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        for operand in [&inputs[1], &inputs[2], &outputs[0]] {
            typed(operand, DType::F32)?;
        }
        let channels = inputs[0].spec.shape.cols();
        if !channels.is_multiple_of(32) || channels > MOST_CHANNELS {
            return Unsupported::new(format!(
                "a token has {channels} channels; the kernel takes multiples of 32 up to {MOST_CHANNELS}"
            ));
        }
        let each = (self.0 == Rounding::EachOperation) as usize;
        let defines = [("CHANNELS", channels), ("V_TYPE", code(inputs[0].spec.dtype)?), ("ROUND_EACH", each)];
        let blocks = inputs[1].spec.shape.rows().div_ceil(WARPS);
        Ok(Kernel { scratch: blocks * size_of::<u32>(), ..Kernel::new("guidance_euler", defines) })
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (n, channels, dtype) = (inputs[1].rows(), inputs[1].cols(), inputs[0].spec.dtype);
        let step = inputs[3].i32()[0];
        let rule = Rule::of(&inputs[2].f32()[3 * step as usize..][..3], self.0, dtype);
        let (cond, uncond) = inputs[0].f32().split_at(n * channels);
        let x = outputs[0].f32();
        x.copy_from_slice(inputs[1].f32());
        for token in 0..n {
            let range = token * channels..(token + 1) * channels;
            let moves = rule.moves(&cond[range.clone()], uncond.get(range.clone()));
            x[range].iter_mut().zip(moves).for_each(|(x, by)| *x = rule.uniform(*x + by));
        }
        let finite = x.iter().all(|v| v.is_finite());
        let fault = inputs[4].i32()[0];
        outputs[1].i32()[0] = step + 1;
        outputs[2].i32()[0] = if fault == 0 && !finite { step + 1 } else { fault };
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let [velocity, x, schedule, counter, fault] = &args.inputs[..] else { unreachable!("five operands") };
        let [new_x, new_counter, new_fault] = &args.outputs[..] else { unreachable!("three results") };
        let params = Params {
            velocity: velocity.address,
            x: x.address,
            new_x: new_x.address,
            schedule: schedule.address,
            counter: counter.address,
            new_counter: new_counter.address,
            fault: fault.address,
            new_fault: new_fault.address,
            broken: args.scratch,
            tokens: x.rows() as u32,
            velocity_stride: velocity.stride(),
            x_stride: x.stride(),
            new_x_stride: new_x.stride(),
            schedule_stride: schedule.stride(),
            branches: (velocity.rows() / x.rows()) as u32,
        };
        let launch = |entry, blocks| Launch::kernel(entry, [blocks, 1, 1], 32 * WARPS as u32, 0, &params);
        vec![launch("guidance_euler", x.rows().div_ceil(WARPS) as u32), launch("guidance_euler_advance", 1)]
    }
}

/// A step's row of the schedule, and what is rounded to the velocities' type.
struct Rule {
    dt: f32,
    limited: bool,
    scale: f32,
    rounding: Rounding,
    dtype: DType,
}

impl Rule {
    fn of(row: &[f32], rounding: Rounding, dtype: DType) -> Rule {
        let [dt, limited, scale] = row[..] else { unreachable!("a row of three") };
        Rule { dt, limited: limited != 0.0, scale, rounding, dtype }
    }

    /// Rounds what autocast leaves in f32.
    fn uniform(&self, value: f32) -> f32 {
        match self.rounding {
            Rounding::Autocast => value,
            Rounding::EachOperation => round(self.dtype, value),
        }
    }

    /// By how much a token moves: velocity c, and u of the other branch if there is one.
    fn moves(&self, c: &[f32], u: Option<&[f32]>) -> Vec<f32> {
        let round = |v| round(self.dtype, v);
        let Some(u) = u else { return c.iter().map(|c| round(self.dt * c)).collect() };
        let difference = c.iter().zip(u).map(|(c, u)| round(c - u));
        let norm = self.uniform(difference.clone().map(|d| d * d).sum::<f32>().sqrt());
        let p = if norm > 1.0 { self.uniform(norm.powf(0.4)) } else { 1.0 };
        let by = |(u, d): (&f32, f32)| {
            let pull = round(self.scale * d);
            match self.limited {
                true => self.uniform(self.dt * self.uniform(u + self.uniform(pull / p))),
                false => round(self.dt * round(u + pull)),
            }
        };
        u.iter().zip(difference).map(by).collect()
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |rounding, branches: usize, bound, reason| {
        let inputs = vec![
            Spec::new(DType::BF16, [48 * branches, 64]),
            Spec::new(DType::F32, [48, 64]),
            Spec::new(DType::F32, [1, 3]),
            Spec::new(DType::I32, [1]),
            Spec::new(DType::I32, [1]),
        ];
        let outputs = vec![DType::F32, DType::I32, DType::I32];
        Case { outputs, index_bound: 1, bound, reason, ..Case::new(GuidanceEuler(rounding), inputs, DType::F32) }
    };
    let alone = "one product and one sum, each rounded as the reference does";
    vec![
        case(Rounding::Autocast, 2, 1e-12, "the token's norm is summed in another order"),
        case(Rounding::Autocast, 1, 0.0, alone),
        case(
            Rounding::EachOperation,
            2,
            5e-6,
            "a norm summed in another order can round to the next bf16, 2^-8 away, in a token of 48",
        ),
        case(Rounding::EachOperation, 1, 0.0, alone),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{HostValues, Values};

    /// The second of two steps of a token of two channels, with one branch's or both branches' velocities.
    fn step(velocity: &[f32], limited: f32) -> Vec<HostValues> {
        step_in(Rounding::Autocast, DType::F32, velocity, limited)
    }

    fn step_in(rounding: Rounding, dtype: DType, velocity: &[f32], limited: f32) -> Vec<HostValues> {
        let op = GuidanceEuler(rounding);
        let schedule = [0.0, 0.0, 0.0, -0.5, limited, 6.0];
        let mut specs = [[velocity.len() / 2, 2], [1, 2], [2, 3]].map(|s| Spec::new(DType::F32, s));
        specs[0].dtype = dtype;
        let index = Spec::new(DType::I32, [1]);
        let (counter, fault) = ([1], [0]);
        let values =
            [Values::F32(velocity), Values::F32(&[1.0, 1.0]), Values::F32(&schedule), Values::I32(&counter), Values::I32(&fault)];
        let specs = [specs.to_vec(), vec![index.clone(), index]].concat();
        let mut outputs: Vec<_> = op.infer(&specs).unwrap().into_iter().map(Output::zeros).collect();
        let inputs: Vec<_> = specs.into_iter().zip(values).map(|(spec, values)| Operand { spec, values }).collect();
        op.reference(&inputs, &mut outputs);
        outputs.into_iter().map(|o| o.values).collect()
    }

    #[test]
    fn both_rules() {
        // c = (4, 5), u = (1, 1): difference (3, 4), norm 5, p = 5^0.4 = 1.9036539.
        let plain = step(&[4.0, 5.0, 1.0, 1.0], 0.0);
        assert_eq!(
            plain,
            [HostValues::F32(vec![1.0 - 0.5 * 19.0, 1.0 - 0.5 * 25.0]), HostValues::I32(vec![2]), HostValues::I32(vec![0])]
        );
        let HostValues::F32(limited) = &step(&[4.0, 5.0, 1.0, 1.0], 1.0)[0] else { panic!() };
        let p = 1.903_653_9;
        assert!(
            (limited[0] - (1.0 - 0.5 * (1.0 + 18.0 / p))).abs() < 1e-5
                && (limited[1] - (1.0 - 0.5 * (1.0 + 24.0 / p))).abs() < 1e-5
        );
    }

    /// Every number below has eight significant bits because it was rounded, worked out by hand from the rule.
    #[test]
    fn each_operation_is_rounded() {
        let each = |velocity: &[f32], limited| match &step_in(Rounding::EachOperation, DType::BF16, velocity, limited)[0] {
            HostValues::F32(x) => x.clone(),
            other => panic!("{other:?}"),
        };
        // N = 5, p = 1.9036539 -> 1.90625; 18/p = 9.44262 -> 9.4375, 24/p = 12.590164 -> 12.5625; u + that: 10.4375, 13.5625;
        // times -0.5: -5.21875, -6.78125; plus 1: -4.21875 and -5.78125.
        assert_eq!(each(&[4.0, 5.0, 1.0, 1.0], 1.0), [-4.21875, -5.78125]);
        // 1 - 0.5·2.015625 = -0.0078125 is exact; 1 + 0.5·0.0078125 = 1.00390625 lies half way between two values of bf16.
        assert_eq!(each(&[2.015625, -0.0078125], 0.0), [-0.0078125, 1.0]);
        // In f32 velocities nothing of this is rounded.
        let HostValues::F32(exact) = &step_in(Rounding::EachOperation, DType::F32, &[4.0, 5.0, 1.0, 1.0], 1.0)[0] else {
            panic!()
        };
        let HostValues::F32(autocast) = &step(&[4.0, 5.0, 1.0, 1.0], 1.0)[0] else { panic!() };
        assert_eq!(exact, autocast);
    }

    #[test]
    fn a_nan_is_reported_with_its_step() {
        assert_eq!(step(&[f32::NAN, 5.0, 1.0, 1.0], 0.0)[2], HostValues::I32(vec![2]));
    }

    #[test]
    fn one_branch_moves_by_its_own_velocity_whatever_the_rule() {
        for limited in [0.0, 1.0] {
            let moved = HostValues::F32(vec![1.0 - 0.5 * 4.0, 1.0 - 0.5 * 5.0]);
            assert_eq!(step(&[4.0, 5.0], limited), [moved, HostValues::I32(vec![2]), HostValues::I32(vec![0])]);
        }
    }

    #[test]
    fn three_branches_are_refused() {
        let specs = [[3, 2], [1, 2], [2, 3]].map(|s| Spec::new(DType::F32, s));
        let refused = GuidanceEuler(Rounding::Autocast).infer(&specs).unwrap_err().to_string();
        assert!(refused.contains("[3, 2] are not one or two branches of latents [1, 2]"), "{refused}");
    }
}
