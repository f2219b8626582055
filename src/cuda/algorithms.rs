//! Where cuBLASLt's favourite is not the fastest of its suggestions: measured by `benches/products.rs`, which prints such lines; what
//! it measured is in `benches/results/*-products-*.txt`.
//!
//! A preference is one algorithm before another, each named by its configuration. It counts for the rows that fill as many tiles
//! as rows that were measured, where the one is the favourite and the other is suggested too. So it depends on the device's
//! model, the library's version and the product alone, and where the table ends the favourite computes: which of two is faster
//! changes from one size to the next. A prompt adds its tokens to the rows of its size; up to 102 of them (86 in the text encoder)
//! stay within the tiles of 1024x1024 and 512x512.

use super::launch::Gemm;
use crate::tensor::DType;

/// An algorithm in cuBLASLt's numbers: id, tile, stages, parts of k, how they are added up, swizzle, option, inner shape, cluster.
pub type Configuration = [u32; 9];

/// Rows in tiles, columns and depth of a product of bf16 operands; the favourite; and what computes it instead.
pub type Preference = ([usize; 3], Configuration, Configuration);

/// What is preferred on a device's model with a version of the library.
struct Preferences {
    device: &'static str,
    /// Major and minor: what `cublasLtGetVersion` gives, 130100 for 13.1.0, without its last two digits.
    version: usize,
    products: &'static [Preference],
}

const PREFERENCES: &[Preferences] = &[Preferences {
    device: "NVIDIA H100 80GB HBM3",
    version: 1301,
    products: &[
        ([5, 3584, 18944], [66, 21, 35, 1, 0, 0, 1, 0, 3], [66, 406, 35, 1, 0, 0, 3, 0, 7]),
        ([5, 9216, 3072], [66, 494, 35, 1, 0, 0, 5, 0, 3], [66, 20, 35, 1, 0, 0, 1, 0, 3]),
        ([6, 3072, 12288], [66, 405, 35, 1, 0, 0, 1, 0, 4], [66, 457, 35, 1, 0, 0, 3, 0, 5]),
        ([32, 3072, 3072], [66, 24, 35, 1, 0, 0, 7, 0, 5], [66, 20, 35, 1, 0, 0, 1, 0, 3]),
        ([32, 9216, 3072], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 24, 35, 1, 0, 0, 7, 0, 5]),
        ([32, 12288, 3072], [66, 501, 35, 1, 0, 0, 5, 0, 3], [66, 419, 35, 1, 0, 0, 5, 0, 3]),
        ([38, 3072, 15360], [66, 501, 35, 1, 0, 0, 7, 0, 5], [66, 497, 35, 1, 0, 0, 7, 0, 5]),
        ([38, 12288, 3072], [66, 501, 35, 1, 0, 0, 7, 0, 5], [66, 24, 35, 1, 0, 0, 7, 0, 5]),
        ([72, 9216, 3072], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 24, 35, 1, 0, 0, 7, 0, 5]),
        ([72, 12288, 3072], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 495, 35, 1, 0, 0, 7, 0, 5]),
        ([127, 3072, 3072], [66, 501, 35, 1, 0, 0, 7, 0, 5], [66, 417, 35, 1, 0, 0, 5, 0, 3]),
        ([127, 3072, 12288], [66, 501, 35, 1, 0, 0, 7, 0, 5], [66, 417, 35, 1, 0, 0, 5, 0, 3]),
        ([127, 9216, 3072], [66, 470, 35, 1, 0, 0, 5, 0, 3], [66, 24, 35, 1, 0, 0, 7, 0, 5]),
        ([128, 3072, 3072], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 29, 35, 1, 0, 0, 5, 0, 3]),
        ([128, 3072, 12288], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 29, 35, 1, 0, 0, 5, 0, 3]),
        ([128, 9216, 3072], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 24, 35, 1, 0, 0, 7, 0, 5]),
        ([128, 12288, 3072], [66, 209, 35, 1, 0, 0, 4, 0, 3], [66, 24, 35, 1, 0, 0, 7, 0, 5]),
        ([132, 12288, 3072], [66, 470, 35, 1, 0, 0, 5, 0, 3], [66, 421, 35, 1, 0, 0, 5, 0, 3]),
        ([134, 3072, 15360], [66, 209, 35, 1, 0, 0, 6, 0, 5], [66, 465, 35, 1, 0, 0, 5, 0, 3]),
        ([134, 9216, 3072], [66, 209, 35, 1, 0, 0, 6, 0, 5], [66, 501, 35, 1, 0, 0, 5, 0, 3]),
        ([134, 12288, 3072], [66, 209, 35, 1, 0, 0, 6, 0, 5], [66, 419, 35, 1, 0, 0, 5, 0, 3]),
    ],
}];

/// Rows of a tile; those of the algorithms' own tiles are 64 to 272.
const TILE: usize = 128;

/// What a preference asks of a product's rows, columns and depth.
pub(super) fn shape([m, n, k]: [usize; 3]) -> [usize; 3] {
    [m.div_ceil(TILE), n, k]
}

