//! The CUDA executor: a plan loaded onto a GPU. Every launch is made when the plan is loaded; a run only enqueues them.
//!
//! Nodes wait for their own weights alone, so that a body starts while the rest is still on its way. A body that runs more
//! than once is captured into a graph at its second run (the first loads what libraries load late) and replayed from then
//! on. At most two replays are under way at a time: enough to leave no gap, few enough to stop between steps.

mod timing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::fetch::weight_keys;
use super::gpu::Gpu;
use super::values::{check_count, load, load_weight, store};
use super::{Executor, Watch};
use crate::cuda::{Captured, Device, Event, Function, Gemms, KernelLaunch, Launch, Memory, Module, Product, Stream};
use crate::error::ResourceError;
use crate::graph::{BodyId, Kind, Node, StorageId, TensorId};
use crate::ops::{Arg, Args, HostValues, Values, View};
use crate::plan::{ALIGNMENT, Itinerary, KERNEL_BYTES, Plan, Target, format_bytes};
use crate::weights::WeightKey;

/// Replays under way.
const IN_FLIGHT: usize = 2;

/// A plan on a GPU.
pub struct Cuda {
    /// Its number among the GPU's programs.
    number: u64,
    plan: Arc<Plan>,
    /// Which weight each storage is.
    keys: Vec<Option<WeightKey>>,
    /// The device work of each node.
    work: Vec<Vec<Work>>,
    /// Bodies that have run at least once.
    warm: Vec<bool>,
    captured: HashMap<BodyId, Captured>,
    capture: bool,
    in_flight: VecDeque<Event>,
    arena: Memory,
    region: Arc<Memory>,
    _tables: Memory,
    gpu: Arc<Gpu>,
}

enum Work {
    Kernel(Function, KernelLaunch),
    Product(Product),
    Zero { address: u64, bytes: usize },
}

impl Cuda {
    /// Compiles what is not compiled yet, takes memory, and makes every launch ready; no weight is read yet.
    ///
    /// # Errors
    /// A [`ResourceError`] if the plan needs more memory than is free (before any is taken) or a library is missing;
    /// a kernel that does not compile or a product that cuBLASLt cannot do, by node.
    pub fn load(gpu: &Arc<Gpu>, plan: Arc<Plan>) -> Result<Cuda> {
        ensure!(plan.target != Target::Cpu, "the plan was made for the CPU; plan again for this GPU");
        let device = &gpu.device;
        device.make_current()?;
        check_memory(&plan, gpu)?;
        let modules = gpu.modules(&plan)?;
        let (region, arena) = (gpu.region(plan.weights.bytes)?, Memory::new(device, plan.arena_bytes)?);
        arena.fill(0xff, &gpu.stream)?; // all bits set is a NaN in every float type
        let (tables, places) = tables(&plan, device)?;
        let launches =
            |(at, node): (usize, &Node)| launches(&plan, node, at, &arena, &region, tables.address + places[at] as u64);
        let launches: Vec<Vec<Launch>> = plan.graph.nodes.iter().enumerate().map(launches).collect();
        let (mut work, mut gemms) = (Vec::new(), gpu.gemms());
        for (at, launches) in launches.into_iter().enumerate() {
            let module = modules[at].as_ref();
            let ready = launches.into_iter().map(|launch| prepare(launch, module, &mut gemms, &gpu.stream, device));
            work.push(ready.collect::<Result<Vec<_>>>().with_context(|| plan.graph.nodes[at].name.clone())?);
        }
        gemms.save();
        drop(gemms);
        gpu.count(|made| made.launches += work.iter().map(Vec::len).sum::<usize>());
        arena.fill(0xff, &gpu.stream)?; // products were timed on it
        gpu.stream.synchronize()?;
        Ok(Cuda {
            number: gpu.next_program(),
            keys: weight_keys(&plan.graph)?,
            warm: vec![false; plan.graph.bodies.len()],
            plan,
            work,
            captured: HashMap::new(),
            capture: true,
            in_flight: VecDeque::new(),
            arena,
            region,
            _tables: tables,
            gpu: gpu.clone(),
        })
    }

