//! Weights on their way to the device: which pieces a run needs, in which order, and what fills them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::merge::{Merger, bytes_beside, rows_of_a_piece};
use crate::cuda::{Device, Event, Finish, KeepOn, Memory, PIECE, Piece, Slot, Staging, Stream, TimedCopy, Upload};
use crate::graph::{BodyId, Graph, Kind, StorageId};
use crate::ops::Quantized;
use crate::plan::{Arrival, Plan};
use crate::tensor::DType;
use crate::weights::{Addition, WeightForm, WeightKey, WeightSource};

/// A run with the upload that feeds it.
pub(super) struct Feed {
    plan: Arc<Plan>,
    /// The program whose run it feeds, by number.
    pub(super) program: u64,
    /// The segments that the run visits, in order.
    visits: Vec<usize>,
    /// Which visit is under way; none before the first.
    at: Option<usize>,
    upload: Upload,
    region: Arc<Memory>,
    /// For each visit, the places that are overwritten once it has ended; none where nothing is.
    pub(super) spent: Vec<Vec<Range<usize>>>,
    /// For each storage, the visits before which it comes, with its pieces, until somebody has waited for them. They arrive
    /// in any order.
    pieces: HashMap<StorageId, VecDeque<(usize, Range<usize>)>>,
    /// The weight that each piece is of.
    weights: Vec<StorageId>,
    /// Bytes that come.
    pub(super) bytes: u64,
    /// The weights that lie in the region after the run, and where.
    pub(super) leaves: Vec<(WeightKey, Range<usize>)>,
}

/// Where in the host's store the pieces of a weight lie.
pub(super) type Slots = Vec<Arc<Slot>>;

/// A weight that comes in a run.
pub(super) struct Wanted {
    pub(super) key: WeightKey,
    /// How often it comes.
    pub(super) times: usize,
    /// Whether it has to make way for others, so that it will come again.
    pub(super) streams: bool,
    origins: Vec<Origin>,
}

impl Wanted {
    /// Bytes of its pieces.
    pub(super) fn pieces(&self) -> Vec<usize> {
        self.origins.iter().map(Origin::bytes).collect()
    }
}

/// Where a piece's bytes come from.
struct Origin {
    key: WeightKey,
    /// Elements of the piece, in the order in which they lie on the device.
    elements: Range<usize>,
    /// What the device adds to them, if it does; then they are whole rows.
    addition: Option<Arc<Addition>>,
    /// How the weight lies, if its rows have scales beside; then they are whole rows too.
    quantized: Option<Quantized>,
}

impl Origin {
    /// Brings its bytes, and what is left to do on the device.
    fn read(
        &self,
        weights: &dyn WeightSource,
        merger: &Arc<Merger>,
        bytes: &mut [u8],
        beside: &mut [u8],
    ) -> Result<Option<Finish>> {
        if let Some(addition) = &self.addition {
            let rows = self.elements.start / addition.width()..self.elements.end / addition.width();
            let finish = merger.read(addition, &rows, bytes, beside)?;
            if finish.is_some() {
                return Ok(finish);
            }
        }
        self.key.fill(weights, self.elements.start, bytes)?;
        Ok(None)
    }

    /// Most bytes that go up beside it.
    fn beside(&self) -> usize {
        self.addition.as_ref().map_or(0, |addition| bytes_beside(addition, self.elements.len() / addition.width()))
    }

    fn bytes(&self) -> usize {
        self.elements.len() * self.key.form.dtype.bytes() + self.tail().len()
    }

    /// Where in the weight the last of its bytes go, apart from the others.
    fn tail(&self) -> Range<usize> {
        self.quantized.map_or(0..0, |lies| lies.pairs(self.elements.start / lies.cols..self.elements.end / lies.cols))
    }
}