/// The number of the suggestion that computes a product; there is one at least.
pub(super) fn choose(device: &str, version: usize, gemm: &Gemm, suggested: &[Configuration]) -> usize {
    let here = PREFERENCES.iter().filter(|p| p.device == device && p.version == version / 100 && gemm.x.dtype == DType::BF16);
    let asked = (shape([gemm.m, gemm.n, gemm.k]), suggested[0]);
    let preferred = here.flat_map(|here| here.products).find(|(shape, favourite, _)| (*shape, *favourite) == asked);
    preferred.and_then(|(.., instead)| suggested.iter().position(|found| found == instead)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::measured::{Measured, preferences};
    use crate::cuda::{Matrix, Trial};

    const H100: &str = "NVIDIA H100 80GB HBM3";

    fn product([m, n, k]: [usize; 3], dtype: DType) -> Gemm {
        let matrix = Matrix { address: 0, stride: k, dtype };
        Gemm { m, n, k, x: matrix, w: matrix, bias: None, y: matrix, gelu: false, workspace: 0 }
    }

    #[test]
    fn what_is_preferred_goes_before_the_favourite_where_it_is_suggested() {
        for &([tiles, n, k], favourite, instead) in PREFERENCES[0].products {
            let gemm = |rows| product([rows, n, k], DType::BF16);
            let other = [66, 0, 0, 1, 0, 0, 0, 0, 0];
            let chosen = |rows, suggested: &[Configuration]| choose(H100, 130_100, &gemm(rows), suggested);
            for rows in [tiles * TILE, (tiles - 1) * TILE + 1] {
                assert_eq!(chosen(rows, &[favourite, other, instead]), 2);
                assert_eq!(chosen(rows, &[favourite, other]), 0);
                assert_eq!(chosen(rows, &[other, favourite, instead]), 0);
                assert_eq!(choose(H100, 130_101, &gemm(rows), &[favourite, instead]), 1, "a patch of the same version");
            }
            let rows = tiles * TILE;
            for (device, version, gemm) in [
                ("NVIDIA H200", 130_100, gemm(rows)),
                ("NVIDIA H100 PCIe", 130_100, gemm(rows)),
                (H100, 120_900, gemm(rows)),
                (H100, 130_002, gemm(rows)),
                (H100, 130_200, gemm(rows)),
                (H100, 130_100, product([rows, n + 8, k], DType::BF16)),
                (H100, 130_100, product([rows, n, k + 8], DType::BF16)),
                (H100, 130_100, product([rows, n, k], DType::F32)),
                (H100, 130_100, product([40 * TILE, n, k], DType::BF16)),
            ] {
                assert_eq!(choose(device, version, &gemm, &[favourite, instead]), 0, "{device} {version} {gemm}");
            }
        }
    }

    /// What `benches/products.rs` printed, with the share of what is to be gained at these sizes that the table gains at least.
    const MEASURED: [(&str, f64); 3] = [
        (include_str!("../../benches/results/2026-11-26-h100-products-1024.txt"), 0.95),
        (include_str!("../../benches/results/2026-11-26-h100-products-512.txt"), 0.75),
        (include_str!("../../benches/results/2026-11-26-h100-products-other.txt"), 0.6),
    ];

    fn chosen(measured: &Measured) -> &Trial {
        let suggested: Vec<Configuration> = measured.trials.iter().map(|trial| trial.configuration).collect();
        let dtype = if measured.operands.starts_with("bf16/") { DType::BF16 } else { DType::F32 };
        let gemm = product(measured.extents, dtype);
        &measured.trials[choose(&measured.device, measured.version, &gemm, &suggested)]
    }

    #[test]
    fn nothing_that_is_chosen_was_slower_where_it_was_measured() {
        for measured in MEASURED.iter().flat_map(|(text, _)| Measured::read(text)) {
            let (chosen, favourite) = (chosen(&measured), &measured.trials[0]);
            let sum = |trial: &Trial| trial.milliseconds.iter().sum::<f64>();
            assert!(sum(chosen) <= sum(favourite), "{measured}");
            let noise = chosen.milliseconds.iter().zip(&favourite.milliseconds).all(|(ms, favourite)| *ms <= 1.005 * favourite);
            assert!(noise, "{measured}");
        }
    }

    #[test]
    fn most_of_what_is_to_be_gained_is() {
        for (text, share) in MEASURED {
            let (mut gained, mut gainable) = (0.0, 0.0);
            for measured in Measured::read(text) {
                let each = measured.trials.iter().map(|trial| measured.milliseconds(trial));
                let favourite = measured.milliseconds(&measured.trials[0]);
                gained += favourite - measured.milliseconds(chosen(&measured));
                gainable += favourite - each.fold(f64::INFINITY, f64::min);
            }
            assert!(gained >= share * gainable, "{gained} of {gainable} ms");
        }
    }

    #[test]
    fn the_table_is_what_the_measurements_ask_for() {
        let measured: Vec<Measured> = MEASURED.iter().flat_map(|(text, _)| Measured::read(text)).collect();
        let tables: Vec<_> = preferences(&measured).into_iter().collect();
        let table = |p: &Preferences| ((p.device.to_string(), p.version), p.products.to_vec());
        assert_eq!(PREFERENCES.iter().map(table).collect::<Vec<_>>(), tables);
    }
}
