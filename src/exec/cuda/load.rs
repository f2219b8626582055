//! What is made when a plan is loaded: its tables on the device, and every node's launches.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::Work;
use crate::cuda::{Device, Gemm, Gemms, Launch, Memory, Module, OutOfMemory};
use crate::exec::gpu::Gpu;
use crate::graph::{BodyId, TensorId};
use crate::ops::{Arg, Args, View};
use crate::plan::{ALIGNMENT, KERNEL_BYTES, Plan, format_bytes};

/// Refuses a plan that does not fit, before anything is taken.
pub(super) fn check_memory(plan: &Plan, gpu: &Gpu) -> Result<()> {
    let (device, (free, _)) = (&gpu.device, gpu.device.memory()?);
    // A region that is large enough stays; another is given up before a larger one is taken.
    let (free, missing) = match gpu.region_bytes() >= plan.weights.bytes {
        true => (free, 0),
        false => (free + gpu.free_region_bytes(), plan.weights.bytes),
    };
    let needed = if plan.weights.keeps_all() { plan.arena_bytes } else { 0 } + missing + KERNEL_BYTES;
    if needed > free {
        let (needed, free) = (format_bytes(needed), format_bytes(free));
        let text = format!("the plan needs {needed} of memory on {}, with weights {}", device.name, plan.weights.policy);
        return Err(OutOfMemory::error(text, format!("{free} are free")));
    }
    Ok(())
}

/// The tables of all nodes, equal ones once, and where each node's lies.
pub(super) fn tables(plan: &Plan, device: &Arc<Device>) -> Result<(Memory, Vec<usize>)> {
    let (mut words, mut known, mut places) = (Vec::<u32>::new(), HashMap::new(), Vec::new());
    for node in &plan.graph.nodes {
        let table = node.op.table();
        let place = *known.entry(table).or_insert_with_key(|table| {
            let place = 4 * words.len();
            words.extend(table);
            words.resize(words.len().next_multiple_of(ALIGNMENT / 4), 0);
            place
        });
        places.push(place);
    }
    let memory = Memory::new(device, 4 * words.len())?;
    memory.write(0, bytemuck::cast_slice(&words))?;
    Ok((memory, places))
}

/// Where a plan lies on a device.
#[derive(Clone, Copy, Default)]
pub(super) struct Base {
    pub(super) arena: u64,
    pub(super) region: u64,
    /// The node's own table.
    pub(super) table: u64,
}

/// What the node of a number asks of the device.
pub(super) fn launches(plan: &Plan, at: usize, base: Base) -> Vec<Launch> {
    let node = &plan.graph.nodes[at];
    let arg = |&id: &TensorId| {
        let tensor = plan.graph.tensor(id);
        let start = match plan.offsets[tensor.storage.0] {
            Some(offset) => base.arena + offset as u64,
            None => base.region + plan.weights.offsets[tensor.storage.0].unwrap_or(0) as u64,
        };
        let view = View { spec: tensor.spec.clone(), row_stride: tensor.row_stride, offset: tensor.offset };
        Arg { address: start + (tensor.offset * tensor.spec.dtype.bytes()) as u64, view }
    };
    let (inputs, outputs) = (node.inputs.iter().map(arg).collect(), node.outputs.iter().map(arg).collect());
    let body = plan.graph.bodies.partition_point(|body| body.nodes.end <= at);
    let scratch = base.arena + plan.scratch_offsets[body] as u64;
    node.op.launch(&plan.kernels[at], &Args { inputs, outputs, table: base.table, scratch })
}

/// The matrix products of a body of a plan for a GPU, in order, as if arena and weights began at address 0.
pub fn products(plan: &Plan, body: BodyId) -> Vec<Gemm> {
    let of = |at| launches(plan, at, Base::default()).into_iter();
    let product = |launch| if let Launch::Gemm(gemm) = launch { Some(gemm) } else { None };
    plan.graph.nodes_of(body).flat_map(of).filter_map(product).collect()
}

pub(super) fn prepare(launch: Launch, module: Option<&Arc<Module>>, gemms: &mut Gemms, device: &Device) -> Result<Work> {
    Ok(match launch {
        Launch::Kernel(launch) => {
            let Some(module) = module else { bail!("the node has a kernel launch, but no compiled kernel") };
            Work::Kernel(module.function(launch.entry, launch.shared_bytes)?, launch.ready(device)?)
        }
        Launch::Gemm(gemm) => Work::Product(gemms.prepare(&gemm)?),
        Launch::Zero { address, bytes } => Work::Zero { address, bytes },
    })
}
