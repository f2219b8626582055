use super::*;
use crate::weights::write::tests::write_safetensors;
use crate::weights::{PlannedTensor, e4m3_to_f32};
use half::bf16;
use proptest::prelude::*;
use std::path::Path;
use tempfile::TempDir;

/// A file of synthetic tensors.
pub(super) struct Source {
    dir: TempDir,
    file: Arc<WeightFile>,
}

pub(super) fn source(tensors: &[(&str, DType, &[usize])]) -> Source {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stored.safetensors");
    let plan =
        |&(name, dtype, shape): &(&str, DType, &[usize])| PlannedTensor::new(name, Spec { dtype, shape: Shape(shape.to_vec()) });
    write_safetensors(&path, &tensors.iter().map(plan).collect::<Vec<_>>(), &[], 1).unwrap();
    let file = Arc::new(WeightFile::open(&path).unwrap());
    Source { dir, file }
}

impl Source {
    pub(super) fn stored(&self, name: &str) -> Recipe {
        Recipe::Stored(Stored::new(&self.file, name).unwrap())
    }

    /// Values as the file has them.
    pub(super) fn values(&self, name: &str) -> Vec<f32> {
        let spec = self.file.spec(name).unwrap();
        let mut values = vec![0.0; spec.shape.elements()];
        decode_f32(spec.dtype, &self.file.read(name).unwrap(), &mut values);
        values
    }
}

fn whole(recipe: &Recipe) -> Vec<u8> {
    let mut bytes = vec![0; recipe.spec().bytes()];
    recipe.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Asserts that reads between any two of these bytes give what a read of the whole has there.
fn assert_cuts_agree(recipe: &Recipe, cuts: impl Iterator<Item = usize> + Clone) {
    let all = whole(recipe);
    for start in cuts.clone() {
        for end in cuts.clone().filter(|&end| end >= start) {
            let mut bytes = vec![0xa5; end - start];
            recipe.read_at(start, &mut bytes).unwrap();
            assert!(bytes == all[start..end], "bytes {start}..{end} of {}", recipe.spec());
        }
    }
}

fn fault<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_stored_tensor_is_read_as_it_is() {
    let source = source(&[("k.weight", DType::BF16, &[6, 4])]);
    let conv = Recipe::Stored(Stored::new(&source.file, "k.weight").unwrap().reshaped([6, 4, 1, 1]).unwrap());
    assert_eq!(*conv.spec(), Spec::new(DType::BF16, [6, 4, 1, 1]));
    assert_eq!(whole(&conv), source.file.read("k.weight").unwrap());
    assert_cuts_agree(&conv, 0..=48);
    assert!(fault(conv.read_at(1, &mut [0; 48])).contains("k.weight: 48 bytes from 1 on are beyond the end of a tensor of 48"));
    assert!(conv.read_at(usize::MAX, &mut [0; 2]).is_err());
    assert!(fault(Stored::new(&source.file, "q.weight")).contains("there is no tensor q.weight"));
    let text = fault(Stored::new(&source.file, "k.weight").unwrap().reshaped([6, 5]));
    assert!(text.contains("k.weight: it is bf16[6, 4], which cannot become [6, 5]"), "{text}");
}

const LINEAR1: [(&str, DType, &[usize]); 3] =
    [("q.weight", DType::BF16, &[3, 5]), ("k.weight", DType::BF16, &[2, 5]), ("mlp.weight", DType::BF16, &[4, 5])];

#[test]
fn rows_of_several_tensors_are_their_concatenation() {
    let source = source(&LINEAR1);
    let names = LINEAR1.map(|(name, ..)| name);
    let fused = Recipe::Rows(Rows::of_all(names.map(|name| source.stored(name))).unwrap());
    assert_eq!(*fused.spec(), Spec::new(DType::BF16, [9, 5]));
    assert_eq!(whole(&fused), names.map(|name| source.file.read(name).unwrap()).concat());
    assert_cuts_agree(&fused, 0..=90);
    assert!(fused.read_at(0, &mut [0; 91]).is_err());
}

#[test]
fn swapped_halves_are_two_ranges_of_rows() {
    let source = source(&[("norm_out.weight", DType::F32, &[6, 2]), ("norm_out.bias", DType::F32, &[6])]);
    for (name, row) in [("norm_out.weight", 8), ("norm_out.bias", 4)] {
        let halves = [(source.stored(name), 3..6), (source.stored(name), 0..3)];
        let swapped = Recipe::Rows(Rows::new(halves).unwrap());
        let stored = source.file.read(name).unwrap();
        assert_eq!(swapped.spec(), source.file.spec(name).unwrap());
        assert_eq!(whole(&swapped), [&stored[3 * row..], &stored[..3 * row]].concat());
        assert_cuts_agree(&swapped, 0..=6 * row);
    }
}

#[test]
fn rows_of_several_types_are_f32() {
    let source = source(&[("q", DType::F8E4M3, &[2, 3]), ("k", DType::F16, &[2, 3]), ("v", DType::F32, &[1, 3])]);
    let fused = Recipe::Rows(Rows::of_all(["q", "k", "v"].map(|name| source.stored(name))).unwrap());
    assert_eq!(*fused.spec(), Spec::new(DType::F32, [5, 3]));
    let values = ["q", "k", "v"].map(|name| source.values(name)).concat();
    assert_eq!(values[0], e4m3_to_f32(source.file.read("q").unwrap()[0]));
    assert_eq!(whole(&fused), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    assert_cuts_agree(&fused, (0..=60).step_by(4));
    assert!(fault(fused.read_at(2, &mut [0; 4])).contains("q: 4 bytes from 2 on are not whole elements of 4 bytes"));
}

#[test]
fn only_what_a_range_needs_is_read() {
    let [first, second] = [source(&LINEAR1[..1]), source(&LINEAR1[1..])];
    let fused = Recipe::Rows(Rows::of_all([first.stored("q.weight"), second.stored("k.weight")]).unwrap());
    let path = second.dir.path().join("stored.safetensors");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8).unwrap();
    let mut bytes = [0; 30];
    fused.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes[..], first.file.read("q.weight").unwrap());
    let text = fault(fused.read_at(1, &mut bytes));
    assert!(text.starts_with(&path.display().to_string()) && text.contains("something has cut it off"), "{text}");
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let source = source(&[("q", DType::F32, &[2, 3]), ("k", DType::F32, &[2, 4]), ("s", DType::F32, &[])]);
    let rows = |name: &str, rows: Range<usize>| Rows::new([(source.stored("q"), 0..2), (source.stored(name), rows)]);
    assert!(fault(rows("k", 0..2)).contains("k: its rows, of f32[2, 4], are not those of f32[2, 3]"));
    assert!(fault(rows("q", 1..3)).contains("q: it is f32[2, 3] and has no rows 1 to 3"));
    assert!(fault(rows("s", 0..0)).contains("s: it is f32[] and has no rows 0 to 0"));
    assert!(Rows::of_all([]).is_err());
}

