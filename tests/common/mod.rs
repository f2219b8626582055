//! Golden files by tensor, synthetic weights in memory, and comparisons that show both values.

#[allow(dead_code)] // golden needs none of it
pub mod tiny;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use step1x_edit::exec::{Executor, Reference};
use step1x_edit::graph::Graph;
use step1x_edit::image::Rgb;
use step1x_edit::model::text::EMBEDDINGS;
use step1x_edit::model::{Config, DitConfig, HEAD_WIDTH, TextConfig, Version, VisionConfig};
use step1x_edit::plan::{Itinerary, Plan, Precision, Target};
use step1x_edit::tensor::{Component, DType, Shape, Spec};
use step1x_edit::weights::{ModelError, WeightSource, fill};

/// Rotary axes of the released model, which no tensor and no config of Qwen's tells.
pub const AXES: [usize; 3] = [16, 56, 56];

/// Path of a golden file.
pub fn golden_path(name: &str) -> PathBuf {
    let folder = std::env::var_os("STEP1X_GOLDEN").map(PathBuf::from);
    // A test binary that was copied to another machine runs in a copy of the repository.
    let roots = [env!("CARGO_MANIFEST_DIR"), "."].map(|root| PathBuf::from(root).join("tests/data/golden"));
    let default = || roots.iter().find(|folder| folder.is_dir()).unwrap_or(&roots[0]).clone();
    folder.unwrap_or_else(default).join(name)
}

