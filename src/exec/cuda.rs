//! The CUDA executor: every launch is made when the plan is loaded; a run only enqueues them.
//!
//! Nodes wait for their own weights alone, so that a stage starts while the rest is still on its way. A stage that repeats
//! is captured into a graph at its second run (the first loads what libraries load late) and replayed from then on. At
//! most two replays are under way at a time: enough to leave no gap, few enough to stop between steps.

mod timing;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::fetch::{Pass, Resident};
use super::values::{check_count, load, store};
use super::{Executor, Watch};
use crate::cuda::{Captured, Compiler, Cubin, Device, Event, Function, Gemms, KernelLaunch, Launch, Memory, Module};
use crate::cuda::{Nvtx, Product, Setup, Staging, Stream};
use crate::error::ResourceError;
use crate::graph::{Kind, Node, StorageId, TensorId};
use crate::ops::{Arg, Args, HostValues, Values, View};
use crate::plan::{ALIGNMENT, KERNEL_BYTES, Plan, format_bytes};
use crate::weights::WeightSource;

/// Replays under way.
const IN_FLIGHT: usize = 2;

/// A plan on a device.
pub struct Cuda<'a> {
    plan: &'a Plan,
    weights: Arc<dyn WeightSource + Send + Sync>,
    /// The device work of each node.
    work: Vec<Vec<Work>>,
    /// Stages that have run at least once.
    warm: Vec<bool>,
    captured: HashMap<usize, Captured>,
    capture: bool,
    in_flight: VecDeque<Event>,
    resident: Resident,
    pass: Option<Pass>,
    staging: Arc<Staging>,
    gemms: Gemms,
    arena: Memory,
    region: Memory,
    _tables: Memory,
    nvtx: Nvtx,
    stream: Stream,
    device: Arc<Device>,
}

enum Work {
    Kernel(Function, KernelLaunch),
    Product(Product),
    Zero { address: u64, bytes: usize },
}