    /// Runs repeated bodies node by node too.
    pub fn without_capture(mut self) -> Self {
        self.capture = false;
        self
    }

    /// Enqueues one node.
    ///
    /// # Errors
    /// A weight that could not be fetched, or what the driver reports.
    pub(super) fn run_node(&mut self, at: usize) -> Result<()> {
        self.fetch(at)?;
        self.enqueue(at)
    }

    /// What it runs.
    pub(super) fn shared_plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Says that a body begins.
    pub(super) fn enter(&mut self, body: BodyId) -> Result<()> {
        let gpu = &self.gpu;
        gpu.device.make_current()?;
        gpu.with_feed(self.number, |feed| feed.enter(body, &gpu.device, &gpu.stream))
    }

    /// Lets the stream wait for a node's weights.
    fn fetch(&self, at: usize) -> Result<()> {
        let graph = &self.plan.graph;
        let weights = graph.nodes[at].inputs.iter().map(|&id| graph.tensor(id).storage).filter(|s| self.keys[s.0].is_some());
        self.gpu.with_feed(self.number, |feed| weights.into_iter().try_for_each(|s| feed.wait_for(s, &self.gpu.stream)))
    }

    fn enqueue(&self, at: usize) -> Result<()> {
        for work in &self.work[at] {
            // SAFETY: launches were made for addresses within arena, region and tables, which live as long as self; the
            // plan keeps storages that are live together apart, and one stream runs everything in order.
            unsafe {
                match work {
                    Work::Kernel(function, launch) => self.gpu.stream.launch(function, launch),
                    Work::Product(product) => self.gpu.gemms().run(product, &self.gpu.stream),
                    Work::Zero { address, bytes } => self.gpu.stream.zero(*address, *bytes),
                }
            }
            .with_context(|| self.plan.graph.nodes[at].name.clone())?;
        }
        Ok(())
    }

    /// Runs a body node by node.
    fn run_nodes(&mut self, body: BodyId, watch: &mut Watch) -> Result<()> {
        let plan = self.plan.clone();
        for at in plan.graph.nodes_of(body) {
            self.run_node(at)?;
            watch(&plan.graph.nodes[at], self)?;
        }
        self.warm[body.0] = true;
        Ok(())
    }

    /// Replays a body, capturing it first if need be.
    fn replay(&mut self, body: BodyId) -> Result<()> {
        let nodes = self.plan.graph.nodes_of(body);
        nodes.clone().try_for_each(|at| self.fetch(at))?;
        let (device, stream) = (&self.gpu.device, &self.gpu.stream);
        if !self.captured.contains_key(&body) {
            let graph = stream.capture(device, || nodes.clone().try_for_each(|at| self.enqueue(at)))?;
            self.captured.insert(body, graph);
            self.gpu.count(|made| made.captures += 1);
        }
        if self.in_flight.len() == IN_FLIGHT
            && let Some(earliest) = self.in_flight.pop_front()
        {
            earliest.synchronize()?;
        }
        // SAFETY: as for `enqueue`.
        unsafe { self.captured[&body].replay(stream) }?;
        let event = Event::new(device, false)?;
        event.record(stream)?;
        self.in_flight.push_back(event);
        Ok(())
    }

    /// Where a storage of the arena lies.
    fn place(&self, storage: StorageId) -> Result<usize> {
        self.plan.offsets[storage.0].context("the storage has no place in the arena")
    }

    /// A storage's bytes, aligned for any type.
    fn download(&self, storage: StorageId) -> Result<Vec<u128>> {
        self.gpu.device.make_current()?;
        self.gpu.stream.synchronize()?;
        let bytes = self.plan.graph.storages[storage.0].spec.bytes();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        self.arena.read(self.place(storage)?, &mut bytemuck::cast_slice_mut(&mut words)[..bytes])?;
        Ok(words)
    }
}

