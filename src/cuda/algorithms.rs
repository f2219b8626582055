//! Where cuBLASLt's favourite is not the fastest of its suggestions: measured by `benches/products.rs`, which prints such lines; what
//! it measured is in `benches/results/*-products-*.txt`.
//!
//! A preference names an algorithm by its configuration, and counts only where the library suggests it for the product. So it
//! depends on the device's model, the library's version and the product alone, and where the table ends the favourite computes.

use super::launch::Gemm;
use crate::tensor::DType;

/// An algorithm in cuBLASLt's numbers: id, tile, stages, parts of k, how they are added up, swizzle, option, inner shape, cluster.
pub type Configuration = [u32; 9];

/// What is preferred on a device's model with a version of the library.
struct Preferences {
    device: &'static str,
    /// Major and minor: what `cublasLtGetVersion` gives, 130100 for 13.1.0, without its last two digits.
    version: usize,
    /// Columns and depth of a product of bf16 operands, and the configurations that go before the favourite, the best first.
    products: &'static [((usize, usize), &'static [Configuration])],
}

const PREFERENCES: &[Preferences] = &[Preferences {
    device: "NVIDIA H100 80GB HBM3",
    version: 1301,
    products: &[
        ((3072, 3072), &[[66, 24, 35, 1, 0, 0, 7, 0, 5]]),
        ((3072, 12288), &[[66, 24, 35, 1, 0, 0, 7, 0, 5], [66, 457, 35, 1, 0, 0, 3, 0, 5]]),
        ((3072, 15360), &[[66, 465, 35, 1, 0, 0, 5, 0, 3], [66, 497, 35, 1, 0, 0, 7, 0, 5]]),
        ((3584, 18944), &[[66, 184, 35, 1, 0, 0, 0, 0, 3]]),
        ((9216, 3072), &[[66, 24, 35, 1, 0, 0, 7, 0, 5], [66, 501, 35, 1, 0, 0, 5, 0, 3]]),
        ((12288, 3072), &[[66, 419, 35, 1, 0, 0, 5, 0, 3], [66, 24, 35, 1, 0, 0, 7, 0, 5]]),
    ],
}];