/// Rows of the base and of a row's elements: several blocks, the last one cut.
const N: usize = 2 * BLOCK + 7;
const WIDTH: usize = 19;

fn adapted() -> Source {
    source(&[
        ("base", DType::BF16, &[N, WIDTH]),
        ("a.down", DType::BF16, &[4, WIDTH]),
        ("a.up", DType::F32, &[N, 4]),
        ("b.down", DType::F16, &[1, WIDTH]),
        ("b.up", DType::BF16, &[BLOCK + 3, 1]),
    ])
}

fn change(rows: Range<usize>, product: Product, scale: f32) -> Change {
    Change { rows, product, scale, strength: 1.0, magnitudes: None }
}

/// The factors of a plain LoRA.
fn factors(change: &mut Change) -> &mut Pair {
    let Product::LowRank(pair) = &mut change.product else { panic!("no plain LoRA") };
    pair
}

/// One adapter on all rows, one on some.
fn pairs(source: &Source) -> Vec<Change> {
    let pair = |name: &str, rows: Range<usize>, scale: f32| {
        let [up, down] = ["up", "down"].map(|factor| source.stored(&format!("{name}.{factor}")));
        change(rows, Product::LowRank(Pair { up, down }), scale)
    };
    vec![pair("a", 0..N, 0.5), pair("b", 11..11 + BLOCK + 3, -1.25)]
}

