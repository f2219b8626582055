//! What the laboratory prints.

use std::fmt::Write;

use serde_json::{Value, json};

use super::bench::{Measured, MeasuredCase};
use crate::commands::measure::roofline::{Rates, Sum};

/// What was measured, and on what.
pub(super) struct Table {
    pub(super) device: String,
    pub(super) measured: Measured,
}

impl Table {
    /// A line for each case. Rates and the share of the roofline are those of the cold run: the roofline's bytes come from
    /// memory.
    pub(super) fn text(&self) -> String {
        let Measured { op, cases, rates } = &self.measured;
        let Rates { copy_gb_per_s, bf16_tflops, tf32_tflops, .. } = rates;
        let mut text = format!(
            "{op} on {}\nceilings: copy {copy_gb_per_s:.0} GB/s read and written, products {bf16_tflops:.0} TFLOP/s in bf16, \
             {tf32_tflops:.0} in TF32\n\n{:>4}{:>9}{:>9} {:>11}{:>11}{:>9}{:>8}{:>10}  operands: kernel\n",
            self.device, "case", "NMSE", "bound", "µs warm", "µs cold", "TFLOP/s", "GB/s", "roofline"
        );
        for case in cases {
            let sum = Sum::of([&case.cold], rates);
            let _ = writeln!(
                text,
                "{:>4}{:>9.1e}{:>9.1e}{}{:>11.2}{:>11.2}{:>9.1}{:>8.0}{:>9.1}%  {}: {}",
                case.number,
                case.nmse,
                case.bound,
                if case.is_near() { ' ' } else { '!' },
                1e3 * case.warm.ms,
                1e3 * case.cold.ms,
                sum.tflops(),
                sum.gb_per_s(),
                100.0 * sum.of_roofline(),
                case.text,
                case.cold.kernel
            );
        }
        text
    }

    /// As one object.
    pub(super) fn json(&self) -> Value {
        let Measured { op, cases, rates } = &self.measured;
        let Rates { copy_gb_per_s, bf16_tflops, tf32_tflops, .. } = rates;
        let case = |case: &MeasuredCase| {
            let sum = Sum::of([&case.cold], rates);
            json!({
                "case": case.number, "text": case.text, "kernel": case.cold.kernel, "nmse": case.nmse, "bound": case.bound,
                "near": case.is_near(), "warm_us": 1e3 * case.warm.ms, "cold_us": 1e3 * case.cold.ms, "tflops": sum.tflops(),
                "gb_per_s": sum.gb_per_s(), "roofline": sum.of_roofline(),
            })
        };
        json!({
            "op": op, "device": self.device,
            "ceilings": {"copy_gb_per_s": copy_gb_per_s, "bf16_tflops": bf16_tflops, "tf32_tflops": tf32_tflops},
            "cases": cases.iter().map(case).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::measure::roofline::tests::{rates, timed};

    fn table() -> Table {
        let run = |ms| timed("cold", "add", 1_000, 2_000_000_000, ms);
        let case = |number, nmse| MeasuredCase {
            number,
            text: "bf16[4, 4] -> bf16[4, 4]".into(),
            nmse,
            bound: 5.2e-6,
            warm: run(3.0),
            cold: run(4.0),
        };
        let cases = vec![case(1, 1.3e-6), case(2, f64::NAN)];
        let rates = rates(&[run(4.0)]);
        Table { device: "cuda:0 Made-up".into(), measured: Measured { op: "add", cases, rates } }
    }

    #[test]
    fn a_line_has_errors_times_and_rates() {
        let text = table().text();
        let line =
            "   1   1.3e-6   5.2e-6     3000.00    4000.00      0.0     500     50.0%  bf16[4, 4] -> bf16[4, 4]: add VECTOR=8";
        assert!(text.contains(line) && text.starts_with("add on cuda:0 Made-up\n"), "{text}");
        assert!(text.contains("   2      NaN   5.2e-6!"), "{text}");
        assert_eq!(table().measured.far(), 1);
    }

    #[test]
    fn json_has_the_same_numbers() {
        let json = table().json();
        let case = &json["cases"][0];
        assert_eq!((&case["cold_us"], &case["roofline"], &case["near"]), (&json!(4000.0), &json!(0.5), &json!(true)));
        assert_eq!((&json["cases"][1]["near"], &json["op"]), (&json!(false), &json!("add")));
    }
}