/// Bytes of a golden file.
pub fn read(name: &str) -> Vec<u8> {
    let path = golden_path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A golden JSON file.
pub fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A number of a JSON object.
pub fn number(object: &Value, key: &str) -> usize {
    object[key].as_u64().unwrap_or_else(|| panic!("{key} is {}, not a number", object[key])) as usize
}

/// Float values with their shape.
#[derive(Clone, Debug)]
pub struct Floats {
    /// Extents.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

impl Floats {
    /// Entry `i` of the outermost dimension.
    pub fn entry(&self, i: usize) -> &[f32] {
        let n = self.values.len() / self.shape[0];
        &self.values[i * n..][..n]
    }

    /// Rows `range` of entry `i`, whose rows are the innermost dimension.
    pub fn rows(&self, i: usize, range: Range<usize>) -> &[f32] {
        let cols = self.shape[self.shape.len() - 1];
        &self.entry(i)[range.start * cols..range.end * cols]
    }

    /// A picture [1, C, H, W] as [H, W, C].
    pub fn channels_last(&self) -> Vec<f32> {
        let [1, c, h, w] = self.shape[..] else { panic!("{:?} is not one picture", self.shape) };
        (0..h * w * c).map(|i| self.values[i % c * h * w + i / c]).collect()
    }

    /// Latents [1, C, H, W] as tokens [H/2·W/2, 4·C]: channel outermost, then row and column in the 2×2 square.
    pub fn packed(&self) -> Vec<f32> {
        let [1, c, h, w] = self.shape[..] else { panic!("{:?} are not one latent", self.shape) };
        let (tokens, mut packed) = (h / 2 * (w / 2), Vec::with_capacity(c * h * w));
        for token in 0..tokens {
            let (top, left) = (token / (w / 2) * 2, token % (w / 2) * 2);
            for channel in 0..c {
                for place in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    packed.push(self.values[(channel * h + top + place.0) * w + left + place.1]);
                }
            }
        }
        packed
    }
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A file of named tensors, read by element type.
pub struct Golden {
    file: String,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, Stored>,
}

impl Golden {
    /// Reads the golden file `name`.
    pub fn open(name: &str) -> Golden {
        let bytes = read(name);
        let fault = |error| panic!("{name}: {error}");
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(fault);
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let fault = |error| panic!("{name}: {error}");
        let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(fault).tensors();
        let stored = |view: safetensors::tensor::TensorView| {
            let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            Stored { dtype, shape, bytes }
        };
        let tensors = tensors.into_iter().map(|(name, view)| (name, stored(view))).collect();
        Golden { file: name.to_string(), metadata, tensors }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn stored(&self, name: &str) -> &Stored {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no tensor {name}", self.file))
    }

    /// Element type, extents and bytes of a tensor.
    pub fn raw(&self, name: &str) -> (Dtype, &[usize], &[u8]) {
        let stored = self.stored(name);
        (stored.dtype, &stored.shape, &stored.bytes)
    }

    fn words<const N: usize, T>(&self, name: &str, dtype: Dtype, convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        let stored = self.stored(name);
        assert_eq!(stored.dtype, dtype, "{}: {name}", self.file);
        stored.bytes.as_chunks::<N>().0.iter().map(|&word| convert(word)).collect()
    }

    /// A float32 tensor.
    pub fn f32(&self, name: &str) -> Floats {
        Floats { shape: self.stored(name).shape.clone(), values: self.words(name, Dtype::F32, f32::from_le_bytes) }
    }

    /// The bits of a float32 tensor.
    pub fn bits(&self, name: &str) -> Vec<u32> {
        self.words(name, Dtype::F32, u32::from_le_bytes)
    }

    /// Extents of a tensor.
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.stored(name).shape
    }

    /// An int64 or int32 tensor of values that are not negative.
    pub fn indices(&self, name: &str) -> Vec<usize> {
        let values: Vec<i64> = match self.stored(name).dtype {
            Dtype::I64 => self.words(name, Dtype::I64, i64::from_le_bytes),
            Dtype::I32 => self.words(name, Dtype::I32, |word| i32::from_le_bytes(word).into()),
            other => panic!("{}: {name} is {other:?}, wanted integers", self.file),
        };
        values.into_iter().map(|value| usize::try_from(value).expect("not negative")).collect()
    }

    /// A u8 picture `[height, width, 3]`.
    pub fn picture(&self, name: &str) -> Rgb {
        let [height, width, 3] = self.shape(name)[..] else { panic!("{name}: {:?} is no picture", self.shape(name)) };
        Rgb { height, width, data: self.words(name, Dtype::U8, |[byte]: [u8; 1]| byte) }
    }

    /// `[1, h, w]` as (h, w), in patches.
    pub fn grid(&self, name: &str) -> (usize, usize) {
        let grid = self.indices(name);
        assert_eq!((grid.len(), grid[0]), (3, 1), "{name}: one still picture");
        (grid[1], grid[2])
    }

    /// An entry of the header's metadata.
    pub fn metadata(&self, key: &str) -> &str {
        self.metadata.get(key).unwrap_or_else(|| panic!("the header of {} has no `{key}`", self.file))
    }

    /// An entry of the header's metadata that holds JSON.
    pub fn metadata_json(&self, key: &str) -> Value {
        serde_json::from_str(self.metadata(key)).unwrap_or_else(|error| panic!("{}: {key}: {error}", self.file))
    }

    /// Seed of the weights.
    pub fn seed(&self) -> u64 {
        self.metadata.get("seed").map_or(0, |seed| seed.parse().expect("a seed"))
    }

    /// Valid text rows of each branch, by `in.mask` [B, L].
    pub fn valid_rows(&self) -> Vec<usize> {
        let length = self.shape("in.mask")[1];
        let mask = self.indices("in.mask");
        let valid = mask.chunks_exact(length).map(|row| {
            let n = row.iter().sum();
            assert!(row[..n].iter().all(|&m| m == 1) && n > 0, "valid rows come first");
            n
        });
        valid.collect()
    }

    /// The versions whose tensors the file holds, with their prefix.
    pub fn versions(&self) -> Vec<(&'static str, Version)> {
        let known = [("v1p0", Version::V1_0), ("v1p1", Version::V1_1)];
        let names = self.names();
        let found = known.into_iter().filter(|(prefix, _)| names.iter().any(|n| n.starts_with(prefix)));
        let found: Vec<_> = found.collect();
        assert!(!found.is_empty(), "{} has tensors of some version", self.file);
        found
    }

    /// The transformer of `config_dit` and `config_connector`, beside the tiny encoder.
    pub fn config(&self, version: Version) -> Config {
        let (dit, connector) = (self.metadata_json("config_dit"), self.metadata_json("config_connector"));
        let (hidden, connector_hidden) = (number(&dit, "hidden_size"), number(&connector, "hidden_size"));
        assert_eq!(hidden, number(&dit, "num_heads") * HEAD_WIDTH);
        assert_eq!(connector_hidden, number(&connector, "heads_num") * HEAD_WIDTH);
        let mlp_ratio = dit["mlp_ratio"].as_f64().expect("mlp_ratio");
        let dit = DitConfig {
            in_channels: number(&dit, "in_channels"),
            hidden,
            mlp: (hidden as f64 * mlp_ratio) as usize,
            depth: number(&dit, "depth"),
            depth_single: number(&dit, "depth_single_blocks"),
            axes: serde_json::from_value(dit["axes_dim"].clone()).expect("axes_dim"),
            vec_in: number(&dit, "vec_in_dim"),
            context: number(&dit, "context_in_dim"),
            connector_hidden,
            connector_mlp: 4 * connector_hidden,
            connector_depth: number(&connector, "depth"),
        };
        Config { version, dit, ..tiny_config() }
    }
}

/// The tiny preset with the encoder of `config_tiny.json`.
pub fn tiny_config() -> Config {
    let qwen = json("config_tiny.json");
    let (vision, text) = (VisionConfig::parse(&qwen).expect("vision_config"), TextConfig::parse(&qwen).expect("text fields"));
    Config { vision, text, ..Config::tiny(Version::V1_1) }
}

/// Weights by the recipe: the transformer's and Qwen's rounded to bf16, the autoencoder's in f32.
pub struct SyntheticWeights(HashMap<(Component, String), (Spec, Vec<u8>)>);

impl SyntheticWeights {
    /// All weights that a graph reads.
    pub fn new(graph: &Graph, seed: u64) -> SyntheticWeights {
        let made = graph.weights().map(|(component, storage)| made(component, &storage.name, storage.spec.shape.clone(), seed));
        SyntheticWeights(made.collect())
    }

    /// The table of embeddings alone.
    pub fn embeddings(config: &TextConfig, seed: u64) -> SyntheticWeights {
        let shape = Shape::from([config.vocabulary, config.hidden]);
        SyntheticWeights([made(Component::Qwen, EMBEDDINGS, shape, seed)].into())
    }
}

fn made(component: Component, name: &str, shape: Shape, seed: u64) -> ((Component, String), (Spec, Vec<u8>)) {
    let dtype = if component == Component::Vae { DType::F32 } else { DType::BF16 };
    let spec = Spec { dtype, shape };
    let mut bytes = vec![0; spec.bytes()];
    fill(name, &spec.shape, dtype, seed, &mut bytes);
    ((component, name.to_string()), (spec, bytes))
}

impl WeightSource for SyntheticWeights {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        self.0.get(&(component, name.to_string())).map(|(spec, _)| spec.clone())
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<(), ModelError> {
        let found = self.0.get(&(component, name.to_string()));
        let (_, all) = found.ok_or_else(|| ModelError::new(format!("there is no {name}")))?;
        bytes.copy_from_slice(&all[offset..offset + bytes.len()]);
        Ok(())
    }
}

/// Plans for the CPU, every body once; no two live storages may share bytes.
pub fn planned(graph: Graph, precision: Precision) -> Arc<Plan> {
    let itinerary = Itinerary::of_all(&graph);
    planned_for(graph, itinerary, precision)
}

/// Plans for the CPU; no two live storages may share bytes.
pub fn planned_for(graph: Graph, itinerary: Itinerary, precision: Precision) -> Arc<Plan> {
    let plan = Plan::new(graph, itinerary, precision, Target::Cpu).expect("the graph is legal");
    assert_eq!(plan.overlaps(), []);
    Arc::new(plan)
}

/// What a branch's velocity may change when it runs alone: where it then has one row (its pooled text), the CPU's product
/// sums in another order.
pub const ONE_ROW: f32 = 1e-5;

/// The CPU executor of a plan with synthetic weights, with the plan's itinerary announced.
pub fn executor(plan: &Arc<Plan>, seed: u64) -> Reference {
    executor_on(plan, Arc::new(SyntheticWeights::new(&plan.graph, seed)))
}

/// The CPU executor of a plan with these weights, with the plan's itinerary announced.
pub fn executor_on(plan: &Arc<Plan>, weights: Arc<dyn WeightSource + Send + Sync>) -> Reference {
    let mut executor = Reference::new(plan.clone(), weights).expect("the weights are there");
    executor.begin(&plan.itinerary).expect("the plan's own itinerary");
    executor
}

/// Asserts that every value is within `bound` of the expected one, and gives the largest absolute difference.
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], bound: f32) -> f32 {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let difference = |i: usize| (got[i] - expected[i]).abs();
    // In the total order NaN lies above all numbers.
    let at = (0..got.len()).max_by(|&a, &b| difference(a).total_cmp(&difference(b)));
    let at = at.unwrap_or_else(|| panic!("{what}: nothing to compare"));
    let worst = difference(at);
    assert!(worst <= bound, "{what}: at {at} got {}, expected {}: {worst:e} apart, bound {bound:e}", got[at], expected[at]);
    worst
}

/// Norm of the difference over the norm of the expected values.
pub fn relative_l2(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |v: f64| v * v;
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| square(*g as f64 - *e as f64)).sum();
    let norm: f64 = expected.iter().map(|e| square(*e as f64)).sum();
    (difference / norm).sqrt()
}