/// The sum in f64.
fn expected(source: &Source) -> Vec<f64> {
    let mut sums: Vec<f64> = source.values("base").into_iter().map(f64::from).collect();
    for (name, first, rank, scale) in [("a", 0, 4, 0.5), ("b", 11, 1, -1.25)] {
        let [down, up] = ["down", "up"].map(|factor| source.values(&format!("{name}.{factor}")));
        for (row, up) in up.chunks_exact(rank).enumerate() {
            for col in 0..WIDTH {
                let product: f64 = (0..rank).map(|r| up[r] as f64 * down[r * WIDTH + col] as f64).sum();
                sums[(first + row) * WIDTH + col] += scale * product;
            }
        }
    }
    sums
}

#[test]
fn lora_products_are_added_in_f32_and_rounded_once() {
    let source = adapted();
    let sum = |dtype| Recipe::PlusLora(PlusLora::new(source.stored("base"), pairs(&source), dtype).unwrap());
    let expected = expected(&source);
    let mut unrounded = vec![0.0; expected.len()];
    decode_f32(DType::F32, &whole(&sum(DType::F32)), &mut unrounded);
    for (i, (&got, &want)) in unrounded.iter().zip(&expected).enumerate() {
        assert!((got as f64 - want).abs() <= 1e-6, "element {i} is {got}, not {want}");
    }
    assert!(unrounded.iter().zip(source.values("base")).filter(|(sum, base)| **sum != *base).count() > N * WIDTH / 2);
    let once: Vec<u8> = unrounded.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    assert!(whole(&sum(DType::BF16)) == once, "in bf16 it is the same sum, rounded");
}

#[test]
fn lora_sums_of_fused_rows_are_those_of_their_parts() {
    let source = adapted();
    let fused = Rows::new([(source.stored("base"), 0..N), (source.stored("base"), 0..N)]).unwrap();
    // The adapter of the second part alone, its halves swapped as those of `norm_out` are.
    let up = Rows::new([(source.stored("a.up"), N / 2..N), (source.stored("a.up"), 0..N / 2)]).unwrap();
    let product = Product::LowRank(Pair { up: Recipe::Rows(up), down: source.stored("a.down") });
    let pair = change(N..2 * N, product, 2.0);
    let alone = Change { rows: 0..N, ..pair.clone() };
    let sum = Recipe::PlusLora(PlusLora::new(Recipe::Rows(fused), vec![pair], DType::BF16).unwrap());
    let part = Recipe::PlusLora(PlusLora::new(source.stored("base"), vec![alone], DType::BF16).unwrap());
    assert!(whole(&sum) == [source.file.read("base").unwrap(), whole(&part)].concat());
}