/// The number of the suggestion that computes a product.
pub(super) fn choose(device: &str, version: usize, gemm: &Gemm, suggested: &[Configuration]) -> usize {
    let here = PREFERENCES.iter().filter(|p| p.device == device && p.version == version / 100 && gemm.x.dtype == DType::BF16);
    let products = here.flat_map(|preferences| preferences.products).filter(|(shape, _)| *shape == (gemm.n, gemm.k));
    let preferred = products.flat_map(|(_, preferred)| *preferred);
    preferred.filter_map(|wanted| suggested.iter().position(|found| found == wanted)).next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::cuda::Matrix;

    const H100: &str = "NVIDIA H100 80GB HBM3";

    fn product(n: usize, k: usize, dtype: DType) -> Gemm {
        let matrix = Matrix { address: 0, stride: k, dtype };
        Gemm { m: 4096, n, k, x: matrix, w: matrix, bias: None, y: matrix, gelu: false, workspace: 0 }
    }

    #[test]
    fn what_is_preferred_goes_before_the_favourite_where_it_is_suggested() {
        let ((n, k), preferred) = PREFERENCES[0].products.iter().find(|(_, preferred)| preferred.len() > 1).unwrap();
        let (gemm, [first, second, ..]) = (product(*n, *k, DType::BF16), preferred) else { panic!("two at least") };
        let favourite = [66, 0, 0, 1, 0, 0, 0, 0, 0];
        let chosen = |suggested: &[Configuration]| choose(H100, 130_100, &gemm, suggested);
        assert_eq!(chosen(&[favourite, *second, *first]), 2);
        assert_eq!(chosen(&[favourite, *second]), 1);
        assert_eq!(chosen(&[*first, *second]), 0);
        assert_eq!(chosen(&[favourite]), 0);
        assert_eq!(choose(H100, 130_101, &gemm, &[favourite, *first]), 1, "a patch of the same version");
        for (device, version, gemm) in [
            ("NVIDIA H200", 130_100, gemm),
            ("NVIDIA H100 PCIe", 130_100, gemm),
            (H100, 120_900, gemm),
            (H100, 130_002, gemm),
            (H100, 130_200, gemm),
            (H100, 130_100, product(*n + 8, *k, DType::BF16)),
            (H100, 130_100, product(*n, *k, DType::F32)),
        ] {
            assert_eq!(choose(device, version, &gemm, &[favourite, *second, *first]), 0, "{device} {version} {gemm}");
        }
    }

    /// What `benches/products.rs` printed.
    const MEASURED: &[&str] = &[
        include_str!("../../benches/results/2026-11-26-h100-products-512.txt"),
        include_str!("../../benches/results/2026-11-26-h100-products-1024.txt"),
    ];

    /// A product's suggestions, each with the microseconds of its rounds.
    struct Measured {
        device: &'static str,
        version: usize,
        gemm: Gemm,
        tried: Vec<(Configuration, Vec<f64>)>,
    }

    fn measured() -> Vec<Measured> {
        let mut all: Vec<Measured> = vec![];
        for text in MEASURED {
            let (device, version) = text.lines().next().unwrap().split_once(", cuBLASLt ").unwrap();
            for line in text.lines() {
                if let Some((configuration, times)) = line.strip_suffix(" µs").and_then(|line| line.split_once(':')) {
                    let numbers = |text: &str| text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<f64>>();
                    let found =
                        numbers(configuration.trim_start_matches('*')).iter().map(|number| *number as u32).collect::<Vec<_>>();
                    all.last_mut().unwrap().tried.push((found.try_into().unwrap(), numbers(times)));
                } else if let Some((_, product)) = line.split_once(" x ") {
                    let (extents, operands) = product.split_once(' ').unwrap();
                    let extents: Vec<usize> = extents.split('x').map(|n| n.parse().unwrap()).collect();
                    let dtype = if operands.starts_with("bf16/") { DType::BF16 } else { DType::F32 };
                    let (gemm, version) = (self::product(extents[1], extents[2], dtype), version.parse().unwrap());
                    all.push(Measured { device, version, gemm, tried: vec![] });
                }
            }
        }
        all
    }

    #[test]
    fn what_is_chosen_was_measured_as_no_slower_and_each_preference_as_faster_somewhere() {
        let mut gains: HashMap<((usize, usize), Configuration), f64> = HashMap::new();
        for Measured { device, version, gemm, tried } in measured() {
            let suggested: Vec<Configuration> = tried.iter().map(|(configuration, _)| *configuration).collect();
            let chosen = choose(device, version, &gemm, &suggested);
            let slower = tried[chosen].1.iter().zip(&tried[0].1).map(|(chosen, favourite)| chosen / favourite);
            let most = slower.fold(0.0, f64::max);
            assert!(most <= 1.005, "{gemm}: {:?} takes {most} of the favourite's time", suggested[chosen]);
            let gain = gains.entry(((gemm.n, gemm.k), suggested[chosen])).or_default();
            *gain = gain.max(1.0 - most);
        }
        for Preferences { products, .. } in PREFERENCES {
            let all = products.iter().flat_map(|(shape, preferred)| preferred.iter().map(|wanted| (*shape, *wanted)));
            for preference in all {
                let gain = gains.get(&preference).copied().unwrap_or_default();
                assert!(gain >= 0.01, "{preference:?} gains {gain} at most");
            }
        }
    }

    #[test]
    fn every_preference_counts() {
        for Preferences { products, .. } in PREFERENCES {
            let shapes: HashSet<_> = products.iter().map(|(shape, _)| shape).collect();
            assert!(shapes.len() == products.len() && products.is_sorted());
            for (shape, preferred) in *products {
                let distinct: HashSet<_> = preferred.iter().collect();
                assert!(!preferred.is_empty() && distinct.len() == preferred.len(), "{shape:?}");
                assert!(preferred.iter().all(|configuration| configuration[3] == 1), "{shape:?}: sums in one order");
            }
        }
    }
}