impl<'a> Cuda<'a> {
    /// Compiles, takes memory, and makes every launch ready; no weight is read yet.
    ///
    /// # Errors
    /// A [`ResourceError`] if the plan needs more memory than is free (before any is taken) or a library is missing;
    /// a kernel that does not compile or a product that cuBLASLt cannot do, by node.
    pub fn new(
        plan: &'a Plan,
        weights: Arc<dyn WeightSource + Send + Sync>,
        device: &Arc<Device>,
        setup: &Setup,
    ) -> Result<Cuda<'a>> {
        ensure!(plan.kernels.len() == plan.graph.nodes.len(), "the plan is not for CUDA");
        device.make_current()?;
        check_memory(plan, device)?;
        let modules = compile(plan, device, setup)?;
        let mut gemms = Gemms::new(device, setup)?;
        let stream = Stream::new(device)?;
        let (arena, region) = (Memory::new(device, plan.arena_bytes)?, Memory::new(device, plan.weights.bytes)?);
        arena.fill(0xff, &stream)?; // all bits set is a NaN in every float type
        let (tables, places) = tables(plan, device)?;
        let launches = |(at, node): (usize, &Node)| launches(plan, node, at, &arena, &region, tables.address + places[at] as u64);
        let launches: Vec<Vec<Launch>> = plan.graph.nodes.iter().enumerate().map(launches).collect();
        let mut work = Vec::new();
        for (at, launches) in launches.into_iter().enumerate() {
            let ready = launches.into_iter().map(|launch| prepare(launch, modules[at].as_ref(), &mut gemms, &stream, device));
            work.push(ready.collect::<Result<Vec<_>>>().with_context(|| plan.graph.nodes[at].name.clone())?);
        }
        gemms.save();
        arena.fill(0xff, &stream)?; // products were timed on it
        stream.synchronize()?;
        Ok(Cuda {
            plan,
            weights,
            work,
            warm: vec![false; plan.graph.stages.len()],
            captured: HashMap::new(),
            capture: true,
            in_flight: VecDeque::new(),
            resident: Resident::none(plan),
            pass: None,
            staging: Staging::new(device),
            gemms,
            arena,
            region,
            _tables: tables,
            nvtx: Nvtx::attach(setup.profiler.as_deref()),
            stream,
            device: device.clone(),
        })
    }

    /// Runs repeated stages node by node too.
    pub fn without_capture(mut self) -> Self {
        self.capture = false;
        self
    }

    /// Enqueues one node.
    ///
    /// # Errors
    /// A weight that could not be fetched, or what the driver reports.
    pub fn run_node(&mut self, at: usize) -> Result<()> {
        self.fetch(at)?;
        self.enqueue(at)
    }

    /// What it runs.
    pub(super) fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// Says that a stage begins; gives its number.
    pub(super) fn enter(&mut self, stage: &str) -> Result<usize> {
        self.device.make_current()?;
        let number = self.plan.graph.stages.iter().position(|s| s.name == stage);
        let number = number.with_context(|| format!("the plan has no stage {stage}"))?;
        let pass = self.pass.as_mut().context("no stages were announced")?;
        pass.enter(number, &self.device, &self.stream).with_context(|| stage.to_string())?;
        Ok(number)
    }

    /// Lets the stream wait for a node's weights.
    fn fetch(&mut self, at: usize) -> Result<()> {
        let (graph, stream) = (&self.plan.graph, &self.stream);
        let pass = self.pass.as_mut().context("no stages were announced")?;
        graph.nodes[at].inputs.iter().try_for_each(|&id| pass.wait_for(graph.tensor(id).storage, stream))
    }

    fn enqueue(&self, at: usize) -> Result<()> {
        for work in &self.work[at] {
            // SAFETY: launches were made for addresses within arena, region and tables, which live as long as self; the
            // plan keeps storages that are live together apart, and one stream runs everything in order.
            unsafe {
                match work {
                    Work::Kernel(function, launch) => self.stream.launch(function, launch),
                    Work::Product(product) => self.gemms.run(product, &self.stream),
                    Work::Zero { address, bytes } => self.stream.zero(*address, *bytes),
                }
            }
            .with_context(|| self.plan.graph.nodes[at].name.clone())?;
        }
        Ok(())
    }

    /// Runs a stage node by node.
    fn run_nodes(&mut self, number: usize, watch: &mut Watch) -> Result<()> {
        for at in self.plan.graph.stages[number].nodes.clone() {
            self.run_node(at)?;
            watch(&self.plan.graph.nodes[at])?;
        }
        self.warm[number] = true;
        Ok(())
    }

    /// Replays a stage, capturing it first if need be.
    fn replay(&mut self, number: usize) -> Result<()> {
        let nodes = self.plan.graph.stages[number].nodes.clone();
        nodes.clone().try_for_each(|at| self.fetch(at))?;
        if !self.captured.contains_key(&number) {
            let graph = self.stream.capture(&self.device, || nodes.clone().try_for_each(|at| self.enqueue(at)))?;
            self.captured.insert(number, graph);
        }
        if self.in_flight.len() == IN_FLIGHT
            && let Some(earliest) = self.in_flight.pop_front()
        {
            earliest.synchronize()?;
        }
        // SAFETY: as for `enqueue`.
        unsafe { self.captured[&number].replay(&self.stream) }?;
        let event = Event::new(&self.device, false)?;
        event.record(&self.stream)?;
        self.in_flight.push_back(event);
        Ok(())
    }

    /// Where a storage of the arena lies.
    fn place(&self, storage: StorageId) -> Result<usize> {
        self.plan.offsets[storage.0].context("a storage without a place in the arena")
    }

    /// A storage's bytes, aligned for any type.
    fn download(&mut self, storage: StorageId) -> Result<Vec<u128>> {
        self.device.make_current()?;
        self.finish()?;
        let bytes = self.plan.graph.storages[storage.0].spec.bytes();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        self.arena.read(self.place(storage)?, &mut bytemuck::cast_slice_mut(&mut words)[..bytes])?;
        Ok(words)
    }
}

impl Executor for Cuda<'_> {
    fn write(&mut self, id: TensorId, values: Values) -> Result<()> {
        let tensor = self.plan.graph.tensor(id).clone();
        let storage = self.plan.graph.storage_of(id);
        check_count(&tensor, &values).with_context(|| storage.name.clone())?;
        ensure!(tensor.is_dense(), "{} has gaps", storage.name);
        let bytes = storage.spec.bytes();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        store(&mut bytemuck::cast_slice_mut(&mut words)[..bytes], &tensor, values).with_context(|| storage.name.clone())?;
        let own = tensor.offset * tensor.spec.dtype.bytes()..(tensor.offset * tensor.spec.dtype.bytes() + tensor.spec.bytes());
        self.device.make_current()?;
        self.finish()?;
        self.arena.write(self.place(tensor.storage)? + own.start, &bytemuck::cast_slice(&words)[own])
    }

    fn read(&mut self, id: TensorId) -> Result<HostValues> {
        let tensor = self.plan.graph.tensor(id);
        let storage = self.plan.graph.storage_of(id);
        if let Kind::Weight(component) = storage.kind {
            let values = super::values::load_weight(&*self.weights, component, &storage.name, tensor, self.plan.precision)?;
            return Ok(HostValues::F32(values));
        }
        let words = self.download(tensor.storage)?;
        Ok(load(&bytemuck::cast_slice(&words)[..storage.spec.bytes()], tensor)?.into_host_values())
    }

    fn begin(&mut self, stages: &[&str]) -> Result<()> {
        self.device.make_current()?;
        self.finish()?;
        if self.pass.take().is_some_and(|pass| !pass.is_complete()) {
            self.resident = Resident::none(self.plan); // an upload was cut off
        }
        let region = self.region.address;
        self.pass = Some(Pass::start(self.plan, stages, &mut self.resident, &self.staging, region, &self.weights)?);
        Ok(())
    }

    fn run(&mut self, stage: &str, watch: &mut Watch) -> Result<()> {
        let _range = self.nvtx.range(stage);
        let number = self.enter(stage)?;
        let stage = &self.plan.graph.stages[number];
        if !(self.capture && stage.repeat > 1 && self.warm[number]) {
            return self.run_nodes(number, watch);
        }
        self.replay(number)?;
        stage.nodes.clone().last().map_or(Ok(()), |at| watch(&self.plan.graph.nodes[at]))
    }

    fn finish(&mut self) -> Result<()> {
        self.in_flight.clear();
        self.stream.synchronize()
    }

    fn waits(&self) -> bool {
        false
    }
}