impl Executor for Cuda {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write(&mut self, id: TensorId, values: Values) -> Result<()> {
        let tensor = self.plan.graph.tensor(id).clone();
        let storage = self.plan.graph.storage_of(id);
        check_count(&tensor, &values).with_context(|| storage.name.clone())?;
        ensure!(tensor.is_dense(), "{} has gaps between its rows; write the whole buffer", storage.name);
        let bytes = storage.spec.bytes();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        store(&mut bytemuck::cast_slice_mut(&mut words)[..bytes], &tensor, values).with_context(|| storage.name.clone())?;
        let own = tensor.offset * tensor.spec.dtype.bytes()..(tensor.offset * tensor.spec.dtype.bytes() + tensor.spec.bytes());
        self.gpu.device.make_current()?;
        self.finish()?;
        self.arena.write(self.place(tensor.storage)? + own.start, &bytemuck::cast_slice(&words)[own])
    }

    fn read(&self, id: TensorId) -> Result<HostValues> {
        let tensor = self.plan.graph.tensor(id);
        let storage = self.plan.graph.storage_of(id);
        if let Kind::Weight(component) = storage.kind {
            let values = load_weight(&*self.gpu.source, component, &storage.name, tensor, self.plan.precision)?;
            return Ok(HostValues::F32(values));
        }
        let words = self.download(tensor.storage)?;
        Ok(load(&bytemuck::cast_slice(&words)[..storage.spec.bytes()], tensor)?.into_host_values())
    }

    fn begin(&mut self, itinerary: &Itinerary) -> Result<()> {
        self.plan.itinerary.check_run(itinerary, &self.plan.graph)?;
        self.gpu.device.make_current()?;
        self.finish()?;
        self.gpu.feed((self.number, &self.plan), &self.region, &self.keys, itinerary)
    }

    fn run(&mut self, body: BodyId, watch: &mut Watch) -> Result<()> {
        let plan = self.plan.clone();
        let _range = self.gpu.nvtx.range(plan.graph.bodies[body.0].name);
        self.enter(body)?;
        // A replay needs all weights before its first node.
        let waiting = self.gpu.with_feed(self.number, |feed| Ok(feed.is_waiting()))?;
        if !(self.capture && plan.itinerary.runs_of(body) > 1 && self.warm[body.0]) || waiting {
            return self.run_nodes(body, watch);
        }
        self.replay(body)?;
        plan.graph.nodes_of(body).last().map_or(Ok(()), |at| watch(&plan.graph.nodes[at], self))
    }

    fn finish(&mut self) -> Result<()> {
        self.in_flight.clear();
        self.gpu.stream.synchronize()
    }

    fn waits(&self) -> bool {
        false
    }

    fn as_cuda(&mut self) -> Option<&mut Cuda> {
        Some(self)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let _ = self.gpu.device.make_current();
        self.gpu.stop_feed(self.number); // its threads end
        let _ = self.gpu.stream.synchronize();
    }
}

/// Refuses a plan that does not fit, before anything is taken.
fn check_memory(plan: &Plan, gpu: &Gpu) -> Result<()> {
    let (device, (free, _)) = (&gpu.device, gpu.device.memory()?);
    // A region that is large enough stays; another is given up before a larger one is taken.
    let (free, missing) = match gpu.region_bytes() >= plan.weights.bytes {
        true => (free, 0),
        false => (free + gpu.free_region_bytes(), plan.weights.bytes),
    };
    let needed = plan.arena_bytes + missing + KERNEL_BYTES;
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
            let Some(module) = module else { bail!("the node has a kernel launch, but no compiled kernel") };
            Work::Kernel(module.function(launch.entry, launch.shared_bytes)?, launch.ready(device)?)
        }
        // SAFETY: the addresses are the plan's, and nothing is in the arena yet.
        Launch::Gemm(gemm) => Work::Product(unsafe { gemms.prepare(&gemm, stream) }?),
        Launch::Zero { address, bytes } => Work::Zero { address, bytes },
    })
}
