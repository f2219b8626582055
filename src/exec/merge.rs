//! Weights that the device merges with LoRA files while they come: a piece goes up as the files have it, the factors after it, and a
//! kernel adds their product in place. The host reads and sends; it multiplies nothing.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

use crate::cuda::{Compiler, Device, Event, Finish, Function, KernelLaunch, Launch, Memory, Module, PIECE, Setup, Stream};
use crate::ops::{AddLowRank, Arch, Arg, Args, Kernel, Op, View};
use crate::tensor::Spec;
use crate::weights::Addition;

/// Device memory through which the factors of a piece pass; part of [`KERNEL_BYTES`](crate::plan::KERNEL_BYTES).
const PLACE: usize = 8 << 20;
/// Places that streams take turns on: one is filled while a kernel reads the other.
const PLACES: usize = 2;
/// Where parts of a place begin.
const ALIGNED: usize = 256;
/// Rows of a piece, at least: with fewer the factors would take longer than the weight.
const FEWEST: usize = 64;

/// What merges on a device.
pub(super) struct Merger {
    device: Arc<Device>,
    setup: Setup,
    functions: Mutex<HashMap<String, Function>>,
    turns: Mutex<Turns>,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Turns {
    /// Each with what comes when its kernel is done.
    places: Vec<(Memory, Option<Arc<Event>>)>,
    next: usize,
}

/// Where the parts of what goes up beside a piece begin; `up` does so at 0.
struct Layout {
    down: usize,
    table: usize,
    bytes: usize,
}

impl Layout {
    fn new(addition: &Addition, rows: usize, ranks: usize, products: usize) -> Layout {
        let size = addition.factors.bytes();
        let down = (rows * ranks * size).next_multiple_of(ALIGNED);
        let table = down + (ranks * addition.width() * size).next_multiple_of(ALIGNED);
        Layout { down, table, bytes: table + products * WORDS * 4 }
    }

    /// Of as many rows as a piece may have.
    fn most(addition: &Addition, rows: usize) -> Layout {
        Layout::new(addition, rows, addition.most_ranks(), addition.count())
    }
}

/// Words of a product in the kernel's table.
const WORDS: usize = 5;

/// Rows of a piece, so that it goes up in one buffer with its factors; none if the factors are too large for that.
pub(super) fn rows_of_a_piece(addition: &Addition) -> Option<usize> {
    let row = addition.width() * addition.lies_in().bytes();
    let of_up = addition.most_ranks() * addition.factors.bytes();
    let fixed = Layout::most(addition, 0).bytes + ALIGNED;
    let most = (PLACE.checked_sub(fixed)? / of_up).min((PIECE - fixed) / (row + of_up));
    let rows = addition.rows().min(most);
    (rows >= FEWEST.min(addition.rows())).then_some(rows)
}

/// Bytes that go up beside a piece of so many rows, at most.
pub(super) fn bytes_beside(addition: &Addition, rows: usize) -> usize {
    Layout::most(addition, rows).bytes
}

impl Merger {
    /// Nothing is taken or compiled yet.
    pub(super) fn new(device: &Arc<Device>, setup: &Setup) -> Arc<Merger> {
        let (functions, turns, bytes) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        Arc::new(Merger { device: device.clone(), setup: setup.clone(), functions, turns, bytes })
    }

    /// Bytes of weights that were merged so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes memory, if there is none yet.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::cuda::OutOfMemory).
    pub(super) fn reserve(&self) -> Result<()> {
        let mut turns = lock(&self.turns);
        while turns.places.len() < PLACES {
            turns.places.push((Memory::new(&self.device, PLACE)?, None));
        }
        Ok(())
    }