impl Feed {
    /// Starts to fetch what a program's run of bodies lacks. `region`: where weights lie. `resident`: for each storage,
    /// whether it is a weight that is there; then, whether it will be after the run. `store`: where weights that come so often in
    /// the run have places in the host's store, if they have any.
    pub(super) fn start(
        (program, plan): (u64, &Arc<Plan>),
        keys: &[Option<WeightKey>],
        bodies: &[BodyId],
        resident: &mut [bool],
        (staging, merger): (&Arc<Staging>, &Arc<Merger>),
        region: &Arc<Memory>,
        weights: &Arc<dyn WeightSource + Send + Sync>,
        store: &mut dyn FnMut(&[Wanted]) -> Vec<Option<Slots>>,
    ) -> Result<Feed> {
        let graph = &plan.graph;
        let visits = plan.weights.visits(bodies);
        let arrivals = plan.weights.arrivals(&visits, resident);

        // Every weight that comes, once, with its pieces.
        let (mut numbers, mut wanted) = (HashMap::new(), Vec::<Wanted>::new());
        for arrival in &arrivals {
            let key = keys[arrival.storage.0].as_ref().context("no node reads the weight")?;
            if let Entry::Vacant(new) = numbers.entry(arrival.storage) {
                let streams = !plan.weights.kept[arrival.storage.0];
                let origins = origins_of(key, graph.storages[arrival.storage.0].spec.shape.elements(), streams, &**weights)?;
                new.insert(wanted.len());
                wanted.push(Wanted { key: key.clone(), times: 0, streams, origins });
            }
            wanted[numbers[&arrival.storage]].times += 1;
        }
        let slots_of = store(&wanted);

        let (mut pieces, mut slots, mut origins, mut of_piece) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut of_storage: HashMap<StorageId, VecDeque<_>> = HashMap::new();
        for Arrival { storage, visit, gate } in arrivals {
            let (first, number) = (pieces.len(), numbers[&storage]);
            let start = plan.weights.offsets[storage.0].context("the weight has no place on the device")?;
            for (at, origin) in wanted[number].origins.iter().enumerate() {
                let offset = start + origin.elements.start * origin.key.form.dtype.bytes();
                let (bytes, tail, beside) = (origin.bytes(), origin.tail(), origin.beside());
                pieces.push(Piece { offset, bytes, tail: tail.len(), tail_offset: start + tail.start, beside, gate });
                slots.push(slots_of[number].as_ref().map(|slots| slots[at].clone()));
                origins.push((number, at));
                of_piece.push(storage);
            }
            of_storage.entry(storage).or_default().push_back((visit, first..pieces.len()));
        }
        let bytes = pieces.iter().map(|piece| piece.bytes as u64).sum();
        if pieces.iter().any(|piece| piece.beside > 0) {
            merger.reserve()?;
        }
        let (weights, merger) = (weights.clone(), merger.clone());
        let fill = move |piece: usize, bytes: &mut [u8], beside: &mut [u8]| {
            wanted[origins[piece].0].origins[origins[piece].1].read(&*weights, &merger, bytes, beside)
        };
        let upload = Upload::start(staging, region, pieces, slots, visits.len().max(1), Arc::new(fill))?;
        let (plan, region, weights) = (plan.clone(), region.clone(), of_piece);
        let (pieces, leaves, spent) = (of_storage, vec![], vec![]);
        Ok(Feed { plan, program, visits, at: None, upload, region, spent, pieces, weights, bytes, leaves })
    }

    /// Lets come what needs no visit to end, once the stream has done what it was asked for.
    pub(super) fn open_first(&self, device: &Arc<Device>, stream: &Stream) -> Result<()> {
        let event = Event::new(device, false)?;
        event.record(stream)?;
        self.upload.open(0, Some(Arc::new(event)));
        Ok(())
    }

    /// The visit that a segment would begin now; none if none was announced.
    fn next_visit(&self, segment: usize) -> Option<usize> {
        let next = self.at.map_or(0, |at| at + 1);
        (next..self.visits.len()).find(|&visit| self.visits[visit] == segment)
    }

    /// Says that a segment is about to run: what ran before it on `stream` is what gates wait for. Turns that the host leaves out
    /// are passed over, unless weights were to come for them: those would come into places that are in use by then.
    pub(super) fn enter(&mut self, segment: usize, device: &Arc<Device>, stream: &Stream) -> Result<()> {
        let weights = &self.plan.weights;
        let next = self.at.map_or(0, |at| at + 1);
        let body = weights.segments[segment].body;
        let again = self.at.is_some_and(|at| weights.segments[self.visits[at]].body == body);
        let name = self.plan.graph.bodies[body.0].name;
        let visit = match self.next_visit(segment) {
            Some(visit) => visit,
            // More turns than were announced, with what is there.
            None if again && weights.keeps_all() && self.plan.itinerary.comes_round(body) => return Ok(()),
            None => anyhow::bail!("{name} was not announced to run now; begin with an itinerary that has it"),
        };
        let passed_over = visit > next && self.pieces.values().flatten().any(|(wanted, _)| (next..visit).contains(wanted));
        ensure!(!passed_over, "{name} cannot run before the weights of what was announced before it; begin again without that");
        if let Some(places) = self.at.and_then(|at| self.spent.get(at)) {
            places.iter().try_for_each(|place| self.region.fill(0xff, place.clone(), stream))?;
        }
        let event = Event::new(device, false)?;
        event.record(stream)?;
        let event = Arc::new(event);
        (next..=visit).for_each(|gate| self.upload.open(gate, Some(event.clone())));
        self.at = Some(visit);
        Ok(())
    }

