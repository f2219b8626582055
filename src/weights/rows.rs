//! Rows of a weight that the host looks up, in whatever form the files have it.

use rayon::prelude::*;

use super::form::{read_f32, spec_of};
use super::{Result, WeightSource};
use crate::tensor::Component;

/// The values of these rows of a matrix [n, d], in this order [rows, d], widened. Each row is read once, however often it is
/// asked for; rows that are not asked for are not looked at.
///
/// # Errors
/// No such weight or row, values that are no floats or not finite, or what reading it reports.
pub fn read_rows(weights: &dyn WeightSource, component: Component, name: &str, rows: &[usize]) -> Result<Vec<f32>> {
    let width = spec_of(weights, component, name)?.shape.cols();
    let mut distinct = rows.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let mut found = vec![0.0; distinct.len() * width];
    let each = found.par_chunks_mut(width.max(1)).zip(&distinct);
    each.try_for_each(|(values, row)| read_f32(weights, component, name, row * width, values))?;
    let mut values = Vec::with_capacity(rows.len() * width);
    for row in rows {
        let at = distinct.partition_point(|known| known < row);
        values.extend_from_slice(&found[at * width..][..width]);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use half::f16;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use tempfile::TempDir;

    use super::*;
    use crate::exec::{Executor, Reference, unwatched};
    use crate::graph::{Graph, TensorId};
    use crate::ops::{Cast, Gather, HostValues, Values, WeightOrder};
    use crate::plan::{Itinerary, Plan, Precision, Target};
    use crate::tensor::{DType, Spec};
    use crate::weights::recipe::{Packed, Recipe, Rows, Scaled, Stored};
    use crate::weights::{Blocks, ModelError, WeightFile, WeightForm, WeightKey, encode_f32};

    const COUNT: usize = 40;
    const WIDTH: usize = 256;
    /// First and last, some of them again.
    const ASKED: [usize; 8] = [39, 3, 0, 3, 17, 39, 16, 3];

    /// A source of one weight.
    #[derive(Clone)]
    struct One(Recipe);

    impl WeightSource for One {
        fn spec(&self, _: Component, name: &str) -> Option<Spec> {
            (name == "w").then(|| self.0.spec().clone())
        }

        fn read_at(&self, _: Component, _: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
            self.0.read_at(offset, bytes)
        }
    }

    fn read(recipe: &Recipe, rows: &[usize]) -> Result<Vec<f32>> {
        read_rows(&One(recipe.clone()), Component::Qwen, "w", rows)
    }

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) / 3.0).collect()
    }

    fn encoded(dtype: DType, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * dtype.bytes()];
        encode_f32(dtype, values, &mut bytes);
        bytes
    }

    fn file(path: &Path, tensors: &[(&str, Dtype, [usize; 2], Vec<u8>)]) -> Arc<WeightFile> {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.to_string(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
        Arc::new(WeightFile::open(path).unwrap())
    }

    fn stored(file: &Arc<WeightFile>, name: &str) -> Recipe {
        Recipe::Stored(Stored::new(file, name).unwrap())
    }

    /// Blocks of any bits, whose halves are small numbers.
    fn blocks(kind: Blocks) -> Vec<u8> {
        let bytes = COUNT * WIDTH / kind.elements() * kind.bytes();
        let mut bytes: Vec<u8> = (0..bytes).map(|i| (i * 7919 % 251) as u8).collect();
        let halves: &[usize] = match kind {
            Blocks::Q6K => &[208],
            Blocks::Q4K | Blocks::Q5K | Blocks::Q4_1 | Blocks::Q5_1 => &[0, 2],
            Blocks::Q4_0 | Blocks::Q5_0 | Blocks::Q8_0 => &[0],
        };
        for (i, block) in bytes.chunks_exact_mut(kind.bytes()).enumerate() {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&f16::from_f32(0.001 * (1 + i % 7) as f32).to_le_bytes());
            }
        }
        bytes
    }

    const KINDS: [Blocks; 8] =
        [Blocks::Q4_0, Blocks::Q4_1, Blocks::Q5_0, Blocks::Q5_1, Blocks::Q8_0, Blocks::Q4K, Blocks::Q5K, Blocks::Q6K];

    /// The same matrix in every form that files have, by name.
    fn forms(dir: &TempDir) -> Vec<(String, Recipe)> {
        let (all, shape) = (values(COUNT * WIDTH), [COUNT, WIDTH]);
        let plain = [
            ("f32", Dtype::F32, DType::F32),
            ("bf16", Dtype::BF16, DType::BF16),
            ("f16", Dtype::F16, DType::F16),
            ("e4m3", Dtype::F8_E4M3, DType::F8E4M3),
            ("e5m2", Dtype::F8_E5M2, DType::F8E5M2),
        ];
        let mut tensors: Vec<_> =
            plain.iter().map(|(name, of_file, own)| (*name, *of_file, shape, encoded(*own, &all))).collect();
        let scales: Vec<f32> = (0..COUNT).map(|row| 0.3 + row as f32 / 100.0).collect();
        tensors.push(("scales", Dtype::F32, [COUNT, 1], encoded(DType::F32, &scales)));
        let names = KINDS.map(|kind| kind.to_string());
        for (name, kind) in names.iter().zip(KINDS) {
            tensors.push((name, Dtype::U8, [COUNT, WIDTH / kind.elements() * kind.bytes()], blocks(kind)));
        }
        let file = file(&dir.path().join("forms.safetensors"), &tensors);
        let base = |name: &str| Stored::new(&file, name).unwrap();
        let mut forms: Vec<_> = plain.iter().map(|(name, ..)| (name.to_string(), stored(&file, name))).collect();
        forms.push(("scaled".into(), Recipe::Scaled(Scaled::new(base("e4m3"), &base("scales")).unwrap())));
        forms.extend(KINDS.map(|kind| {
            let name = kind.to_string();
            let packed = Recipe::Packed(Packed::new(base(&name), kind).unwrap());
            (name, packed)
        }));
        let halves = [(stored(&file, "f16"), 0..17), (stored(&file, "f32"), 17..COUNT)];
        forms.push(("rows".into(), Recipe::Rows(Rows::new(halves).unwrap())));
        forms
    }

    /// What an op gives on the CPU: `record` makes it, and says what to write to its input.
    fn computed(
        recipe: &Recipe,
        precision: Precision,
        record: impl FnOnce(&mut Graph) -> (TensorId, TensorId),
        written: Values,
    ) -> HostValues {
        let mut graph = Graph::new();
        let (body, (input, result)) = graph.body("text", |g| g.with_weights(Component::Qwen, record));
        graph.output(result);
        let itinerary = Itinerary::of_all(&graph);
        let plan = Arc::new(Plan::new(graph, itinerary, precision, Target::Cpu).unwrap());
        let mut run = Reference::new(plan.clone(), Arc::new(One(recipe.clone()))).unwrap();
        run.write(input, written).unwrap();
        run.begin(&plan.itinerary).unwrap();
        run.run(body, &mut unwatched).unwrap();
        run.read(result).unwrap()
    }

    /// To the bit, in both precisions, and as the device's copy of the table would have them.
    #[test]
    fn rows_of_every_form_are_those_that_an_op_gathers_from_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let forms = forms(&dir);
        assert_eq!(forms.len(), 15);
        for (name, recipe) in forms {
            let own = read(&recipe, &ASKED).unwrap();
            let index = ASKED.map(|row| row as i32);
            for precision in [Precision::F32, Precision::Bf16] {
                let gathered = |g: &mut Graph| {
                    let (table, index) =
                        (g.weight("w", DType::BF16, [COUNT, WIDTH]), g.input("index", DType::I32, [ASKED.len()]));
                    (index, g.op("y", Gather, &[table, index]))
                };
                let given = |g: &mut Graph| {
                    let tokens = g.input("tokens", DType::BF16, [ASKED.len(), WIDTH]);
                    (tokens, g.op("y", Cast(DType::BF16), &[tokens]))
                };
                let by_op = computed(&recipe, precision, gathered, Values::I32(&index));
                let by_host = computed(&recipe, precision, given, Values::F32(&own));
                assert_eq!(by_host, by_op, "{name}, {precision}");
            }
            let form = WeightForm { dtype: DType::BF16, order: WeightOrder::AsStored };
            let key = WeightKey { component: Component::Qwen, name: "w".into(), form };
            for (row, values) in ASKED.iter().zip(own.chunks_exact(WIDTH)) {
                let mut copied = vec![0; 2 * WIDTH];
                key.fill(&One(recipe.clone()), row * WIDTH, &mut copied).unwrap();
                assert_eq!(encoded(DType::BF16, values), copied, "{name}, row {row}");
                assert!(values.iter().any(|value| *value != 0.0), "{name}: a test of zeros shows nothing");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_is_told_and_with_others_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.safetensors");
        let mut damaged = values(COUNT * WIDTH);
        damaged[5 * WIDTH + 3] = f32::NAN;
        damaged[6 * WIDTH..7 * WIDTH].fill(0.0);
        let shape = [COUNT, WIDTH];
        let tensors = [
            ("damaged", Dtype::BF16, shape, encoded(DType::BF16, &damaged)),
            ("zeros", Dtype::BF16, shape, vec![0; 2 * COUNT * WIDTH]),
        ];
        let file = file(&path, &tensors);
        let table = |name| Recipe::Stored(Stored::new(&file, name).unwrap().not_zero());
        let fault = |result: Result<Vec<f32>>| result.unwrap_err().to_string();
        let text = fault(read(&table("damaged"), &[4, 5, 4]));
        assert!(text.contains("the tensor damaged, bf16[40, 256], has values that are not finite"), "{text}");
        assert_eq!(read(&table("damaged"), &[4, 6]).unwrap()[WIDTH..], [0.0; WIDTH], "one row may be zero");
        let text = fault(read(&table("zeros"), &[4]));
        assert!(text.contains("the tensor zeros, bf16[40, 256], has only zeros"), "{text}");
        assert!(fault(read(&table("damaged"), &[COUNT])).contains("beyond the end"));
        let absent = read_rows(&One(table("zeros")), Component::Qwen, "v", &[0]);
        assert_eq!(fault(absent), "the text encoder weights lack v");
        assert!(read(&table("damaged"), &[]).unwrap().is_empty());

        let cut = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        cut.set_len(file.bytes() - (4 * COUNT * WIDTH) as u64).unwrap();
        let ModelError(text) = read(&table("damaged"), &[0]).unwrap_err();
        assert!(text.contains("damaged.safetensors: the file had ") && text.contains("something has cut it off"), "{text}");
    }
}