    /// Reads some rows of a weight, and what is added to them; gives what is left to do once they are on the device. None if
    /// nothing can be said for certain of the sums: then the host has to add them up, into `bytes`.
    ///
    /// # Errors
    /// What reading reports, or a kernel that cannot be compiled.
    pub(super) fn read(
        self: &Arc<Merger>,
        addition: &Addition,
        rows: &Range<usize>,
        bytes: &mut [u8],
        beside: &mut [u8],
    ) -> Result<Option<Finish>> {
        let part = addition.part(rows);
        if part.products.is_empty() {
            return Ok(None);
        }
        let (layout, size) = (Layout::new(addition, rows.len(), part.ranks, part.products.len()), addition.factors.bytes());
        let (up, down) = beside[..layout.table].split_at_mut(layout.down);
        if !addition.read(rows, bytes, up, &mut down[..part.ranks * addition.width() * size])? {
            return Ok(None);
        }
        let op = AddLowRank { products: part.products, rounded: addition.rounded() };
        let table: Vec<u8> = op.table().into_iter().flat_map(u32::to_le_bytes).collect();
        beside[layout.table..layout.bytes].copy_from_slice(&table);
        let sum = Sum { op, rows: rows.len(), ranks: part.ranks, layout, addition: addition.clone() };
        let kernel = sum.kernel(Arch(self.device.capability))?;
        let (function, merger) = (self.function(&kernel)?, self.clone());
        Ok(Some(Box::new(move |beside, address, stream| merger.add(&sum, &kernel, &function, beside, address, stream))))
    }

    /// Adds what lies in `beside` to the piece at an address, in the order of a stream.
    fn add(&self, sum: &Sum, kernel: &Kernel, function: &Function, beside: &[u8], piece: u64, stream: &Stream) -> Result<()> {
        let mut turns = lock(&self.turns);
        let turn = turns.next;
        turns.next = (turn + 1) % PLACES;
        let (place, busy) = turns.places.get_mut(turn).context("no memory was reserved for factors")?;
        if let Some(busy) = busy.take() {
            stream.wait(&busy)?;
        }
        // SAFETY: what lies beside a piece stays as the piece does. The place is this turn's, now that the kernel is done that
        // used it before, until the event below.
        unsafe { stream.upload(place.address, &beside[..sum.layout.bytes]) }?;
        let launch = sum.launch(kernel, piece, place.address)?;
        // SAFETY: the launch is for the piece, which lies behind its address and is nobody else's before its event, and for the place.
        unsafe { stream.launch(function, &launch) }?;
        let done = Event::new(&self.device, false)?;
        done.record(stream)?;
        *busy = Some(Arc::new(done));
        self.bytes.fetch_add((sum.rows * sum.addition.width() * sum.addition.dtype().bytes()) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// A kernel, compiled and loaded if none was before.
    fn function(&self, kernel: &Kernel) -> Result<Function> {
        let mut functions = lock(&self.functions);
        let name = kernel.to_string();
        if let Some(known) = functions.get(&name) {
            return Ok(known.clone());
        }
        let (source, defines) = kernel.compiled().context("the sum has no kernel of its own")?;
        let cubin = Compiler::new(self.device.capability, &self.setup)?.compile(source, defines)?;
        let function = Module::load(&self.device, &cubin.image)?.function(source, 0)?;
        Ok(functions.entry(name).or_insert(function).clone())
    }
}

/// A piece's rows with what is added to them.
struct Sum {
    op: AddLowRank,
    rows: usize,
    ranks: usize,
    layout: Layout,
    addition: Addition,
}

impl Sum {
    /// The operands, w, up, down and y, as they lie at these addresses.
    fn operands(&self, piece: u64, place: u64) -> [Arg; 4] {
        let (addition, width) = (&self.addition, self.addition.width());
        let arg = |address, dtype, shape: [usize; 2]| Arg { address, view: View::dense(&Spec::new(dtype, shape)) };
        [
            arg(piece, addition.lies_in(), [self.rows, width]),
            arg(place, addition.factors, [self.rows, self.ranks]),
            arg(place + self.layout.down as u64, addition.factors, [self.ranks, width]),
            arg(piece, addition.dtype(), [self.rows, width]),
        ]
    }

    fn kernel(&self, arch: Arch) -> Result<Kernel> {
        let [w, up, down, y] = self.operands(0, 0).map(|arg| arg.view);
        self.op.select(arch, &[w, up, down], &[y]).map_err(|e| anyhow!("LoRA files cannot be merged on the GPU: {}", e.reason))
    }

    fn launch(&self, kernel: &Kernel, piece: u64, place: u64) -> Result<KernelLaunch> {
        let [w, up, down, y] = self.operands(piece, place);
        let table = place + self.layout.table as u64;
        let launches = self.op.launch(kernel, &Args { inputs: vec![w, up, down], outputs: vec![y], table, scratch: 0 });
        match <[Launch; 1]>::try_from(launches) {
            Ok([Launch::Kernel(launch)]) => Ok(launch),
            _ => bail!("a sum is one kernel"),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