    /// Lets a stream wait for a weight that the visit under way reads; waits itself until it is on its way, or `keep_on` no more.
    pub(super) fn wait_for(&mut self, storage: StorageId, stream: &Stream, keep_on: &mut KeepOn) -> Result<()> {
        let at = self.at.unwrap_or(0);
        let Some(coming) = self.pieces.get_mut(&storage) else { return Ok(()) };
        while let Some((_, pieces)) = coming.front().filter(|(visit, _)| *visit <= at) {
            pieces.clone().try_for_each(|piece| self.upload.wait_for(piece, stream, keep_on))?;
            coming.pop_front(); // not before: a weight that failed to come must not count as there
        }
        if coming.is_empty() {
            self.pieces.remove(&storage);
        }
        Ok(())
    }

    /// Whether weights are still to be waited for by the time a segment runs next.
    pub(super) fn is_waiting(&self, segment: usize) -> bool {
        let visit = self.next_visit(segment).or(self.at);
        self.pieces.values().flatten().any(|(wanted, _)| Some(*wanted) <= visit)
    }

    /// Bytes at the region's start to which nothing comes before the segment under way has ended: activations.
    pub(super) fn activations(&self) -> usize {
        self.visits.get(self.at.unwrap_or(0)).map_or(0, |&segment| self.plan.weights.arena[segment])
    }

    /// Whether all that was announced has run.
    pub(super) fn is_done(&self) -> bool {
        self.pieces.is_empty() && self.at.map_or(0, |at| at + 1) == self.visits.len()
    }

    /// Times the copies from now on: all of them, if it is not open yet.
    pub(super) fn time_copies(&self) {
        self.upload.time_copies();
    }

    /// The copies that are timed, each with its weight.
    pub(super) fn timed_copies(&self) -> Vec<(StorageId, TimedCopy)> {
        self.upload.timed_copies().into_iter().map(|copy| (self.weights[copy.piece], copy)).collect()
    }

    /// Stops the upload: its threads end, and no copy begins any more.
    pub(super) fn stop(&self) {
        self.upload.stop();
    }

    /// Stops the upload and waits for the copies that began; gives the weights that lie in the region then, and where. None, if
    /// not all that was announced has come: of an upload that failed or was stopped nobody knows what it has written.
    pub(super) fn end(self) -> Result<Vec<(WeightKey, Range<usize>)>> {
        self.upload.end()?;
        Ok(if self.pieces.is_empty() { self.leaves } else { vec![] })
    }
}

/// Which weight, in which form, each storage of a graph is; none for what is no weight.
pub(super) fn weight_keys(graph: &Graph) -> Result<Vec<Option<WeightKey>>> {
    let mut keys: Vec<Option<WeightKey>> = vec![None; graph.storages.len()];
    for node in &graph.nodes {
        for (input, &id) in node.inputs.iter().enumerate() {
            let number = graph.tensor(id).storage.0;
            let storage = &graph.storages[number];
            let Kind::Weight(component) = storage.kind else { continue };
            let form = WeightForm { dtype: storage.spec.dtype, order: node.op.weight_order(input) };
            let key = keys[number].get_or_insert_with(|| WeightKey { component, name: storage.name.as_str().into(), form });
            ensure!(key.form == form, "{} is wanted in two orders, by {} and a node before it", storage.name, node.name);
        }
    }
    Ok(keys)
}

/// A weight of so many elements in pieces. What stays on the device is merged there with LoRA files; of what streams the host keeps
/// the sum.
fn origins_of(key: &WeightKey, elements: usize, streams: bool, weights: &dyn WeightSource) -> Result<Vec<Origin>> {
    if key.form.dtype == DType::S8 {
        let lies = key.quantized(weights)?;
        ensure!(lies.bytes() == elements, "{} takes {} bytes, but its place has {elements}", key.name, lies.bytes());
        // No more is read for a piece than for others, which have twice the bytes.
        let (all, step) = (lies.rows * lies.cols, (PIECE / 2 / lies.cols).max(1) * lies.cols);
        let elements = |start: usize| start..all.min(start + step);
        let piece = |start| Origin { key: key.clone(), elements: elements(start), addition: None, quantized: Some(lies) };
        return Ok((0..all).step_by(step).map(piece).collect());
    }
    let addition = if streams { None } else { weights.addition(key.component, &key.name, key.form) };
    let rows = addition.as_ref().and_then(rows_of_a_piece);
    let (step, addition) = match (rows, addition) {
        (Some(rows), Some(addition)) => (rows * addition.width(), Some(Arc::new(addition))),
        _ => (PIECE / key.form.dtype.bytes(), None),
    };
    let piece = |start: usize| {
        let elements = start..elements.min(start + step);
        Origin { key: key.clone(), elements, addition: addition.clone(), quantized: None }
    };
    Ok((0..elements).step_by(step.max(1)).map(piece).collect())
}