impl Drop for Cuda<'_> {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        self.pass = None; // its threads end
        let _ = self.stream.synchronize();
    }
}

/// Refuses a plan that does not fit, before anything is taken.
fn check_memory(plan: &Plan, device: &Device) -> Result<()> {
    let (free, _) = device.memory()?;
    let needed = plan.device_bytes() + KERNEL_BYTES;
    if needed > free {
        let (needed, free) = (format_bytes(needed), format_bytes(free));
        let text = format!(
            "the plan needs {needed} of memory on {}, with weights {}; {free} are free",
            device.name, plan.weights.policy
        );
        return Err(ResourceError(text).into());
    }
    Ok(())
}

/// The module of each node's kernel; none for products. Distinct kernels compile side by side.
fn compile(plan: &Plan, device: &Arc<Device>, setup: &Setup) -> Result<Vec<Option<Arc<Module>>>> {
    let compiler = Compiler::new(device.capability, setup)?;
    let distinct: BTreeMap<String, _> = plan.kernels.iter().filter_map(|k| Some((k.to_string(), k.compiled()?))).collect();
    let cubins: Vec<(String, Cubin)> = distinct
        .into_par_iter()
        .map(|(name, (source, defines))| Ok((name, compiler.compile(source, defines)?)))
        .collect::<Result<_>>()?;
    let loaded = cubins.into_iter().map(|(name, cubin)| Ok((name, Module::load(device, &cubin.image)?)));
    let modules: HashMap<String, Arc<Module>> = loaded.collect::<Result<_>>()?;
    Ok(plan.kernels.iter().map(|k| modules.get(&k.to_string()).cloned()).collect())
}

/// The tables of all nodes, equal ones once, and where each node's lies.
fn tables(plan: &Plan, device: &Arc<Device>) -> Result<(Memory, Vec<usize>)> {
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

fn launches(plan: &Plan, node: &Node, at: usize, arena: &Memory, region: &Memory, table: u64) -> Vec<Launch> {
    let arg = |&id: &TensorId| {
        let tensor = plan.graph.tensor(id);
        let base = match plan.offsets[tensor.storage.0] {
            Some(offset) => arena.address + offset as u64,
            None => region.address + plan.weights.offsets[tensor.storage.0].unwrap_or(0) as u64,
        };
        let view = View { spec: tensor.spec.clone(), row_stride: tensor.row_stride, offset: tensor.offset };
        Arg { address: base + (tensor.offset * tensor.spec.dtype.bytes()) as u64, view }
    };
    let (inputs, outputs) = (node.inputs.iter().map(arg).collect(), node.outputs.iter().map(arg).collect());
    let scratch = arena.address + plan.scratch_offset as u64;
    node.op.launch(&plan.kernels[at], &Args { inputs, outputs, table, scratch })
}

fn prepare(launch: Launch, module: Option<&Arc<Module>>, gemms: &mut Gemms, stream: &Stream, device: &Device) -> Result<Work> {
    Ok(match launch {
        Launch::Kernel(launch) => {
            let Some(module) = module else { bail!("a kernel without a source") };
            Work::Kernel(module.function(launch.entry, launch.shared_bytes)?, launch.ready(device)?)
        }
        // SAFETY: the addresses are the plan's, and nothing is in the arena yet.
        Launch::Gemm(gemm) => Work::Product(unsafe { gemms.prepare(&gemm, stream) }?),
        Launch::Zero { address, bytes } => Work::Zero { address, bytes },
    })
}
