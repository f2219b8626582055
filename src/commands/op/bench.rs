//! Cases on the GPU: results against the reference's, then times.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};

use super::choice::Numbered;
use crate::commands::measure::profile::measure_rates;
use crate::commands::measure::roofline::{Rates, Timed, median};
use crate::cuda::{Device, Setup};
use crate::error::usage;
use crate::exec::{Cuda, Difference, Executor, Gpu, OneNode, unwatched};
use crate::ops::{Arch, Case, View};
use crate::plan::{Itinerary, Plan, Precision, Target};
use crate::tensor::Spec;

/// Bytes that pass through the L2 cache before each cold run: more than any holds.
const FLUSH_BYTES: usize = 256 << 20;
/// Timed runs, at least and at most, and milliseconds that the cold ones take together, at least.
const RUNS: usize = 20;
const MOST_RUNS: usize = 500;
const MILLISECONDS: f32 = 100.0;

/// What was measured of an op.
pub(super) struct Measured {
    pub(super) op: &'static str,
    pub(super) cases: Vec<MeasuredCase>,
    pub(super) rates: Rates,
}

/// What was measured of a case.
pub(super) struct MeasuredCase {
    pub(super) number: usize,
    /// Attributes, operands and results.
    pub(super) text: String,
    /// The results' normalised mean square error, the largest of them, and what it may be.
    pub(super) nmse: f64,
    pub(super) bound: f64,
    /// A run whose operands may be in the L2 cache, and one whose operands come from memory.
    pub(super) warm: Timed,
    pub(super) cold: Timed,
}

impl MeasuredCase {
    /// Whether it is as near to the reference as it has to be; never true of a NaN.
    pub(super) fn is_near(&self) -> bool {
        self.nmse <= self.bound
    }
}

impl Measured {
    /// How many cases are farther from the reference than their bound.
    pub(super) fn far(&self) -> usize {
        self.cases.iter().filter(|case| !case.is_near()).count()
    }
}

/// Measures cases of one op, then what the device can do: it is still at work's temperature and clocks.
pub(super) fn run(chosen: &[Numbered], device: &Arc<Device>, setup: &Setup) -> Result<Measured> {
    let arch = Arch(device.capability);
    chosen.iter().try_for_each(|numbered| check_kernel(&numbered.case, arch).map_err(usage))?;
    let measure = |numbered: &Numbered| measure(numbered, device, setup).with_context(|| numbered.text());
    let cases = chosen.iter().map(measure).collect::<Result<Vec<_>>>()?;
    let rates = measure_rates(cases.iter().map(|case| &case.cold), device, setup)?;
    let op = chosen.first().map_or("", |numbered| numbered.case.op.kind());
    Ok(Measured { op, cases, rates })
}

/// Refuses operands that no kernel takes.
fn check_kernel(case: &Case, arch: Arch) -> Result<()> {
    let dense = |specs: &[Spec]| specs.iter().map(View::dense).collect::<Vec<_>>();
    let kernel = case.op.select(arch, &dense(&case.inputs), &dense(&case.results()?));
    kernel.map(drop).map_err(|refused| anyhow!("no kernel of {} takes these operands: {}", case.op.kind(), refused.reason))
}

fn measure(numbered: &Numbered, device: &Arc<Device>, setup: &Setup) -> Result<MeasuredCase> {
    let case = &numbered.case;
    let operands = case.operands();
    let expected = case.expected(&operands)?;
    let one = OneNode::timed(case, &operands, FLUSH_BYTES)?;
    let itinerary = Itinerary::of_all(&one.graph).repeatable();
    let plan = Arc::new(Plan::new(one.graph, itinerary, Precision::Bf16, Target::Cuda(Arch(device.capability)))?);
    let mut exec = Cuda::load(&Gpu::open(device, setup, one.weights)?, plan.clone())?;
    one.inputs.iter().try_for_each(|(id, values)| exec.write(*id, values.values()))?;
    exec.begin(&plan.itinerary)?;
    exec.run(one.body, &mut unwatched)?;
    exec.finish(&mut unwatched)?;
    let mut nmse: f64 = 0.0;
    for ((view, _), expected) in one.outputs.iter().zip(&expected) {
        let far = Difference::of(&exec.read(*view)?, expected)?.nmse;
        nmse = if far <= nmse { nmse } else { far }; // a NaN stays
    }
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    while cold.len() < RUNS || (cold.iter().sum::<f32>() < MILLISECONDS && cold.len() < MOST_RUNS) {
        let times = exec.time_nodes(one.body)?;
        cold.push(times[1]);
        warm.push(times[2]);
    }
    let bound = case.bound_of(&plan.kernels[1]);
    let mut nodes = Timed::of_body(&plan, one.body, &[0.0, median(cold), median(warm)]);
    let (Some(warm), Some(cold)) = (nodes.pop(), nodes.pop()) else { unreachable!("three nodes") };
    Ok(MeasuredCase { number: numbered.number, text: numbered.text(), nmse, bound, warm, cold })
}