#[test]
fn pairs_that_do_not_fit_are_refused() {
    let source = adapted();
    let with = |change: fn(&mut Change)| {
        let mut pair = pairs(&source).remove(1);
        change(&mut pair);
        fault(PlusLora::new(source.stored("base"), vec![pair], DType::BF16))
    };
    let text = with(|pair| pair.rows.end += 1);
    assert!(text.contains("b.down: the factors [1, 19] and [67, 1] do not make rows 11 to 79 of [135, 19]"), "{text}");
    assert!(with(|pair| pair.rows = N..N + BLOCK + 3).contains("do not make"));
    assert!(
        with(|change| {
            let pair = factors(change);
            std::mem::swap(&mut pair.down, &mut pair.up);
        })
        .contains("do not make")
    );
    let text = fault(PlusLora::new(source.stored("base"), vec![], DType::U8));
    assert!(text.contains("base: it is to become u8"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]
    #[test]
    fn lora_sums_are_the_same_however_they_are_cut(mut cuts in prop::collection::vec(0..=N * WIDTH, 1..6)) {
        let source = adapted();
        let sum = PlusLora::new(source.stored("base"), pairs(&source), DType::BF16).unwrap();
        cuts.sort_unstable();
        assert_cuts_agree(&Recipe::PlusLora(sum), cuts.into_iter().map(|element| element * 2));
    }
}

/// Rows 5.. of `base` with relatives of LoRA: factors of LoHa and LoKr, and lengths of rows and columns.
fn relatives() -> (Source, Vec<(&'static str, Change)>) {
    const ROWS: usize = 2 * BLOCK;
    const COLUMNS: usize = 6;
    let source = source(&[
        ("base", DType::BF16, &[ROWS + 9, COLUMNS]),
        ("up", DType::F32, &[ROWS, 3]),
        ("down", DType::F32, &[3, COLUMNS]),
        ("up2", DType::F32, &[ROWS, 2]),
        ("down2", DType::F32, &[2, COLUMNS]),
        ("left", DType::F32, &[4, 2]),
        ("right.up", DType::F32, &[ROWS / 4, 2]),
        ("right.down", DType::F32, &[2, COLUMNS / 2]),
        ("rows", DType::F32, &[ROWS, 1]),
        ("columns", DType::F32, &[1, COLUMNS]),
    ]);
    let of = |name: &str| source.stored(name);
    let pair = |up: &str, down: &str| Pair { up: of(up), down: of(down) };
    let with = |product: Product, lengths: Option<&str>| Change {
        magnitudes: lengths.map(|lengths| Magnitudes::new(of(lengths))),
        strength: 0.75,
        ..change(5..5 + ROWS, product, 1.5)
    };
    let low = || Product::LowRank(pair("up", "down"));
    let kronecker = || Product::Kronecker([Factor::Whole(of("left")), Factor::Pair(pair("right.up", "right.down"))]);
    let changes = vec![
        ("loha", with(Product::Hadamard([pair("up", "down"), pair("up2", "down2")]), None)),
        ("lokr", with(kronecker(), None)),
        ("dora of rows", with(low(), Some("rows"))),
        ("dora of columns", with(low(), Some("columns"))),
        ("lokr with dora", with(kronecker(), Some("columns"))),
    ];
    (source, changes)
}

/// What a change of [`relatives`] makes of the base, in f64.
fn expected_of(source: &Source, name: &str) -> Vec<f64> {
    let (rows, columns) = (2 * BLOCK, 6);
    let wide = |name: &str| source.values(name).into_iter().map(f64::from).collect::<Vec<f64>>();
    let product = |up: &str, down: &str, rank: usize, columns: usize| {
        let (up, down) = (wide(up), wide(down));
        let at = move |i: usize, j: usize| (0..rank).map(|k| up[i * rank + k] * down[k * columns + j]).sum::<f64>();
        Box::new(at) as Box<dyn Fn(usize, usize) -> f64>
    };
    let (low, second) = (product("up", "down", 3, columns), product("up2", "down2", 2, columns));
    let (left, right) = (wide("left"), product("right.up", "right.down", 2, columns / 2));
    let kron = |i: usize, j: usize| left[i / (rows / 4) * 2 + j / (columns / 2)] * right(i % (rows / 4), j % (columns / 2));
    let delta = |i: usize, j: usize| match name {
        "loha" => low(i, j) * second(i, j),
        "lokr" | "lokr with dora" => kron(i, j),
        _ => low(i, j),
    };
    let mut sums = wide("base");
    let changed: Vec<f64> =
        (0..rows * columns).map(|at| sums[5 * columns + at] + 1.5 * delta(at / columns, at % columns)).collect();
    let (of_rows, of_columns) = (wide("rows"), wide("columns"));
    let length = |cells: &mut dyn Iterator<Item = usize>| cells.map(|at| changed[at] * changed[at]).sum::<f64>().sqrt();
    for at in 0..rows * columns {
        let (i, j) = (at / columns, at % columns);
        let target = match name {
            "dora of rows" => of_rows[i] / length(&mut (i * columns..(i + 1) * columns)) * changed[at],
            "dora of columns" | "lokr with dora" => {
                of_columns[j] / length(&mut (0..rows).map(|row| row * columns + j)) * changed[at]
            }
            _ => changed[at],
        };
        let base = sums[5 * columns + at];
        sums[5 * columns + at] += 0.75 * (target - base);
    }
    sums
}

#[test]
fn relatives_of_lora_are_what_their_papers_say_however_they_are_cut() {
    let (source, changes) = relatives();
    for (name, change) in changes {
        let sum = Recipe::PlusLora(PlusLora::new(source.stored("base"), vec![change], DType::F32).unwrap());
        let mut values = vec![0.0; sum.spec().shape.elements()];
        decode_f32(DType::F32, &whole(&sum), &mut values);
        for (at, (&got, want)) in values.iter().zip(expected_of(&source, name)).enumerate() {
            assert!((f64::from(got) - want).abs() <= 2e-6, "{name}: element {at} is {got}, not {want}");
        }
        assert_cuts_agree(
            &sum,
            [0, 1, 29, 30, 31, 6 * (5 + BLOCK), 6 * (5 + BLOCK) + 7, values.len() - 1].map(|at| 4 * at).into_iter(),
        );
    }
}

/// Edges of the weight that are no whole blocks, as in a released file: [300, 200] has 3 × 2 blocks.
#[test]
fn scales_are_of_rows_columns_or_blocks_however_they_are_cut() {
    let (rows, columns) = (300, 200);
    let grids = [[1, 1], [rows, 1], [1, columns], [3, 2], [rows, 2], [3, 1], [1, 2]];
    for (dtype, [down, across]) in [DType::F8E4M3, DType::F8E5M2].into_iter().flat_map(|dtype| grids.map(|grid| (dtype, grid))) {
        let source = source(&[("w", dtype, &[rows, columns]), ("s", DType::F32, &[down, across])]);
        let scales: Vec<f32> = (0..down * across).map(|i| 0.25 + i as f32).collect();
        overwrite_all(&source, "s", &scales);
        let [w, s] = ["w", "s"].map(|name| Stored::new(&source.file, name).unwrap());
        let scaled = Recipe::Scaled(Scaled::new(w, &s).unwrap());
        let block = |count: usize, all: usize| {
            if count == all {
                1
            } else if count == 1 {
                all
            } else {
                128
            }
        };
        let at = |i: usize| i / columns / block(down, rows) * across + i % columns / block(across, columns);
        let wanted: Vec<f32> = source.values("w").iter().enumerate().map(|(i, v)| v * scales[at(i)]).collect();
        assert!(whole(&scaled) == wanted.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(), "{dtype} {down} {across}");
        assert_cuts_agree(&scaled, [0, 1, 127, 128, 199, 200, 25_599, 25_600, 25_728, 60_000].map(|at| 4 * at).into_iter());
    }
    let source = source(&[("w", DType::F8E4M3, &[rows, columns]), ("s", DType::F32, &[2, 2])]);
    let [w, s] = ["w", "s"].map(|name| Stored::new(&source.file, name).unwrap());
    let text = fault(Scaled::new(w, &s));
    assert!(
        text.contains("s: it is f32[2, 2]; w, f8_e4m3[300, 200], can have one scale, one for each of its 300 rows, or [3, 2]"),
        "{text}"
    );
}

#[test]
fn integers_are_no_factors() {
    let header = r#"{"w":{"dtype":"I32","shape":[1,1],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("integers.safetensors");
    std::fs::write(path, bytes).unwrap();
    let integers = Recipe::Stored(Stored::new(&Arc::new(WeightFile::open(path).unwrap()), "w").unwrap());
    let source = source(&[("w", DType::F32, &[1, 1])]);
    let pair = change(0..1, Product::LowRank(Pair { down: source.stored("w"), up: integers.clone() }), 1.0);
    let text = fault(PlusLora::new(source.stored("w"), vec![pair], DType::F32));
    assert!(text.contains("w: it is i32[1, 1], where a LoRA product needs floats"), "{text}");
    let mixed = Rows::of_all([source.stored("w"), integers.clone()]);
    assert!(fault(mixed).contains("w: its rows, of i32[1, 1], are not those of f32[1, 1]"));
    assert_eq!(whole(&Recipe::Rows(Rows::of_all([integers.clone(), integers]).unwrap())), [0; 8]);
}

/// Overwrites bytes of a tensor, given as a share of it.
fn overwrite(source: &Source, name: &str, share: Range<f64>, with: &[u8]) {
    use std::io::{Seek, SeekFrom, Write};
    let (_, entry) = source.file.tensors().find(|(found, _)| *found == name).unwrap();
    let at = |share: f64| (share * entry.range.len() as f64) as usize / with.len() * with.len();
    let mut file = std::fs::File::options().write(true).open(source.file.path()).unwrap();
    file.seek(SeekFrom::Start((entry.range.start + at(share.start)) as u64)).unwrap();
    file.write_all(&with.repeat((at(share.end) - at(share.start)) / with.len())).unwrap();
}

/// Writes the values of a tensor of f32.
fn overwrite_all(source: &Source, name: &str, values: &[f32]) {
    let n = values.len() as f64;
    for (i, value) in values.iter().enumerate() {
        // From the middle of an element: what is cut off is less than one.
        overwrite(source, name, (i as f64 + 0.5) / n..(i as f64 + 1.5) / n, &value.to_le_bytes());
    }
}

/// Elements of several parts.
const MANY: usize = 3 * PART / 2 / 64;

#[test]
fn a_matrix_of_zeros_is_refused_by_name() {
    let source = source(&[("m", DType::BF16, &[MANY, 64]), ("n", DType::F32, &[2, 2, 1, 1]), ("v", DType::F32, &[64])]);
    let stored = |name: &str| Stored::new(&source.file, name).unwrap();
    for name in ["m", "n", "v"] {
        overwrite(&source, name, 0.0..1.0, &[0]);
    }
    for (name, spec) in [("m", format!("bf16[{MANY}, 64]")), ("n", "f32[2, 2, 1, 1]".into())] {
        let text = fault(Recipe::Stored(stored(name).not_zero()).read_at(0, &mut [0; 8]));
        assert!(text.contains(&format!("stored.safetensors: the tensor {name}, {spec}, has only zeros")), "{text}");
        assert!(text.ends_with("fetch the file again"), "{text}");
        assert_eq!(whole(&Recipe::Stored(stored(name)))[..4], [0; 4], "factors of a LoRA may be zero");
    }
    assert_eq!(whole(&Recipe::Stored(stored("v").not_zero())), [0; 256]);
    // Minus zero is zero as well.
    overwrite(&source, "n", 0.0..1.0, &[0, 0, 0, 0x80]);
    assert!(fault(Recipe::Stored(stored("n").not_zero()).read_at(12, &mut [0; 4])).contains("only zeros"));
}

#[test]
fn a_part_of_zeros_is_no_fault() {
    let source = source(&[("m", DType::BF16, &[MANY, 64])]);
    for zeros in [0.0..0.9, 0.1..1.0] {
        overwrite(&source, "m", 0.0..1.0, &[1, 0x3f]);
        overwrite(&source, "m", zeros, &[0]);
        let recipe = Recipe::Stored(Stored::new(&source.file, "m").unwrap().not_zero());
        let all = whole(&recipe);
        for cut in [1, 2, 1000, all.len() / 2, all.len() - 3] {
            let mut bytes = vec![7; all.len() - cut];
            recipe.read_at(cut, &mut bytes).unwrap();
            assert!(bytes == all[cut..], "from byte {cut} on");
            recipe.read_at(0, &mut bytes).unwrap();
            assert!(bytes == all[..all.len() - cut], "up to byte {cut} from the end");
        }
    }
}

#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    for (dtype, infinity, nan) in [
        (DType::BF16, &[0x80, 0x7f][..], &[0xc0, 0xff][..]),
        (DType::F16, &[0, 0xfc], &[1, 0x7c]),
        (DType::F32, &[0, 0, 0x80, 0x7f], &[0, 0, 0xc0, 0x7f]),
        (DType::F8E4M3, &[0x7f], &[0xff]),
        (DType::F8E5M2, &[0x7c], &[0xfd]),
    ] {
        for wrong in [infinity, nan] {
            let source = source(&[("m", dtype, &[MANY, 64]), ("v", dtype, &[200])]);
            for name in ["m", "v"] {
                let recipe = source.stored(name);
                whole(&recipe);
                let n = recipe.spec().shape.elements() as f64;
                overwrite(&source, name, (n - 1.0) / n..1.0, wrong);
                let text = fault(recipe.read_at(0, &mut vec![0; recipe.spec().bytes()]));
                assert!(text.contains(&format!("the tensor {name}, {dtype}[")) && text.contains("not finite"), "{text}");
                recipe.read_at(0, &mut vec![0; recipe.spec().bytes() - wrong.len()]).unwrap();
            }
        }
    }
    let sum = adapted();
    overwrite(&sum, "b.up", 0.0..0.1, &[0x80, 0x7f]);
    let recipe = Recipe::PlusLora(PlusLora::new(sum.stored("base"), pairs(&sum), DType::BF16).unwrap());
    assert!(fault(recipe.read_at(0, &mut vec![0; recipe.spec().bytes()])).contains("the tensor b.up"));
}
